"""The byte spans of the records of a JSON list or JSONL file: 16 bytes of memory a record, whatever the file's size."""

import hashlib
from collections.abc import Iterator

import numpy as np

from lumina_jax.data.sources import files
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.errors import InputError

QUOTE, ESCAPE, LINE_END = ord('"'), ord("\\"), ord("\n")
DEPTH_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1, ord(","): 0}
"""By how much brackets and commas change the nesting depth; all other letters are OTHER."""
OTHER = 2
STEPS = np.array([DEPTH_STEPS.get(letter, OTHER) for letter in range(256)], np.int8)
BLANK = b" \t\r\n"
IS_LETTER = np.array([letter not in BLANK for letter in range(256)])
HEAD = 1 << 12
"""Bytes in which a list must begin."""


def begins_list(text: TextFile) -> bool:
    """Whether a file begins like a JSON list."""
    return text.read(0, HEAD).lstrip(BLANK).startswith(b"[")


def index_lines(text: TextFile, chunk: int = files.BLOCK) -> tuple[np.ndarray, str]:
    """The byte spans i64[n 2] of the n lines of a file that are not blank, and 16 hex digits of the file's SHA-256."""
    digest, ends, lettered, size, open_line = hashlib.sha256(), [], [], 0, False
    for block in text.blocks(digest.update, chunk):
        offsets, has_letter = lines_of(block)
        has_letter[0] |= open_line
        ends.append(size + offsets)
        lettered.append(has_letter[:-1])
        open_line, size = has_letter[-1], size + len(block)
    stops = np.concatenate([*ends, [size]]).astype(np.int64)
    starts = np.concatenate([[0], stops[:-1] + 1])
    return np.stack([starts, stops], 1)[np.concatenate([*lettered, [open_line]])], digest.hexdigest()[:16]


def lines_of(block: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The offsets i64[n] of the line ends in a block, and for its n + 1 lines whether they hold more than blanks, bool[n + 1]."""
    letters = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(letters == LINE_END)
    is_letter = np.append(IS_LETTER[letters], False)  # so that the line after the last end is never without a byte
    return ends, np.logical_or.reduceat(is_letter, np.append(0, ends + 1))


def index_list(text: TextFile, chunk: int = files.BLOCK) -> tuple[np.ndarray, str]:
    """The same of the values of a JSON list; InputError when the file holds anything but one complete list.

    Values are split at commas and brackets, not parsed: one that is no JSON fails when it is read.
    """
    digest, edges, openings, size, depth, in_text = hashlib.sha256(), [], 0, 0, 0, False
    for block in _unsplit(text.blocks(digest.update, chunk)):
        offsets, steps, in_text = _structure(np.frombuffer(block, np.uint8), in_text)
        depths = depth + np.cumsum(steps, dtype=np.int64)
        # The list's first bracket, the commas between its values, its last bracket.
        edges.append(size + offsets[np.where(steps < 0, depths == 0, depths == 1)])
        openings += int(((steps > 0) & (depths == 1)).sum())
        size, depth = size + len(block), int(depths[-1]) if len(depths) else depth
    edges = np.concatenate([np.zeros(0, np.int64), *edges])
    if openings != 1 or depth or in_text or text.read(int(edges[-1]), size).rstrip(BLANK) != b"]":
        raise InputError(f"{text.path} begins like a JSON list but is none: it is cut short, or goes on after its end")
    spans = np.stack([edges[:-1] + 1, edges[1:]], 1)
    if len(spans) == 1 and not text.read(*map(int, spans[0])).strip(BLANK):
        spans = spans[:0]
    return spans, digest.hexdigest()[:16]


def _structure(letters: np.ndarray, in_text: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """The offsets i64 of brackets and commas outside of strings, their STEPS, and whether a string is open at the end."""
    quotes, slashes = np.flatnonzero(letters == QUOTE), np.flatnonzero(letters == ESCAPE)
    if len(slashes):
        # In a run of backslashes each second one is escaped itself, so a run of odd length escapes the next letter.
        gaps = np.diff(slashes) > 1
        first, last = slashes[np.append(True, gaps)], slashes[np.append(gaps, True)]
        escaped = last[(last - first) % 2 == 0] + 1
        quotes = quotes[~np.isin(quotes, escaped, assume_unique=True)]
    offsets = np.flatnonzero(STEPS[letters] != OTHER)
    offsets = offsets[(np.searchsorted(quotes, offsets) + in_text) % 2 == 0]
    return offsets, STEPS[letters[offsets]], bool((len(quotes) + in_text) % 2)


def _unsplit(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that do not end with a backslash, so that no escape is split."""
    rest = b""
    for block in blocks:
        block = rest + block
        complete = block.rstrip(b"\\")
        rest = block[len(complete) :]
        if complete:
            yield complete
    if rest:
        yield rest

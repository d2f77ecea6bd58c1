"""Where the records of a file lie: places alone are held, sixteen bytes for each, however large the file."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lumina_jax.data.sources import files
from lumina_jax.errors import InputError

QUOTE, ESCAPE = ord('"'), ord("\\")
DEEPER = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1, ord(","): 0}
"""By how much the letters that structure JSON change the depth; all others are OTHER."""
OTHER = 2
STEPS = np.array([DEEPER.get(letter, OTHER) for letter in range(256)], np.int8)
BLANK = b" \t\r\n"
BOM = b"\xef\xbb\xbf"


def begins_list(place: str) -> bool:
    """Whether the first letter of a file is that of a JSON list."""
    return files.read(place, 0, 64).removeprefix(BOM).lstrip(BLANK).startswith(b"[")


def index_lines(place: str | Path, chunk: int = files.BLOCK) -> tuple[np.ndarray, str]:
    """The i64[n 2] byte spans of the n lines of a file that are not empty, and 16 hex digits of its content's SHA-256."""
    digest, ends, size = hashlib.sha256(), [], 0
    for block in files.blocks(str(place), chunk):
        digest.update(block)
        ends.append(size + np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")))
        size += len(block)
    stops = np.concatenate([*ends, [size]]).astype(np.int64)
    starts = np.concatenate([[0], stops[:-1] + 1])
    return np.stack([starts, stops], 1)[stops > starts], digest.hexdigest()[:16]


def index_list(place: str, chunk: int = files.BLOCK) -> tuple[np.ndarray, str]:
    """The same of the values of a JSON list; ValueError when the file holds anything but one whole list.

    Each value is found by its commas and brackets and not read: one that is no JSON fails when it is.
    """
    digest, edges, openings, size, depth, in_text = hashlib.sha256(), [], 0, 0, 0, False
    for block in _unsplit(files.blocks(place, chunk)):
        digest.update(block)
        at, steps, in_text = _structure(np.frombuffer(block, np.uint8), in_text)
        depths = depth + np.cumsum(steps, dtype=np.int64)
        # The list's first bracket, the commas between its values, its last bracket.
        edges.append(size + at[np.where(steps < 0, depths == 0, depths == 1)])
        openings += int(((steps > 0) & (depths == 1)).sum())
        size, depth = size + len(block), int(depths[-1]) if len(depths) else depth
    edges = np.concatenate([np.zeros(0, np.int64), *edges])
    if openings != 1 or depth or in_text or files.read(place, int(edges[-1])).rstrip(BLANK) != b"]":
        raise InputError(f"{place} begins like a JSON list but is none: it is cut short, or goes on behind its end")
    spans = np.stack([edges[:-1] + 1, edges[1:]], 1)
    if len(spans) == 1 and not files.read(place, *map(int, spans[0])).strip(BLANK):
        spans = spans[:0]
    return spans, digest.hexdigest()[:16]


def _structure(letters: np.ndarray, in_text: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """Where brackets and commas lie outside of texts (i64), their STEPS, and whether a text is open at the end."""
    quotes, slashes = np.flatnonzero(letters == QUOTE), np.flatnonzero(letters == ESCAPE)
    if len(slashes):
        # Of a run of backslashes each second one is escaped itself: an odd run escapes the letter behind it.
        gaps = np.diff(slashes) > 1
        first, last = slashes[np.append(True, gaps)], slashes[np.append(gaps, True)]
        escaped = last[(last - first) % 2 == 0] + 1
        quotes = quotes[~np.isin(quotes, escaped, assume_unique=True)]
    at = np.flatnonzero(STEPS[letters] != OTHER)
    at = at[(np.searchsorted(quotes, at) + in_text) % 2 == 0]
    return at, STEPS[letters[at]], bool((len(quotes) + in_text) % 2)


def _unsplit(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks none of which ends within a run of backslashes, or just behind one."""
    held = b""
    for block in blocks:
        block = held + block
        whole = block.rstrip(b"\\")
        held = block[len(whole) :]
        if whole:
            yield whole
    if held:
        yield held

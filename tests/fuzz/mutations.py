"""Damage for files: bytes, numbers, words of a format and whole parts are changed; checksums are repaired now and then."""

import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence

NUMBERS = (
    0,
    1,
    2,
    127,
    1023,
    4096,
    *(2**bits - less for bits in (3, 4, 8, 15, 16, 24, 31) for less in (0, 1)),
    2**32 - 1,
)
WIDTHS = ("b", "B", "H", "I", "Q")
LARGEST = 1 << 16
"""No input grows beyond so many bytes."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_TYPES = 13

Mutation = Callable[[random.Random, bytes, Sequence[bytes], Sequence[bytes]], bytes]
"""(rng, content, seeds, words) -> the content with one change."""


def mutated(rng: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One of ``seeds`` with one to five changes; ``words`` mean something in its format."""
    content = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        content = rng.choice(MUTATIONS)(rng, content, seeds, words)[:LARGEST]
    return repaired(content) if rng.random() < 0.8 else content


def repaired(content: bytes) -> bytes:
    """``content`` with right checksums, so that the damage behind them is reached, if it is a PNG file or tar."""
    if content.startswith(PNG_SIGNATURE):
        return _repaired_png(content)
    return _repaired_tar(content) if content[257:262] == b"ustar" else content


def _place(rng: random.Random, content: bytes) -> int:
    """An offset; headers are at the beginning, so that half of them lie there."""
    return rng.randrange(min(len(content), 64 if rng.random() < 0.5 else LARGEST) + 1)


def _span(rng: random.Random, content: bytes) -> tuple[int, int]:
    begin = _place(rng, content)
    return begin, min(begin + rng.choice((1, 2, 4, 8, 16, 64, 512)), len(content))


def flip(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[min(_place(rng, content), len(changed) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, content)
    filling = rng.randbytes(end - begin) if rng.random() < 0.5 else rng.choice((b"\0", b"\xff", b"0")) * (end - begin)
    return content[:begin] + filling + content[end:]


def set_number(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    width, order = rng.choice(WIDTHS), rng.choice("<>")
    size = struct.calcsize(width)
    number = (rng.choice(NUMBERS) + rng.choice((0, 0, 1, -1))) % (1 << 8 * size)
    begin = _place(rng, content)
    return content[:begin] + number.to_bytes(size, "little" if order == "<" else "big") + content[begin + size :]


def set_text_number(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    begin, _ = _span(rng, content)
    return content[:begin] + str(rng.choice(NUMBERS)).encode() + content[begin + rng.randrange(4) :]


def remove(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, content)
    return content[:begin] + content[end:]


def repeat(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    begin, end = _span(rng, content)
    return content[:end] + content[begin:end] * rng.choice((1, 2, 30, 1000)) + content[end:]


def cut(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    return content[: _place(rng, content)] if rng.random() < 0.7 else content[_place(rng, content) :]


def splice(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    other = rng.choice(seeds)
    return content[: _place(rng, content)] + other[_place(rng, other) :]


def insert_part(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    other, place = rng.choice(seeds), _place(rng, content)
    begin, end = _span(rng, other)
    return content[:place] + other[begin:end] + content[place:]


def insert_word(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    place = _place(rng, content)
    return content[:place] + rng.choice(words) * rng.choice((1, 1, 1, 2, 500)) + content[place:]


def replace_word(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Puts a word in the place of another that the content holds."""
    old = rng.choice(words)
    place = content.find(old, _place(rng, content))
    return content[:place] + rng.choice(words) + content[place + len(old) :] if place >= 0 else content


def change_part(rng: random.Random, content: bytes, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Changes the structure: moves, doubles or drops a chunk of PNG, a block of tar, a line; changes a tag of TIFF."""
    if content[:4] in (b"II*\0", b"MM\0*"):
        return _changed_tag(rng, content)
    if content.startswith(PNG_SIGNATURE):
        head, parts = PNG_SIGNATURE, _png_chunks(content)
    elif content[257:262] == b"ustar":
        head, parts = b"", [content[begin : begin + 512] for begin in range(0, len(content), 512)]
    else:
        head, parts = b"", content.splitlines(keepends=True)
    if not parts:
        return content
    part = parts.pop(rng.randrange(len(parts)))
    for _ in range(rng.randrange(3)):
        parts.insert(rng.randrange(len(parts) + 1), part)
    return head + b"".join(parts)


def _png_chunks(content: bytes) -> list[bytes]:
    chunks, place = [], len(PNG_SIGNATURE)
    while place < len(content):
        size = 12 + int.from_bytes(content[place : place + 4], "big")
        chunks.append(content[place : place + size])
        place += size
    return chunks


def _repaired_png(content: bytes) -> bytes:
    chunks = [
        chunk[:-4] + zlib.crc32(chunk[4:-4]).to_bytes(4, "big") if len(chunk) >= 12 else chunk
        for chunk in _png_chunks(content)
    ]
    return PNG_SIGNATURE + b"".join(chunks)


def _repaired_tar(content: bytes) -> bytes:
    changed = bytearray(content)
    for begin in range(0, len(content) - tarfile.BLOCKSIZE + 1, tarfile.BLOCKSIZE):
        header = changed[begin : begin + tarfile.BLOCKSIZE]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            changed[begin + 148 : begin + 156] = b"%06o\0 " % sum(header)
    return bytes(changed)


def _changed_tag(rng: random.Random, content: bytes) -> bytes:
    order = "<" if content[:2] == b"II" else ">"
    first = int.from_bytes(content[4:8], "little" if order == "<" else "big")
    count = int.from_bytes(content[first : first + 2], "little" if order == "<" else "big")
    place = first + 2 + 12 * rng.randrange(count or 1)
    if place + 12 > len(content):
        return content
    tag, kind, length, value = struct.unpack(f"{order}HHII", content[place : place + 12])
    changes = {
        "tag": (rng.choice((tag + 1, tag - 1, rng.randrange(65536))) % 65536, kind, length, value),
        "type": (tag, rng.randrange(TIFF_TYPES + 1), length, value),
        "count": (tag, kind, rng.choice(NUMBERS), value),
        "value": (tag, kind, length, (rng.choice(NUMBERS) << rng.choice((0, 16))) % 2**32),
    }
    return content[:place] + struct.pack(f"{order}HHII", *changes[rng.choice(list(changes))]) + content[place + 12 :]


MUTATIONS: tuple[Mutation, ...] = (
    *(flip, flip, set_bytes, set_number, set_number, set_text_number, remove, repeat, cut),
    *(splice, insert_part, insert_word, insert_word, replace_word, replace_word, change_part, change_part),
)

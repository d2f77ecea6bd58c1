"""Writers of PNG and TIFF files that Pillow does not write: few and many bits, key colours, colours scaled by alpha."""

import struct
import zlib
from collections.abc import Callable

import numpy as np

File = Callable[[np.ndarray, bytes, bytes, int], bytes]
"""Stored values, EXIF, colour profile, orientation -> the bytes of a file."""


def hand_png(depth: int, colour_type: int, key: bytes = b"") -> File:
    """Writes levels of ``depth`` bits, with tRNS where ``key`` is given."""

    def file(values: np.ndarray, exif: bytes, profile: bytes, orientation: int) -> bytes:
        rows = values.reshape(len(values), -1)
        if depth < 8:
            bits = np.unpackbits(rows.astype(np.uint8)[..., None], -1)[..., 8 - depth :]
            rows = np.packbits(bits.reshape(len(rows), -1), -1)
        rows = rows.astype(">u2" if depth == 16 else np.uint8)
        filtered = b"".join(b"\0" + row.tobytes() for row in rows)
        chunks = {"iCCP": b"profile\0\0" + zlib.compress(profile)} if profile else {}
        chunks |= {"tRNS": key} if key else {}
        return png(values.shape[1::-1], depth, colour_type, filtered, eXIf=exif.removeprefix(b"Exif\0\0"), **chunks)

    return file


def hand_tiff(photometric: int, bits: int, extra: int | None = None) -> File:
    """Writes one strip of levels of ``bits`` bits. ``extra`` says what the last sample is: 1, alpha by which colours are scaled."""

    def file(values: np.ndarray, exif: bytes, profile: bytes, orientation: int) -> bytes:
        (height, width), samples = values.shape[:2], values.reshape(*values.shape[:2], -1).shape[2]
        strip = values.tobytes()
        if bits == 12:
            spread = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(height, width, 2), -1)[..., 4:]
            strip = np.packbits(spread.reshape(height, -1), -1).tobytes()
        fields = {256: width, 257: height, 259: 1, 262: photometric, 274: orientation, 277: samples, 278: height}
        offset = 8 + 2 + 12 * (len(fields) + 3 + (extra is not None) + bool(profile)) + 4
        depths = struct.pack(f"<{samples}H", *[bits] * samples)
        entries = {tag: (3, 1, struct.pack("<HH", value, 0)) for tag, value in fields.items()}
        entries[258] = (3, samples, depths.ljust(4, b"\0") if samples < 3 else struct.pack("<I", offset))
        entries[273] = (4, 1, struct.pack("<I", offset + len(depths) + len(profile)))
        entries[279] = (4, 1, struct.pack("<I", len(strip)))
        if extra is not None:
            entries[338] = (3, 1, struct.pack("<HH", extra, 0))
        if profile:
            entries[34675] = (7, len(profile), struct.pack("<I", offset + len(depths)))
        table = b"".join(struct.pack("<HHI", tag, *entries[tag][:2]) + entries[tag][2] for tag in sorted(entries))
        return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + depths + profile + strip

    return file


def png(size: tuple[int, int], depth: int, colour_type: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG file of ``size`` (width, height) of filtered ``rows``, with more ``chunks``, such as tRNS."""
    head = struct.pack(">2I5B", *size, depth, colour_type, 0, 0, 0)
    named = {"IHDR": head, **chunks, "IDAT": zlib.compress(rows), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name.encode()
        + content
        + struct.pack(">I", zlib.crc32(name.encode() + content))
        for name, content in named.items()
    )


def scaled_by_alpha(values: np.ndarray) -> np.ndarray:
    """Colours times the transparency in the last channel."""
    share = values[..., -1:] / 255
    return np.concatenate([np.round(values[..., :-1] * share), values[..., -1:]], -1).astype(np.uint8)


def premultiplied(photometric: int) -> File:
    write = hand_tiff(photometric, 8, extra=1)
    return lambda values, *metadata: write(scaled_by_alpha(values), *metadata)

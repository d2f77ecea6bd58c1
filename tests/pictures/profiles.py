"""Colour profiles for tests, written by hand: ICC version 2 with a matrix, a gray curve, or a table of inks."""

import struct
from collections.abc import Mapping

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
"""XYZ, adapted to D50, of Display P3's red, green and blue."""
ROMM = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))
"""Those of ProPhoto."""
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
"""Those of Adobe RGB."""


def rgb_profile(primaries: tuple, gamma: float) -> bytes:
    """A profile of RGB whose levels are powers ``gamma`` of light."""
    tags = {f"{name}XYZ".encode(): _xyz(colour) for name, colour in zip("rgb", primaries, strict=True)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags | {f"{name}TRC".encode(): _gamma(gamma) for name in "rgb"})


def gray_profile(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)})


def cmyk_profile(strength: float) -> bytes:
    """A printer's profile: Lab of a 3⁴ grid of inks, darker and more saturated with ``strength``."""
    levels = np.linspace(0, 1, 3)
    cyan, magenta, yellow, black = np.meshgrid(levels, levels, levels, levels, indexing="ij")
    light = (1 - black * strength) * 100 * (1 - strength * (0.3 * cyan + 0.4 * magenta + 0.1 * yellow))
    a = 60 * strength * (magenta - cyan) * (1 - black)
    b = 70 * strength * (yellow - 0.5 * cyan - 0.2 * magenta) * (1 - black)
    # lut16: L* 0..100 is 0..0xFF00, a* and b* -128..127 + 255/256 are 0..0xFFFF.
    grid = np.stack([light * 652.8, (a + 128) * 256, (b + 128) * 256], -1).clip(0, 0xFFFF).astype(">u2")
    identity = struct.pack(">9i", *(65536 * value for value in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    ramp = struct.pack(">2H", 0, 0xFFFF)
    table = b"mft2" + bytes(4) + bytes((4, 3, 3, 0)) + identity + struct.pack(">2H", 2, 2)
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table + ramp * 4 + grid.tobytes() + ramp * 3})


def _profile(kind: bytes, space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    tags = {b"desc": _description(), b"wtpt": _xyz(D50), b"cprt": b"text\0\0\0\0none\0", **tags}
    tags = {name: content + bytes(-len(content) % 4) for name, content in tags.items()}
    at, table = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags))
    for name, content in tags.items():
        table += name + struct.pack(">2I", at, len(content))
        at += len(content)
    date = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    head = struct.pack(">I4sI4s4s4s12s4s", at, bytes(4), 0x02400000, kind, space, connection, date, b"acsp")
    head = head.ljust(68, b"\0") + _xyz(D50)[8:]
    return head.ljust(128, b"\0") + table + b"".join(tags.values())


def _fixed(value: float) -> int:
    return round(value * 65536)


def _xyz(values: tuple) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *map(_fixed, values))


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def _description() -> bytes:
    return b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)

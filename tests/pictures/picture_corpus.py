"""A seeded corpus of picture files, each with what a viewer shows of it or the cause for which it is refused.

The right answer comes from the drawn scene by numpy, and by ImageCms for colour profiles and Lab; never from the code under test.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from hand_files import png
from picture_kinds import KEY, KINDS, SRGB, Kind, patches
from PIL import Image, ImageCms
from profiles import ADOBE, P3, ROMM, cmyk_profile, gray_profile, rgb_profile

SIDES = {
    **{1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left")},
    **{5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom")},
}
"""EXIF's orientation -> which sides of the scene the first stored row and column are."""

EXACT = (0.0, 0)
ROUNDED = (1.0, 2)
"""Two roundings: of a colour conversion and of transparency on white."""
LOSSY = (2.0, 64)
"""(mean, largest) difference in levels, of smooth scenes at high quality, whose colours a wide profile spreads further. Whoever
ignores an orientation or a profile is further away in the mean, as a test of the corpus shows."""
COARSE = (3.0, 96)
"""As LOSSY, with half as many columns and rows of colour."""


@dataclass(frozen=True)
class PictureCase:
    """A file. ``shown`` is u8[Y X 3] on white, within ``tolerance`` (mean, largest); None when it is refused with ``cause``.

    ``unread`` is what a program shows that does not read the orientation and the profile; None where that makes no difference.
    """

    name: str
    content: bytes
    shown: np.ndarray | None
    cause: str = ""
    tolerance: tuple[float, int] = EXACT
    unread: np.ndarray | None = None


@dataclass(frozen=True)
class Container:
    """A file format as Pillow writes it: for which kinds, and whether it holds EXIF and a profile."""

    format: str
    kinds: tuple[str, ...]
    metadata: bool = False
    save: tuple[tuple[str, object], ...] = ()
    tolerance: tuple[float, int] = EXACT


def container(
    format: str, kinds: str, metadata: bool = False, tolerance: tuple[float, int] = EXACT, **save
) -> Container:
    return Container(format, tuple(kinds.split(", ")), metadata, tuple(save.items()), tolerance)


TIFF_KINDS = "RGB, RGBA, RGBX, L, LA, 1, P, I;16, I, CMYK, YCbCr, LAB, F, wide"
CONTAINERS = {
    "PNG": container("PNG", "RGB, RGBA, L, LA, 1, P, P index, P bytes, RGB key, L key, I;16", True),
    "APNG": container("PNG", "RGB, RGBA, L, P", True, save_all=True, animated=True),
    "JPEG": container("JPEG", "RGB, L, CMYK", True, LOSSY, quality=97, subsampling=0),
    "progressive JPEG": container("JPEG", "RGB, L, CMYK", True, LOSSY, quality=97, subsampling=0, progressive=True),
    "MPO": container("MPO", "RGB", True, LOSSY, quality=97, subsampling=0, save_all=True, animated=True),
    "WebP": container("WEBP", "RGB, RGBA", True, lossless=True),
    "lossy WebP": container("WEBP", "RGB", True, COARSE, quality=98),
    "animated WebP": container("WEBP", "RGB, RGBA", True, lossless=True, save_all=True, animated=True),
    "TIFF": container("TIFF", TIFF_KINDS, True),
    "LZW TIFF": container("TIFF", "RGB, RGBA, L, LA, 1, P, I;16, CMYK", True, compression="tiff_lzw"),
    "deflated TIFF": container("TIFF", "RGB, RGBA, L, P, I;16", True, compression="tiff_adobe_deflate"),
    "pages of TIFF": container("TIFF", "RGB, L, P", True, save_all=True, animated=True),
    "PNG by hand": container("PNG", "gray 2, gray 4 key, 1 key, I;16 key, RGB 16, RGB 16 key, LA 16, RGBA 16", True),
    "TIFF by hand": container("TIFF", "La, RGBa, gray 12, inverse 16, inverse 8", True),
    "AVIF": container("AVIF", "RGB, RGBA", True, LOSSY, quality=97, subsampling="4:4:4", speed=10),
    "HEIF": container("HEIF", "RGB, RGBA, L", True, LOSSY, quality=97, chroma=444),
    "GIF": container("GIF", "L, 1, P, P index"),
    "animated GIF": container("GIF", "L, P, P index", save_all=True, animated=True, disposal=2),
    "JPEG 2000": container("JPEG2000", "RGB, RGBA, L, LA, I;16"),
    "BMP": container("BMP", "RGB, L, 1, P"),
    "DIB": container("DIB", "RGB, L, 1, P"),
    "PPM": container("PPM", "RGB, L, 1, I;16, F"),
    "TGA": container("TGA", "RGB, RGBA, L, LA, P"),
    "packed TGA": container("TGA", "RGB, RGBA, L, LA, P", compression="tga_rle"),
    "ICO": container("ICO", "RGB, RGBA, L, LA", whole=True),
    "SGI": container("SGI", "RGB, RGBA, L"),
    "PCX": container("PCX", "RGB, L, 1, P"),
    "DDS": container("DDS", "RGB, RGBA, L, LA"),
    "QOI": container("QOI", "RGB, RGBA"),
    "MSP": container("MSP", "1"),
    "XBM": container("XBM", "1"),
    "BLP": container("BLP", "P"),
}
PAIRS = [(name, kind) for name, entry in CONTAINERS.items() for kind in entry.kinds]

PROFILES = {
    "RGB": [rgb_profile(P3, 2.2), rgb_profile(ADOBE, 2.2), rgb_profile(ROMM, 1.8)],
    "L": [gray_profile(1.0), gray_profile(1.8)],
    "CMYK": [cmyk_profile(0.9), cmyk_profile(0.6)],
}
UNREAD = {
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "PDF": b"%PDF-1.7\n",
    "JPEG XL": b"\xff\x0a\xfa\x7f\x01\x90",
    "OpenEXR": b"v/1\x01\x02\0\0\0",
    "GIMP's XCF": b"gimp xcf v011\0",
    "a camera's raw format": b"FUJIFILMCCD-RAW 0201FF383501",
}


def corpus(count: int, seed: int = 0) -> Iterator[PictureCase]:
    """``count`` files: every pair of kind and container in turn, each with drawn orientation, profile and damage."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        name, kind = PAIRS[number % len(PAIRS)]
        yield _case(rng, f"{number}: {kind} in {name}", KINDS[kind], CONTAINERS[name])


def _case(rng: np.random.Generator, name: str, kind: Kind, entry: Container) -> PictureCase:
    values = kind.draw(rng, tuple(int(side) for side in rng.integers(20, 49, 2)))
    orientation, profile, sort = 1, b"", "none"
    if entry.metadata:
        orientation = int(rng.integers(1, 9))
        sort = str(rng.choice(["none", "own", "own", "sRGB", "another", "damaged"]))
        profile = _profile(rng, sort, kind)
    damage = str(rng.choice(["none", "none", "none", "none", "tail", "cut", "exif", "replaced"]))
    if damage == "cut":  # so that pixels are missing, not the profile behind them
        sort, profile = "none", b""
    name = f"{name}, orientation {orientation}, profile {sort}, damage {damage}"
    if damage == "replaced":
        return _replaced(rng, name)
    exif = _exif(orientation, rng.choice(["<", ">"]))
    if damage == "exif" and entry.metadata:
        exif, orientation = exif[:10] + rng.bytes(9), 1
    content = _saved(turned(values, orientation), kind, entry, exif, profile, orientation)
    if damage == "tail" and entry.format != "PCX":  # its palette is at the end of the file
        content += rng.bytes(30)
    if damage == "cut":
        less = content[: len(content) // 5]  # than the first frame of two
        return PictureCase(name, less, None, "damaged picture")
    if kind.refused:
        return PictureCase(name, content, None, kind.refused)
    colours, alpha = kind.colours(values), kind.alpha and kind.alpha(values)
    unread = turned(on_white(colours, alpha), orientation)
    if sort == "own" and kind.space:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        colours = ImageCms.profileToProfile(
            colours if kind.space != "CMYK" else kind.image(values), source, SRGB, outputMode="RGB"
        )
    tolerance = entry.tolerance
    if tolerance == EXACT and (kind.alpha or kind.space in ("", "CMYK")):
        tolerance = ROUNDED
    plain = orientation == 1 and (sort != "own" or not kind.space)
    return PictureCase(name, content, on_white(colours, alpha), "", tolerance, None if plain else unread)


def on_white(colours: Image.Image, alpha: np.ndarray | None) -> np.ndarray:
    """u8[Y X 3] of colours with a transparency 0..255 (None: opaque)."""
    shown = np.asarray(colours if colours.mode == "RGB" else Image.merge("RGB", [colours.convert("L")] * 3))
    if alpha is None:
        return shown
    share = alpha[..., None] / 255
    return np.round(share * shown + (1 - share) * 255).astype(np.uint8)


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """The values as they are stored for a viewer to turn them by EXIF's ``orientation``."""
    row, column = SIDES[orientation]
    values = values if row in ("top", "bottom") else values.swapaxes(0, 1)
    values = values[::-1] if row in ("bottom", "right") else values
    return np.ascontiguousarray(values[:, ::-1] if column in ("bottom", "right") else values)


def _profile(rng: np.random.Generator, sort: str, kind: Kind) -> bytes:
    if sort == "sRGB":
        return ImageCms.ImageCmsProfile(SRGB).tobytes()
    own = PROFILES[kind.space or "RGB"]
    if sort == "another":  # of a colour space that cannot describe the picture
        own = PROFILES["L" if kind.space in ("RGB", "CMYK") else "CMYK"]
    profile = own[rng.integers(len(own))]
    if sort == "damaged":
        return [profile[:150], rng.bytes(200), b"\0" * 128 + profile[128:]][rng.integers(3)]
    return b"" if sort == "none" or not kind.space else profile


def _exif(orientation: int, order: str) -> bytes:
    head = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    return b"Exif\0\0" + head + struct.pack(f"{order}HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)


def _saved(values: np.ndarray, kind: Kind, entry: Container, exif: bytes, profile: bytes, orientation: int) -> bytes:
    if kind.file:
        return kind.file(values, exif, profile, orientation)
    options, image = dict(entry.save), kind.image(values)
    options |= kind.save(values)
    if entry.metadata:
        options |= {"tiffinfo": {0x112: orientation}} if entry.format == "TIFF" else {"exif": exif}
        options |= {"icc_profile": profile} if profile else {}
    if options.pop("animated", False):
        options["append_images"] = [kind.image(255 - values if kind.draw != patches else KEY - values)]
    if options.pop("whole", False):
        options["sizes"] = [image.size]
    content = io.BytesIO()
    image.save(content, entry.format, **options)
    return content.getvalue()


def _replaced(rng: np.random.Generator, name: str) -> PictureCase:
    """What lies in the place of a picture when a download fails, or a picture of no decoder, or one that fills the memory."""
    cases = {
        "empty file": b"",
        "no picture": [b"<!DOCTYPE html><html>404</html>", b"not found\n", b"\0" * 400, rng.bytes(1) * 50][
            rng.integers(3)
        ],
        "picture too large": png((30000, 30000), 8, 2, b""),
        **{f"no decoder for {kind}": content for kind, content in UNREAD.items()},
    }
    cause = str(rng.choice(list(cases)))
    return PictureCase(f"{name}: {cause}", cases[cause], None, cause)

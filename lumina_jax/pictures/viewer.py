"""Opened picture files -> what a viewer shows: upright, in sRGB, transparent where the file says so.

Damaged or unfitting metadata (EXIF, ICC profile) are ignored, as viewers do.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageCms
from PIL.ExifTags import Base

from lumina_jax.errors import InputError

DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
DEEPEST = (1 << 16) - 1
"""The brightest level of 16 bits."""
PHOTOMETRIC, BITS, WHITE_IS_ZERO = 262, 258, 0
"""TIFF's tags, of what a level means and of the bits of a level, and the value of the first by which 0 is white."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a stored picture is turned to be upright, by EXIF's orientation."""
SIDEWAYS = (5, 6, 7, 8)

PROFILED = {"L": ("L", "RGB"), "CMYK": ("CMYK",)}
"""The modes, besides RGB alone, in which the colour profile of a picture may describe it."""
SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}
"""The colour space of a profile that describes a mode."""
SRGB = ImageCms.createProfile("sRGB")
SAME_COLOUR = 2
"""A profile that changes no colour by more than this many levels is sRGB: its pixels stay as they are."""
GRID = 9
"""Levels per channel at which a profile is compared with sRGB."""
PROFILES = 64
"""How many profiles' transforms are kept."""

LABELS = ("Interpolation", "nearest")
"""Key and text in a PNG file of labels: its colours stand for classes, which must not be mixed. Nothing is done to it."""


def shown(image: Image.Image) -> Image.Image:
    """An opened picture file (formats.opened), not yet loaded -> RGB, or RGBA if any of it is transparent, without ``info``.

    Its first frame. A picture of plain RGB is returned as it is, without a copy; so is a picture with the text LABELS, in its own
    mode. Raises InputError for pixels whose range is unknown (see eight_bits).
    """
    _scale_key(image)
    image.load()
    if image.info.get(LABELS[0]) != LABELS[1]:
        image = _upright(_straight(eight_bits(_on_canvas(image))))
        alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
        image = _srgb(image)
        if alpha is not None and alpha.getextrema()[0] < 255:
            image.putalpha(alpha)
    image.info = {}  # said and done: a saved copy must not be turned or transformed again
    return image


def as_shown(image: Image.Image) -> Image.Image:
    """:func:`shown` of a picture of a caller's, which stays as it is but for its pixels being read."""
    info = dict(image.info)
    seen = shown(image)
    if seen is image:
        seen = image.copy()
        seen.info = {}
    image.info = info
    return seen


def shown_size(image: Image.Image) -> tuple[int, int]:
    """The (width, height) of an opened picture file, upright. Pixels are read only of PNG files, whose EXIF may follow them."""
    return image.size[::-1] if _orientation(image) in SIDEWAYS else image.size


def eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grayscale image -> "L" (with a key level "LA"), levels scaled from 0..65535 to 0..255 and rounded; others unchanged.

    Pillow's own conversion would clip instead and turn all but the darkest levels white. Raises InputError for wider
    integers and for floats, whose range no file format fixes.
    """
    if image.mode == "F":
        raise InputError(
            "its pixels are floating-point numbers, whose range is unknown; store it with 8 or 16 bits",
            cause="floating-point pixels",
        )
    if image.mode not in DEEP_MODES:
        return image
    tags, levels = getattr(image, "tag_v2", {}), image.convert("I")
    darkest, brightest = levels.getextrema()
    if darkest < 0 or brightest > DEEPEST:
        raise InputError(
            f"its levels go from {darkest} to {brightest}; store it with 8 or 16 bits, 0 to {DEEPEST}",
            cause="pixels of more than 16 bits",
        )
    top = (1 << 12) - 1 if tags.get(BITS) == (12,) else DEEPEST
    gray = levels.point(_shades(top, tags.get(PHOTOMETRIC) == WHITE_IS_ZERO), "L")
    gray.info = {name: value for name, value in image.info.items() if name != "transparency"}
    if (key := image.info.get("transparency")) is not None:
        gray.putalpha(levels.point([255 * (level != key) for level in range(DEEPEST + 1)], "L"))
    return gray


@functools.cache
def _shades(top: int, inverse: bool) -> list[int]:
    """Level 0 to DEEPEST -> 0..255, which ``top`` and the levels beyond become; ``inverse``: 255..0."""
    shades = [min(round(level * 255 / top), 255) for level in range(DEEPEST + 1)]
    return [255 - shade for shade in shades] if inverse else shades


def _scale_key(image: Image.Image) -> None:
    """Brings the key colour of a PNG file, which has the file's bits, to the 8 bits of Pillow's pixels."""
    key, tile = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or not tile or image.mode not in ("L", "RGB") or key is None:
        return
    bits = {"L;2": 2, "L;4": 4, "RGB;16B": 16}.get(tile[0].args, 8)
    top = (1 << bits) - 1

    def scaled(level: int) -> int:
        return level >> 8 if bits == 16 else (level & top) * 255 // top

    image.info["transparency"] = scaled(key) if image.mode == "L" else tuple(map(scaled, key))


def _on_canvas(image: Image.Image) -> Image.Image:
    """A GIF whose first frame does not cover it -> RGBA, transparent around the frame; any other image unchanged."""
    if image.format != "GIF" or image.dispose_extent == (0, 0, *image.size):
        return image
    canvas = Image.new("RGBA", image.size)
    canvas.paste(image.convert("RGBA").crop(image.dispose_extent), image.dispose_extent)
    return canvas


def _straight(image: Image.Image) -> Image.Image:
    """An image with any kind of transparency -> LA or RGBA; any other image unchanged."""
    if image.mode in ("LA", "RGBA") or not image.has_transparency_data:
        return image
    return image.convert("LA" if image.mode in ("1", "L", "La") else "RGBA")


def _upright(image: Image.Image) -> Image.Image:
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation of an image that is not turned yet: Pillow turns TIFF files itself, pillow-heif HEIF files.

    1, as it is stored, where EXIF is damaged.
    """
    if image.format == "TIFF":
        return 1
    try:
        return image.getexif().get(Base.Orientation, 1)
    except Exception:  # its readers raise whatever their parsing runs into
        return 1


def _srgb(image: Image.Image) -> Image.Image:
    """An image of any 8-bit mode -> RGB in sRGB, without its transparency."""
    kind = "L" if image.mode in ("1", "L", "LA") else image.mode
    profile = image.info.get("icc_profile") if kind != "LAB" else None
    for mode in PROFILED.get(kind, ("RGB",)):
        image = image if image.mode == mode else image.convert(mode)
        if transform := _transform(profile or b"", mode):
            return ImageCms.applyTransform(image, transform)
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.lru_cache(PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None where the profile is absent, damaged, of another colour space, or sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, SRGB, mode, "RGB")
    except (OSError, TypeError, ImageCms.PyCMSError):
        return None
    return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    axis = np.linspace(0, 255, GRID if mode == "RGB" else 256).astype(np.uint8)
    colours = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(GRID, -1, 3) if mode == "RGB" else axis[None]
    before = Image.fromarray(colours)
    after = np.asarray(ImageCms.applyTransform(before, transform)).astype(int)
    return bool(np.abs(after - np.asarray(before.convert("RGB"))).max() <= SAME_COLOUR)

"""Scenes, and the ways of storing their pixels: for each the stored image, and what a viewer shows of it without a profile."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hand_files import File, hand_png, hand_tiff, premultiplied
from PIL import Image, ImageCms

SRGB = ImageCms.createProfile("sRGB")
PALETTE = 12
"""Colours of a palette picture; the last is the transparent one of those that have one."""


@dataclass(frozen=True)
class Kind:
    """How a scene is stored: ``image`` makes the stored image of the drawn values, ``colours`` and ``alpha``
    what a viewer shows of them.

    ``colours`` are without a profile. ``space`` is the one in which a profile may describe them: "RGB", "L", "CMYK"; "": none can.
    ``file`` writes kinds that Pillow does not, from the stored values, EXIF, a profile and the orientation.
    """

    draw: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
    image: Callable[[np.ndarray], Image.Image]
    colours: Callable[[np.ndarray], Image.Image]
    space: str = ""
    alpha: Callable[[np.ndarray], np.ndarray] | None = None
    save: Callable[[np.ndarray], dict] = lambda values: {}
    refused: str = ""
    file: File | None = None


def smooth(channels: int) -> Callable[[np.random.Generator, tuple[int, int]], np.ndarray]:
    """Draws u8[Y X C] of ``channels`` without sharp edges, dark at the upper left so that no turn looks like another."""

    def draw(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        coarse = rng.integers(40, 250, (3, 4, channels), np.uint8)
        coarse[0, 0, :3] //= 8
        planes = [
            np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
            for plane in np.moveaxis(coarse, -1, 0)
        ]
        return np.stack(planes, -1)

    return draw


def patches(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draws palette indices u8[Y X] in patches, and with them the palette, u8[Y X] whose values are below PALETTE."""
    coarse = rng.integers(0, PALETTE, (6, 7), np.uint8)
    coarse[0, 0], coarse[-1, -1] = PALETTE - 1, 0
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST))


def deep(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draws u16[Y X]."""
    levels = smooth(1)(rng, size)[..., 0].astype(np.uint16)
    return levels * 256 + rng.integers(0, 256, levels.shape, np.uint16)


COLOURS = np.random.default_rng(15).integers(0, 256, (PALETTE, 3), np.uint8)
ALPHAS = np.random.default_rng(16).integers(0, 256, PALETTE, np.uint8)
SHADES = np.arange(10, 240, 20, dtype=np.uint8)
INK = np.repeat(np.uint8([0, 255]), PALETTE // 2)
KEY = PALETTE - 1


def rgb(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(values[..., :3]), "RGB")


def gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(values.reshape(*values.shape[:2], -1)[..., 0]))


def palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(values), "P")
    image.putpalette(COLOURS.tobytes())
    return image


def raw(mode: str) -> Callable[[np.ndarray], Image.Image]:
    return lambda values: Image.frombytes(mode, values.shape[1::-1], np.ascontiguousarray(values).tobytes())


def eighth(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def printed(values: np.ndarray) -> Image.Image:
    ink = 1 - values.astype(float) / 255
    return Image.fromarray(np.round(255 * ink[..., :3] * ink[..., 3:]).astype(np.uint8))


def video(values: np.ndarray) -> Image.Image:
    y, cb, cr = np.moveaxis(values.astype(float), -1, 0)
    channels = y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)
    return Image.fromarray(np.stack(channels, -1).round().clip(0, 255).astype(np.uint8))


def lab(values: np.ndarray) -> Image.Image:
    to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), SRGB, "LAB", "RGB")
    return ImageCms.applyTransform(raw("LAB")(values), to_rgb)


def lut(table: np.ndarray) -> Callable[[np.ndarray], Image.Image]:
    return lambda values: Image.fromarray(table[values])


def keyed(values: np.ndarray) -> np.ndarray:
    return np.where(values == KEY, 0, 255)


def scaled(bits: int) -> Callable[[np.ndarray], Image.Image]:
    """The colours of levels of ``bits`` bits, without the last of 2 or 4 channels."""

    def colours(values: np.ndarray) -> Image.Image:
        levels = np.round(values.astype(float) * 255 / ((1 << bits) - 1)).astype(np.uint8)
        return gray(levels) if levels.ndim == 2 or levels.shape[2] < 3 else rgb(levels)

    return colours


def few(levels: int, channels: int = 0) -> Callable[[np.random.Generator, tuple[int, int]], np.ndarray]:
    """Draws u16[Y X] or u16[Y X C] of ``levels`` levels: multiples of 257 if there are 65536, so that 8 bits hold them."""

    def draw(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        values = smooth(channels or 1)(rng, size).astype(np.uint16)
        values = (
            values * 257 if levels == 65536 else values // (256 // levels) if levels < 256 else values * (levels // 256)
        )
        return values if channels else values[..., 0]

    return draw


KINDS = {
    "RGB": Kind(smooth(3), rgb, rgb, "RGB"),
    "RGBA": Kind(smooth(4), raw("RGBA"), rgb, "RGB", lambda v: v[..., 3]),
    "RGBX": Kind(smooth(4), raw("RGBX"), rgb, "RGB"),
    "L": Kind(smooth(1), gray, gray, "L"),
    "LA": Kind(smooth(2), raw("LA"), gray, "L", lambda v: v[..., 1]),
    "1": Kind(patches, lambda v: lut(INK)(v).convert("1"), lut(INK), "L"),
    "P": Kind(patches, palette, lut(COLOURS), "RGB"),
    "P index": Kind(patches, palette, lut(COLOURS), "RGB", keyed, lambda v: {"transparency": KEY}),
    "P bytes": Kind(
        patches, palette, lut(COLOURS), "RGB", lambda v: ALPHAS[v], lambda v: {"transparency": ALPHAS.tobytes()}
    ),
    "RGB key": Kind(
        patches, lut(COLOURS), lut(COLOURS), "RGB", keyed, lambda v: {"transparency": tuple(map(int, COLOURS[KEY]))}
    ),
    "L key": Kind(patches, lut(SHADES), lut(SHADES), "L", keyed, lambda v: {"transparency": int(SHADES[KEY])}),
    "I;16": Kind(deep, raw("I;16"), eighth, "L"),
    "I": Kind(deep, lambda v: Image.fromarray(v.astype(np.int32)), eighth),
    "CMYK": Kind(smooth(4), raw("CMYK"), printed, "CMYK"),
    "YCbCr": Kind(smooth(3), raw("YCbCr"), video),
    "LAB": Kind(smooth(3), raw("LAB"), lab),
    "F": Kind(deep, lambda v: Image.fromarray(v.astype(np.float32)), eighth, refused="floating-point pixels"),
    "gray 2": Kind(few(4), gray, scaled(2), "L", file=hand_png(2, 0)),
    "gray 4 key": Kind(
        few(16), gray, scaled(4), "L", lambda v: np.where(v == 9, 0, 255), file=hand_png(4, 0, b"\0\x09")
    ),
    "1 key": Kind(few(2), gray, scaled(1), "L", lambda v: np.where(v == 1, 0, 255), file=hand_png(1, 0, b"\0\1")),
    "I;16 key": Kind(
        few(65536), gray, scaled(16), "L", lambda v: np.where(v == 0x6464, 0, 255), file=hand_png(16, 0, b"dd")
    ),
    "RGB 16": Kind(few(65536, 3), gray, scaled(16), "RGB", file=hand_png(16, 2)),
    "RGB 16 key": Kind(
        lambda rng, size: COLOURS[patches(rng, size)] * np.uint16(257),
        gray,
        scaled(16),
        "RGB",
        lambda v: np.where((v == COLOURS[KEY] * np.uint16(257)).all(-1), 0, 255),
        file=hand_png(16, 2, np.repeat(COLOURS[KEY], 2).tobytes()),
    ),
    "LA 16": Kind(few(65536, 2), gray, scaled(16), "", lambda v: v[..., 1] // 257, file=hand_png(16, 4)),
    "RGBA 16": Kind(few(65536, 4), gray, scaled(16), "RGB", lambda v: v[..., 3] // 257, file=hand_png(16, 6)),
    "La": Kind(smooth(2), gray, gray, "", lambda v: v[..., 1], file=premultiplied(1)),
    "RGBa": Kind(smooth(4), rgb, rgb, "", lambda v: v[..., 3], file=premultiplied(2)),
    "gray 12": Kind(few(4096), gray, scaled(12), "L", file=hand_tiff(1, 12)),
    "inverse 16": Kind(few(65536), gray, lambda v: scaled(16)(65535 - v), "L", file=hand_tiff(0, 16)),
    "inverse 8": Kind(smooth(1), gray, lambda v: gray(255 - v), "L", file=hand_tiff(0, 8)),
    "wide": Kind(
        deep, lambda v: Image.fromarray(v.astype(np.int32) + 70000), eighth, refused="pixels of more than 16 bits"
    ),
}

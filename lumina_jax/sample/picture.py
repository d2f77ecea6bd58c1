"""The tokens of an answer -> text and pictures (original: decode_ids and decode_image in inference_solver.py)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lumina_jax.conversation import literal
from lumina_jax.errors import InputError
from lumina_jax.layout import decode_grid
from lumina_jax.model.image_tokenizer import ImageTokenizer, decode_image
from lumina_jax.pictures.labels import wrapped
from lumina_jax.vocab import IMAGE_SYMBOL, Vocab

CAPTION_LINES = 8
FRAME = (216, 220, 228)
"""The colour around each picture of a sheet, without which a white one has no edge."""


@dataclass(frozen=True)
class Broken:
    """An image that could not be read: its tokens i32[n] from begin-image on, and why."""

    ids: np.ndarray
    reason: str


def split(ids: np.ndarray, vocab: Vocab) -> list[str | np.ndarray | Broken]:
    """Tokens i32[n] -> text, image codes i32[R C] and broken images, in order; empty text is left out.

    An image ends at its end-image, or unfinished where the next begins or the tokens end. The original drops an unfinished
    image silently, and loops forever when the last token is a begin-image.
    """
    pieces = (
        _image(part, ended, vocab) if is_image else vocab.decode(part) for part, is_image, ended in _parts(ids, vocab)
    )
    return [piece for piece in pieces if not (isinstance(piece, str) and piece == "")]


def spoken(ids: np.ndarray, vocab: Vocab) -> tuple[str, list[np.ndarray]]:
    """An answer i32[n] as it stands in later prompts: (its message for conversation.tokenize, the codes i32[R C] of its images).

    Broken images, special tokens outside of images, and NUL letters are left out: they would make every later prompt a wrong one.
    """
    message, grids = "", []
    for part, is_image, ended in _parts(ids, vocab):
        if not is_image:
            message += literal(vocab.decode(part[~np.isin(part, vocab.special_ids)]).replace("\0", ""))
        elif isinstance(codes := _image(part, ended, vocab), np.ndarray):
            message += IMAGE_SYMBOL
            grids.append(codes)
    return message, grids


def _parts(ids: np.ndarray, vocab: Vocab) -> list[tuple[np.ndarray, bool, bool]]:
    """(tokens, whether they begin with begin-image, whether they end with end-image) of the texts and images, in order."""
    ids = np.asarray(ids, np.int32)
    begins = np.flatnonzero(ids == vocab.boi)
    parts = [(ids[: begins[0]] if len(begins) else ids, False, False)]
    for start, stop in itertools.pairwise([*begins, len(ids)]):
        ends = start + np.flatnonzero(ids[start:stop] == vocab.eoi)
        after = int(ends[0]) + 1 if len(ends) else stop
        parts += [(ids[start:after], True, len(ends) > 0), (ids[after:stop], False, False)]
    return parts


def _image(ids: np.ndarray, ended: bool, vocab: Vocab) -> np.ndarray | Broken:
    if not ended:
        return Broken(ids, f"unfinished: no end-image among its {len(ids)} tokens; allow more new tokens")
    try:
        return decode_grid(ids, vocab)
    except InputError as error:
        return Broken(ids, str(error))


def text(ids: np.ndarray, vocab: Vocab) -> str:
    """The text of an answer i32[n], with ``<|image|>`` for each complete image."""
    pieces = (IMAGE_SYMBOL if isinstance(piece, np.ndarray) else piece for piece in split(ids, vocab))
    return "".join(piece for piece in pieces if isinstance(piece, str))


def pictures(ids: np.ndarray, vq: ImageTokenizer, vocab: Vocab) -> list[Image.Image]:
    """The complete images of an answer i32[n] as RGB pictures, in order."""
    grids = (piece for piece in split(ids, vocab) if isinstance(piece, np.ndarray))
    return [decode_image(vq, codes) for codes in grids]


def grid(images: Sequence[Image.Image], columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """A contact sheet on white, row by row, each image framed in the middle of its cell above its caption of at most CAPTION_LINES.

    Letters that the font lacks are boxes. Raises InputError without images or columns, or when the captions are not one per image.
    """
    if not images or columns < 1:
        raise InputError(f"a sheet of {len(images)} images in {columns} columns; both must be at least 1")
    captions = [""] * len(images) if captions is None else captions
    if len(captions) != len(images):
        raise InputError(f"{len(captions)} captions for {len(images)} images; give one each")
    gap, line, font = 8, 14, ImageFont.load_default()
    columns = min(columns, len(images))
    width, height = (max(getattr(image, side) for image in images) for side in ("width", "height"))
    lines = [wrapped(caption, width, CAPTION_LINES, font) for caption in captions]
    below = line * max(map(len, lines))
    cell = (width + gap, height + below + gap)
    sheet = Image.new("RGB", (columns * cell[0] + gap, math.ceil(len(images) / columns) * cell[1] + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, lines, strict=True)):
        left, upper = gap + index % columns * cell[0], gap + index // columns * cell[1]
        x, y = left + (width - image.width) // 2, upper + (height - image.height) // 2
        sheet.paste(image, (x, y))
        for number, words in enumerate(caption):
            label = Image.new("RGB", (width, line), "white")  # what is too wide for it does not run into the next
            ImageDraw.Draw(label).text((0, 0), words, fill="black", font=font)
            sheet.paste(label, (left, upper + height + number * line))
        pen.rectangle((x - 1, y - 1, x + image.width, y + image.height), outline=FRAME)
    return sheet

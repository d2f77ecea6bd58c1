"""Samples as a person reads them: text and pictures in their order, with what is learned marked."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lumina_jax.layout import decode_grid, images_in
from lumina_jax.model.image_tokenizer import ImageTokenizer, decode_image
from lumina_jax.pictures.html import Html, picture, tag
from lumina_jax.vocab import Vocab

STYLE = Path(__file__).with_name("sheet.css")
EDGE = 320
"""Pictures are shown with no edge longer than this, in pixels."""
MOST_LETTERS = 3000
"""Of one stretch of text; what is longer is cut, and says by how much."""


class Piece(NamedTuple):
    """A stretch of a sample: ``text``, or image ``codes`` i32[R C]; ``learned`` says whether its tokens are.

    Where an image cannot be read, ``codes`` is None, ``text`` says why, and ``broken`` is True.
    """

    learned: bool
    text: str = ""
    codes: np.ndarray | None = None
    broken: bool = False


def pieces(tokens: np.ndarray, learn: np.ndarray, vocab: Vocab) -> Iterator[Piece]:
    """Tokens i32[n] and learn bool[n] -> their pieces in order; text is cut where learning begins or ends."""
    at = 0
    for image in images_in(tokens, vocab):
        yield from _texts(tokens[at : image.start], learn[at : image.start], vocab)
        yield _image(tokens[image], bool(learn[image].all()), vocab)
        at = image.stop
    yield from _texts(tokens[at:], learn[at:], vocab)


def card(title: str, sample: Sequence[Piece], vq: ImageTokenizer) -> Html:
    """One sample as a figure."""
    return tag("figure", tag("figcaption", title), *(_shown(piece, vq) for piece in sample), class_="sample")


def _texts(tokens: np.ndarray, learn: np.ndarray, vocab: Vocab) -> Iterator[Piece]:
    turns = np.flatnonzero(learn[1:] != learn[:-1]) + 1
    for part, learned in zip(np.split(tokens, turns), np.split(learn, turns), strict=True):
        if len(part):
            yield Piece(bool(learned[0]), vocab.decode(part))


def _image(tokens: np.ndarray, learned: bool, vocab: Vocab) -> Piece:
    try:
        return Piece(learned, codes=decode_grid(tokens, vocab))
    except ValueError as error:
        return Piece(learned, str(error), broken=True)


def _shown(piece: Piece, vq: ImageTokenizer) -> Html:
    class_ = "learned" if piece.learned else "given"
    if piece.broken:
        return tag("p", f"an image that cannot be read: {piece.text}", class_="broken")
    if piece.codes is None:
        more = len(piece.text) - MOST_LETTERS
        text = piece.text if more <= 0 else f"{piece.text[:MOST_LETTERS]} … and {more:,} more letters"
        return tag("span", text, class_=class_)
    image = decode_image(vq, piece.codes)
    width, height = image.size
    image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    return tag("div", picture(np.asarray(image), f"{width} x {height} pixels", 1.0), class_=class_)

"""Samples as people read them: text and pictures in order, with what is learned marked."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lumina_jax.layout import CODES_PER_UNIT, decode_grid, images_in
from lumina_jax.model.image_tokenizer import ImageTokenizer, decode_image
from lumina_jax.pictures.html import Html, picture, tag
from lumina_jax.vocab import Vocab

STYLE = Path(__file__).with_name("sheet.css")
EDGE = 320
"""The longest edge of a picture on the sheet, in pixels."""
MAX_LETTERS = 3000
"""Of one stretch of text; longer text is cut, with a note of how many letters follow."""


class Piece(NamedTuple):
    """A stretch of a sample: ``text``, or image ``codes`` i32[R C]; ``learned`` if its tokens are learned.

    An image that cannot be read is ``broken``; its ``text`` is the reason.
    """

    learned: bool
    text: str = ""
    codes: np.ndarray | None = None
    broken: bool = False


def pieces(tokens: np.ndarray, learn: np.ndarray, vocab: Vocab) -> Iterator[Piece]:
    """Tokens i32[n] and learn bool[n] -> their pieces in order; text is split where learning begins or ends."""
    end = 0
    for image in images_in(tokens, vocab):
        yield from _texts(tokens[end : image.start], learn[end : image.start], vocab)
        yield _image(tokens[image], bool(learn[image].all()), vocab)
        end = image.stop
    yield from _texts(tokens[end:], learn[end:], vocab)


def readable(tokens: np.ndarray, vocab: Vocab) -> str:
    """Tokens i32[n] -> text in which special tokens have names that a person knows, such as <end of turn> or <16 rows>."""
    names = {
        vocab.bos: "<start>",
        vocab.boi: "<image>",
        vocab.eoi: "<end of image>",
        vocab.end_of_turn: "<end of turn>",
        vocab.newline: "<end of row>",
    }
    words, plain = [], []
    for place, token in enumerate(tokens.tolist()):
        known = 0 <= token < len(vocab.code_of)
        if known and token not in names and vocab.code_of[token] < 0 and vocab.size_of[token] < 0:
            plain.append(token)
            continue
        words.append(vocab.decode(plain))
        plain = []
        if not known:
            words.append(f"<no token {token}>")
        elif vocab.code_of[token] >= 0:
            words.append(f"<code {vocab.code_of[token]}>")
        elif vocab.size_of[token] > 0:
            words.append(_size(tokens[:place], int(vocab.size_of[token]), vocab))
        else:
            words.append(names[token])
    return "".join([*words, vocab.decode(plain)])


def _size(before: np.ndarray, units: int, vocab: Vocab) -> str:
    """The name of a size token: an image begins with its rows, then its columns."""
    if len(before) and before[-1] == vocab.boi:
        return f"<{units * CODES_PER_UNIT} rows>"
    if len(before) > 1 and before[-2] == vocab.boi:
        return f"<{units * CODES_PER_UNIT} columns>"
    return f"<size {units}>"


def card(title: str, sample: Sequence[Piece], vq: ImageTokenizer) -> Html:
    """One sample as an HTML figure, its pictures decoded by ``vq``."""
    return tag("figure", tag("figcaption", title), *(_html(piece, vq) for piece in sample), class_="sample")


def _texts(tokens: np.ndarray, learn: np.ndarray, vocab: Vocab) -> Iterator[Piece]:
    changes = np.flatnonzero(learn[1:] != learn[:-1]) + 1
    for stretch, learned in zip(np.split(tokens, changes), np.split(learn, changes), strict=True):
        if len(stretch):
            yield Piece(bool(learned[0]), readable(stretch, vocab))


def _image(tokens: np.ndarray, learned: bool, vocab: Vocab) -> Piece:
    try:
        return Piece(learned, codes=decode_grid(tokens, vocab))
    except ValueError as error:
        return Piece(learned, str(error), broken=True)


def _html(piece: Piece, vq: ImageTokenizer) -> Html:
    class_ = "learned" if piece.learned else "given"
    if piece.broken:
        return tag("p", f"an image that cannot be read: {piece.text}", class_="broken")
    if piece.codes is None:
        more = len(piece.text) - MAX_LETTERS
        text = piece.text if more <= 0 else f"{piece.text[:MAX_LETTERS]} … and {more:,} more letters"
        return tag("span", text, class_=class_)
    image = decode_image(vq, piece.codes)
    width, height = image.size
    image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    return tag("div", picture(np.asarray(image), f"{width} x {height} pixels", 1.0), class_=class_)

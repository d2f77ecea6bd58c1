"""Watching an answer grow: text as it comes, pictures line by line."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.layout import decode_lines
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import ImageTokenizer, decode_image
from lumina_jax.sample.prompt import Desk
from lumina_jax.sample.stream import stream
from lumina_jax.vocab import Vocab

BLANK = (208, 208, 208)
"""The colour of what is not painted yet."""
UNFINISHED = "\ufffd"
"""What stands for the first bytes of a letter whose others have not come."""


class Words(NamedTuple):
    """Text that goes on where the last ended."""

    text: str


class Preview(NamedTuple):
    """Picture ``number`` of the answer, of which ``lines`` of ``of`` lines of codes are painted and the rest is blank."""

    number: int
    picture: Image.Image
    lines: int
    of: int


def watch(
    model: Chameleon,
    vq: ImageTokenizer,
    vocab: Vocab,
    prompt: np.ndarray,
    key: jax.Array,
    cfg: SampleConfig,
    *,
    size: tuple[int, int] | None = None,
    every: int = 16,
) -> Iterator[Words | Preview]:
    """The answer to a prompt i32[P] drawn with the row's own ``key``, looked at after ``every`` so many passes.

    The texts joined are the answer's text; the last preview of each picture is the picture. ``size`` (rows, cols) forces that
    of pictures. A picture whose tokens break the rule ends with the last preview that could be made of it.
    """
    answer = Growing(vq, vocab)
    for news in stream(model, [prompt], key, cfg, vocab, sizes=[size], keys=[key], rows=1, every=every):
        yield from answer.grow(news.tokens, news.done)


class Chat:
    """A dialog: turns with pictures in and out, each answered in sight of all before. Turn n draws from ``fold_in(key, n)``."""

    def __init__(self, model: Chameleon, desk: Desk, key: jax.Array, cfg: SampleConfig):
        self._model, self._desk, self._key, self._cfg = model, desk, key, cfg
        self._told = np.zeros(0, np.int32)
        self._turns = 0

    def say(self, text: str, images: Sequence[Image.Image] = (), every: int = 16) -> Iterator[Words | Preview]:
        """The answer, as :func:`watch` gives it; the turn counts once it has ended. Raises as :meth:`Desk.talk` does."""
        ids, vocab = self._desk.talk(text, images, self._cfg).ids, self._desk.vocab
        prompt = np.concatenate([self._told, ids[1:] if self._turns else ids])
        key = jax.random.fold_in(self._key, self._turns)
        answer = Growing(self._desk.vq, vocab)
        for news in stream(self._model, [prompt], key, self._cfg, vocab, keys=[key], rows=1, every=every):
            yield from answer.grow(news.tokens, news.done)
        self._told = np.concatenate([prompt, news.tokens, np.array([vocab.end_of_turn], np.int32)])
        self._turns += 1


class Growing:
    """What has been shown of an answer."""

    def __init__(self, vq: ImageTokenizer, vocab: Vocab):
        self._vq, self._vocab = vq, vocab
        self._said = ""
        self._lines: dict[int, int] = {}

    def grow(self, tokens: np.ndarray, done: bool) -> Iterator[Words | Preview]:
        """What is new in the answer i32[n]."""
        begins = np.flatnonzero(tokens == self._vocab.boi)
        text = self._vocab.decode(tokens[: begins[0]] if len(begins) else tokens)
        pieces = []
        for number, (start, stop) in enumerate(itertools.pairwise([*begins, len(tokens)])):
            image = tokens[start:stop]
            end = int(np.argmax(image == self._vocab.eoi)) if (image == self._vocab.eoi).any() else len(image)
            pieces.append((number, image[:end]))
            text += self._vocab.decode(image[end + 1 :])
        text = text if done else text.rstrip(UNFINISHED)
        if len(text) > len(self._said):
            yield Words(text[len(self._said) :])
            self._said = text
        for number, image in pieces:
            if (preview := self._preview(number, image)) is not None:
                yield preview

    def _preview(self, number: int, image: np.ndarray) -> Preview | None:
        """A picture when lines of it are new."""
        try:
            codes, of = decode_lines(image, self._vocab)
        except ValueError:
            return None
        if len(codes) <= self._lines.get(number, 0):
            return None
        self._lines[number] = len(codes)
        # The last line again instead of those to come: decoders look at neighbours, and one shape is compiled.
        filled = np.concatenate([codes, np.repeat(codes[-1:], of - len(codes), axis=0)])
        picture = decode_image(self._vq, filled)
        picture.paste(BLANK, (0, len(codes) * self._vq.stride, *picture.size))
        return Preview(number, picture, len(codes), of)

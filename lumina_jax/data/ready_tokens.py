"""Samples that were tokenized elsewhere, held against the tokenizer and the image tokenizer that they are said to be of."""

from dataclasses import dataclass

import numpy as np

from lumina_jax import layout
from lumina_jax.data.sources.token_record import TokenRecord
from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.vocab import Vocab


@dataclass(frozen=True)
class ReadySample:
    """Tokens i32[n], learn bool[n], and the sizes (width, height), in px, of the images."""

    tokens: np.ndarray
    learn: np.ndarray
    sizes: list[tuple[int, int]]


def check_sample(record: TokenRecord, vocab: Vocab, codes: int, stride: int) -> ReadySample:
    """The sample, if ``vocab`` and an image tokenizer of ``codes`` codes and ``stride`` px a code could have made it.

    It begins with the begin token, holds only tokens of the tokenizer, and image codes only in complete images (layout). Raises
    InputError for the first of these that it breaks.
    """
    tokens = record.tokens
    if tokens[0] != vocab.bos:
        raise InputError(
            f"the sample begins with token {tokens[0]}, not with {vocab.bos}, the begin token of {vocab.source}; is it of another "
            "tokenizer?",
            cause="no begin token",
        )
    if tokens.max() >= len(vocab.code_of):
        raise InputError(
            f"token {tokens.max()}, but {vocab.source} has tokens up to {len(vocab.code_of) - 1}; is it of another tokenizer?",
            cause="a token that the tokenizer lacks",
        )
    if (tokens == vocab.image_symbol).any():
        raise InputError("an image symbol stands where its image should be", cause="an image symbol among the tokens")
    sizes, outside = [], np.ones(len(tokens), bool)
    for image in layout.images_in(tokens, vocab):
        with prefixed_errors(f"the image at token {image.start}"):
            grid = layout.decode_grid(tokens[image], vocab)
        if grid.max() >= codes:
            raise InputError(
                f"image code {grid.max()}, but the VQ model has {codes} codes; is it of another VQ model?",
                cause="a code that the VQ model lacks",
            )
        sizes.append((grid.shape[1] * stride, grid.shape[0] * stride))
        outside[image] = False
    if len(stray := np.flatnonzero(outside & _is_of_images(tokens, vocab))):
        raise InputError(
            f"token {stray[0]} is {tokens[stray[0]]}, which belongs into an image, but stands in no complete one",
            cause="a piece of an image",
        )
    return ReadySample(tokens, record.learn, sizes)


def _is_of_images(tokens: np.ndarray, vocab: Vocab) -> np.ndarray:
    """bool[n]: image codes, begin-image and end-image."""
    return (vocab.code_of[tokens] >= 0) | (tokens == vocab.boi) | (tokens == vocab.eoi)

"""Where the next token of an answer stands in an image, and which tokens the image-token rule allows there."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax import layout
from lumina_jax.errors import InputError
from lumina_jax.vocab import Vocab

OPENS = -2
"""ImagePosition.since where the answer begins with a picture: only begin-image may stand there."""


class ImagePosition(NamedTuple):
    """The position of the next token of each row; i32[B] each.

    ``since`` is the number of tokens after begin-image, -1 in text, OPENS where a picture must begin; ``rows`` and ``cols`` are the
    size of the open image in codes, 0 while unknown. An end-image in text changes nothing.
    """

    since: jax.Array
    rows: jax.Array
    cols: jax.Array


def position_after(prompt: np.ndarray, vocab: Vocab) -> ImagePosition:
    """The position behind ``prompt`` i32[P], as plain integers.

    Raises InputError when an image in the prompt breaks the image-token rule, or image codes stand in text.
    """
    begins = np.flatnonzero(prompt == vocab.boi)
    _check_text(prompt[: begins[0] if len(begins) else None], 0, vocab)
    for start, stop in itertools.pairwise([*begins, len(prompt)]):
        image = prompt[start:stop]
        ends = np.flatnonzero(image == vocab.eoi)
        if len(ends):
            layout.decode_grid(image[: ends[0] + 1], vocab)
            _check_text(image[ends[0] + 1 :], start + ends[0] + 1, vocab)
        elif stop < len(prompt):
            raise InputError(f"an image begins at token {stop}, before the one from token {start} has ended")
        else:
            return _position_in(image, vocab)
    return ImagePosition(-1, 0, 0)


def _check_text(text: np.ndarray, start: int, vocab: Vocab) -> None:
    """Raises InputError where image codes stand in text: guidance would not know from which slot on to hide the prompt."""
    codes = np.flatnonzero(np.isin(text, vocab.code_ids))
    if len(codes):
        raise InputError(
            f"token {start + codes[0]} is the image code {text[codes[0]]}, but no begin-image (token {vocab.boi}) stands before it"
        )


def _position_in(image: np.ndarray, vocab: Vocab) -> ImagePosition:
    """The position behind the beginning of an image, i32[n] from begin-image on."""
    since, size_tokens = len(image) - 1, vocab.image_layout.size_tokens
    if 0 < since < size_tokens:
        return ImagePosition(since, layout.grid_shape(image[1], image[1], vocab)[0], 0)
    if since < size_tokens:
        return ImagePosition(0, 0, 0)
    rows, cols = layout.shape_of(image, vocab)
    completed = layout.encode_grid(np.zeros((rows, cols), int), vocab)
    if len(image) >= len(completed):
        raise InputError(f"an image of {rows} x {cols} codes has no end-image after {len(completed) - 1} tokens")
    completed[: len(image)] = image
    layout.decode_grid(completed, vocab)
    return ImagePosition(since, rows, cols)


def advance(position: ImagePosition, token: jax.Array, sizes: jax.Array, V: int, vocab: Vocab) -> ImagePosition:
    """The position behind ``token`` i32[B]. ``sizes`` i32[B 2]: rows and columns of an image that it begins, 0 where free."""
    opens, closes = token == vocab.boi, token == vocab.eoi
    since = jnp.where(closes | (position.since < 0), -1, position.since + 1)
    rows, cols = position.rows, position.cols
    if vocab.image_layout.size_tokens:
        codes = jnp.maximum(jnp.asarray(_fit(vocab.size_of, V))[token], 0) * layout.CODES_PER_UNIT
        rows = jnp.where(position.since == 0, codes, rows)
        cols = jnp.where(position.since == 1, codes, cols)
    return ImagePosition(
        jnp.where(opens, 0, since), jnp.where(opens, sizes[:, 0], rows), jnp.where(opens, sizes[:, 1], cols)
    )


def rules(position: ImagePosition, n: int, vocab: Vocab) -> jax.Array:
    """i32[B n]: what may stand at ``position`` and the n-1 behind it: a token id, CODE, SIZE or ANY (:func:`layout.forced`)."""
    # One of two sizes is not yet a size: the width stays free after a free height.
    since = position.since[:, None] + jnp.where(position.since[:, None] >= 0, jnp.arange(n), 0)
    return layout.forced(since, jnp.where(position.cols > 0, position.rows, 0)[:, None], position.cols[:, None], vocab)


def skip(position: ImagePosition, count: jax.Array, rule: jax.Array) -> ImagePosition:
    """The position ``count`` i32[B] tokens further on in an open image, where ``rule`` i32[B] holds (:func:`rules`)."""
    inside = jnp.where(rule == layout.ANY, -1, position.since + count)
    return position._replace(since=jnp.where(position.since < 0, position.since, inside))


def allowed(position: ImagePosition, V: int, vocab: Vocab) -> jax.Array:
    """bool[B V]: the tokens that the image-token rule allows at ``position``; in text all, but see :func:`_in_text`.

    Where a picture must begin that is begin-image. It is drawn and not known in advance (:func:`rules`): a pass that feeds it
    begins with it, since from it on the unconditional row does not see the prompt.
    """
    rule = rules(position, 1, vocab)
    is_code, is_size = (jnp.asarray(_fit(table, V) >= 0) for table in (vocab.code_of, vocab.size_of))
    rule = jnp.where(position.since[:, None] == OPENS, vocab.boi, rule)
    free = [(rule == layout.ANY) & _in_text(V, vocab), (rule == layout.CODE) & is_code, (rule == layout.SIZE) & is_size]
    return free[0] | free[1] | free[2] | (rule == jnp.arange(V))


def _in_text(V: int, vocab: Vocab) -> np.ndarray:
    """bool[V]: the tokens that may stand in text: in Uni-Rep all, as in the original; in Chameleon's layout no image codes, as in
    transformers; no begin-image where the model paints no pictures."""
    tokens = np.ones(V, bool)
    if vocab.image_layout.shape is not None:
        tokens &= _fit(vocab.code_of, V) < 0
    if vocab.image_layout.no_pictures:
        tokens[vocab.boi] = False
    return tokens


def _fit(table: np.ndarray, V: int) -> np.ndarray:
    """A table of the tokenizer, cut or filled with -1 to the model's vocabulary."""
    return np.pad(table[:V], (0, max(0, V - len(table))), constant_values=-1)

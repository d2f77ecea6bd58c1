"""The image-token rule: its single home. The writer, the reader, the sampler's forced tokens and the start of guidance use it.

In Uni-Rep, Lumina-mGPT's rule (paper section 3.2.2), an image of R x C codes is the token sequence ``begin-image, height, width,
R rows of (C codes, end-of-line), end-image``; height and width are one size token each, in size units of two codes. In Chameleon's
own rule all images have one shape, and none says it: ``begin-image, R * C codes, end-image``. Vocab.image_layout says which of them
a model follows.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.errors import InputError
from lumina_jax.vocab import UNI_REP, ImageLayout, Vocab

CODE = -1
"""Result of forced(): any image code is allowed."""
SIZE = -2
"""Result of forced(): any size token is allowed."""
ANY = -3
"""Result of forced(): any token is allowed, because the position is not inside an image."""

CODES_PER_UNIT = 2

TOKENS_AROUND = 16
"""Tokens allowed in an answer for the text around its image."""


def crop_sizes(target: int, patch: int = 32, max_ratio: float = 4.0) -> list[tuple[int, int]]:
    """The (width, height) in pixels of all crop sizes for an area of ``target``² pixels, widest first.

    They are the largest multiples of ``patch`` whose area is at most target² and whose sides differ by at most a factor of
    ``max_ratio``. Source: generate_crop_size_list.
    """
    budget = (target // patch) ** 2
    sizes, wide, high = [], budget, 1
    while wide > 0:
        if max(wide, high) / min(wide, high) <= max_ratio:
            sizes.append((wide * patch, high * patch))
        if (high + 1) * wide <= budget:
            high += 1
        else:
            wide -= 1
    return sizes


def best_crop(image_size: tuple[int, int], sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The (width, height) of ``sizes`` that keeps the largest share of an image of ``image_size`` (width, height).

    Ties go to the larger tuple, as in the original (var_center_crop).
    """
    width, height = image_size

    def kept_share(size):
        scales = (size[0] / width, size[1] / height)
        return min(scales) / max(scales)

    return max(sizes, key=lambda size: (kept_share(size), size))


def grid_tokens(rows: int, cols: int, image_layout: ImageLayout = UNI_REP) -> int:
    """The number of tokens of an image of rows x cols codes, begin- and end-image included."""
    return rows * line_tokens(cols, image_layout) + image_layout.size_tokens + 2


def line_tokens(cols, image_layout: ImageLayout = UNI_REP):
    """The number of tokens of a row of ``cols`` codes (an integer or i32[...]), its end-of-line included."""
    return cols + image_layout.line_ends


def column_of(index, cols, image_layout: ImageLayout = UNI_REP):
    """The column of the ``index``-th token (from 0) of the rows of an image; that of an end-of-line is ``cols``."""
    return index % line_tokens(cols, image_layout)


def answer_tokens(shapes: Iterable[tuple[int, int]], image_layout: ImageLayout = UNI_REP) -> int:
    """The ``max_new_tokens`` of an answer with one image of any of ``shapes`` (rows, cols) and a short text around it."""
    return max((grid_tokens(*shape, image_layout) for shape in shapes), default=0) + TOKENS_AROUND


def check_paints(vocab: Vocab) -> None:
    """Raises InputError when answers of the model cannot hold images."""
    if vocab.image_layout.no_pictures:
        raise InputError(
            f"the model paints no pictures: {vocab.image_layout.no_pictures}; ask it for words about pictures "
            "(--task describe or question)",
            cause="the model paints no pictures",
        )


def encode_grid(codes: np.ndarray, vocab: Vocab) -> np.ndarray:
    """Image codes i32[R C] -> token ids: i32[R*(C+1)+4], or i32[R*C+2] in Chameleon's layout.

    Raises InputError when the layout cannot express the shape (in Uni-Rep R and C are even, for a size unit is two codes) or a code
    is outside the tokenizer's range.
    """
    codes, image_layout = np.asarray(codes), vocab.image_layout
    if codes.ndim != 2 or not _expresses(image_layout, codes.shape):
        expected = "rows and columns must be even and at least 2" if image_layout.shape is None else _only(image_layout)
        raise InputError(f"a grid of codes of shape {codes.shape}: {expected}")
    if codes.min() < 0 or codes.max() >= len(vocab.code_ids):
        raise InputError(
            f"image codes from {codes.min()} to {codes.max()}, but the tokenizer knows 0 to {len(vocab.code_ids) - 1}; "
            "the VQ model and the tokenizer do not belong together"
        )
    rows, cols = codes.shape
    lines = np.full((rows, line_tokens(cols, image_layout)), vocab.newline, np.int32)
    lines[:, :cols] = vocab.code_ids[codes]
    units = [side // CODES_PER_UNIT for side in codes.shape[: image_layout.size_tokens]]
    head = [vocab.boi, *map(vocab.size_id, units)]
    return np.concatenate([np.array(head, np.int32), lines.ravel(), np.array([vocab.eoi], np.int32)])


def _expresses(image_layout: ImageLayout, shape: tuple[int, int]) -> bool:
    """Whether images of ``shape`` can be written, as far as their evenness goes; the tokenizer limits how large they are."""
    if image_layout.shape is not None:
        return shape == image_layout.shape
    return all(side >= CODES_PER_UNIT and side % CODES_PER_UNIT == 0 for side in shape)


def _only(image_layout: ImageLayout) -> str:
    rows, cols = image_layout.shape
    return f"every image of the layout {image_layout.name!r} has {rows} x {cols} codes"


def decode_grid(ids: np.ndarray, vocab: Vocab) -> np.ndarray:
    """The token ids of an image (:func:`encode_grid`), from begin-image to end-image, -> image codes i32[R C].

    Raises InputError naming the first token that breaks the rule.
    """
    ids, image_layout = np.asarray(ids, np.int32), vocab.image_layout
    begin = 1 + image_layout.size_tokens
    if len(ids) < begin + 1 or ids[0] != vocab.boi:
        raise InputError(f"{len(ids)} tokens beginning with {ids[:1]} are not an image: it begins with {vocab.boi}")
    rows, cols = shape_of(ids, vocab)
    expected = grid_tokens(rows, cols, image_layout)
    if len(ids) != expected:
        raise InputError(f"the image says {rows} x {cols} codes, which takes {expected} tokens, but has {len(ids)}")
    if ids.min() < 0 or ids.max() >= len(vocab.code_of):
        raise InputError(
            f"tokens from {ids.min()} to {ids.max()}, but the tokenizer knows 0 to {len(vocab.code_of) - 1}"
        )
    lines = ids[begin:-1].reshape(rows, -1)
    codes = vocab.code_of[lines[:, :cols]]
    if (codes < 0).any() or (lines[:, cols:] != vocab.newline).any() or ids[-1] != vocab.eoi:
        rule = np.asarray(forced(np.arange(expected - 1), rows, cols, vocab))
        body = ids[1:]
        wrong = 1 + int(np.argmax(np.where(rule == CODE, vocab.code_of[body] < 0, (rule >= 0) & (rule != body))))
        raise InputError(f"token {wrong} of the image is {ids[wrong]}, which has no place there")
    return codes


def decode_lines(ids: np.ndarray, vocab: Vocab) -> tuple[np.ndarray, int]:
    """Token ids i32[n] of an unfinished image, from begin-image on, -> (codes i32[r C] of its r complete rows, R).

    R is the number of rows of the finished image. The result is (i32[0 0], 0) until height and width are known. Raises
    InputError when the tokens break the rule.
    """
    ids, begin = np.asarray(ids, np.int32), 1 + vocab.image_layout.size_tokens
    if len(ids) < begin:
        return np.zeros((0, 0), np.int32), 0
    rows, cols = shape_of(ids, vocab)
    line = line_tokens(cols, vocab.image_layout)
    lines = ids[begin : begin + rows * line]
    lines = lines[: len(lines) // line * line].reshape(-1, line)
    codes = vocab.code_of[lines[:, :cols]]
    if (codes < 0).any() or (lines[:, cols:] != vocab.newline).any():
        raise InputError(f"the first {len(lines)} lines of the image hold a token that has no place there")
    return codes, rows


def shape_of(image: np.ndarray, vocab: Vocab) -> tuple[int, int]:
    """The (rows, cols) of codes of an image i32[n] from begin-image on, whose size tokens, if it has any, are all there.

    Raises InputError when one of them is no size token.
    """
    size_tokens = vocab.image_layout.size_tokens
    return grid_shape(*image[1 : 1 + size_tokens], vocab) if size_tokens else vocab.image_layout.shape


def grid_shape(height_id: int, width_id: int, vocab: Vocab) -> tuple[int, int]:
    """The (rows, cols) of codes that two size tokens stand for. Raises InputError when one is no size token."""
    for name, token in (("height", height_id), ("width", width_id)):
        if not 0 <= token < len(vocab.size_of) or vocab.size_of[token] < 0:
            raise InputError(f"the {name} of the image is token {token}, which is no size token")
    return int(vocab.size_of[height_id]) * CODES_PER_UNIT, int(vocab.size_of[width_id]) * CODES_PER_UNIT


def images_in(ids: np.ndarray, vocab: Vocab) -> list[slice]:
    """The slices of all complete images of a token sequence i32[n], begin- and end-image included, in order.

    A begin-image without an end-image (the sequence was cut) gives no slice.
    """
    ids = np.asarray(ids)
    images, start = [], None
    for index in np.flatnonzero((ids == vocab.boi) | (ids == vocab.eoi)):
        if ids[index] == vocab.boi:
            start = index
        elif start is not None:
            images.append(slice(int(start), int(index) + 1))
            start = None
    return images


def forced(n, rows, cols, vocab: Vocab) -> jax.Array:
    """The rule for the ``n``-th token after begin-image (n i32[B], from 0) of an image of rows x cols codes (i32[B] each).

    Returns i32[B]: a token id where only that token is allowed, else CODE, SIZE or ANY. ``rows`` = 0 means that the size is
    not known yet: then height and width may be any size token. Negative ``n`` (no open image) and n beyond end-image give ANY.
    """
    image_layout = vocab.image_layout
    n, rows, cols = jnp.broadcast_arrays(jnp.asarray(n), jnp.asarray(rows), jnp.asarray(cols))
    index, length = n - image_layout.size_tokens, rows * line_tokens(cols, image_layout)
    line = jnp.where(column_of(index, cols, image_layout) == cols, vocab.newline, CODE)
    sides = (rows, cols)[: image_layout.size_tokens]
    sizes = [(n == place, _forced_size(side, vocab)) for place, side in enumerate(sides)]
    cases = [(n < 0, ANY), *sizes, (rows == 0, ANY), (index < length, line), (index == length, vocab.eoi)]
    return jnp.select(*map(list, zip(*cases, strict=True)), ANY).astype(jnp.int32)


def _forced_size(side: jax.Array, vocab: Vocab) -> jax.Array:
    """The rule i32[B] for the size token of ``side`` i32[B] codes, 0 where it is not known."""
    size_ids = jnp.asarray(_size_ids(vocab))
    return jnp.where(side > 0, size_ids[jnp.clip(side // CODES_PER_UNIT, 0, len(size_ids) - 1)], SIZE)


def _size_ids(vocab: Vocab) -> np.ndarray:
    """Token ids indexed by size units; index 0 is unused and repeats that of 1."""
    ids = np.flatnonzero(vocab.size_of > 0)
    ids = ids[np.argsort(vocab.size_of[ids])]
    return np.concatenate([ids[:1], ids]).astype(np.int32)

"""Prompts become a Request: checked, and laid out in cache slots, before anything is compiled."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.layout import CODES_PER_UNIT, check_paints
from lumina_jax.sample.position import OPENS, ImagePosition, position_after
from lumina_jax.sample.state import Request, RequestRows
from lumina_jax.vocab import Vocab


def lay_out(
    prompts: Sequence[np.ndarray],
    key: jax.Array,
    vocab: Vocab,
    V: int,
    sizes: Sequence[tuple[int, int] | None] | None = None,
    keys: Sequence[jax.Array] | jax.Array | None = None,
    groups: int = 1,
    opens: Sequence[bool] | None = None,
) -> RequestRows:
    """The prompts for a model of ``V`` tokens, in a number of rows that ``groups`` of devices share evenly.

    ``opens``: per prompt, whether its answer must begin with a picture; where the prompt ends inside one, that is continued. The
    other arguments are those of :func:`lumina_jax.sample.generate`, whose InputErrors are raised here.
    """
    prompts = _checked_prompts(prompts, V, vocab)
    positions = []
    for row, prompt in enumerate(prompts):
        with prefixed_errors(f"prompt {row}", InputError):
            positions.append(position_after(prompt, vocab))
    forced_sizes = _checked_sizes(sizes, len(prompts), V, vocab)
    if keys is None:
        keys = _keys(key, len(prompts))
    elif len(keys) != len(prompts):
        raise InputError(f"{len(keys)} keys for {len(prompts)} prompts; give one each")
    # The last token of a prompt is fed with the first pass of decoding, all before it by the prefill.
    P = bucket(max(1, *(len(prompt) - 1 for prompt in prompts))) + 1
    since, rows, cols = np.array(positions, np.int32).T
    if (since >= 0).any() or (opens is not None and any(opens)):
        check_paints(vocab)
    if opens is not None:
        since = np.where(np.asarray(opens, bool) & (since == -1), np.int32(OPENS), since)
    # An image whose height is not in the prompt yet takes the forced size.
    rows, cols = (np.where(since == 0, forced_sizes[:, axis], codes) for axis, codes in enumerate((rows, cols)))
    request = Request(
        ids=np.stack([np.pad(prompt, (P - len(prompt), 0)) for prompt in prompts]),
        padding=P - np.array([len(prompt) for prompt in prompts], np.int32),
        image_slot=np.where(since >= 0, P - 1 - since, P - 1).astype(np.int32),
        position=ImagePosition(since, rows, cols),
        sizes=forced_sizes,
        keys=jnp.stack(keys) if isinstance(keys, Sequence) else keys,
        idle=np.zeros(len(prompts), bool),
    )
    return arrange(request, groups)


def bucket(n: int) -> int:
    """``n`` rounded up to a length that programs are compiled for: a multiple of 32, at most an eighth above ``n`` from 256 on."""
    step = max(32, (1 << n.bit_length()) // 16)
    return -(-n // step) * step


@functools.partial(jax.jit, static_argnames="n")
def _keys(key: jax.Array, n: int) -> jax.Array:
    """One key per row. Compiled: an operation on keys takes a millisecond by itself, longer than a pass of a small model."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))


def arrange(request: Request, groups: int) -> RequestRows:
    """Adds idle rows until ``groups`` divides their number, and sorts equal prompts together where each group gets whole copies."""
    B = len(request.ids)
    filled = np.minimum(np.arange(B + -B % groups), B - 1)
    _, prompt, counts = np.unique(request.ids[filled], axis=0, return_inverse=True, return_counts=True)
    copies = math.gcd(*map(int, counts), len(filled) // groups)
    order = np.argsort(prompt.ravel(), kind="stable") if copies > 1 else np.arange(len(filled))
    if not np.array_equal(filled[order], np.arange(B)):
        request = jax.tree.map(lambda x: x[filled[order]], request)
    return RequestRows(request._replace(idle=order >= B), copies, np.argsort(order)[:B])


def _checked_prompts(prompts: Sequence[np.ndarray], V: int, vocab: Vocab) -> list[np.ndarray]:
    if len(prompts) == 0:
        raise InputError("no prompts; give at least one")
    markers = max(vocab.boi, vocab.eoi, vocab.newline, vocab.end_of_turn, int(vocab.code_ids.min()))
    if markers >= V:
        raise InputError(
            f"{vocab.source} has a marker with id {markers}, but the model knows {V} tokens; "
            "model and tokenizer do not belong together"
        )
    prompts = [np.asarray(prompt) for prompt in prompts]
    for row, prompt in enumerate(prompts):
        if prompt.ndim != 1 or len(prompt) == 0 or not np.issubdtype(prompt.dtype, np.integer):
            raise InputError(f"prompt {row} is {prompt.dtype}{list(prompt.shape)}; it must be at least one integer id")
        if prompt.min() < 0 or prompt.max() >= V:
            wrong = prompt[(prompt < 0) | (prompt >= V)][0]
            raise InputError(f"prompt {row} holds id {wrong}, but the model knows ids 0 to {V - 1}")
    return [prompt.astype(np.int32) for prompt in prompts]


def _checked_sizes(sizes: Sequence[tuple[int, int] | None] | None, B: int, V: int, vocab: Vocab) -> np.ndarray:
    """i32[B 2]: rows and columns of codes, 0 where free; where all images have one shape, that."""
    shape = vocab.image_layout.shape
    checked = np.tile(np.array(shape or (0, 0), np.int32), (B, 1))
    if sizes is None:
        return checked
    if len(sizes) != B:
        raise InputError(f"{len(sizes)} sizes for {B} prompts; give one each, None where it is free")
    if shape is not None:
        if wrong := [size for size in sizes if size not in (None, shape)]:
            raise InputError(
                f"a size of {wrong[0][0]} x {wrong[0][1]} codes; every image of this model has {shape[0]} x {shape[1]}"
            )
        return checked
    units = vocab.size_of[:V]
    for row, size in enumerate(sizes):
        if size is None:
            continue
        if any(codes % CODES_PER_UNIT or codes < 1 or codes // CODES_PER_UNIT not in units for codes in size):
            known = np.unique(units[units > 0]) * CODES_PER_UNIT
            nearest = [known[np.abs(known - codes).argmin()] for codes in size]
            raise InputError(
                f"size {row} is {size[0]} x {size[1]} codes; rows and columns must be even and from {known[0]} to {known[-1]}: "
                f"the nearest is {nearest[0]} x {nearest[1]}"
            )
        checked[row] = size
    return checked

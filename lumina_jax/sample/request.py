"""A batch of prompts as arrays: what the caller asks for, checked and laid out in cache slots before anything is compiled."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.errors import InputError
from lumina_jax.layout import CODES_PER_UNIT
from lumina_jax.sample.guidance import Place, place_of
from lumina_jax.vocab import Vocab


class Request(NamedTuple):
    """A batch of prompts as arrays. The first axis of each is B; equal prompts lie side by side.

    ``ids`` i32[B P] are padded on the left by ``padding`` i32[B]; ``hidden`` i32[B] is the slot of the last begin-image;
    ``place`` is that of the first answer token; ``wanted`` i32[B 2] are rows and columns of the images to come, 0 for free;
    ``keys`` one per row; ``idle`` bool[B] marks rows that only fill up the mesh.
    """

    ids: np.ndarray
    padding: np.ndarray
    hidden: np.ndarray
    place: Place
    wanted: np.ndarray
    keys: jax.Array
    idle: np.ndarray


class Batch(NamedTuple):
    """A request; ``copies`` consecutive rows at a time have one prompt; the answer to prompt i is row ``rows[i]``."""

    request: Request
    copies: int
    rows: np.ndarray


def lay_out(
    prompts: Sequence[np.ndarray],
    key: jax.Array,
    vocab: Vocab,
    V: int,
    sizes: Sequence[tuple[int, int] | None] | None = None,
    keys: Sequence[jax.Array] | jax.Array | None = None,
    parts: int = 1,
) -> Batch:
    """The prompts for a model of ``V`` tokens, in a number of rows that ``parts`` groups of devices share evenly.

    Other arguments as in :func:`lumina_jax.sample.generate`, whose ValueErrors are raised here.
    """
    prompts = _checked_prompts(prompts, V, vocab)
    places = []
    for row, prompt in enumerate(prompts):
        try:
            places.append(place_of(prompt, vocab))
        except ValueError as error:
            raise InputError(f"prompt {row}: {error}") from error
    wanted = _checked_sizes(sizes, len(prompts), V, vocab)
    if keys is None:
        keys = _keys(key, len(prompts))
    elif len(keys) != len(prompts):
        raise InputError(f"{len(keys)} keys for {len(prompts)} prompts; give one each")
    # The last token of a prompt is fed with the first pass of decoding, all before it by the prefill.
    P = bucket(max(1, *(len(prompt) - 1 for prompt in prompts))) + 1
    since, rows, cols = np.array(places, np.int32).T
    # An image whose height the prompt does not say yet takes the wanted size.
    rows, cols = (np.where(since == 0, wanted[:, i], part) for i, part in enumerate((rows, cols)))
    request = Request(
        ids=np.stack([np.pad(prompt, (P - len(prompt), 0)) for prompt in prompts]),
        padding=P - np.array([len(prompt) for prompt in prompts], np.int32),
        hidden=np.where(since >= 0, P - 1 - since, P - 1).astype(np.int32),
        place=Place(since, rows, cols),
        wanted=wanted,
        keys=jnp.stack(keys) if isinstance(keys, Sequence) else keys,
        idle=np.zeros(len(prompts), bool),
    )
    return arranged(request, parts)


def bucket(n: int) -> int:
    """``n`` rounded up to a length that programs are compiled for: a multiple of 32, at most an eighth above ``n`` from 256 on."""
    step = max(32, (1 << n.bit_length()) // 16)
    return -(-n // step) * step


@functools.partial(jax.jit, static_argnames="n")
def _keys(key: jax.Array, n: int) -> jax.Array:
    """One key per row. Compiled, as each operation on keys by itself takes a millisecond: longer than a pass of a small model."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))


def arranged(request: Request, parts: int) -> Batch:
    """Adds idle rows until ``parts`` divide them, and brings equal prompts together as far as each part has whole groups."""
    asked = len(request.ids)
    filled = np.minimum(np.arange(asked + -asked % parts), asked - 1)
    _, prompt, counts = np.unique(request.ids[filled], axis=0, return_inverse=True, return_counts=True)
    copies = math.gcd(*map(int, counts), len(filled) // parts)
    order = np.argsort(prompt.ravel(), kind="stable") if copies > 1 else np.arange(len(filled))
    if not np.array_equal(filled[order], np.arange(asked)):
        request = jax.tree.map(lambda part: part[filled[order]], request)
    return Batch(request._replace(idle=order >= asked), copies, np.argsort(order)[:asked])


def _checked_prompts(prompts, V: int, vocab: Vocab) -> list[np.ndarray]:
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


def _checked_sizes(sizes, B: int, V: int, vocab: Vocab) -> np.ndarray:
    """i32[B 2], zeros where free."""
    wanted = np.zeros((B, 2), np.int32)
    if sizes is None:
        return wanted
    if len(sizes) != B:
        raise InputError(f"{len(sizes)} sizes for {B} prompts; give one each, None where it is free")
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
        wanted[row] = size
    return wanted

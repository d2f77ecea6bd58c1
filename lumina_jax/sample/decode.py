"""Answering a batch of prompts: one jitted program feeds them, another is the loop of passes (paper section 2.4)."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding

from lumina_jax.config import SampleConfig
from lumina_jax.errors import NotFiniteError
from lumina_jax.model.attention import KVCache
from lumina_jax.model.backend import backend
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sample.guidance import Knobs, Place, Scores, advance, code_ids, columns, draw, scores
from lumina_jax.sample.loop import KNOWN, Setting, Shape, State, feed, paired, run
from lumina_jax.sample.request import Request, bucket, lay_out
from lumina_jax.sharding import COMPUTE, ROWS, axis_size, constrain, spec
from lumina_jax.vocab import Vocab

ALL = np.int32(np.iinfo(np.int32).max)
"""Passes that no answer takes."""

OVERFLOW = "the model's logits are not finite although its weights are; they overflow: compute in a wider dtype"


def generate(
    model: Chameleon,
    prompts: Sequence[np.ndarray],
    key: jax.Array,
    cfg: SampleConfig,
    vocab: Vocab,
    *,
    sizes: Sequence[tuple[int, int] | None] | None = None,
    keys: Sequence[jax.Array] | jax.Array | None = None,
) -> list[np.ndarray]:
    """Answers i32[n] to ``prompts`` i32[P], without the prompt, ending at (and without) end of turn.

    A prompt may end inside an image; the answer goes on there. ``sizes``: per prompt (rows, cols) of codes, or None for
    free; they force height and width of every image the answer opens (also of one that the prompt's last token opens).
    ``keys``: one random key per prompt, by default ``fold_in(key, row)``. A token depends on its row's key, its place in
    the answer and its own logits only, so a prompt has the same answer alone and in a batch.

    A second call of the same shapes (lengths rounded up by :func:`bucket`), with whatever numbers in ``cfg``, reuses the
    compiled programs; only guidance = 1 has some of its own, with half the rows.

    Raises ValueError for wrong prompts or sizes, and FloatingPointError naming a weight that is not finite, before anything is
    compiled; FloatingPointError when logits overflow.
    """
    return answers(model, prompts, key, cfg, vocab, sizes=sizes, keys=keys)[0]


def answers(
    model: Chameleon,
    prompts: Sequence[np.ndarray],
    key: jax.Array,
    cfg: SampleConfig,
    vocab: Vocab,
    *,
    sizes: Sequence[tuple[int, int] | None] | None = None,
    keys: Sequence[jax.Array] | jax.Array | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """What :func:`generate` returns, and how many passes each answer took, i32[B]."""
    parts = math.prod(map(axis_size, ROWS))
    request, copies, rows = lay_out(prompts, key, vocab, model.cfg.vocab, sizes, keys, parts)
    check_finite(model)
    shape = shape_of(request, copies, cfg)
    state, head = prefill(model, request, vocab=vocab, shape=shape)
    state = decode(
        model, head, state, request, Knobs.of(cfg), ALL, np.int32(len(request.ids)), vocab=vocab, shape=shape
    )
    if not state.sound:
        raise NotFiniteError(OVERFLOW)
    tokens, counts, passes = (np.asarray(part)[rows] for part in (state.tokens, state.count, state.passes))
    written = zip(tokens[:, request.ids.shape[1] :], np.minimum(counts, cfg.max_new_tokens), strict=True)
    return [cut(row[:count], vocab) for row, count in written], passes


def trace(
    model: Chameleon,
    prompt: np.ndarray,
    key: jax.Array,
    cfg: SampleConfig,
    vocab: Vocab,
    plan: Mapping[int, int] | None = None,
) -> tuple[np.ndarray, Scores]:
    """What :func:`generate` does for one prompt, step by step: tokens i32[N] and :class:`Scores` f32[N V], N = max_new_tokens.

    ``plan`` maps steps to tokens that are put in place of the drawn ones. Nothing stops it: after end of turn the tokens
    are end of turn. Every token has a pass of its own, the known ones too.
    """
    request, copies, _ = lay_out([prompt], key, vocab, model.cfg.vocab)
    shape = shape_of(request, copies, cfg)
    planned = np.full(bucket(cfg.max_new_tokens), -1, np.int32)
    for place, token in (plan or {}).items():
        planned[place] = token
    state, _ = prefill(model, request, vocab=vocab, shape=shape)
    tokens, seen = _trace(model, state, request, Knobs.of(cfg), planned, vocab=vocab, pairs=shape.pairs)
    tokens, seen = jax.tree.map(lambda part: np.asarray(part[: cfg.max_new_tokens, 0]), (tokens, seen))
    return tokens, seen


class Programs(NamedTuple):
    """The two programs of :func:`generate`, ready to be compiled, and the bytes of the cache on all devices."""

    prefill: jax.stages.Lowered
    decode: jax.stages.Lowered
    cache: int


def lower(model: Chameleon, prompts: Sequence[np.ndarray], cfg: SampleConfig, vocab: Vocab, mesh: Mesh) -> Programs:
    """The programs that :func:`generate` would run on ``mesh``; the prompts split evenly over its rows.

    ``model`` may be one of shapes (jax.ShapeDtypeStruct), and the mesh of devices that are not here: nothing is computed.
    The compiler chooses how weights and cache lie in memory; in any other layout the loop would begin with a copy of them.
    """

    def free(leaf):
        return Format(Layout.AUTO, leaf.sharding)

    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    request, copies, _ = lay_out(prompts, jax.random.key(0), vocab, model.cfg.vocab, parts=parts)
    with jax.set_mesh(mesh):
        shape = shape_of(request, copies, cfg)
        first = prefill.lower(model, request, vocab=vocab, shape=shape)
        state, head = _placed(*first.out_info, mesh)
        arguments = (model, head, state, request, Knobs.of(cfg), ALL, np.int32(len(request.ids)))
        placed = (*(jax.tree.map(free, part) for part in (model, head, state)), *[None] * 4)
        loop = functools.partial(decode.__wrapped__, vocab=vocab, shape=shape)
        second = jax.jit(loop, in_shardings=placed, out_shardings=placed[2], donate_argnums=2).lower(*arguments)
    return Programs(first, second, sum(x.size * x.dtype.itemsize for x in (state.cache.keys, state.cache.values)))


def _placed(state: State, head: jax.Array, mesh: Mesh) -> tuple[State, jax.Array]:
    """Shapes of what :func:`prefill` returns, with their places on a mesh: rows and heads split, the rest whole."""

    def place(leaf, letters):
        where = NamedSharding(mesh, spec(letters, leaf.shape, COMPUTE, mesh))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    rows = jax.tree.map(lambda leaf: place(leaf, "BTE"[: leaf.ndim]), state._replace(cache=None))
    cache = KVCache(*(place(leaf, "LBNSK" if leaf.ndim == 5 else "B") for leaf in state.cache))
    return rows._replace(cache=cache), place(head, "DV" if head.shape[1] % mesh.shape["tensor"] == 0 else "DE")


def shape_of(request: Request, copies: int, cfg: SampleConfig) -> Shape:
    window = KNOWN if cfg.parallel == "off" else cfg.window or backend().draft_window
    # The last pass may fill slots of which only the first counts.
    slots = bucket(request.ids.shape[1] - 1 + cfg.max_new_tokens + window - 1)
    return Shape(slots, copies, cfg.guidance != 1, cfg.parallel, window)


@functools.partial(jax.jit, static_argnames=("vocab", "shape"))
def prefill(model: Chameleon, request: Request, *, vocab: Vocab, shape: Shape) -> tuple[State, jax.Array]:
    """Feeds each prompt once, up to its last token, for all its rows; beside the State, the head's columns of the codes [D E]."""
    B, length = request.ids.shape
    visible_from = jnp.stack([request.padding, request.hidden], axis=1) if shape.pairs else request.padding[:, None]
    first = slice(None, None, shape.copies)
    prompts = paired(request.ids[first, :-1], shape.pairs)
    # In a cache of their own length, which then grows: the scores of T queries over all slots would not fit.
    cache = model.empty_cache(len(prompts), length - 1)._replace(visible_from=visible_from[first].ravel())
    _, cache = model.cached(prompts, cache, reaches=(0,))

    def spread(part):
        L, _, N, _, K = part.shape
        part = part.reshape(L, B // shape.copies, 1, -1, N, length - 1, K)
        part = jnp.repeat(part, shape.copies, axis=2).reshape(L, visible_from.size, N, length - 1, K)
        return constrain(jnp.pad(part, ((0, 0), (0, 0), (0, 0), (0, shape.slots - length + 1), (0, 0))), "BNSK")

    head = columns(model.head[...], code_ids(vocab, model.cfg.vocab))
    state = State(
        tokens=jnp.pad(request.ids, ((0, 0), (0, shape.slots - length + shape.window))),
        count=jnp.zeros(B, jnp.int32),
        cache=KVCache(
            spread(cache.keys), spread(cache.values), jnp.full(visible_from.size, length - 1), visible_from.ravel()
        ),
        q=jnp.zeros((B, 0 if shape.method in ("off", "matched") else shape.window - 1, head.shape[1])),
        place=Place(*(jnp.asarray(part) for part in request.place)),
        passes=jnp.zeros(B, jnp.int32),
        done=jnp.asarray(request.idle),
        sound=jnp.ones((), bool),
    )
    return state, constrain(head, "DV" if head.shape[1] % axis_size("tensor") == 0 else "DE")


@functools.partial(jax.jit, static_argnames=("vocab", "shape"), donate_argnames="state")
def decode(
    model: Chameleon,
    head: jax.Array,
    state: State,
    request: Request,
    knobs: Knobs,
    most: jax.Array,
    leave: jax.Array,
    *,
    vocab: Vocab,
    shape: Shape,
) -> State:
    """At most so many passes, none after ``leave`` rows are done; in place."""
    return run(Setting(model, head, request, knobs, vocab, shape), state, most, leave)


@functools.partial(jax.jit, static_argnames=("vocab", "pairs"))
def _trace(model, state: State, request: Request, knobs: Knobs, plan: jax.Array, *, vocab: Vocab, pairs: bool):
    """Tokens i32[N B] and Scores f32[N B V] of the N steps of ``plan``."""
    V = model.cfg.vocab

    def one(carry, planned):
        last, count, cache, place, done = carry
        hidden, cache = feed(model, cache, last[:, None], vocab, pairs)
        logits = model.logits(hidden).reshape(len(last), -1, V)
        seen = scores(logits[:, 0], logits[:, 1] if pairs else None, place, knobs, vocab)
        drawn = draw(jax.vmap(jax.random.fold_in)(request.keys, count), seen.kept, knobs.temperature)
        token = jnp.where(planned >= 0, planned, drawn)
        token = jnp.where(done, vocab.end_of_turn, token)
        place = advance(place, token, request.wanted, V, vocab)
        return (token, count + 1, cache, place, done | (token == vocab.end_of_turn)), (token, seen)

    first = (jnp.asarray(request.ids[:, -1]), state.count, state.cache, state.place, state.done)
    return jax.lax.scan(one, first, plan)[1]


def cut(answer: np.ndarray, vocab: Vocab) -> np.ndarray:
    ends = np.flatnonzero(answer == vocab.end_of_turn)
    return answer[: ends[0]] if len(ends) else answer


def check_finite(model: Chameleon) -> None:
    """Raises FloatingPointError naming a weight that holds NaN or infinity. Reads each weight once, as a token does."""
    for path, largest in jax.tree_util.tree_leaves_with_path(_largest(model)):
        if not jnp.isfinite(largest):
            raise NotFiniteError(
                f"weight {jax.tree_util.keystr(path)} holds NaN or infinity; the checkpoint is damaged, or its training diverged"
            )


@jax.jit
def _largest(model: Chameleon) -> Chameleon:
    return jax.tree.map(lambda weight: jnp.max(jnp.abs(weight)), model)

"""Answering a batch of prompts (its settings: paper Figure 8).

:func:`one_by_one` is the definition: one token per pass. :func:`generate` gives the same answers faster: :func:`prefill` feeds the
prompts, and :func:`decode` is a loop of passes, each of which may feed several tokens (:mod:`.loop`).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding

from lumina_jax.config import SampleConfig
from lumina_jax.errors import NotFiniteError
from lumina_jax.model.backend import DeviceJit, backend
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sample.drafters import DRAFTERS
from lumina_jax.sample.guidance import DynamicConfig, Scores, code_ids, columns, draw, scores
from lumina_jax.sample.loop import KNOWN, feed, run
from lumina_jax.sample.position import ImagePosition, advance
from lumina_jax.sample.request import bucket, lay_out
from lumina_jax.sample.state import Context, ProgramKey, Request, RequestRows, State, paired
from lumina_jax.sample.tree import RANKS, tree_of
from lumina_jax.sharding import COMPUTE, ROWS, axis_size, constrain, spec
from lumina_jax.vocab import Vocab

NO_LIMIT = np.int32(np.iinfo(np.int32).max)
"""A number of passes that no answer reaches."""

CACHE_LETTERS = {5: "LBNSK", 4: "LBNS", 1: "B"}
"""Number of axes -> the axes of an array of KVCache: keys and values, their scales in int8, lengths."""
SLOT_AXIS = 3

OVERFLOW = "the model's logits are not finite although its weights are; they overflow: compute in a wider dtype"


@DeviceJit
def one_by_one(ctx: Context, state: State, plan: jax.Array) -> tuple[jax.Array, Scores]:
    """The definition of sampling: N times the model is fed the last token of each row, and the next is drawn from its scores.

    ``plan`` i32[N]: a token to write in place of the drawn one, or -1. Returns tokens i32[N B] and Scores f32[N B V]. Every token
    takes a pass, those that the image-token rule knows too; behind end of turn all tokens are end of turn.
    """
    vocab, V = ctx.vocab, ctx.model.cfg.vocab

    def step(carry, planned):
        token, index, cache, position, done = carry
        hidden, cache = feed(ctx, cache, token[:, None])
        logits = ctx.model.logits(hidden).reshape(len(token), -1, V)
        uncond = logits[:, 1] if ctx.program.pairs else None
        stages = scores(logits[:, 0], uncond, position, ctx.config, vocab)
        keys = jax.vmap(jax.random.fold_in)(ctx.request.keys, index)
        drawn = draw(keys, stages.kept, ctx.config.temperature)
        token = jnp.where(planned >= 0, planned, drawn)
        token = jnp.where(done, vocab.end_of_turn, token)
        position = advance(position, token, ctx.request.sizes, V, vocab)
        return (token, index + 1, cache, position, done | (token == vocab.end_of_turn)), (token, stages)

    first = (jnp.asarray(ctx.request.ids[:, -1]), state.count, state.cache, state.position, state.done)
    return jax.lax.scan(step, first, plan)[1]


def trace(
    model: Chameleon,
    prompt: np.ndarray,
    key: jax.Array,
    cfg: SampleConfig,
    vocab: Vocab,
    plan: Mapping[int, int] | None = None,
) -> tuple[np.ndarray, Scores]:
    """:func:`one_by_one` for a prompt i32[P]: tokens i32[N] and Scores f32[N V], N = max_new_tokens.

    The tokens up to the first end of turn are those of :func:`generate`. ``plan`` maps indices of the answer to tokens that are
    written there in place of the drawn ones.
    """
    planned = np.full(bucket(cfg.max_new_tokens), -1, np.int32)
    for index, token in (plan or {}).items():
        planned[index] = token
    ctx, state = start(model, lay_out([prompt], key, vocab, model.cfg.vocab), cfg, vocab)
    return jax.tree.map(lambda x: np.asarray(x[: cfg.max_new_tokens, 0]), one_by_one(ctx, state, planned))


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

    A prompt may end inside an image; the answer continues it. ``sizes``: per prompt (rows, cols) of codes, or None to leave the
    size to the model; they force height and width of every image the answer opens (also of one that the prompt's last token
    opens). ``keys``: one random key per prompt, by default ``fold_in(key, row)``. A token depends on its row's key, its index in
    the answer and its own logits only, so a prompt has the same answer alone and in a batch.

    A second call of the same shapes (lengths rounded up by :func:`bucket`), with whatever numbers in ``cfg``, reuses the
    compiled programs; guidance = 1 has programs of its own, with half the rows.

    Raises InputError for wrong prompts or sizes, and NotFiniteError naming a weight that is not finite, before anything is
    compiled; NotFiniteError when logits overflow.
    """
    groups = math.prod(map(axis_size, ROWS))
    return answers(model, lay_out(prompts, key, vocab, model.cfg.vocab, sizes, keys, groups), cfg, vocab)[0]


def answers(
    model: Chameleon, laid_out: RequestRows, cfg: SampleConfig, vocab: Vocab
) -> tuple[list[np.ndarray], np.ndarray]:
    """What :func:`generate` returns, for prompts that :func:`.request.lay_out` has checked; and the passes each took, i32[B]."""
    check_finite(model)
    ctx, state = start(model, laid_out, cfg, vocab)
    state = decode(ctx, state, NO_LIMIT, np.int32(len(ctx.request.ids)))
    if not state.finite:
        raise NotFiniteError(OVERFLOW)
    tokens, counts, passes = (np.asarray(x)[laid_out.rows] for x in (state.tokens, state.count, state.passes))
    written = zip(tokens[:, ctx.answer_slot :], np.minimum(counts, cfg.max_new_tokens), strict=True)
    return [cut(row[:count], vocab) for row, count in written], passes


def start(
    model: Chameleon, laid_out: RequestRows, cfg: SampleConfig, vocab: Vocab, program: ProgramKey | None = None
) -> tuple[Context, State]:
    """Feeds the prompts: what :func:`one_by_one` and :func:`decode` begin with. ``program``: by default :func:`program_key`."""
    program = program or program_key(laid_out.request, cfg)
    state, head = prefill(model, laid_out.request, copies=laid_out.copies, vocab=vocab, program=program)
    return Context(model, head, laid_out.request, DynamicConfig.of(cfg), vocab, program), state


def program_key(request: Request, cfg: SampleConfig) -> ProgramKey:
    window = KNOWN if cfg.parallel == "off" else cfg.window or backend().draft_window
    # The last pass may fill slots of which only the first counts.
    slots = bucket(request.ids.shape[1] - 1 + cfg.max_new_tokens + window - 1 + cfg.tree)
    return ProgramKey(slots, cfg.guidance != 1, cfg.parallel, window, cfg.tree, cfg.cache == "int8")


@functools.partial(DeviceJit, static_argnames=("copies", "vocab", "program"))
def prefill(
    model: Chameleon, request: Request, *, copies: int, vocab: Vocab, program: ProgramKey
) -> tuple[State, jax.Array]:
    """Feeds each prompt up to its last token, once for its ``copies`` rows -> (State, the head's columns of the codes [D E])."""
    B, length = request.ids.shape
    visible_from = [request.padding, request.image_slot] if program.pairs else [request.padding]
    visible_from = jnp.stack(visible_from, axis=1)
    prompts = paired(request.ids[::copies, :-1], program.pairs)
    # In a cache of their own length, which then grows: the scores of T queries over all slots would not fit.
    cache = model.empty_cache(len(prompts), length - 1, program.int8)
    cache = cache._replace(visible_from=visible_from[::copies].ravel())
    _, cache = model.cached(prompts, cache, reaches=(0,))

    def spread(filled):
        L, _, *rest = filled.shape
        filled = jnp.repeat(filled.reshape(L, B // copies, 1, -1, *rest), copies, axis=2)
        filled = filled.reshape(L, visible_from.size, *rest)
        padding = [(0, (program.slots - length + 1) * (axis == SLOT_AXIS)) for axis in range(filled.ndim)]
        return constrain(jnp.pad(filled, padding), CACHE_LETTERS[filled.ndim][1:])

    keys, values = jax.tree.map(spread, (cache.keys, cache.values))
    cache = cache._replace(keys=keys, values=values)
    head = columns(model.head[...], code_ids(vocab, model.cfg.vocab))
    drafts = program.window - 1 if DRAFTERS[program.method].keeps_q else 0
    state = State(
        tokens=jnp.pad(request.ids, ((0, 0), (0, program.slots - length + program.window))),
        count=jnp.zeros(B, jnp.int32),
        cache=cache._replace(length=jnp.full(visible_from.size, length - 1), visible_from=visible_from.ravel()),
        q=jnp.zeros((B, drafts, head.shape[1])),
        replacements=jnp.zeros((B, tree_of(program.window, program.branches).branching, RANKS - 1), jnp.int32),
        position=ImagePosition(*map(jnp.asarray, request.position)),
        passes=jnp.zeros(B, jnp.int32),
        done=jnp.asarray(request.idle),
        finite=jnp.ones((), bool),
    )
    return state, constrain(head, _head_letters(head, axis_size("tensor")))


@functools.partial(DeviceJit, donate_argnames="state")
def decode(ctx: Context, state: State, max_passes: jax.Array, stop_after_rows: jax.Array) -> State:
    """At most ``max_passes`` passes, none after ``stop_after_rows`` rows are done; ``state`` is donated."""
    return run(ctx, state, max_passes, stop_after_rows)


def cut(answer: np.ndarray, vocab: Vocab) -> np.ndarray:
    """i32[N] up to, and without, the first end of turn."""
    ends = np.flatnonzero(answer == vocab.end_of_turn)
    return answer[: ends[0]] if len(ends) else answer


def check_finite(model: Chameleon) -> None:
    """Raises NotFiniteError naming a weight that holds NaN or infinity. Reads each weight once, as a token does."""
    for path, largest in jax.tree_util.tree_leaves_with_path(_largest(model)):
        if not jnp.isfinite(largest):
            raise NotFiniteError(
                f"weight {jax.tree_util.keystr(path)} holds NaN or infinity; the checkpoint is damaged, or its training diverged"
            )


@jax.jit
def _largest(model: Chameleon) -> Chameleon:
    return jax.tree.map(lambda weight: jnp.max(jnp.abs(weight)), model)


class LoweredSampler(NamedTuple):
    """The two programs of :func:`generate`, ready to be compiled, and the bytes of the cache on all devices."""

    prefill: jax.stages.Lowered
    decode: jax.stages.Lowered
    cache: int


def lower(
    model: Chameleon, prompts: Sequence[np.ndarray], cfg: SampleConfig, vocab: Vocab, mesh: Mesh
) -> LoweredSampler:
    """The programs that :func:`generate` would run on ``mesh``; the prompts split evenly over its rows.

    ``model`` may hold shapes (jax.ShapeDtypeStruct), and the mesh absent devices: nothing is computed. The compiler chooses the
    memory layout of weights and cache; in any other layout the loop would begin with a copy of them.
    """

    def free(leaf):
        return Format(Layout.AUTO, leaf.sharding)

    groups = math.prod(mesh.shape[axis] for axis in ROWS)
    request, copies, _ = lay_out(prompts, jax.random.key(0), vocab, model.cfg.vocab, groups=groups)
    with jax.set_mesh(mesh):
        program = program_key(request, cfg)
        first = prefill.lower(model, request, copies=copies, vocab=vocab, program=program)
        state, head = _placed(*first.out_info, mesh)
        ctx = Context(model, head, request, DynamicConfig.of(cfg), vocab, program)
        free_ctx = replace(ctx, model=jax.tree.map(free, model), head=free(head), request=None, config=None)
        free_state = jax.tree.map(free, state)
        shardings = (free_ctx, free_state, None, None)
        loop = DeviceJit(decode.__wrapped__, in_shardings=shardings, out_shardings=free_state, donate_argnums=1)
        second = loop.lower(ctx, state, NO_LIMIT, np.int32(len(request.ids)))
    slots = jax.tree.leaves((state.cache.keys, state.cache.values))
    return LoweredSampler(first, second, sum(x.size * x.dtype.itemsize for x in slots))


def _placed(state: State, head: jax.Array, mesh: Mesh) -> tuple[State, jax.Array]:
    """The shapes of what :func:`prefill` returns, placed on a mesh: rows and heads split, the rest whole."""

    def place(leaf, letters):
        sharding = NamedSharding(mesh, spec(letters, leaf.shape, COMPUTE, mesh))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    rows = jax.tree.map(lambda leaf: place(leaf, "BTE"[: leaf.ndim]), state._replace(cache=None))
    cache = jax.tree.map(lambda leaf: place(leaf, CACHE_LETTERS[leaf.ndim]), state.cache)
    return rows._replace(cache=cache), place(head, _head_letters(head, mesh.shape["tensor"]))


def _head_letters(head: jax.Array, tensor: int) -> str:
    """The axes of the head's columns [D E]: E is split over the ``tensor`` axis as V is, where it divides."""
    return "DV" if head.shape[1] % tensor == 0 else "DE"

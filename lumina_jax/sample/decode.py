"""One-by-one decoding: a batch of prompts through one jitted program, prefill and while loop (paper section 2.4).

With guidance every prompt has two rows, side by side so that a pair shares a device: they hold the same tokens, and the
second merely does not see what stands before its last begin-image. That equals the original's separate unconditional
model and cache.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lumina_jax.config import SampleConfig
from lumina_jax.layout import CODES_PER_UNIT
from lumina_jax.model.attention import KVCache
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sample.guidance import Knobs, Place, Scores, advance, draw, place_of, scores
from lumina_jax.sharding import ROWS, constrain
from lumina_jax.vocab import Vocab


class Request(NamedTuple):
    """A batch of prompts as arrays. The first axis of each is B.

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


class State(NamedTuple):
    """What the loop carries: ``last`` [W D] hidden states of the newest token (W = B, or 2B with guidance)."""

    step: jax.Array
    last: jax.Array
    cache: KVCache
    place: Place
    answer: jax.Array
    done: jax.Array
    sound: jax.Array


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
    compiled program; only guidance = 1 has one of its own, with half the rows.

    Raises ValueError for wrong prompts or sizes before anything is compiled; FloatingPointError when the logits are not
    finite, naming the weight that is to blame.
    """
    request, slots = _request(model, prompts, key, cfg, vocab, sizes, keys)
    answers, sound = _decode(model, request, Knobs.of(cfg), vocab=vocab, slots=slots, pairs=cfg.guidance != 1)
    if not sound:
        raise FloatingPointError(_blame(model))
    return [_cut(row[: cfg.max_new_tokens], vocab) for row in np.asarray(answers)[: len(prompts)]]


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
    are end of turn.
    """
    request, slots = _request(model, [prompt], key, cfg, vocab, None, None)
    planned = np.full(slots - request.ids.shape[1], -1, np.int32)
    for step, token in (plan or {}).items():
        planned[step] = token
    pairs = cfg.guidance != 1
    tokens, seen = _trace(model, request, Knobs.of(cfg), planned, vocab=vocab, slots=slots, pairs=pairs)
    tokens, seen = jax.tree.map(lambda part: np.asarray(part[: cfg.max_new_tokens, 0]), (tokens, seen))
    return tokens, seen


def lower(
    model: Chameleon, prompts: Sequence[np.ndarray], cfg: SampleConfig, vocab: Vocab, mesh: Mesh
) -> jax.stages.Lowered:
    """The program that :func:`generate` would run on ``mesh``, ready to be compiled; the prompts split evenly over its rows.

    ``model`` may be one of shapes (jax.ShapeDtypeStruct), and the mesh of devices that are not here: nothing is computed.
    """
    request, slots = _request(model, prompts, jax.random.key(0), cfg, vocab, None, None)
    with jax.set_mesh(mesh):
        return _decode.lower(model, request, Knobs.of(cfg), vocab=vocab, slots=slots, pairs=cfg.guidance != 1)


def bucket(n: int) -> int:
    """``n`` rounded up to a length that programs are compiled for: a multiple of 32, at most an eighth above ``n`` from 256 on."""
    step = max(32, (1 << n.bit_length()) // 16)
    return -(-n // step) * step


@functools.partial(jax.jit, static_argnames=("vocab", "slots", "pairs"))
def _decode(model: Chameleon, request: Request, knobs: Knobs, *, vocab: Vocab, slots: int, pairs: bool):
    """Answers i32[B N], end of turn from their ends on, and whether all logits were finite."""

    def unfinished(state: State) -> jax.Array:
        return (state.step < knobs.max_new_tokens) & ~state.done.all() & state.sound

    def step(state: State) -> State:
        return _step(model, state, request, knobs, None, vocab, pairs)[0]

    state = jax.lax.while_loop(unfinished, step, _prefill(model, request, vocab, slots, pairs))
    return state.answer, state.sound


@functools.partial(jax.jit, static_argnames=("vocab", "slots", "pairs"))
def _trace(model, request: Request, knobs: Knobs, plan: jax.Array, *, vocab: Vocab, slots: int, pairs: bool):
    """Tokens i32[N B] and Scores f32[N B V] of the N steps of ``plan``."""

    def step(state: State, planned: jax.Array):
        state, seen = _step(model, state, request, knobs, planned, vocab, pairs)
        return state, (state.answer[:, state.step - 1], seen)

    return jax.lax.scan(step, _prefill(model, request, vocab, slots, pairs), plan)[1]


def _prefill(model: Chameleon, request: Request, vocab: Vocab, slots: int, pairs: bool) -> State:
    """Feeds the prompts, in a cache of their own length (the scores of T queries over all slots would not fit), then grows it."""
    rows, P = request.ids.shape
    visible_from = jnp.stack([request.padding, request.hidden], axis=1) if pairs else request.padding[:, None]
    cache = model.empty_cache(visible_from.size, P)._replace(visible_from=visible_from.ravel())
    hidden, cache = model.cached(_paired(request.ids, pairs), cache)
    grown = ((0, 0), (0, 0), (0, 0), (0, slots - P), (0, 0))
    keys, values = (constrain(jnp.pad(part, grown), "BNSK") for part in (cache.keys, cache.values))
    return State(
        step=jnp.zeros((), jnp.int32),
        last=hidden[:, -1],
        cache=cache._replace(keys=keys, values=values),
        place=Place(*(jnp.asarray(part) for part in request.place)),
        answer=jnp.full((rows, slots - P), vocab.end_of_turn, jnp.int32),
        done=jnp.asarray(request.idle),
        sound=jnp.ones((), bool),
    )


def _step(model, state: State, request: Request, knobs: Knobs, planned, vocab: Vocab, pairs: bool):
    """Draws one token per row (``planned`` wins when it is one), feeds it, and returns the new state and the Scores."""
    logits = model.logits(state.last[:, None])[:, 0]
    V = logits.shape[-1]
    split = logits.reshape(len(request.ids), -1, V)
    seen = scores(split[:, 0], split[:, 1] if pairs else None, state.place, knobs, vocab)
    token = draw(jax.vmap(jax.random.fold_in, (0, None))(request.keys, state.step), seen.kept, knobs.temperature)
    token = token if planned is None else jnp.where(planned >= 0, planned, token)
    token = jnp.where(state.done, vocab.end_of_turn, token)
    cache = _hide(state.cache, token == vocab.boi) if pairs else state.cache
    hidden, cache = model.cached(_paired(token[:, None], pairs), cache)
    state = State(
        step=state.step + 1,
        last=hidden[:, -1],
        cache=cache,
        place=advance(state.place, token, request.wanted, V, vocab),
        answer=state.answer.at[:, state.step].set(token),
        done=state.done | (token == vocab.end_of_turn),
        sound=state.sound & jnp.isfinite(logits).all(),
    )
    return state, seen


def _hide(cache: KVCache, opens: jax.Array) -> KVCache:
    """Where an image opens (bool[B]) with the next token, its unconditional row sees nothing before that token."""
    visible_from = cache.visible_from.reshape(-1, 2)
    hidden = jnp.where(opens, cache.length, visible_from[:, 1])
    return cache._replace(visible_from=visible_from.at[:, 1].set(hidden).ravel())


def _paired(ids, pairs: bool) -> jax.Array:
    return jnp.repeat(ids, 2, axis=0) if pairs else jnp.asarray(ids)


def _request(model, prompts, key, cfg: SampleConfig, vocab: Vocab, sizes, keys) -> tuple[Request, int]:
    """Checks everything and lays it out; the second value is the number of cache slots."""
    V = model.cfg.vocab
    prompts = _checked_prompts(prompts, V, vocab)
    places = []
    for row, prompt in enumerate(prompts):
        try:
            places.append(place_of(prompt, vocab))
        except ValueError as error:
            raise ValueError(f"prompt {row}: {error}") from error
    wanted = _checked_sizes(sizes, len(prompts), V, vocab)
    if keys is None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(prompts)))
    elif len(keys) != len(prompts):
        raise ValueError(f"{len(keys)} keys for {len(prompts)} prompts; give one each")
    P = bucket(max(map(len, prompts)))
    slots = bucket(P + cfg.max_new_tokens)
    ids = np.stack([np.pad(prompt, (P - len(prompt), 0)) for prompt in prompts])
    since, rows, cols = np.array(places, np.int32).T
    # An image whose height the prompt does not say yet takes the wanted size.
    rows, cols = (np.where(since == 0, wanted[:, i], part) for i, part in enumerate((rows, cols)))
    request = Request(
        ids=ids,
        padding=P - np.array([len(prompt) for prompt in prompts], np.int32),
        hidden=np.where(since >= 0, P - 1 - since, P - 1).astype(np.int32),
        place=Place(since, rows, cols),
        wanted=wanted,
        keys=jnp.stack(keys) if isinstance(keys, Sequence) else keys,
        idle=np.zeros(len(prompts), bool),
    )
    return _fill_mesh(request), slots


def _fill_mesh(request: Request) -> Request:
    """Repeats the last row, idle, until the rows split over the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else int(np.prod([mesh.shape.get(axis, 1) for axis in ROWS]))
    missing = -len(request.ids) % parts
    if missing == 0:
        return request
    at = np.minimum(np.arange(len(request.ids) + missing), len(request.ids) - 1)
    filled = jax.tree.map(lambda part: part[at], request)
    return filled._replace(idle=np.arange(len(at)) >= len(request.ids))


def _checked_prompts(prompts, V: int, vocab: Vocab) -> list[np.ndarray]:
    if len(prompts) == 0:
        raise ValueError("no prompts; give at least one")
    markers = max(vocab.boi, vocab.eoi, vocab.newline, vocab.end_of_turn)
    if markers >= V:
        raise ValueError(
            f"{vocab.source} has a marker with id {markers}, but the model knows {V} tokens; "
            "model and tokenizer do not belong together"
        )
    prompts = [np.asarray(prompt) for prompt in prompts]
    for row, prompt in enumerate(prompts):
        if prompt.ndim != 1 or len(prompt) == 0 or not np.issubdtype(prompt.dtype, np.integer):
            raise ValueError(f"prompt {row} is {prompt.dtype}{list(prompt.shape)}; it must be at least one integer id")
        if prompt.min() < 0 or prompt.max() >= V:
            wrong = prompt[(prompt < 0) | (prompt >= V)][0]
            raise ValueError(f"prompt {row} holds id {wrong}, but the model knows ids 0 to {V - 1}")
    return [prompt.astype(np.int32) for prompt in prompts]


def _checked_sizes(sizes, B: int, V: int, vocab: Vocab) -> np.ndarray:
    """i32[B 2], zeros where free."""
    wanted = np.zeros((B, 2), np.int32)
    if sizes is None:
        return wanted
    if len(sizes) != B:
        raise ValueError(f"{len(sizes)} sizes for {B} prompts; give one each, None where it is free")
    units = vocab.size_of[:V]
    for row, size in enumerate(sizes):
        if size is None:
            continue
        if any(codes % CODES_PER_UNIT or codes < 1 or codes // CODES_PER_UNIT not in units for codes in size):
            raise ValueError(
                f"size {row} is {size[0]} x {size[1]} codes; rows and columns must be even and from "
                f"{CODES_PER_UNIT} to {CODES_PER_UNIT * units.max()}"
            )
        wanted[row] = size
    return wanted


def _cut(answer: np.ndarray, vocab: Vocab) -> np.ndarray:
    ends = np.flatnonzero(answer == vocab.end_of_turn)
    return answer[: ends[0]] if len(ends) else answer


def _blame(model: Chameleon) -> str:
    for path, weight in jax.tree_util.tree_leaves_with_path(model):
        if not jnp.isfinite(weight).all():
            return f"the model's logits are not finite: weight {jax.tree_util.keystr(path)} holds NaN or infinity"
    return "the model's logits are not finite although its weights are; they overflow: compute in a wider dtype"

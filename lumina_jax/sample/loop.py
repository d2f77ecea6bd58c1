"""One pass of decoding: each row's last token and what may follow it are fed, and what stands is written down.

With guidance every row of tokens has two of the cache, side by side so that a pair shares a device: they hold the same tokens,
and the second merely does not see what stands before its last begin-image. That equals the original's separate unconditional
model and cache. Tokens that the image-token rule knows before the model speaks (ends of lines and of images, wanted sizes) are
fed together with the token after which they stand, so they take no pass of their own; drafts (:mod:`.speculative`) come on top.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax import layout
from lumina_jax.model.attention import KVCache
from lumina_jax.model.backend import backend
from lumina_jax.model.chameleon import CachedLayers, Chameleon
from lumina_jax.sample.guidance import (
    Knobs,
    Place,
    advance,
    code_ids,
    code_scores,
    draw,
    draw_code,
    rules,
    scores,
    skip,
    tempered,
)
from lumina_jax.sample.request import Request
from lumina_jax.sample.speculative import Drafts, Noise, guess, judge, match, neighbours, resembling
from lumina_jax.sharding import axis_size, constrain
from lumina_jax.vocab import Vocab

KNOWN = 3
"""Tokens of a pass without drafts: a begin-image with its height and width, or the last code with end-of-line and end-image."""

REACHES = 8
"""In how many steps attention follows the filling of the cache, each a multiple of LANES slots."""
LANES = 128


class State(NamedTuple):
    """What the loop carries.

    ``tokens`` i32[B S] are prompt and answer by cache slot; ``count`` i32[B] of them belong to the answer, and all but the last
    are in the ``cache``, which has W rows (W = B, or 2B with guidance). Drafts stand behind them, drawn from ``q`` f32[B T-1 E].
    ``place`` is that of the next token; ``passes`` i32[B] are those a row has taken.
    """

    tokens: jax.Array
    count: jax.Array
    cache: KVCache
    q: jax.Array
    place: Place
    passes: jax.Array
    done: jax.Array
    sound: jax.Array


class Shape(NamedTuple):
    """What a program is compiled for beside the shapes of its arguments: ``window`` tokens of a pass, ``method`` of drafting."""

    slots: int
    copies: int
    pairs: bool
    method: str
    window: int


class Setting(NamedTuple):
    """All that is the same in every pass. ``head`` [D E] are the head's columns of the codes; ``layers`` are those of
    Chameleon.unstack, None to scan over stacked ones."""

    model: Chameleon
    head: jax.Array
    request: Request
    knobs: Knobs
    vocab: Vocab
    shape: Shape
    layers: CachedLayers | None = None

    @property
    def ids(self) -> np.ndarray:
        """i32[E]: the tokens of the codes."""
        return code_ids(self.vocab, self.model.cfg.vocab)

    @property
    def numbers(self) -> jax.Array:
        """i32[V]: which of :attr:`ids` a token is; 0 elsewhere."""
        return jnp.zeros(self.model.cfg.vocab, jnp.int32).at[self.ids].set(np.arange(len(self.ids)))


def run(at: Setting, state: State, most: jax.Array, leave: jax.Array) -> State:
    """Passes in place, at most ``most``, until ``leave`` rows are done.

    Where each token of a pass takes time (Backend.narrow_passes), a pass without drafts holds one token unless others are known.
    """

    def go_on(carry) -> jax.Array:
        number, state = carry
        return (number < most) & (state.done.sum() < leave) & state.sound

    def once(at: Setting, carry):
        return carry[0] + 1, step(at, carry[1])

    def nothing_known(carry) -> jax.Array:
        state = carry[1]
        return go_on(carry) & ~((rules(state.place, 2, at.vocab)[:, 0] >= 0) & ~state.done).any()

    def wide_then_narrow(carry):
        return jax.lax.while_loop(nothing_known, functools.partial(once, narrow), once(at, carry))

    layers, cache = at.model.unstack(state.cache)
    at, state = at._replace(layers=layers), state._replace(cache=cache)
    narrow = at._replace(shape=at.shape._replace(window=1))
    each = wide_then_narrow if backend().narrow_passes and at.shape.method == "off" else functools.partial(once, at)
    state = jax.lax.while_loop(go_on, each, (jnp.int32(0), state))[1]
    return state._replace(cache=state.cache.stack())


def step(at: Setting, state: State) -> State:
    """One pass."""
    request, knobs, vocab, shape = at.request, at.knobs, at.vocab, at.shape
    B, start, W = len(request.keys), request.ids.shape[1] - 1, shape.window
    rule = rules(state.place, W, vocab)
    last = start + state.count
    ids = jax.vmap(lambda row, slot: jax.lax.dynamic_slice(row, (slot,), (W,)))(state.tokens, last)
    ids = ids.at[:, 1:].set(jnp.where(rule[:, :-1] >= 0, rule[:, :-1], ids[:, 1:]))
    guessed = (rule[:, :-1] == layout.CODE) & (shape.method != "off")
    ahead = jnp.cumprod((rule[:, :-1] >= 0) | guessed, axis=1).sum(axis=1)
    hidden, cache = feed(at.model, state.cache, ids, vocab, shape.pairs, _reaches(start, shape.slots), at.layers)

    if shape.method == "off":
        kept, proposed, q, sound = ahead, None, None, True
    else:
        kept, proposed, q, sound = _judged(at, state, hidden, ids, rule, ahead)
    here = rule[jnp.arange(B), kept]
    place = skip(state.place, kept, here)
    code = None if proposed is None else at_slot(proposed, kept)
    token, also = _token(
        at, at_slot(hidden, paired(kept, shape.pairs)), code, here, place, state.count + kept, state.done
    )
    slots = jnp.arange(W)
    following = jnp.zeros_like(ids) if proposed is None else proposed
    written = jnp.where(slots == kept[:, None], token[:, None], following)
    written = jnp.where(slots < kept[:, None], jnp.roll(ids, -1, axis=1), written)
    count = state.count + jnp.where(state.done, 0, kept + 1)
    state = State(
        tokens=_write(state.tokens, written, last + 1),
        count=count,
        cache=cache._replace(length=start + paired(count, shape.pairs)),
        q=state.q,
        place=advance(place, token, request.wanted, at.model.cfg.vocab, vocab),
        passes=state.passes + ~state.done,
        done=state.done | (token == vocab.end_of_turn) | (count >= knobs.max_new_tokens),
        sound=state.sound & sound & also,
    )
    if proposed is None:
        return state
    old = jnp.clip(ahead - kept, 0, W)
    return _drafted(at, state, q, kept, old) if q is not None else _looked_up(at, state, ids, kept, old)


def _judged(at: Setting, state: State, hidden, ids, rule, ahead):
    """Of a pass with drafts: how many stand i32[B], tokens i32[B W] from now on, their q f32[B W E] (None: they need none), and
    whether the logits were finite."""
    B, W = ids.shape
    cond, uncond, sound = _split(at, jnp.einsum("BTD,DV->BTV", hidden, at.head, preferred_element_type=jnp.float32))
    flat = [None if part is None else part.reshape(B * W, -1) for part in (cond, uncond)]
    scored = tempered(code_scores(*flat, at.knobs), at.knobs.temperature).reshape(B, W, -1)
    given, drafts = rule >= 0, jnp.roll(ids, -1, axis=1)
    chance = Noise.of(at.request.keys, state.count[:, None] + jnp.arange(W), state.passes)
    if at.shape.method == "matched":
        (kept, codes), q = match(scored, drafts, given, chance.token, at.ids), None
    else:
        q = jnp.pad(jnp.where(given[:, :-1, None], 0, state.q), ((0, 0), (0, 1), (0, 0)))
        drafts = Drafts(at.numbers[drafts], q)
        kept, (codes, q) = judge(at.shape.method, jax.nn.log_softmax(scored), drafts, given, chance, at.ids)
    return jnp.minimum(kept, ahead), jnp.where(given, rule, jnp.asarray(at.ids)[codes]), q, sound


def _looked_up(at: Setting, state: State, ids, kept, old) -> State:
    """The drafts of the next pass for "matched": ``old`` i32[B] stand behind the new token, where ids i32[B W] were fed."""
    n = ids.shape[1] - 1
    fed = jnp.take_along_axis(ids, jnp.minimum(kept[:, None] + 1 + jnp.arange(n), n), axis=1)
    first = at.request.ids.shape[1] + state.count
    rule = rules(state.place, n, at.vocab)
    return state._replace(
        tokens=resembling(state.tokens, first, fed, old, state.place, rule, jnp.asarray(at.ids)[at.numbers])
    )


def _drafted(at: Setting, state: State, q, kept, old) -> State:
    """The drafts of the next pass: ``old`` i32[B] behind the new token, drawn from q f32[B W E], and guesses behind them."""
    W = q.shape[1]
    first = at.request.ids.shape[1] + state.count
    tokens, found = neighbours(state.tokens, first, first + old, state.place, W - 1)
    keys = Noise.of(at.request.keys, state.count[:, None] + jnp.arange(W - 1), state.passes)
    new = guess(tokens, found, keys.guess, at.ids, at.numbers)
    slots = jnp.arange(W - 1)
    mine = slots < old[:, None]
    was = jax.vmap(lambda row, i: jax.lax.dynamic_slice(row, (i,), (W - 1,)))(state.tokens, first)
    codes = jnp.where(mine, was, jnp.asarray(at.ids)[new.codes])
    carried = jnp.take_along_axis(q, jnp.minimum(kept[:, None] + 1 + slots, W - 1)[..., None], axis=1)
    return state._replace(tokens=_write(state.tokens, codes, first), q=jnp.where(mine[..., None], carried, new.q))


def _token(at: Setting, hidden, code, rule, place, places, done) -> tuple[jax.Array, jax.Array]:
    """The next token of each row, i32[B], from hidden [W D], and whether the logits for it were finite.

    ``code`` is the token i32[B] where a code stands, None to draw it here. In an image only the codes' logits are computed, and
    the others only when a row is elsewhere.
    """
    B, knobs = len(rule), at.knobs
    keys = jax.vmap(jax.random.fold_in)(at.request.keys, places)
    sound = jnp.ones((), bool)
    if code is None:
        cond, uncond, sound = _split(at, jnp.einsum("BD,DV->BV", hidden, at.head, preferred_element_type=jnp.float32))
        code = draw_code(keys, code_scores(cond, uncond, knobs), knobs.temperature, at.ids)

    def elsewhere():
        cond, uncond, sound = _split(at, at.model.logits(hidden[:, None])[:, 0])
        return draw(keys, scores(cond, uncond, place, knobs, at.vocab).kept, knobs.temperature), sound

    free = ((rule == layout.ANY) | (rule == layout.SIZE)) & ~done
    other, also = jax.lax.cond(free.any(), elsewhere, lambda: (jnp.zeros(B, jnp.int32), jnp.ones((), bool)))
    token = jnp.where(rule >= 0, rule, jnp.where(free, other, code))
    return jnp.where(done, at.vocab.end_of_turn, token), sound & also


def _split(at: Setting, logits: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Logits f32[W ... V] of conditional rows and of unconditional ones, and whether all were finite."""
    # First in parts, or the compiler gathers the weights; then whole everywhere: a top-k of parts would talk 32 times.
    letters = "BTV" if logits.ndim == 3 else "BV"
    logits = logits if logits.shape[-1] % axis_size("tensor") else constrain(logits, letters)
    logits = constrain(logits, letters.replace("V", "E"))
    finite = jnp.isfinite(logits).all()
    if not at.shape.pairs:
        return logits, None, finite
    logits = logits.reshape(-1, 2, *logits.shape[1:])
    return logits[:, 0], logits[:, 1], finite


def feed(
    model: Chameleon,
    cache: KVCache,
    ids: jax.Array,
    vocab: Vocab,
    pairs: bool,
    reaches: Sequence[int] | None = None,
    layers: CachedLayers | None = None,
) -> tuple[jax.Array, KVCache]:
    """:meth:`Chameleon.cached` of ids i32[B T]. Where the first begins an image (no other can), its unconditional row sees
    nothing before it."""
    if pairs:
        shown = cache.visible_from.reshape(-1, 2)
        hidden = jnp.where(ids[:, 0] == vocab.boi, cache.length[::2], shown[:, 1])
        cache = cache._replace(visible_from=shown.at[:, 1].set(hidden).ravel())
    return model.cached(paired(ids, pairs), cache, reaches, layers)


def paired(part, pairs: bool) -> jax.Array:
    """Each row twice."""
    return jnp.repeat(part, 2, axis=0) if pairs else jnp.asarray(part)


def at_slot(part: jax.Array, slot: jax.Array) -> jax.Array:
    """[B T ...] -> [B ...] at i32[B]."""
    return part[jnp.arange(len(part)), slot]


def _write(tokens: jax.Array, written: jax.Array, slot: jax.Array) -> jax.Array:
    return jax.vmap(jax.lax.dynamic_update_slice)(tokens, written, slot[:, None])


def _reaches(start: int, slots: int) -> tuple[int, ...]:
    """Numbers of slots, falling, from all to those that prompts of ``start`` tokens fill."""
    steps = np.linspace(slots, start, REACHES, endpoint=False)
    return tuple(sorted({min(slots, -(-int(step) // LANES) * LANES) for step in steps}, reverse=True))

"""One pass of decoding: the last token of each row and what may follow it are fed, and the tokens that stand are written down.

Tokens that the image-token rule knows in advance (ends of lines and of images, forced sizes) are fed together with the token
before them, so they take no pass of their own; drafts (:mod:`.drafters`) are fed behind them.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax import layout
from lumina_jax.model.attention import KVCache, Order, take_slots
from lumina_jax.model.backend import backend
from lumina_jax.sample.drafters import Drafter, Judgement, Window, drafter_of, split_pairs
from lumina_jax.sample.guidance import draw, scores
from lumina_jax.sample.position import ImagePosition, advance, rules, skip
from lumina_jax.sample.state import Context, State, at_slot, paired, slots_from, write_slots
from lumina_jax.sample.tree import node_tokens

KNOWN = 3
"""Tokens of a pass without drafts: begin-image, height and width, or the last code, end-of-line and end-image."""

REACHES = 8
"""The number of cache lengths that attention is compiled for, each a multiple of LANES slots."""
LANES = 128


def run(ctx: Context, state: State, max_passes: jax.Array, stop_after_rows: jax.Array) -> State:
    """At most ``max_passes`` passes, until ``stop_after_rows`` rows are done or logits are not finite; in place.

    Where each token of a pass takes time (Backend.narrow_passes), a pass without drafts holds one token unless others are known.
    """

    def go_on(carry) -> jax.Array:
        number, state = carry
        return (number < max_passes) & (state.done.sum() < stop_after_rows) & state.finite

    def once(ctx: Context, carry):
        return carry[0] + 1, step(ctx, carry[1])

    def nothing_known(carry) -> jax.Array:
        state = carry[1]
        return go_on(carry) & ~((rules(state.position, 2, ctx.vocab)[:, 0] >= 0) & ~state.done).any()

    def wide_then_narrow(carry):
        return jax.lax.while_loop(nothing_known, functools.partial(once, narrow), once(ctx, carry))

    layers, cache = ctx.model.unstack(state.cache)
    ctx, state = replace(ctx, layers=layers), state._replace(cache=cache)
    narrow = replace(ctx, program=ctx.program._replace(window=1))
    narrows = backend().narrow_passes and ctx.program.method == "off"
    body = wide_then_narrow if narrows else functools.partial(once, ctx)
    state = jax.lax.while_loop(go_on, body, (jnp.int32(0), state))[1]
    return state._replace(cache=state.cache.stack())


def step(ctx: Context, state: State) -> State:
    """One pass: feed, judge, draw, write, propose."""
    drafter, last = drafter_of(ctx.program), ctx.answer_slot - 1 + state.count
    window, cache = _feed_window(ctx, state, last, drafter)
    judged = drafter.judge(ctx, state, window)
    window, cache = _along(ctx, state, window, cache, judged)
    token, position, finite = _draw_next(ctx, state, window, judged)
    slots, kept = jnp.arange(ctx.program.window), judged.kept[:, None]
    written = jnp.where(slots == kept, token[:, None], judged.tokens)
    written = jnp.where(slots < kept, jnp.roll(window.ids, -1, axis=1), written)
    count = state.count + jnp.where(state.done, 0, judged.kept + 1)
    state = State(
        tokens=write_slots(state.tokens, written, last + 1),
        count=count,
        cache=cache._replace(length=ctx.answer_slot - 1 + paired(count, ctx.program.pairs)),
        q=state.q,
        replacements=state.replacements,
        position=advance(position, token, ctx.request.sizes, ctx.model.cfg.vocab, ctx.vocab),
        passes=state.passes + ~state.done,
        done=state.done | (token == ctx.vocab.end_of_turn) | (count >= ctx.config.max_new_tokens),
        finite=state.finite & judged.finite & finite,
    )
    return drafter.propose(ctx, state, window, judged)


def _feed_window(ctx: Context, state: State, last: jax.Array, drafter: Drafter) -> tuple[Window, KVCache]:
    """Feeds the last token of each row, at slot ``last`` i32[B], and the known tokens and drafts behind it."""
    W = ctx.program.window
    rule = rules(state.position, W, ctx.vocab)
    ids = slots_from(state.tokens, last, W)
    ids = ids.at[:, 1:].set(jnp.where(rule[:, :-1] >= 0, rule[:, :-1], ids[:, 1:]))
    drafted = (rule[:, :-1] == layout.CODE) & drafter.drafts_codes
    ahead = jnp.cumprod((rule[:, :-1] >= 0) | drafted, axis=1).sum(axis=1)
    tree = ctx.tree
    ids = node_tokens(tree, ids, state.replacements)
    reaches = _reaches(ctx.answer_slot - 1, ctx.program.slots)
    hidden, cache = feed(ctx, state.cache, ids, reaches, Order(tree.depth, tree.ancestors))
    return Window(ids, rule, ahead, hidden), cache


def _along(ctx: Context, state: State, window: Window, cache: KVCache, judged: Judgement) -> tuple[Window, KVCache]:
    """The window and the cache with the tokens of ``judged.path`` in the places of a chain."""
    branching = ctx.tree.branching
    if not branching:
        return window, cache
    length = ctx.answer_slot - 1 + paired(state.count, ctx.program.pairs)
    sources = length[:, None] + paired(judged.path[:, 1 : branching + 1], ctx.program.pairs)
    ids = jnp.take_along_axis(window.ids, judged.path, axis=1)
    return window._replace(ids=ids), take_slots(cache, sources, length + 1)


def _draw_next(
    ctx: Context, state: State, window: Window, judged: Judgement
) -> tuple[jax.Array, ImagePosition, jax.Array]:
    """(the next token of each row, i32[B]; its position; whether the logits for it were finite, bool[]).

    Inside images ``judged.code`` is that token; the logits of all V tokens are computed only when a row is elsewhere.
    """
    rule = at_slot(window.rule, judged.kept)
    position = skip(state.position, judged.kept, rule)

    def elsewhere():
        cond, uncond, finite = split_pairs(ctx, ctx.model.logits(judged.hidden[:, None])[:, 0])
        kept = scores(cond, uncond, position, ctx.config, ctx.vocab).kept
        return draw(judged.keys, kept, ctx.config.temperature), finite

    free = ((rule == layout.ANY) | (rule == layout.SIZE)) & ~state.done
    nothing = (jnp.zeros(len(rule), jnp.int32), jnp.ones((), bool))
    other, finite = jax.lax.cond(free.any(), elsewhere, lambda: nothing)
    token = jnp.where(rule >= 0, rule, jnp.where(free, other, judged.code))
    return jnp.where(state.done, ctx.vocab.end_of_turn, token), position, finite


def feed(
    ctx: Context, cache: KVCache, ids: jax.Array, reaches: Sequence[int] | None = None, order: Order | None = None
) -> tuple[jax.Array, KVCache]:
    """:meth:`Chameleon.cached` of ids i32[B T], for both rows of a pair.

    Where the first token begins an image (no other can), the unconditional row sees nothing before it from then on.
    """
    if ctx.program.pairs:
        visible = cache.visible_from.reshape(-1, 2)
        hidden = jnp.where(ids[:, 0] == ctx.vocab.boi, cache.length[::2], visible[:, 1])
        cache = cache._replace(visible_from=visible.at[:, 1].set(hidden).ravel())
    return ctx.model.cached(paired(ids, ctx.program.pairs), cache, reaches, ctx.layers, order)


def _reaches(start: int, slots: int) -> tuple[int, ...]:
    """Cache lengths, descending, from all ``slots`` to those that prompts of ``start`` tokens fill."""
    steps = np.linspace(slots, start, REACHES, endpoint=False)
    return tuple(sorted({min(slots, -(-int(step) // LANES) * LANES) for step in steps}, reverse=True))

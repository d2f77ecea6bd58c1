"""What a pass does with its drafts: a drafter judges the drafts that were fed and proposes those of the next pass.

There are two, :class:`Matched` (also :class:`MatchedTree`) and :class:`Rejection` (:mod:`.speculative` has their mathematics), and
:class:`NoDrafts`. Their
``judge`` says how many fed tokens are kept and what follows them; ``propose`` writes the drafts of the next pass: ``state.count``
and ``state.position`` stand behind the new token already, and W - 1 drafts go into the slots from ``ctx.answer_slot +
state.count`` on. ``drafts_codes``: whether it guesses codes at all; ``keeps_q``: whether State.q holds the drafts' probabilities.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.sample.guidance import code_scores, draw_code, tempered
from lumina_jax.sample.position import rules
from lumina_jax.sample.speculative import Drafts, Noise, code_noise, guess, look_up, match, neighbours, rejection_sample
from lumina_jax.sample.state import Context, ProgramKey, State, at_slot, paired, slots_from, write_slots
from lumina_jax.sample.tree import deepest, replacements
from lumina_jax.sharding import axis_size, constrain


class Window(NamedTuple):
    """The tokens of a pass: ``ids`` i32[B W] were fed, and ``hidden`` [B W D] (2B with guidance) is what the model gives for them.

    With a tree of drafts (:mod:`.tree`) these two hold its branches behind the W of the chain.

    ``rule`` i32[B W] says what may follow each (:func:`.position.rules`). ``ahead`` i32[B] is the number of tokens behind the first
    that may be kept: an unbroken run of drafts and of tokens known by the rule.
    """

    ids: jax.Array
    rule: jax.Array
    ahead: jax.Array
    hidden: jax.Array


class Judgement(NamedTuple):
    """``kept`` i32[B] of the tokens behind the first are kept; ``hidden`` [B D] (2B with guidance) stands behind them.

    The next token is ``code`` i32[B] where the rule wants a code, and drawn with ``keys`` [B] elsewhere. ``tokens`` i32[B W]: what
    should follow each fed token, which is kept drafts, then the next token, then new drafts. ``q`` f32[B W E] are the
    probabilities that the drafts were drawn from; a drafter without them hands on State.q. ``finite`` bool[]: the logits were.
    Of a tree of drafts, ``path`` i32[B W] are the nodes that now form the chain; ``perturbed`` f32[B n E] is log p + noise.
    """

    kept: jax.Array
    hidden: jax.Array
    code: jax.Array
    keys: jax.Array
    tokens: jax.Array
    q: jax.Array
    finite: jax.Array
    path: jax.Array | None = None
    perturbed: jax.Array | None = None


class NoDrafts:
    """One token per pass, and those that the rule knows."""

    drafts_codes = keeps_q = False

    def judge(self, ctx: Context, state: State, window: Window) -> Judgement:
        hidden, keys = _next(ctx, state, window, window.ahead)
        logits = jnp.einsum("BD,DV->BV", hidden, ctx.head, preferred_element_type=jnp.float32)
        cond, uncond, finite = split_pairs(ctx, logits)
        code = draw_code(keys, code_scores(cond, uncond, ctx.config), ctx.config.temperature, ctx.code_ids)
        return Judgement(window.ahead, hidden, code, keys, jnp.zeros_like(window.ids), state.q, finite)

    def propose(self, ctx: Context, state: State, window: Window, judged: Judgement) -> State:
        return state


class Matched:
    """Keeps drafts that equal the tokens that one-by-one decoding draws."""

    drafts_codes, keeps_q = True, False

    def judge(self, ctx: Context, state: State, window: Window) -> Judgement:
        scored, finite = _window_scores(ctx, window)
        forced, drafts = window.rule >= 0, jnp.roll(window.ids, -1, axis=1)
        kept, codes = match(scored, drafts, forced, _noise(ctx, state, window.ids.shape[1]).token, ctx.code_ids)
        return _judgement(ctx, state, window, kept, codes, state.q, finite)

    def propose(self, ctx: Context, state: State, window: Window, judged: Judgement) -> State:
        n = window.ids.shape[1] - 1
        fed = jnp.take_along_axis(window.ids, jnp.minimum(judged.kept[:, None] + 1 + jnp.arange(n), n), axis=1)
        first, rule = ctx.answer_slot + state.count, rules(state.position, n, ctx.vocab)
        old, image_layout = _old(window, judged), ctx.vocab.image_layout
        tokens = look_up(state.tokens, first, fed, old, state.position, rule, ctx.code_ids, image_layout)
        return state._replace(tokens=tokens)


class MatchedTree(Matched):
    """:class:`Matched`, where replacements of drafts are fed too (:mod:`.tree`)."""

    def judge(self, ctx: Context, state: State, window: Window) -> Judgement:
        tree, ids = ctx.tree, jnp.asarray(ctx.code_ids)
        scored, finite = _window_scores(ctx, window)
        noise = code_noise(_noise(ctx, state, tree.window).token, ctx.code_ids)
        perturbed = scored + noise[:, tree.depth]
        codes = jnp.argmax(perturbed, axis=2).astype(jnp.int32)
        node = deepest(tree, window.ids, ids[codes], window.rule, window.ahead)
        path = jnp.asarray(tree.paths)[node]
        chain = window._replace(hidden=_take(window.hidden, paired(path, ctx.program.pairs)))
        kept, codes = jnp.asarray(tree.depth)[node], jnp.take_along_axis(codes, path, axis=1)
        judged = _judgement(ctx, state, chain, kept, codes, state.q, finite)
        return judged._replace(path=path, perturbed=perturbed)

    def propose(self, ctx: Context, state: State, window: Window, judged: Judgement) -> State:
        state = super().propose(ctx, state, window, judged)
        places = np.arange(1, ctx.tree.branching + 1)
        drafts = slots_from(state.tokens, ctx.answer_slot + state.count, len(places))
        at = jnp.minimum(judged.kept[:, None] + places, ctx.program.window - 1)
        scored = _take(judged.perturbed, jnp.take_along_axis(judged.path, at, axis=1))
        return state._replace(replacements=replacements(scored, drafts, ctx.code_ids))


@dataclass(frozen=True)
class Rejection:
    """Rejection sampling of drafts with known probabilities; ``method`` is "sjd", "coupled" or "continued"."""

    method: str
    drafts_codes, keeps_q = True, True

    def judge(self, ctx: Context, state: State, window: Window) -> Judgement:
        scored, finite = _window_scores(ctx, window)
        forced, drafts = window.rule >= 0, jnp.roll(window.ids, -1, axis=1)
        q = jnp.pad(jnp.where(forced[:, :-1, None], 0, state.q), ((0, 0), (0, 1), (0, 0)))
        drafted, noise = Drafts(ctx.code_index[drafts], q), _noise(ctx, state, window.ids.shape[1])
        logp = jax.nn.log_softmax(scored)
        kept, (codes, q) = rejection_sample(self.method, logp, drafted, forced, noise, ctx.code_ids)
        return _judgement(ctx, state, window, kept, codes, q, finite)

    def propose(self, ctx: Context, state: State, window: Window, judged: Judgement) -> State:
        """Drafts of the last pass stay; the slots behind them get guesses."""
        n, old = window.ids.shape[1] - 1, _old(window, judged)
        first, ids = ctx.answer_slot + state.count, ctx.code_ids
        tokens, inside = neighbours(state.tokens, first, first + old, state.position, n, ctx.vocab.image_layout)
        new = guess(tokens, inside, _noise(ctx, state, n).guess, ids, ctx.code_index)
        slots = jnp.arange(n)
        is_old = slots < old[:, None]
        drafts = jnp.where(is_old, slots_from(state.tokens, first, n), jnp.asarray(ids)[new.codes])
        old_q = jnp.take_along_axis(judged.q, jnp.minimum(judged.kept[:, None] + 1 + slots, n)[..., None], axis=1)
        q = jnp.where(is_old[..., None], old_q, new.q)
        return state._replace(tokens=write_slots(state.tokens, drafts, first), q=q)


Drafter = NoDrafts | Matched | MatchedTree | Rejection

DRAFTERS = {
    "off": NoDrafts(),
    "matched": Matched(),
    **{method: Rejection(method) for method in ("sjd", "coupled", "continued")},
}
"""The drafter of each SampleConfig.parallel."""


def drafter_of(program: ProgramKey) -> Drafter:
    """The drafter of a program."""
    return MatchedTree() if program.branches else DRAFTERS[program.method]


def split_pairs(ctx: Context, logits: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Logits f32[B ... V], or [2B ... V] with guidance -> conditional [B ... V], unconditional or None, all finite bool[]."""
    # Split over V first, or the compiler gathers the weights; then whole on each device: a split top-k would communicate 32 times.
    letters = "BTV" if logits.ndim == 3 else "BV"
    logits = logits if logits.shape[-1] % axis_size("tensor") else constrain(logits, letters)
    logits = constrain(logits, letters.replace("V", "E"))
    finite = jnp.isfinite(logits).all()
    if not ctx.program.pairs:
        return logits, None, finite
    logits = logits.reshape(-1, 2, *logits.shape[1:])
    return logits[:, 0], logits[:, 1], finite


def _window_scores(ctx: Context, window: Window) -> tuple[jax.Array, jax.Array]:
    """f32[B W E]: log p of the codes behind each fed token, up to a constant per token; whether the logits were finite."""
    B, W = window.ids.shape
    logits = jnp.einsum("BTD,DV->BTV", window.hidden, ctx.head, preferred_element_type=jnp.float32)
    cond, uncond, finite = split_pairs(ctx, logits)
    flat = [None if x is None else x.reshape(B * W, -1) for x in (cond, uncond)]
    return tempered(code_scores(*flat, ctx.config), ctx.config.temperature).reshape(B, W, -1), finite


def _take(rows: jax.Array, slots: jax.Array) -> jax.Array:
    """[B T E] -> [B n E] at slots i32[B n]."""
    return jnp.take_along_axis(rows, slots[..., None], axis=1)


def _judgement(ctx: Context, state: State, window: Window, kept, codes, q, finite) -> Judgement:
    """A Judgement from the kept drafts i32[B] and the codes i32[B W] from now on, with forced tokens in their places."""
    kept = jnp.minimum(kept, window.ahead)
    tokens = jnp.where(window.rule >= 0, window.rule, jnp.asarray(ctx.code_ids)[codes])
    hidden, keys = _next(ctx, state, window, kept)
    return Judgement(kept, hidden, at_slot(tokens, kept), keys, tokens, q, finite)


def _noise(ctx: Context, state: State, n: int) -> Noise:
    """The noise of the next ``n`` tokens."""
    return Noise.of(ctx.request.keys, state.count[:, None] + jnp.arange(n), state.passes)


def _next(ctx: Context, state: State, window: Window, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The token behind ``kept`` i32[B] others: hidden states [B D], or [2B D], that predict it, and keys [B] that draw it."""
    hidden = at_slot(window.hidden, paired(kept, ctx.program.pairs))
    return hidden, jax.vmap(jax.random.fold_in)(ctx.request.keys, state.count + kept)


def _old(window: Window, judged: Judgement) -> jax.Array:
    """i32[B]: the number of drafts of this pass that stand behind the next token."""
    return jnp.clip(window.ahead - judged.kept, 0, window.ids.shape[1])

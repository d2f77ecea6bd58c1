"""Parallel decoding that does not change how answers are distributed: a pass verifies a window of drafted tokens and keeps some.

A pass feeds the last token of a row and the drafts behind it, and gives the distribution p of every next token after guidance,
image-token rule, top-k and temperature. SampleConfig.parallel names the method that turns p into tokens; there are two families.

"matched" (predictive sampling, arXiv 2002.09928) draws each token from p with noise that depends on its index in the answer only,
as one-by-one decoding does. A draft is kept when it equals the token drawn, so answers equal those of one-by-one decoding
whatever the drafts are, and drafts may depend on anything. Drafts are the tokens drawn in the pass before; where the token before
one has changed, the draft is the code that followed the same surroundings in the image so far, if there is one (:func:`look_up`).
A tree of drafts (:mod:`.tree`) holds the likeliest tokens in the places of drafts that fail.

The others keep a draft x that was drawn from a known q with probability min(1, p(x) / q(x)); the first draft that fails is
replaced by a token drawn from max(p - q, 0), normalised. Every kept token then follows p exactly, whatever q was, as long as the
noise that drew x is independent of the tokens before it, on which p and q depend. Behind the first failure, new drafts are drawn
from p, which becomes their q. "sjd" (speculative Jacobi decoding, arXiv 2410.01699) draws them with new noise in each pass;
"coupled" (arXiv 2510.24211) with the same noise for an index in every pass, so that a draft changes only as far as p does;
"continued" (ibid., arXiv 2603.18599) verifies the old drafts there too, and draws again only for those that fail.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.layout import column_of, line_tokens
from lumina_jax.sample.guidance import columns, noise
from lumina_jax.sample.position import ImagePosition
from lumina_jax.sample.state import slots_from, write_slots
from lumina_jax.vocab import ImageLayout

COINS = 1 << 30
"""Random keys of answer index i draw token i; keys of index i + COINS decide about drafts."""

COPY_SHARE = 0.95
"""The probability with which a guess copies a neighbouring code."""

SIMILARITY = (4, 2, 1)
"""Weights of equal neighbours when surroundings are compared: the token to the left, above, and above to the right."""

SAME = sum(SIMILARITY)
"""How similar surroundings must be to replace a draft of the last pass: all neighbours equal. Where codes seldom recur, as in a
large model, an equal token to the left alone says nothing, and the old draft, drawn with the same noise, is often right."""


class Drafts(NamedTuple):
    """Of a window: codes i32[B W] (indices in E) and the probabilities f32[B W E] that they were drawn from.

    Probabilities that are all zero mean that there is no draft: it fails, and the token is drawn from p.
    """

    codes: jax.Array
    q: jax.Array


class Noise(NamedTuple):
    """Keys [B W] of a window: ``token`` is the same in every pass; ``coin``, ``again`` and ``guess`` are of this pass alone.

    ``coin`` decides whether a draft is kept, ``again`` draws in place of one that failed, ``guess`` draws a draft without the
    model. Each key serves one purpose, or draws would depend on what verifies them.
    """

    token: jax.Array
    coin: jax.Array
    again: jax.Array
    guess: jax.Array

    @classmethod
    def of(cls, keys: jax.Array, indices: jax.Array, passes: jax.Array) -> "Noise":
        """``keys`` [B] of the rows, ``indices`` i32[B W] in the answer, ``passes`` i32[B] that a row has taken."""
        each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
        pass_keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)))(each(keys, indices + COINS), passes)
        uses = (jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(pass_keys, use) for use in range(3))
        return cls(each(keys, indices), *uses)


def rejection_sample(
    method: str, logp: jax.Array, drafts: Drafts, forced: jax.Array, noise: Noise, ids: np.ndarray
) -> tuple[jax.Array, Drafts]:
    """(number of drafts kept, i32[B]; the window from now on: kept drafts, the token behind them, new drafts).

    ``logp`` f32[B W E]; ``forced`` bool[B W] marks tokens that are known without the model; the last of a window has no draft.
    """
    p, q = jnp.exp(logp), drafts.q
    u = jax.vmap(jax.vmap(jax.random.uniform))(noise.coin)
    p_draft, q_draft = (jnp.take_along_axis(probs, drafts.codes[..., None], axis=2)[..., 0] for probs in (p, q))
    stands = forced | (u * q_draft < p_draft) & (q_draft > 0)
    kept = _leading(stands)
    residual = jnp.log(jnp.maximum(p - q, 0))
    # Where rounding leaves nothing of p above q, p is q.
    residual = jnp.where(jnp.isfinite(jnp.max(residual, axis=2, keepdims=True)), residual, logp)
    slots, first = jnp.arange(p.shape[1]), kept[:, None]
    if method == "continued":
        return kept, Drafts(jnp.where(stands, drafts.codes, _drawn(residual, noise.again, ids)), p)
    anew = _drawn(logp, noise.token if method == "coupled" else noise.again, ids)
    replacement = _drawn(
        jnp.take_along_axis(residual, first[..., None], axis=1), noise.again[jnp.arange(len(kept))[:, None], first], ids
    )
    return kept, Drafts(jnp.where(slots < first, drafts.codes, jnp.where(slots == first, replacement, anew)), p)


def match(
    scored: jax.Array, drafts: jax.Array, forced: jax.Array, noise: jax.Array, ids: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """(number of drafts kept, i32[B]; the codes i32[B W] that one-by-one decoding draws as long as all drafts before are kept).

    ``scored`` f32[B W E] is log p up to a constant per token; ``drafts`` i32[B W] are token ids, of any kind; ``noise`` [B W] are
    the keys Noise.token; ``forced`` as in :func:`rejection_sample`.
    """
    codes = _drawn(scored, noise, ids)
    return _leading(forced | (jnp.asarray(ids)[codes] == drafts)), codes


def _among(tokens: jax.Array, ids: np.ndarray) -> jax.Array:
    """Whether each token is one of ``ids``. A range is compared with its ends: nothing is looked up, slot by slot, in a table."""
    first, last = int(ids.min()), int(ids.max())
    inside = (tokens >= first) & (tokens <= last)
    if last - first + 1 == len(ids):
        return inside
    return inside & jnp.asarray(np.isin(np.arange(last + 1), ids))[jnp.clip(tokens, 0, last)]


def _leading(stands: jax.Array) -> jax.Array:
    """i32[B]: the number of leading True in bool[B W]; the last column does not count."""
    return jnp.cumprod(stands[:, :-1], axis=1).sum(axis=1)


def _drawn(logp: jax.Array, keys: jax.Array, ids: np.ndarray) -> jax.Array:
    """Codes i32[B W] drawn from f32[B W E], each with its key [B W]."""
    return jnp.argmax(logp + code_noise(keys, ids), axis=2).astype(jnp.int32)


def code_noise(keys: jax.Array, ids: np.ndarray) -> jax.Array:
    """Gumbel noise f32[B W E] of the tokens ``ids`` i32[E], one key [B W] per draw (:func:`.guidance.noise`)."""
    return columns(noise(keys.reshape(-1), int(ids.max()) + 1), ids).reshape(*keys.shape, -1)


def neighbours(
    tokens: jax.Array, first: jax.Array, end: jax.Array, position: ImagePosition, n: int, image_layout: ImageLayout
) -> tuple[jax.Array, jax.Array]:
    """Tokens i32[B n 2] to the left of and above n places of an open image, and whether these lie in the image, bool[B n 2].

    ``tokens`` i32[B S] by slot are known below slot ``end`` i32[B]; the first of the places is slot ``first`` i32[B], at
    ``position``. An unknown neighbour is replaced by the nearest known token in its direction.
    """
    cols = jnp.maximum(position.cols, 1)[:, None]
    line, slot = line_tokens(cols, image_layout), first[:, None] + jnp.arange(n)
    index = jnp.maximum(position.since[:, None] + jnp.arange(n) - image_layout.size_tokens, 0)
    row, col = index // line, column_of(index, cols, image_layout)
    left = jnp.minimum(slot, end[:, None]) - 1
    lines_up = jnp.maximum(1, -((end[:, None] - slot - 1) // line))
    inside = jnp.stack([slot - left <= col, lines_up <= row], axis=2)
    slots = jnp.stack([left, slot - lines_up * line], axis=2)
    rows = jnp.arange(len(tokens))[:, None, None]
    return tokens[rows, jnp.maximum(slots, 0)], inside


def guess(tokens: jax.Array, inside: jax.Array, keys: jax.Array, ids: np.ndarray, code_index: jax.Array) -> Drafts:
    """Drafts without the model, from :func:`neighbours`: one of the two with probability COPY_SHARE, else any code.

    ``keys`` [B W]; ``code_index`` i32[V] is a token's index in ``ids`` i32[E].
    """
    E, near, any_inside = len(ids), code_index[tokens], inside.any(axis=2)
    u = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (3,))))(keys)
    share = jnp.where(any_inside, COPY_SHARE, 0)
    take_above = jnp.where(inside.all(axis=2), u[..., 0] < 0.5, inside[..., 1])
    copied = jnp.where(take_above, near[..., 1], near[..., 0])
    codes = jnp.where(u[..., 1] < share, copied, jnp.minimum((u[..., 2] * E).astype(jnp.int32), E - 1))
    weights = share[..., None] * inside / jnp.maximum(inside.sum(axis=2, keepdims=True), 1)
    q = (jax.nn.one_hot(near, E) * weights[..., None]).sum(axis=2) + (1 - share[..., None]) / E
    return Drafts(codes, q)


def look_up(
    tokens: jax.Array,
    first: jax.Array,
    fed: jax.Array,
    old: jax.Array,
    position: ImagePosition,
    rule: jax.Array,
    ids: np.ndarray,
    image_layout: ImageLayout,
) -> jax.Array:
    """``tokens`` i32[B S] with a draft in each of the n slots from ``first`` i32[B] on, which is at ``position``.

    The first ``old`` i32[B] slots hold drafts of the last pass; such a draft stays while the token to its left equals the one that
    was ``fed`` i32[B n] there. Where it does not, the draft becomes the code that last followed the SAME surroundings, if
    there is one. A slot without a draft gets the code that last followed the most similar surroundings (SIMILARITY; an equal token
    to the left is required), or else copies a neighbour. ``rule`` i32[B n] are the rules of the slots. Drafts are always codes,
    which are the tokens ``ids`` i32[E]: where neither neighbour is one, the draft is the first of them.
    """
    rows, line = jnp.arange(len(tokens)), line_tokens(jnp.maximum(position.cols, 1)[:, None], image_layout)
    distances = jnp.concatenate([jnp.ones_like(line), line, line - 1], axis=1)
    slots = jnp.arange(tokens.shape[1])

    def surroundings(tokens, slot):
        return tokens[rows[:, None, None], jnp.maximum(slot[..., None] - distances[:, None], 0)]

    # Computed here and not in the loop: fused into it, libtpu 0.0.48.1 aborts for a tpu7x.
    candidate = jax.lax.optimization_barrier((slots < first[:, None]) & _among(tokens, ids))
    past = surroundings(tokens, jnp.broadcast_to(slots, tokens.shape))

    def unsettled(tokens, begin):
        """bool[B n]: the slots from slot ``begin`` i32[B] of the n on whose drafts cannot stay."""
        left = slots_from(tokens, first - 1, n)
        return (numbers >= begin[:, None]) & (rule < 0) & ((numbers >= old[:, None]) | (left != fed))

    def draft_next(carry):
        """Drafts the first unsettled slot of each row that has one."""
        tokens, begin = carry
        waiting = unsettled(tokens, begin)
        number, pending = jnp.argmax(waiting, axis=1), waiting.any(axis=1)
        slot = first + number
        present = surroundings(tokens, slot[:, None])
        equal = past == present
        score = jnp.where(candidate & equal[..., 0], (equal * np.array(SIMILARITY)).sum(axis=2), 0)
        latest = jnp.argmax(score * len(slots) + slots, axis=1)
        left, above = present[:, 0, 0], present[:, 0, 1]
        near = jnp.where(_among(left, ids), left, jnp.where(_among(above, ids), above, ids[0]))
        draft = tokens[rows, slot]
        known = score[rows, latest] >= jnp.where(number < old, SAME, SIMILARITY[0])
        new = jnp.where(known, tokens[rows, latest], jnp.where(number < old, draft, near))
        tokens = tokens.at[rows, slot].set(jnp.where(pending, new, draft))
        return tokens, jnp.where(pending, number + 1, n)

    n = fed.shape[1]
    numbers, drafts = jnp.arange(n), slots_from(tokens, first, n)
    tokens = write_slots(tokens, jnp.where(rule >= 0, rule, drafts), first)
    start = tokens, jnp.zeros(len(tokens), jnp.int32)
    return jax.lax.while_loop(lambda carry: unsettled(*carry).any(), draft_next, start)[0]

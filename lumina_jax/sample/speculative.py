"""Parallel decoding that changes nothing but the time it takes: many drafts are judged in one pass, and some are kept.

A pass feeds the last token of a row and drafts of those behind it, and gives the distribution p at every place, all of guidance,
rule, top-k and temperature in it. Two kinds of methods (``SampleConfig.parallel``) turn that into tokens.

"matched" (predictive sampling, arXiv 2002.09928) draws the token of a place from p with the place's own noise, which is the same
in every pass, as one-by-one decoding does. A draft stands when it is that token, so answers are those of one-by-one decoding
whatever the drafts are: they may depend on anything. They are what p said in the pass before, and where that has lost its ground
what followed when the image last looked like this (:func:`resembling`).

The others draw a draft x from a q that is known; it stands with probability min(1, p(x) / q(x)), and at the first that does not,
the token is drawn from what p has above q. Every kept token then follows p exactly, whatever q was, as long as what drew x is
independent of the tokens before, on which p and q depend. Behind the first place that failed there are new drafts from p, and
their q is that p. "sjd" (speculative Jacobi decoding, arXiv 2410.01699) draws them anew in each pass; "coupled" (arXiv
2510.24211) with the same noise for a place in every pass, so that a draft changes only as far as p does; "continued" (ibid.,
arXiv 2603.18599) judges the old drafts there as well, and draws anew only for those that fail.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.sample.guidance import Place, columns, noise

COINS = 1 << 30
"""From this place of the answer on, a row's keys decide about drafts instead of drawing tokens."""

SHARE = 0.95
"""How probable a guess makes it that a place repeats a neighbour."""

ALIKE = (4, 2, 1)
"""What it says for a place that the token left of it is the same, the one above, the one above to the right."""


class Drafts(NamedTuple):
    """For the places of a window: codes i32[B W] (numbers in E) and the probabilities f32[B W E] they were drawn from.

    Where these are all zero there is no draft: whatever stands there fails, and the token is drawn from p.
    """

    codes: jax.Array
    q: jax.Array


class Noise(NamedTuple):
    """Keys [B W] of the places of a window: of the token; and, of this pass alone, of the coin, of what is drawn again, of a guess.

    No two of them may serve for one place, or what is drawn would not be independent of what judges it.
    """

    token: jax.Array
    coin: jax.Array
    again: jax.Array
    guess: jax.Array

    @classmethod
    def of(cls, keys: jax.Array, places: jax.Array, passes: jax.Array) -> "Noise":
        """``keys`` [B] of the rows, ``places`` i32[B W] of the answer, ``passes`` i32[B] that a row has taken."""
        each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
        own = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)))(each(keys, places + COINS), passes)
        uses = (jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(own, use) for use in range(3))
        return cls(each(keys, places), *uses)


def judge(
    method: str, logp: jax.Array, drafts: Drafts, given: jax.Array, noise: Noise, ids: np.ndarray
) -> tuple[jax.Array, Drafts]:
    """(how many drafts stand, i32[B]; what stands at the places from now on: those drafts, the token behind them, new drafts).

    ``logp`` f32[B W E]; ``given`` bool[B W] are places whose token is known without the model; at the last there is no draft.
    """
    p, q = jnp.exp(logp), drafts.q
    u = jax.vmap(jax.vmap(jax.random.uniform))(noise.coin)
    at_draft = [jnp.take_along_axis(part, drafts.codes[..., None], axis=2)[..., 0] for part in (p, q)]
    stands = given | (u * at_draft[1] < at_draft[0]) & (at_draft[1] > 0)
    kept = _leading(stands)
    above = jnp.log(jnp.maximum(p - q, 0))
    # Where rounding leaves nothing of p above q, p is q.
    above = jnp.where(jnp.isfinite(jnp.max(above, axis=2, keepdims=True)), above, logp)
    slots, first = jnp.arange(p.shape[1]), kept[:, None]
    if method == "continued":
        return kept, Drafts(jnp.where(stands, drafts.codes, _drawn(above, noise.again, ids)), p)
    anew = _drawn(logp, noise.token if method == "coupled" else noise.again, ids)
    failed = _drawn(
        jnp.take_along_axis(above, first[..., None], axis=1), noise.again[jnp.arange(len(kept))[:, None], first], ids
    )
    return kept, Drafts(jnp.where(slots < first, drafts.codes, jnp.where(slots == first, failed, anew)), p)


def match(
    scored: jax.Array, drafts: jax.Array, given: jax.Array, noise: jax.Array, ids: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """(how many drafts stand, i32[B]; the codes i32[B W] that one-by-one decoding draws where all drafts before stand).

    ``scored`` f32[B W E] are log p up to a constant of each place; ``drafts`` i32[B W] are tokens, of whatever kind; ``noise``
    [B W] are the keys of the places' tokens.
    """
    codes = _drawn(scored, noise, ids)
    return _leading(given | (jnp.asarray(ids)[codes] == drafts)), codes


def _leading(stands: jax.Array) -> jax.Array:
    """i32[B]: how many of bool[B W] hold up to the first that does not; the last does not count."""
    return jnp.cumprod(stands[:, :-1], axis=1).sum(axis=1)


def _drawn(logp: jax.Array, keys: jax.Array, ids: np.ndarray) -> jax.Array:
    """Codes i32[B W] drawn from f32[B W E], each with its key [B W]."""
    shape = logp.shape[:2]
    drawn = columns(noise(keys.reshape(-1), int(ids.max()) + 1), ids).reshape(*shape, -1)
    return jnp.argmax(logp + drawn, axis=2).astype(jnp.int32)


def neighbours(
    tokens: jax.Array, first: jax.Array, end: jax.Array, place: Place, W: int
) -> tuple[jax.Array, jax.Array]:
    """Tokens i32[B W 2] left of and above W places of an open image, and whether they are there, bool[B W 2].

    ``tokens`` i32[B S] by slot, known below ``end`` i32[B]; ``first`` i32[B] is the slot of the first place and ``place`` its
    Place. For a neighbour that is not known itself stands the next known one in its direction.
    """
    line = jnp.maximum(place.cols, 1)[:, None] + 1
    slot = first[:, None] + jnp.arange(W)
    row, col = jnp.divmod(jnp.maximum(place.since[:, None] + jnp.arange(W) - 2, 0), line)
    left = jnp.minimum(slot, end[:, None]) - 1
    up = jnp.maximum(1, -((end[:, None] - slot - 1) // line))
    found = jnp.stack([slot - left <= col, up <= row], axis=2)
    at = jnp.stack([left, slot - up * line], axis=2)
    rows = jnp.arange(len(tokens))[:, None, None]
    return tokens[rows, jnp.maximum(at, 0)], found


def guess(tokens: jax.Array, found: jax.Array, keys: jax.Array, ids: np.ndarray, numbers: jax.Array) -> Drafts:
    """Drafts for places of which only neighbours are known (:func:`neighbours`): mostly one of them, else any code.

    ``keys`` [B W]; ``numbers`` i32[V] is a token's number in ``ids`` i32[E].
    """
    E, near, any_found = len(ids), numbers[tokens], found.any(axis=2)
    u = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (3,))))(keys)
    share = jnp.where(any_found, SHARE, 0)
    second = jnp.where(found.all(axis=2), u[..., 0] < 0.5, found[..., 1])
    copied = jnp.where(second, near[..., 1], near[..., 0])
    codes = jnp.where(u[..., 1] < share, copied, jnp.minimum((u[..., 2] * E).astype(jnp.int32), E - 1))
    weights = share[..., None] * found / jnp.maximum(found.sum(axis=2, keepdims=True), 1)
    q = (jax.nn.one_hot(near, E) * weights[..., None]).sum(axis=2) + (1 - share[..., None]) / E
    return Drafts(codes, q)


def resembling(
    tokens: jax.Array,
    first: jax.Array,
    fed: jax.Array,
    old: jax.Array,
    place: Place,
    rule: jax.Array,
    as_code: jax.Array,
) -> jax.Array:
    """``tokens`` i32[B S] with a draft in each of the n slots from ``first`` i32[B] on, of which ``place`` is the first's Place.

    A draft from the last pass, as the first ``old`` i32[B] are, stays where the token left of it is still what was ``fed``
    i32[B n] there. All others become the code that last followed the same token, most of all under the same (ALIKE); without
    one, new drafts repeat a neighbour. ``rule`` i32[B n] are those of the places; ``as_code`` i32[V] is the token itself where it
    is a code, and any code elsewhere.
    """
    rows, line = jnp.arange(len(tokens)), jnp.maximum(place.cols, 1)[:, None] + 1
    behind = jnp.concatenate([jnp.ones_like(line), line, line - 1], axis=1)
    slots = jnp.arange(tokens.shape[1])

    def around(tokens, slot):
        return tokens[rows[:, None, None], jnp.maximum(slot[..., None] - behind[:, None], 0)]

    past = (slots < first[:, None]) & (as_code[tokens] == tokens)
    seen = around(tokens, jnp.broadcast_to(slots, tokens.shape))

    def one(tokens, at):
        number, fed, rule = at
        slot = first + number
        here = around(tokens, slot[:, None])
        alike = seen == here
        score = jnp.where(past & alike[..., 0], (alike * np.array(ALIKE)).sum(axis=2), 0)
        latest = jnp.argmax(score * len(slots) + slots, axis=1)
        left, above = here[:, 0, 0], here[:, 0, 1]
        near = jnp.where(as_code[left] == left, left, as_code[above])
        mine, draft = number < old, tokens[rows, slot]
        known = score[rows, latest] > 0
        draft = jnp.where(mine & ((left == fed) | ~known), draft, jnp.where(known, tokens[rows, latest], near))
        return tokens.at[rows, slot].set(jnp.where(rule >= 0, rule, draft)), None

    return jax.lax.scan(one, tokens, (jnp.arange(fed.shape[1]), fed.T, rule.T))[0]

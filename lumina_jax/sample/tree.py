"""A tree of drafts for "matched" decoding: behind a token, not only the draft but also its likeliest replacements are fed.

"matched" draws the token at a place as the largest of log p + noise, with noise that is the same in every pass. Where a draft
fails, p has changed a little since it was drawn, and the noise has not: so the token that is drawn instead was among the next
largest of the last pass. With p changed by a total variation of 0.32, as one changed token changes that behind it in the 7B, the
draft stands in 6 of 10 cases, and in 8 the token drawn is among the two largest, in 9 among the four largest; at 0.06 in 98 of 100
it is one of the two largest (logits normally distributed, entropies of 3 to 6.5 nats). Drafts drawn with noise of their own, as
list coupling has them (arXiv 2408.07978 and its successors), add 0 to 4 percent each instead of 20: nothing is left for them.

A tree never changes an answer: a node is kept when its token and those of all nodes before it are the tokens drawn.
"""

import functools
import heapq
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

STANDS = ((0.60, 0.18, 0.09, 0.05, 0.03, 0.02), (0.82, 0.125, 0.035, 0.01))
"""[d][r]: how likely the token drawn has rank r among the scores of the last pass, d + 1 tokens behind one that has changed.

The last row holds further on too: there less has changed by that token, but more by others.
"""
RANKS = max(map(len, STANDS))


class Tree(NamedTuple):
    """Which nodes a pass feeds: the first ``window`` are the last token and the drafts behind it, the others branch off.

    i32[n] each, a parent before its children: ``parent`` (that of node 0 is 0), ``depth`` in tokens behind node 0, and ``rank``, 0
    for a place's draft, r for its r-th replacement.
    """

    window: int
    parent: np.ndarray
    depth: np.ndarray
    rank: np.ndarray

    @property
    def ancestors(self) -> np.ndarray:
        """bool[n n]: [i, j] is True where node j is node i or stands before it."""
        seen = np.eye(len(self.parent), dtype=bool)
        for node in range(1, len(seen)):
            seen[node] |= seen[self.parent[node]]
        return seen

    @property
    def paths(self) -> np.ndarray:
        """i32[n window]: by depth the nodes up to node i; behind it the drafts that were fed behind most of its tokens."""
        draft_of = {
            int(p): node for node, (p, r) in enumerate(zip(self.parent, self.rank, strict=True)) if node and r == 0
        }
        paths = np.tile(np.arange(self.window), (len(self.parent), 1))
        for node in range(len(paths)):
            before = node
            while before:
                paths[node, self.depth[before]] = before
                before = self.parent[before]
            behind = node
            while (behind := draft_of.get(int(behind))) is not None:
                paths[node, self.depth[behind]] = behind
        return paths

    @property
    def branching(self) -> int:
        """The largest depth of a node that branches off; 0 without such."""
        return int(self.depth[self.window :].max(initial=0))


@functools.cache
def tree_of(window: int, nodes: int) -> Tree:
    """A chain of ``window`` tokens and the ``nodes`` that are likeliest to be drawn (STANDS) among all that could branch off."""
    parent, depth, rank = [0, *range(window - 1)], list(range(window)), [0] * window
    chances, since = np.ones(window), list(range(window))
    waiting: list[tuple[float, int, int, int]] = []

    def offer(node: int, chance: float, changed: int, first: int) -> None:
        """Children of ``node`` from rank ``first`` on; a token has changed ``changed`` places before it."""
        shares = STANDS[min(changed, len(STANDS) - 1)]
        if depth[node] + 1 < window:
            for r in range(first, len(shares)):
                heapq.heappush(waiting, (-chance * shares[r], node, r, changed))

    for node in range(window - 1):
        chances[node + 1] = chances[node] * STANDS[min(since[node], len(STANDS) - 1)][0]
        offer(node, chances[node], since[node], 1)
    while waiting and len(parent) < window + nodes:
        chance, before, r, changed = heapq.heappop(waiting)
        parent.append(before)
        depth.append(depth[before] + 1)
        rank.append(r)
        offer(len(parent) - 1, -chance, 0 if r else changed + 1, 0)
    return Tree(window, np.array(parent, np.int32), np.array(depth, np.int32), np.array(rank, np.int32))


def node_tokens(tree: Tree, drafts: jax.Array, replacements: jax.Array) -> jax.Array:
    """i32[B n]: what each node feeds, from the tokens i32[B window] of the chain and ``replacements`` i32[B branching RANKS-1].

    Replacement [d, r] is that of rank r + 1 at depth d + 1.
    """
    if not tree.branching:
        return drafts
    depth, rank = tree.depth[tree.window :], tree.rank[tree.window :]
    branches = jnp.where(rank > 0, replacements[:, depth - 1, np.maximum(rank, 1) - 1], drafts[:, depth])
    return jnp.concatenate([drafts, branches], axis=1)


def deepest(tree: Tree, ids: jax.Array, drawn: jax.Array, rule: jax.Array, ahead: jax.Array) -> jax.Array:
    """i32[B]: the node up to which all tokens are kept.

    ``ids`` i32[B n] were fed, and ``drawn`` i32[B n] is the token behind each. ``rule`` i32[B window] by depth: a token that must
    follow there, or negative; nodes of rank 0 hold it. A path is at most ``ahead`` i32[B] tokens long.
    """
    forced = rule[:, np.maximum(tree.depth, 1) - 1] >= 0
    equal = ids == drawn[:, tree.parent]
    stands = jnp.where(forced, tree.rank == 0, equal) & (tree.depth <= ahead[:, None]) | (tree.depth == 0)
    kept = (stands[:, None] | ~tree.ancestors).all(axis=2)
    return jnp.argmax(jnp.where(kept, tree.depth, -1), axis=1)


def replacements(perturbed: jax.Array, drafts: jax.Array, ids: np.ndarray) -> jax.Array:
    """Tokens i32[B P RANKS-1]: the largest of log p + noise ``perturbed`` f32[B P E] of P places that are not the place's draft.

    ``drafts`` i32[B P] are token ids, ``ids`` i32[E] those of the codes.
    """
    tokens, found = jnp.asarray(ids), []
    left = jnp.where(tokens == drafts[..., None], -jnp.inf, perturbed)
    for _ in range(RANKS - 1):
        best = jnp.argmax(left, axis=2)
        found.append(tokens[best])
        left = jnp.where(jnp.arange(len(ids)) == best[..., None], -jnp.inf, left)
    return jnp.stack(found, axis=2)

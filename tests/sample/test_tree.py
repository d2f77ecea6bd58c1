"""Laws of the tree of drafts: its shape, which node is kept, and that it changes no answer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parallel import GREEDY, KEY, MODEL, PROMPTS, SAMPLED, SIZES, VOCAB, equal
from tiny import answers

from lumina_jax.config import SampleConfig
from lumina_jax.errors import InputError
from lumina_jax.sample import drafters
from lumina_jax.sample.tree import RANKS, deepest, node_tokens, replacements, tree_of


def test_a_tree_holds_its_chain_and_the_likeliest_branches():
    for window, nodes in ((2, 3), (6, 0), (6, 1), (16, 24), (64, 64)):
        tree = tree_of(window, nodes)
        assert (tree.parent[:window] == [0, *range(window - 1)]).all() and not tree.rank[:window].any()
        branches = range(window, len(tree.parent))
        assert all(
            tree.parent[node] < node and tree.depth[node] == tree.depth[tree.parent[node]] + 1 for node in branches
        )
        assert (
            len({(int(p), int(r)) for p, r in zip(tree.parent[1:], tree.rank[1:], strict=True)}) == len(tree.parent) - 1
        )
        assert (
            tree.depth.max() < window
            and tree.rank.max() < RANKS
            and tree.branching == max(tree.depth[window:], default=0)
        )
    assert len(tree_of(16, 24).parent) == 40
    # The first branch replaces the first draft: it follows the token that was drawn last.
    assert tree_of(16, 1).parent[16] == 0 and tree_of(16, 1).rank[16] == 1


def test_paths_hold_a_node_s_ancestors_at_their_depths():
    tree = tree_of(8, 12)
    for node, path in enumerate(tree.paths):
        assert path[tree.depth[node]] == node and (tree.depth[path] == np.arange(8)).all()
        assert set(path[: tree.depth[node] + 1]) == set(np.flatnonzero(tree.ancestors[node]))


def test_the_deepest_node_whose_tokens_are_those_drawn_is_kept():
    tree, rng = tree_of(5, 7), np.random.default_rng(0)
    n, B = len(tree.parent), 200
    ids, drawn = rng.integers(0, 3, (2, B, n))
    rule, ahead = np.where(rng.random((B, 5)) < 0.2, 1, -1), rng.integers(0, 5, B)
    kept = np.asarray(deepest(tree, jnp.asarray(ids), jnp.asarray(drawn), jnp.asarray(rule), jnp.asarray(ahead)))

    def stands(row: int, node: int) -> bool:
        if node == 0:
            return True
        before, depth = tree.parent[node], tree.depth[node]
        fits = tree.rank[node] == 0 if rule[row, depth - 1] >= 0 else ids[row, node] == drawn[row, before]
        return bool(fits) and depth <= ahead[row] and stands(row, before)

    for row in range(B):
        deepest_of_row = max(tree.depth[node] for node in range(n) if stands(row, node))
        assert stands(row, kept[row]) and tree.depth[kept[row]] == deepest_of_row


def test_replacements_are_the_next_largest_and_never_the_draft():
    perturbed, ids = jax.random.normal(KEY, (2, 3, 9)), np.arange(10, 19)
    drafts = jnp.array([[10, 11, 18], [3, 12, 12]])
    got = np.asarray(replacements(perturbed, drafts, ids))
    for row in range(2):
        for place in range(3):
            order = [token for token in ids[np.argsort(-perturbed[row, place])] if token != drafts[row, place]]
            assert got[row, place].tolist() == order[: RANKS - 1]


def test_a_node_feeds_the_token_of_its_rank():
    tree = tree_of(4, 5)
    drafts, others = jnp.arange(4)[None], 100 + jnp.arange(tree.branching * (RANKS - 1)).reshape(1, -1, RANKS - 1)
    got = np.asarray(node_tokens(tree, drafts, others))[0]
    for node, (depth, rank) in enumerate(zip(tree.depth, tree.rank, strict=True)):
        assert got[node] == (others[0, depth - 1, rank - 1] if rank else drafts[0, depth])


@pytest.mark.parametrize(("guidance", "nodes"), [(3.0, 6), (1.0, 17)])
def test_answers_are_those_of_one_by_one_decoding(guidance, nodes):
    """Text and pictures with forced tokens, several in a batch, drawn and greedy."""
    for cfg in (SAMPLED, GREEDY):
        cfg = replace(cfg, guidance=guidance)
        expected, slow = answers(MODEL, PROMPTS, KEY, cfg, VOCAB, sizes=SIZES)
        got, fast = answers(MODEL, PROMPTS, KEY, replace(cfg, parallel="matched", tree=nodes), VOCAB, sizes=SIZES)
        assert equal(got, expected) and fast.sum() < slow.sum()


def test_a_tree_takes_fewer_passes_than_its_chain():
    chain, tree = (
        answers(MODEL, PROMPTS, KEY, replace(SAMPLED, parallel="matched", tree=nodes), VOCAB, sizes=SIZES)[1].sum()
        for nodes in (0, 8)
    )
    assert tree < chain


def test_answers_do_not_depend_on_the_replacements(monkeypatch):
    """Even ones that are drawn at random, whatever the tokens, leave the answers as they are."""

    def at_random(perturbed, drafts, ids):
        return jax.random.randint(jax.random.key(5), (*drafts.shape, RANKS - 1), 0, 40)

    cfg = replace(SAMPLED, parallel="matched", window=5, tree=7)
    expected = answers(MODEL, PROMPTS, KEY, replace(cfg, tree=0), VOCAB, sizes=SIZES)[0]
    monkeypatch.setattr(drafters, "replacements", at_random)
    assert equal(answers(MODEL, PROMPTS, KEY, cfg, VOCAB, sizes=SIZES)[0], expected)


def test_only_matched_has_a_tree():
    with pytest.raises(InputError, match=r"sample\.tree=4 needs sample\.parallel='matched', not 'sjd'"):
        SampleConfig(parallel="sjd", tree=4)

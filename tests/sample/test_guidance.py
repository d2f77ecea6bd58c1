"""Laws of the scores that tokens are drawn from: guidance, the image-token rule, min_p, top-k, drawing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CODES, SIZES, tiny_vocab

from lumina_jax.config import SampleConfig
from lumina_jax.layout import encode_grid
from lumina_jax.sample.guidance import DynamicConfig, draw, guide, min_p, scores, top_k
from lumina_jax.sample.position import ImagePosition, advance, allowed, position_after

VOCAB = tiny_vocab()
V = 40
CHI_SQUARE_LIMIT = 29.6
"""The 99.9% point for 10 degrees of freedom."""


def positions(*rows: tuple[int, int, int]) -> ImagePosition:
    return ImagePosition(*(jnp.array(column, jnp.int32) for column in zip(*rows, strict=True)))


def logits(seed: int, rows: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (rows, V)) * 3


def test_guidance_of_one_is_exactly_the_conditional_row():
    cond, uncond = logits(0, 2) * 1e6, logits(1, 2)
    assert (guide(cond, uncond, 1.0) == cond).all()
    assert (guide(cond, uncond, 3.0) == 3.0 * (cond - uncond) + uncond).all()
    assert (guide(cond, uncond, 0.0) == uncond).all()


def test_top_k_keeps_all_ties_of_the_last_score_for_any_k():
    row = jnp.array([[3.0, -1.0, 3.0, 0.0, -0.0, -jnp.inf, 2.0]])
    for k, kept in ((1, {0, 2}), (2, {0, 2}), (3, {0, 2, 6}), (4, {0, 2, 3, 4, 6}), (6, {0, 1, 2, 3, 4, 6})):
        assert set(np.flatnonzero(top_k(row, jnp.array([k]))[0])) == kept, k
    assert top_k(row, jnp.array([2000])).all()


@pytest.mark.smoke
def test_top_k_equals_a_sort():
    values = logits(2, 64).at[:, ::5].set(0.25)
    k = jax.random.randint(jax.random.key(3), (64,), 1, V + 1)
    kth = np.sort(values, axis=-1)[np.arange(64), V - np.asarray(k)]
    assert (np.asarray(top_k(values, k)) == (np.asarray(values) >= kth[:, None])).all()


def test_min_p_compares_probabilities_with_the_largest():
    cond = logits(4, 3)
    p = np.asarray(jax.nn.softmax(cond))
    assert (np.asarray(min_p(cond, 0.1)) == (p >= 0.1 * p.max(-1, keepdims=True))).all()
    assert min_p(cond, 0.0).all()
    assert (min_p(cond, 1.0).sum(-1) == 1).all()


@pytest.mark.smoke
def test_the_rule_allows_what_the_writer_writes_and_nothing_else():
    tokens = encode_grid(np.arange(24).reshape(4, 6) % CODES, VOCAB)
    rows = [position_after(tokens[:stop], VOCAB) for stop in range(1, len(tokens) + 1)]
    mask = np.asarray(allowed(positions(*rows), V, VOCAB))
    assert mask[np.arange(len(tokens) - 1), tokens[1:]].all()
    counts = [SIZES, SIZES, *([CODES] * 6 + [1]) * 4, 1, V]
    assert mask.sum(-1).tolist() == counts
    assert (mask[2] == np.isin(np.arange(V), VOCAB.code_ids)).all()


def test_the_rule_applies_to_a_model_with_fewer_tokens_than_the_tokenizer():
    few = int(VOCAB.code_ids[5])
    assert allowed(positions((2, 2, 2)), few, VOCAB).sum() == 5


def test_the_position_after_a_prompt_is_the_one_reached_token_by_token():
    image = encode_grid(np.zeros((4, 2), int), VOCAB)
    tokens = np.concatenate([[0, 30, VOCAB.eoi, 31], image, [33], image[:-4]]).astype(np.int32)
    position = positions((-1, 0, 0))
    for stop, token in enumerate(tokens, start=1):
        position = advance(position, jnp.array([token]), jnp.zeros((1, 2), jnp.int32), V, VOCAB)
        expected = position_after(tokens[:stop], VOCAB)
        assert int(position.since[0]) == expected.since
        if expected.since >= 0:
            assert (int(position.rows[0]), int(position.cols[0])) == (expected.rows, expected.cols)


def test_a_forced_size_is_known_from_begin_image_on():
    position = advance(positions((-1, 0, 0)), jnp.array([VOCAB.boi]), jnp.array([[4, 6]]), V, VOCAB)
    mask = np.asarray(allowed(position, V, VOCAB))[0]
    assert np.flatnonzero(mask).tolist() == [VOCAB.size_id(2)]
    position = advance(position, jnp.array([VOCAB.size_id(2)]), jnp.array([[4, 6]]), V, VOCAB)
    assert np.flatnonzero(np.asarray(allowed(position, V, VOCAB))[0]).tolist() == [VOCAB.size_id(3)]


def test_each_row_has_the_guidance_and_top_k_of_its_own_mode():
    cond, uncond = logits(5, 4), logits(6, 4)
    config = DynamicConfig.of(SampleConfig(guidance=3.0, image_top_k=4, text_top_k=7))
    stages = scores(cond, uncond, positions((-1, 0, 0), (0, 0, 0), (1, 2, 0), (2, 2, 2)), config, VOCAB)
    assert (stages.guided[:3] == cond[:3]).all()
    assert (stages.guided[3] == guide(cond[3], uncond[3], 3.0)).all()
    assert np.isfinite(stages.allowed).sum(-1).tolist() == [V, SIZES, SIZES, CODES]
    assert np.isfinite(stages.kept).sum(-1).tolist() == [7, SIZES, SIZES, 4]
    without = scores(cond, None, positions((2, 2, 2)), config, VOCAB)
    assert (without.guided == cond).all()


def test_min_p_compares_conditional_probabilities_of_allowed_tokens():
    cond = jnp.zeros((1, V)).at[0, 30].set(50.0).at[0, VOCAB.code_ids[3]].set(5.0)
    uncond = jnp.zeros((1, V)).at[0, VOCAB.code_ids[3]].set(20.0)
    config = DynamicConfig.of(SampleConfig(guidance=3.0, min_p=0.5))
    stages = scores(cond, uncond, positions((2, 2, 2)), config, VOCAB)
    assert np.flatnonzero(np.isfinite(stages.kept[0])).tolist() == [VOCAB.code_ids[3]]


@pytest.mark.parametrize(("k", "temperature"), [(V, 1.0), (11, 0.7), (11, 2.5)])
def test_draws_follow_the_tempered_distribution_of_the_top_k(k, temperature):
    draws = 20_000
    config = DynamicConfig.of(SampleConfig(guidance=1.0, temperature=temperature, text_top_k=k))
    kept = scores(logits(7, 1), None, positions((-1, 0, 0)), config, VOCAB).kept
    keys = jax.random.split(jax.random.key(8), draws)
    tokens = np.asarray(draw(keys, jnp.repeat(kept, draws, axis=0), config.temperature))
    share = np.asarray(jax.nn.softmax(logits(7, 1)[0] / temperature), np.float64)
    share[np.argsort(share)[: V - k]] = 0
    expected = draws * share / share.sum()
    counts = np.bincount(tokens, minlength=V)
    assert (counts[share == 0] == 0).all()
    # The ten likeliest tokens one by one, all others together.
    order = np.argsort(-expected)
    sums = [np.append(bins[order[:10]], bins[order[10:]].sum()) for bins in (counts, expected)]
    assert ((sums[0] - sums[1]) ** 2 / np.maximum(sums[1], 1e-9)).sum() < CHI_SQUARE_LIMIT


def test_a_tiny_temperature_is_greedy():
    kept = logits(9, 5)
    keys = jax.random.split(jax.random.key(0), 5)
    assert (draw(keys, kept, jnp.float32(1e-38)) == jnp.argmax(kept, axis=-1)).all()

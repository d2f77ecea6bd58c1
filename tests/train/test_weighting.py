"""What counts alike in the loss: learned tokens, or samples as in the original's microbatches of like length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig, OptimConfig, from_dict, to_dict
from lumina_jax.data.batch_plan import BatchPlan
from lumina_jax.data.pipeline import collate
from lumina_jax.train.loss import step_loss
from lumina_jax.train.weighting import token_weights

PICTURE, UNDERSTANDING, TEXT = range(3)
PER_GPU, GLOBAL_BATCH = 8, 64
WEIGHTS = jax.jit(token_weights, static_argnums=1)


def packed(samples: list[tuple[int, int]], rows: list[int], shape=(3, 64)) -> Batch:
    """Samples of (positions, learned ones at the end) in the given rows."""
    learned = [np.arange(length + 1) > length - count for length, count in samples]
    return collate([(np.zeros(len(learn), np.int32), learn) for learn in learned], rows, shape)


def test_a_token_weighs_the_samples_of_its_length_over_their_tokens():
    samples = [(40, 30), (40, 10), (20, 5), (17, 0), (62, 62)]
    batch = packed(samples, [0, 1, 0, 1, 2])
    weights, total = WEIGHTS(batch, "rows")
    expected = np.zeros((3, 64), np.float32)
    expected[0, 10:40], expected[1, 30:40], expected[0, 55:60], expected[2, :62] = 2 / 40, 2 / 40, 1 / 5, 1 / 62
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert total == 4, "a length of which nothing is learned counts for nothing"
    weights, total = WEIGHTS(batch, "tokens")
    np.testing.assert_array_equal(weights, batch.learn)
    assert total == batch.learn.sum() == 107


def test_like_lengths_are_those_within_a_fiftieth():
    (near, _), (apart, _) = (WEIGHTS(packed([(201, 201), (n, 10)], [0, 1], (3, 256)), "rows") for n in (205, 206))
    assert near[0, 0] == near[1, 204] == pytest.approx(2 / 211)
    assert (apart[0, 0], apart[1, 205]) == (pytest.approx(1 / 201), pytest.approx(1 / 10))


def test_packing_changes_no_weight():
    samples = [(20, 12), (20, 3), (9, 9), (21, 7)]
    (apart, total), (together, same) = (
        WEIGHTS(packed(samples, rows, (4, 64)), "rows") for rows in ([0, 1, 2, 3], [0, 0, 1, 1])
    )
    assert total == same == 4
    np.testing.assert_array_equal(np.sort(apart[apart > 0]), np.sort(together[together > 0]))


def mixture(records: int = 6000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kind, length and learned tokens of each record; pictures are three times as long as texts, answers about them are short."""
    rng = np.random.default_rng(0)
    kind = rng.choice(3, records, p=(0.6, 0.15, 0.25))
    words = rng.integers(4, 20, records)
    length = np.where(kind == TEXT, 2 * words, 66 + words)
    return kind, length, np.choose(kind, (66, words, words))


def of_the_original(kind: np.ndarray, length: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """Each kind's share of the loss: the plain mean over microbatches of their token means, f64[3]."""
    rng, shares = np.random.default_rng(1), np.zeros(3)
    for _ in range(20):
        order = np.argsort(length, kind="stable")
        for begin in range(0, len(order), 2 * GLOBAL_BATCH):
            rng.shuffle(order[begin : begin + 2 * GLOBAL_BATCH])
        microbatches = order[: len(order) // GLOBAL_BATCH * GLOBAL_BATCH].reshape(-1, PER_GPU)
        weight = learned[microbatches] / learned[microbatches].sum(1, keepdims=True)
        shares += np.bincount(kind[microbatches].ravel(), weight.ravel(), 3)
    return shares / shares.sum()


def of_ours(kind: np.ndarray, length: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """The same of packed batches, f64[2 3] by "rows" and "tokens": the gradient of a linear probe that sees the kind of each token
    alone, summed over an epoch."""
    plan = BatchPlan([length + 1], DataConfig(buckets=(192,), batch=48), 0)

    @jax.jit
    def probe_gradient(batch: Batch) -> jax.Array:
        hidden, targets = jax.nn.one_hot(batch.inputs, 3), jnp.zeros_like(batch.targets)

        def loss(probe: jax.Array, loss_weight: str) -> jax.Array:
            weights, total = token_weights(batch, loss_weight)
            return step_loss(hidden, probe, targets, weights, 0.0, 192)[0] / total

        return jnp.stack([-jax.grad(loss)(jnp.zeros((3, 2)), how)[:, 0] for how in ("rows", "tokens")])

    shares = np.zeros((2, 3))
    for step in range(plan.steps):
        records = plan(step)
        samples = [
            (np.full(length[n] + 1, kind[n], np.int32), np.arange(length[n] + 1) > length[n] - learned[n])
            for n in records.record
        ]
        shares += probe_gradient(collate(samples, records.row, (records.rows, records.length)))
    return shares / shares.sum(1, keepdims=True)


def test_a_mixture_has_the_gradient_of_the_original():
    records = mixture()
    original, (rows, tokens) = of_the_original(*records), of_ours(*records)
    assert rows == pytest.approx(original, rel=0.06)
    original_ratio, ratio = (shares[TEXT] / shares[PICTURE] for shares in (original, tokens))
    assert ratio < original_ratio / 3, "texts have a third of the tokens of a picture"


def test_a_run_recorded_before_the_field_weighs_tokens():
    recorded = to_dict(OptimConfig())
    assert recorded.pop("loss_weight") == "rows"
    assert from_dict(OptimConfig, recorded).loss_weight == "tokens"
    assert from_dict(OptimConfig, to_dict(OptimConfig())) == OptimConfig()

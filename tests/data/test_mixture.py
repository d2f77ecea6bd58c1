"""Laws of mixing folders: their shares are as their weights, and each is used up before it repeats."""

from dataclasses import replace

import numpy as np
import pytest

from lumina_jax.config import DataConfig
from lumina_jax.data.batch_plan import BatchPlan
from lumina_jax.data.length_index import quotas

CONFIG = DataConfig(path="a,b,c", buckets=(20, 40), batch=8)
SIZES = (900, 50, 300)


def folders() -> list[np.ndarray]:
    """Tokens of three folders: short, long and mixed records."""
    rng = np.random.default_rng(0)
    ends = ((2, 10), (30, 42), (2, 42))
    return [rng.integers(*end, size).astype(np.int32) for end, size in zip(ends, SIZES, strict=True)]


def uses(plan: BatchPlan, epochs: range) -> list[np.ndarray]:
    """How often each record of each folder comes in these epochs."""
    batches = [plan(step) for step in range(epochs.start * plan.steps, epochs.stop * plan.steps)]
    folder, record = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("folder", "record"))
    return [np.bincount(record[folder == index], minlength=size) for index, size in enumerate(SIZES)]


@pytest.mark.smoke
def test_without_weights_an_epoch_holds_every_record_of_every_folder():
    for counts in uses(BatchPlan(folders(), CONFIG, 0), range(1, 2)):
        assert counts.min() == 1 and counts.mean() < 1.1


@pytest.mark.parametrize("mix_by", ["records", "tokens"])
def test_weights_are_shares_of_records_or_tokens(mix_by):
    weights = (0.5, 0.3, 0.2)
    plan = BatchPlan(folders(), replace(CONFIG, weights=weights, mix_by=mix_by), 0)
    sizes = [np.ones(len(tokens)) if mix_by == "records" else tokens - 1 for tokens in folders()]
    totals = [counts @ size for counts, size in zip(uses(plan, range(2)), sizes, strict=True)]
    assert np.array(totals) / sum(totals) == pytest.approx(weights, abs=0.02)


def test_a_folder_is_used_up_before_it_repeats():
    plan = BatchPlan(folders(), replace(CONFIG, weights=(1, 1, 1)), 0)  # 900 of each: 1, 18 and 3 times
    for epochs in (range(1), range(3)):
        for counts, times in zip(uses(plan, epochs), (1, 18, 3), strict=True):
            assert counts.min() == times * len(epochs)
            # Only rows that repeat to fill the last batch come more often.
            assert counts.mean() < 1.1 * times * len(epochs)


def test_a_share_that_is_no_whole_number_of_rounds_uses_records_evenly():
    plan = BatchPlan(folders(), replace(CONFIG, weights=(0.9, 0.1, 0.2)), 0)  # b twice, c two thirds of its records
    _, b, c = uses(plan, range(6))
    assert b.min() >= 6 and c.min() >= 6 and b.mean() / c.mean() == pytest.approx(3, rel=0.1)
    assert np.percentile(b, 90) - np.percentile(b, 10) <= 6


def test_the_slowest_folder_gives_each_record_once():
    counts = np.array([[0, 1, 5, 0], [2, 0, 2, 2]])
    assert (quotas(counts, (), "records") == counts).all()
    assert (quotas(counts, (1, 1), "records") == counts).all()
    assert quotas(counts, (2, 1), "records").tolist() == [[0, 2, 10, 0], [2, 0, 2, 2]]
    assert quotas(counts, (11, 10), "tokens").tolist() == counts.tolist()
    fractional = quotas(counts, (1, 1.25), "records")
    assert (fractional[0] == counts[0]).all() and (fractional[1] >= counts[1]).all() and fractional[1].sum() == 8


def test_a_mixture_is_a_function_of_seed_and_step():
    mixed = replace(CONFIG, weights=(0.5, 0.3, 0.2))
    first, second = (BatchPlan(folders(), mixed, 1) for _ in range(2))
    for step in (0, 7, 10**6, 10**12):
        assert all(np.array_equal(a, b) for a, b in zip(first(step), second(step), strict=True))

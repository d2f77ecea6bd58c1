"""Laws of the mixture: shares as the weights say, each folder gone through before it begins again."""

from dataclasses import replace

import numpy as np
import pytest

from lumina_jax.config import DataConfig
from lumina_jax.data.batch_plan import BucketPlan
from lumina_jax.data.mixture import quotas

CONFIG = DataConfig(path="a,b,c", buckets=(20, 40), batch=8)
SIZES = (900, 50, 300)


def folders() -> list[np.ndarray]:
    """Tokens of three folders: short, long and mixed records."""
    rng = np.random.default_rng(0)
    ends = ((2, 10), (30, 42), (2, 42))
    return [rng.integers(*end, size).astype(np.int32) for end, size in zip(ends, SIZES, strict=True)]


def taken(plan: BucketPlan, epochs: range) -> list[np.ndarray]:
    """How often each record of each folder is in these epochs."""
    places = [plan(step) for step in range(epochs.start * plan.steps, epochs.stop * plan.steps)]
    folder, record = (np.concatenate([getattr(p, name) for p in places]) for name in ("folder", "record"))
    return [np.bincount(record[folder == index], minlength=size) for index, size in enumerate(SIZES)]


@pytest.mark.smoke
def test_without_weights_an_epoch_is_all_of_every_folder():
    for counts in taken(BucketPlan(folders(), CONFIG, 0), range(1, 2)):
        assert counts.min() == 1 and counts.mean() < 1.1


@pytest.mark.parametrize("by", ["records", "tokens"])
def test_weights_are_shares_of_records_or_tokens(by):
    weights = (0.5, 0.3, 0.2)
    plan = BucketPlan(folders(), replace(CONFIG, weights=weights, mix_by=by), 0)
    each = [np.ones(size) if by == "records" else part - 1 for size, part in zip(SIZES, folders(), strict=True)]
    held = [counts @ of for counts, of in zip(taken(plan, range(2)), each, strict=True)]
    assert np.array(held) / sum(held) == pytest.approx(weights, abs=0.02)


def test_each_folder_is_gone_through_before_it_begins_again():
    plan = BucketPlan(folders(), replace(CONFIG, weights=(1, 1, 1)), 0)  # 900 of each: 1, 18 and 3 times
    for epochs in (range(1), range(3)):
        for counts, times in zip(taken(plan, epochs), (1, 18, 3), strict=True):
            assert counts.min() == times * len(epochs)
            # Only rows that come twice to fill the last batch go beyond that.
            assert counts.mean() < 1.1 * times * len(epochs)


def test_a_share_that_is_no_whole_number_of_rounds_goes_round_evenly():
    plan = BucketPlan(folders(), replace(CONFIG, weights=(0.9, 0.1, 0.2)), 0)  # b twice, c two thirds of what there is
    _, b, c = taken(plan, range(6))
    assert b.min() >= 6 and c.min() >= 6 and b.mean() / c.mean() == pytest.approx(3, rel=0.1)
    assert np.percentile(b, 90) - np.percentile(b, 10) <= 6


def test_the_folder_that_lasts_longest_gives_each_record_once():
    counts = np.array([[0, 1, 5, 0], [2, 0, 2, 2]])
    assert (quotas(counts, (), "records") == counts).all()
    assert (quotas(counts, (1, 1), "records") == counts).all()
    assert quotas(counts, (2, 1), "records").tolist() == [[0, 2, 10, 0], [2, 0, 2, 2]]
    assert quotas(counts, (11, 10), "tokens").tolist() == counts.tolist()
    odd = quotas(counts, (1, 1.25), "records")
    assert (odd[0] == counts[0]).all() and (odd[1] >= counts[1]).all() and odd[1].sum() == 8


def test_another_folder_changes_no_plan_of_the_seed():
    mixed = replace(CONFIG, weights=(0.5, 0.3, 0.2))
    one, other = (BucketPlan(folders(), mixed, 1) for _ in range(2))
    for step in (0, 7, 10**6, 10**12):
        assert all(np.array_equal(a, b) for a, b in zip(one(step), other(step), strict=True))

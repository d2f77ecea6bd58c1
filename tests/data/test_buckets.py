"""Laws of the bucket plan: a pure function of (seed, step), every record in every epoch, little promoted."""

import numpy as np
import pytest

from lumina_jax.data.buckets import BucketPlan

BUCKETS, BATCH = (10, 20, 40), 8


def lengths(records: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, BUCKETS[-1] + 1, records).astype(np.int32)


def epoch(plan: BucketPlan, number: int) -> list[tuple[int, np.ndarray]]:
    return [plan(step) for step in range(number * plan.steps, (number + 1) * plan.steps)]


def same(a, b) -> bool:
    return a[0] == b[0] and (a[1] == b[1]).all()


@pytest.mark.smoke
def test_a_batch_depends_on_seed_and_step_alone():
    of = lengths(203)
    plan, asked_anew = BucketPlan(of, BUCKETS, BATCH, 3), BucketPlan(of, BUCKETS, BATCH, 3)
    steps = np.random.default_rng(1).permutation(4 * plan.steps)
    anew = {step: asked_anew(int(step)) for step in steps}
    assert all(same(plan(step), anew[step]) for step in range(4 * plan.steps))
    other = BucketPlan(of, BUCKETS, BATCH, 4)
    assert not all(same(plan(step), other(step)) for step in range(plan.steps))


@pytest.mark.parametrize("records", [8, 9, 64, 203, 1000])
def test_an_epoch_holds_every_record_and_repeats_less_than_a_batch(records):
    plan = BucketPlan(lengths(records), BUCKETS, BATCH, 0)
    assert plan.steps == -(-records // BATCH)
    repeated = set()
    for number in range(3):
        batches = epoch(plan, number)
        counts = np.bincount(np.concatenate([ids for _, ids in batches]), minlength=records)
        assert all(ids.shape == (BATCH,) and ids.dtype == np.int64 for _, ids in batches)
        assert all(len(set(ids.tolist())) == BATCH for _, ids in batches)
        assert counts.min() == 1 and counts.max() <= 2 and counts.sum() - records < BATCH
        repeated.add(tuple(np.flatnonzero(counts == 2)))
    assert len(repeated) > 1 or records % BATCH == 0 or records < 2 * BATCH


def test_epochs_are_shuffled_anew():
    plan = BucketPlan(lengths(203), BUCKETS, BATCH, 0)
    orders = [np.concatenate([ids for _, ids in epoch(plan, number)]) for number in range(2)]
    assert (orders[0] != orders[1]).mean() > 0.9
    assert len({bucket for bucket, _ in epoch(plan, 0)[: plan.steps // 2]}) == len(BUCKETS)


@pytest.mark.parametrize("records", [8, 203, 1000])
def test_records_fit_and_fewer_than_a_batch_move_up_from_each_bucket(records):
    of = lengths(records)
    natural = np.searchsorted(BUCKETS, of)
    plan = BucketPlan(of, BUCKETS, BATCH, 0)
    batches = epoch(plan, 0)
    for bucket, ids in batches:
        assert bucket in BUCKETS and (of[ids] <= bucket).all()
    extra = [
        sum(at <= bucket for at, _ in batches) - (natural <= index).sum() // BATCH
        for index, bucket in enumerate(BUCKETS)
    ]
    assert extra == sorted(extra) and extra[0] in (0, 1) and extra[-1] == (records % BATCH > 0)


def test_what_is_left_over_takes_the_smallest_bucket_that_holds_it():
    plan = BucketPlan(np.full(12, 7), BUCKETS, BATCH, 0)
    assert [bucket for bucket, _ in epoch(plan, 0)] == [10, 10]
    plan = BucketPlan(np.array([7] * 5 + [15] * 4), BUCKETS, BATCH, 0)
    assert [bucket for bucket, _ in epoch(plan, 0)] == [20, 20]


def test_fewer_records_than_a_batch_repeat_within_it():
    plan = BucketPlan(np.array([3, 15, 9]), BUCKETS, BATCH, 0)
    for step in range(5):
        bucket, ids = plan(step)
        assert bucket == 20 and sorted(np.bincount(ids).tolist()) == [2, 3, 3]


def test_a_record_too_long_is_an_error_that_counts_and_cures():
    with pytest.raises(ValueError, match=r"2 of 4 records.*bucket, 40: the longest takes 50.*raise data.buckets"):
        BucketPlan(np.array([40, 41, 50, 1]), BUCKETS, BATCH, 0)
    with pytest.raises(ValueError, match="no records"):
        BucketPlan(np.array([], np.int32), BUCKETS, BATCH, 0)

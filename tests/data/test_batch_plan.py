"""Laws of the batch plan: a pure function of (seed, step), every record in every epoch, one length and one cost per batch."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from lumina_jax.config import DataConfig
from lumina_jax.data import length_index
from lumina_jax.data.batch_plan import BatchPlan, BatchRecords

BUCKETS = (10, 20, 40)
CONFIG = DataConfig(buckets=BUCKETS, batch=8)
UNPACKED = replace(CONFIG, packing=False)


def draw_lengths(records: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, BUCKETS[-1] + 1, records).astype(np.int32)


def plan_of(lengths: np.ndarray, cfg: DataConfig = CONFIG, seed: int = 0) -> BatchPlan:
    return BatchPlan([np.asarray(lengths) + 1], cfg, seed)


def epoch(plan: BatchPlan, number: int) -> list[BatchRecords]:
    return [plan(step) for step in range(number * plan.steps, (number + 1) * plan.steps)]


def same(a: BatchRecords, b: BatchRecords) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def records_of(batches: list[BatchRecords], folder: int = 0) -> np.ndarray:
    return np.concatenate([batch.record[batch.folder == folder] for batch in batches])


@pytest.mark.smoke
@pytest.mark.parametrize("cfg", [CONFIG, UNPACKED])
def test_a_batch_depends_on_seed_and_step_alone(cfg):
    lengths = draw_lengths(203)
    plan, second = plan_of(lengths, cfg, 3), plan_of(lengths, cfg, 3)
    steps = np.random.default_rng(1).permutation(4 * plan.steps)
    shuffled = {step: second(int(step)) for step in steps}
    assert all(same(plan(step), shuffled[step]) for step in range(4 * plan.steps))
    other = plan_of(lengths, cfg, 4)
    assert not all(same(plan(step), other(step)) for step in range(plan.steps))


@pytest.mark.smoke
def test_the_order_of_published_runs_never_changes():
    """A resumed run continues the order in which it began, so a new version of the code must give the same batches."""
    cfg = replace(CONFIG, path="a,b", weights=(0.7, 0.3), mix_by="tokens")
    plan, digest = BatchPlan([draw_lengths(203) + 1, draw_lengths(90, 1) + 1], cfg, 3), hashlib.sha256()
    for step in (*range(2 * plan.steps), 10**6, 10**12):
        for array in plan(step)[2:]:
            digest.update(array.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "5f798e56e521437a"


def test_the_example_of_the_module_is_true():
    plan = plan_of([3, 8, 4, 5, 2, 3], DataConfig(buckets=(4, 8), batch=1))
    drawn = [[batch.record[batch.row == row].tolist() for row in range(batch.rows)] for batch in map(plan, range(8))]
    assert drawn == [[[3, 0]], [[4]], [[1]], [[2], [5]], [[3, 5]], [[1]], [[4]], [[2], [0]]]


@pytest.mark.parametrize("cfg", [CONFIG, UNPACKED, replace(CONFIG, row_multiple=4)])
@pytest.mark.parametrize("records", [1, 3, 9, 64, 203, 1000])
def test_an_epoch_holds_every_record_and_repeats_fewer_rows_than_a_batch(records, cfg):
    lengths = draw_lengths(records)
    plan = plan_of(lengths, cfg)
    batch_rows, steps = cfg.rows(plan.buckets[-1].length), sum(bucket.steps for bucket in plan.buckets)
    for number in range(3):
        batches = epoch(plan, number)
        rows = [tuple(batch.record[batch.row == row]) for batch in batches for row in range(batch.rows)]
        assert len(batches) == steps and len(rows) - len(set(rows)) < batch_rows
        counts = np.bincount(records_of(batches), minlength=records)
        assert counts.min() >= 1 and (counts.max() <= 2 or len(set(rows)) < batch_rows)


@pytest.mark.parametrize("cfg", [CONFIG, UNPACKED])
def test_samples_fit_their_rows_uncut(cfg):
    lengths = draw_lengths(400)
    for batch in epoch(plan_of(lengths, cfg), 0):
        fills = np.bincount(batch.row, lengths[batch.record], batch.rows)
        assert batch.length in BUCKETS and batch.rows == cfg.rows(batch.length)
        assert fills.min() > 0 and fills.max() <= batch.length and (np.diff(batch.row) >= 0).all()
        assert cfg.packing or len(batch.row) == batch.rows


def test_batches_of_all_buckets_have_about_the_same_number_of_positions():
    assert [CONFIG.rows(length) for length in BUCKETS] == [32, 16, 8]
    assert [replace(CONFIG, buckets=(15, 30, 40)).rows(length) for length in (15, 30, 40)] == [16, 8, 8]
    assert [replace(CONFIG, buckets=(15, 30, 40), row_multiple=2).rows(length) for length in (15, 30, 40)] == [
        20,
        10,
        8,
    ]


def test_every_epoch_has_another_order_and_other_rows():
    plan = plan_of(draw_lengths(400))
    rows = [
        {frozenset(batch.record[batch.row == row]) for batch in epoch(plan, number) for row in set(batch.row)}
        for number in range(2)
    ]
    shared = [{row for row in epoch_rows if len(row) > 1} for epoch_rows in rows]
    assert len(shared[0]) > 50 and len(shared[0] & shared[1]) < 0.2 * len(shared[0])
    orders = [records_of(epoch(plan, number))[:300] for number in range(2)]
    assert (orders[0] != orders[1]).mean() > 0.9
    assert len({batch.length for batch in epoch(plan, 0)[: plan.steps // 2]}) == len(plan.buckets)


def test_other_lengths_share_a_batch_in_every_epoch():
    lengths = draw_lengths(500)
    plan = plan_of(lengths, UNPACKED)
    first, second = ({tuple(sorted(lengths[batch.record])) for batch in epoch(plan, number)} for number in range(2))
    assert len(first & second) < 0.1 * len(first)


def test_batches_mix_all_records_of_their_bucket():
    lengths = np.tile([19, 20], 4000)
    plan = plan_of(lengths, replace(UNPACKED, batch=64))
    for batch in epoch(plan, 0):
        assert 0.25 < (lengths[batch.record] == 19).mean() < 0.75
        assert 0.25 < (batch.record < 4000).mean() < 0.75


def test_packing_leaves_little_padding():
    lengths = draw_lengths(5000)
    packed, unpacked = plan_of(lengths), plan_of(lengths, UNPACKED)
    assert packed.padding < 0.02 < 0.15 < unpacked.padding
    for plan in (packed, unpacked):
        assert sum(bucket.tokens for bucket in plan.buckets) == lengths.sum()
        assert sum(bucket.samples for bucket in plan.buckets) == len(lengths)
        positions = sum(batch.length * batch.rows for batch in epoch(plan, 0))
        assert plan.padding == pytest.approx(1 - lengths.sum() / positions)


def test_leftover_rows_move_to_a_longer_bucket_whose_last_batch_repeats_rows():
    plan = plan_of(np.full(12, 7), replace(UNPACKED, buckets=(10,)))
    assert [batch.length for batch in epoch(plan, 0)] == [10, 10]
    plan = plan_of(np.array([7] * 40 + [35] * 3), UNPACKED)
    # The 8 rows that fill no batch of 32 join the 3 long ones; 5 of the other rows come twice.
    assert sorted(batch.length for batch in epoch(plan, 0)) == [10, 40, 40]
    assert (
        np.bincount(records_of(epoch(plan, 0)))[40:].sum() >= 3 and np.bincount(records_of(epoch(plan, 0))).max() == 2
    )


def test_the_last_batch_repeats_rows_of_its_own_bucket_first():
    plan = plan_of(np.array([7] * 64 + [35] * 13), UNPACKED)
    for number in range(3):
        assert np.bincount(records_of(epoch(plan, number)))[64:].sum() == 16


def test_fewer_records_than_a_batch_repeat_within_it():
    plan = plan_of(np.array([3, 15, 9]), replace(UNPACKED, batch=4))
    for step in range(5):
        batch = plan(step)
        assert (batch.length, batch.rows) == (20, 8) and sorted(np.bincount(batch.record).tolist()) == [2, 3, 3]


@pytest.mark.parametrize("cfg", [replace(CONFIG, row_multiple=4), replace(UNPACKED, row_multiple=4)])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_that_plan_their_own_rows_have_the_global_batch_between_them(cfg, hosts):
    plan = plan_of(draw_lengths(203), cfg)
    for step in range(2 * plan.steps):
        whole, shares = plan(step), [plan(step, host, hosts) for host in range(hosts)]
        rows = np.concatenate([share.row + host * share.rows for host, share in enumerate(shares)])
        assert np.array_equal(rows, whole.row) and sum(share.rows for share in shares) == whole.rows
        assert np.array_equal(np.concatenate([share.record for share in shares]), whole.record)


def test_reading_lengths_in_chunks_changes_no_plan(monkeypatch):
    lengths = draw_lengths(203)
    plan = plan_of(lengths)
    monkeypatch.setattr(length_index, "CHUNK", 7)
    assert all(same(plan(step), plan_of(lengths)(step)) for step in range(3))


def test_records_too_long_or_too_short_are_counted_in_an_error_with_its_cure():
    with pytest.raises(ValueError, match=r"2 of 4 records.*bucket, 40: the longest takes 50.*raise data.buckets"):
        plan_of([40, 41, 50, 1])
    with pytest.raises(ValueError, match=r"1 of 2 records have fewer than two tokens"):
        plan_of([0, 3])
    with pytest.raises(ValueError, match="no records"):
        BatchPlan([np.array([], np.int32)], CONFIG, 0)

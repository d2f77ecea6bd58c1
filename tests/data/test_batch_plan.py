"""Laws of the bucket plan: a pure function of (seed, step), every record in every epoch, one length and one cost a batch."""

from dataclasses import replace

import numpy as np
import pytest

from lumina_jax.config import DataConfig
from lumina_jax.data import index
from lumina_jax.data.batch_plan import BucketPlan, Places

BUCKETS = (10, 20, 40)
CONFIG = DataConfig(buckets=BUCKETS, batch=8)
ALONE = replace(CONFIG, packing=False)


def lengths(records: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, BUCKETS[-1] + 1, records).astype(np.int32)


def planned(of: np.ndarray, cfg: DataConfig = CONFIG, seed: int = 0) -> BucketPlan:
    return BucketPlan([np.asarray(of) + 1], cfg, seed)


def epoch(plan: BucketPlan, number: int) -> list[Places]:
    return [plan(step) for step in range(number * plan.steps, (number + 1) * plan.steps)]


def same(a: Places, b: Places) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def taken(batches: list[Places], folder: int = 0) -> np.ndarray:
    return np.concatenate([places.record[places.folder == folder] for places in batches])


@pytest.mark.smoke
@pytest.mark.parametrize("cfg", [CONFIG, ALONE])
def test_a_batch_depends_on_seed_and_step_alone(cfg):
    of = lengths(203)
    plan, asked_anew = planned(of, cfg, 3), planned(of, cfg, 3)
    steps = np.random.default_rng(1).permutation(4 * plan.steps)
    anew = {step: asked_anew(int(step)) for step in steps}
    assert all(same(plan(step), anew[step]) for step in range(4 * plan.steps))
    other = planned(of, cfg, 4)
    assert not all(same(plan(step), other(step)) for step in range(plan.steps))


@pytest.mark.parametrize("cfg", [CONFIG, ALONE, replace(CONFIG, row_multiple=4)])
@pytest.mark.parametrize("records", [1, 3, 9, 64, 203, 1000])
def test_an_epoch_holds_every_record_and_repeats_less_than_a_batch(records, cfg):
    of = lengths(records)
    plan = planned(of, cfg)
    batch, steps = cfg.rows(plan.shapes[-1].length), sum(shape.steps for shape in plan.shapes)
    for number in range(3):
        batches = epoch(plan, number)
        rows = [tuple(places.record[places.row == row]) for places in batches for row in range(places.rows)]
        assert len(batches) == steps and len(rows) - len(set(rows)) < batch
        counts = np.bincount(taken(batches), minlength=records)
        assert counts.min() >= 1 and (counts.max() <= 2 or len(set(rows)) < batch)


@pytest.mark.parametrize("cfg", [CONFIG, ALONE])
def test_rows_hold_their_samples_whole(cfg):
    of = lengths(400)
    for places in epoch(planned(of, cfg), 0):
        fills = np.bincount(places.row, of[places.record], places.rows)
        assert places.length in BUCKETS and places.rows == cfg.rows(places.length)
        assert fills.min() > 0 and fills.max() <= places.length and (np.diff(places.row) >= 0).all()
        assert cfg.packing or len(places.row) == places.rows


def test_a_batch_has_the_same_tokens_in_every_bucket():
    assert [CONFIG.rows(length) for length in BUCKETS] == [32, 16, 8]
    assert [replace(CONFIG, buckets=(15, 30, 40)).rows(length) for length in (15, 30, 40)] == [16, 8, 8]
    assert [replace(CONFIG, buckets=(15, 30, 40), row_multiple=2).rows(length) for length in (15, 30, 40)] == [
        20,
        10,
        8,
    ]


def test_epochs_are_shuffled_anew():
    plan = planned(lengths(400))
    rows = [
        {frozenset(places.record[places.row == row]) for places in epoch(plan, number) for row in set(places.row)}
        for number in range(2)
    ]
    shared = [{row for row in of if len(row) > 1} for of in rows]
    assert len(shared[0]) > 50 and len(shared[0] & shared[1]) < 0.2 * len(shared[0])
    orders = [taken(epoch(plan, number))[:300] for number in range(2)]
    assert (orders[0] != orders[1]).mean() > 0.9
    assert len({places.length for places in epoch(plan, 0)[: plan.steps // 2]}) == len(plan.shapes)


def test_which_lengths_share_a_batch_is_drawn_anew_every_epoch():
    of = lengths(500)
    plan = planned(of, ALONE)
    first, second = ({tuple(sorted(of[places.record])) for places in epoch(plan, number)} for number in range(2))
    assert len(first & second) < 0.1 * len(first)


def test_batches_mix_all_that_their_bucket_holds():
    of = np.tile([19, 20], 4000)
    plan = planned(of, replace(ALONE, batch=64))
    for places in epoch(plan, 0):
        assert 0.25 < (of[places.record] == 19).mean() < 0.75
        assert 0.25 < (places.record < 4000).mean() < 0.75


def test_packing_leaves_little_padding():
    of = lengths(5000)
    packed, alone = planned(of), planned(of, ALONE)
    assert packed.padding < 0.02 < 0.15 < alone.padding
    for plan in (packed, alone):
        assert sum(shape.tokens for shape in plan.shapes) == of.sum()
        assert sum(shape.samples for shape in plan.shapes) == len(of)
        all_places = sum(places.length * places.rows for places in epoch(plan, 0))
        assert plan.padding == pytest.approx(1 - of.sum() / all_places)


def test_what_is_left_over_is_filled_up_from_all_that_fits():
    plan = planned(np.full(12, 7), replace(ALONE, buckets=(10,)))
    assert [places.length for places in epoch(plan, 0)] == [10, 10]
    plan = planned(np.array([7] * 40 + [35] * 3), ALONE)
    # The 8 that fill no batch of 32 go with the 3 long ones, and 5 of the others come twice.
    assert sorted(places.length for places in epoch(plan, 0)) == [10, 40, 40]
    assert np.bincount(taken(epoch(plan, 0)))[40:].sum() >= 3 and np.bincount(taken(epoch(plan, 0))).max() == 2


def test_a_batch_is_filled_up_from_its_own_bucket_first():
    plan = planned(np.array([7] * 64 + [35] * 13), ALONE)
    for number in range(3):
        assert np.bincount(taken(epoch(plan, number)))[64:].sum() == 16


def test_fewer_records_than_a_batch_repeat_within_it():
    plan = planned(np.array([3, 15, 9]), replace(ALONE, batch=4))
    for step in range(5):
        places = plan(step)
        assert (places.length, places.rows) == (20, 8) and sorted(np.bincount(places.record).tolist()) == [2, 3, 3]


def test_lengths_are_read_some_at_a_time(monkeypatch):
    of = lengths(203)
    whole = planned(of)
    monkeypatch.setattr(index, "CHUNK", 7)
    assert all(same(whole(step), planned(of)(step)) for step in range(3))


def test_a_record_too_long_is_an_error_that_counts_and_cures():
    with pytest.raises(ValueError, match=r"2 of 4 records.*bucket, 40: the longest takes 50.*raise data.buckets"):
        planned([40, 41, 50, 1])
    with pytest.raises(ValueError, match=r"1 of 2 records have fewer than two tokens"):
        planned([0, 3])
    with pytest.raises(ValueError, match="no records"):
        BucketPlan([np.array([], np.int32)], CONFIG, 0)

"""Laws of a changed order of data: a run goes on by the records it has read, whatever changed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lumina_jax.config import DataConfig
from lumina_jax.data.batch_plan import BatchPlan
from lumina_jax.data.order import DataOrder
from lumina_jax.history import DataStage

CONFIG = DataConfig(path="a", buckets=(10, 20, 40), batch=8)
EVEN = DataConfig(path="a", buckets=(10,), batch=8, packing=False)
"""Records of one length, a row each: batches without a row that repeats."""


def order_of(folders: dict[str, np.ndarray], *stages: tuple[int, DataConfig], seed: int = 3) -> DataOrder:
    """The order of a run whose data had the config of each of ``stages`` from a batch on; ``folders`` are lengths by path."""
    stages = [DataStage(first, cfg, cfg.paths) for first, cfg in stages]
    return DataOrder(stages, lambda stage: [folders[path] + 1 for path in stage.cfg.paths], seed)


def lengths(records: int, seed: int = 0, longest: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, longest + 1, records).astype(np.int32)


def uses(order: DataOrder, numbers: Sequence[int], records: int, folder: int = 0) -> np.ndarray:
    """How often each record of ``folder`` comes in the batches of ``numbers``."""
    batches = [order(number) for number in numbers]
    drawn = [np.zeros(0, np.int64), *(batch.record[batch.folder == folder] for batch in batches)]
    return np.bincount(np.concatenate(drawn), minlength=records)


@pytest.mark.smoke
def test_without_changes_it_is_the_batch_plan():
    order, plan = order_of({"a": lengths(203)}, (0, CONFIG)), BatchPlan([lengths(203) + 1], CONFIG, 3)
    for number in range(3 * plan.steps):
        assert all(np.array_equal(x, y) for x, y in zip(order(number), plan(number), strict=True))


@pytest.mark.smoke
@pytest.mark.parametrize("first", [0, 1, 3, 7, 8, 11])
@pytest.mark.parametrize("batch", [2, 4, 16, 64])
def test_each_record_comes_once_an_epoch_though_the_batch_changes(first, batch):
    """64 records in batches of 8, then of ``batch``."""
    order = order_of({"a": np.full(64, 7)}, (0, EVEN), (first, replace(EVEN, batch=batch)))
    left = (64 - 8 * first) % 64
    end = first + -(-left // batch)
    counts = uses(order, range(end), 64)
    assert counts.min() == -(-8 * first // 64) and (counts.max() == counts.min() or left % batch)
    assert (uses(order, range(end, end + 64 // batch), 64) == 1).all()


def test_the_batch_may_change_twice_in_an_epoch():
    order = order_of({"a": np.full(64, 7)}, (0, EVEN), (2, replace(EVEN, batch=4)), (5, replace(EVEN, batch=2)))
    assert (uses(order, range(5 + (64 - 16 - 12) // 2), 64) == 1).all()
    assert order(4).rows == 4 and order(5).rows == 2


@pytest.mark.parametrize(
    "change",
    [
        dict(batch=5),
        dict(batch=16, row_multiple=4),
        dict(packing=False),
        dict(buckets=(20, 40)),
        dict(buckets=(10, 45)),
    ],
)
def test_what_an_epoch_has_left_is_batched_anew(change):
    records, done = 400, 7
    order = order_of({"a": lengths(records)}, (0, CONFIG), (done, replace(CONFIG, **change)))
    before, seen = uses(order, range(done), records), np.zeros(records, int)
    assert before.max() == 1
    number = done
    while (seen + before).min() == 0:
        batch = order(number)
        seen += np.bincount(batch.record, minlength=records)
        number += 1
    # Only the last batch of the epoch repeats rows, fewer than it has, and none before all have come.
    repeated = (seen + before).sum() - records
    assert repeated < len(order(number - 1).record) + len(order(number - 2).record)
    plan = BatchPlan([lengths(records) + 1], replace(CONFIG, **change), 3)
    whole = uses(order, range(number, number + 2 * plan.steps), records)
    assert whole.min() == 2 and whole.mean() < 2.2


def test_other_weights_go_on_with_the_records_that_each_folder_has_left():
    folders = {"a": np.full(64, 7), "b": np.full(16, 7)}
    before = replace(EVEN, path="a,b", weights=(4.0, 1.0))
    order = order_of(folders, (0, before), (6, replace(before, weights=(1.0, 1.0))))
    seen = uses(order, range(6), 64)
    assert seen.max() == 1 and 0 < seen.sum() < 64
    # The new epoch takes 64 of each: what is left of a, then the next round of it; b four times.
    a, b = (uses(order, range(6, 6 + 128 // 8), size, folder) for folder, size in enumerate((64, 16)))
    assert a.sum() == b.sum() == 64 and (seen + a).min() == 1 and (seen + a).max() == 2
    assert b.min() >= 3 and b.max() <= 5


def test_folders_join_leave_and_move():
    folders = {"a": np.full(64, 7), "b": np.full(16, 7), "c": np.full(16, 9)}
    before, after = replace(EVEN, path="a,b"), replace(EVEN, path="c,a")
    order = order_of(folders, (0, before), (4, after))
    seen = uses(order, range(4), 64)
    c, a = (uses(order, range(4, 14), size, folder) for folder, size in enumerate((16, 64)))
    assert (c == 1).all() and a.sum() == 64 and (seen + a).min() == 1 and (seen + a).max() == 2
    again = order_of(folders, (0, before), (4, after), (10, replace(after, batch=4)))
    assert (uses(again, range(4, 10 + (80 - 48) // 4), 64, 1) == a).all()


def test_any_number_of_processes_agrees_after_a_change():
    changed = ((0, CONFIG), (5, replace(CONFIG, batch=16)), (9, replace(CONFIG, batch=16, packing=False)))
    first, second = (order_of({"a": lengths(300)}, *changed) for _ in range(2))
    for number in (40, 9, 0, 12, 5, 10**6):
        assert all(np.array_equal(x, y) for x, y in zip(first(number), second(number), strict=True))

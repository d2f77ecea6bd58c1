"""Laws of the batches: shifted by one, the same for any number of hosts and any start, contexts dropped where allowed."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from data_parts import CONFIG, SIZES, NoiseSource, tiny_vocab, tiny_vq

from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig
from lumina_jax.conversation import drop_context
from lumina_jax.data.batch_plan import BatchPlan, BatchRecords
from lumina_jax.data.pipeline import batches, collate, fingerprints_of, record_names
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.data.shards import Shards
from lumina_jax.history import BatchSpan, DataStage

VOCAB, SEED = tiny_vocab(), 2
CONFIG = replace(CONFIG, buckets=(96, 160, 320))
TWO = replace(CONFIG, weights=(1, 2), path="a,b")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens")
    pretokenize(NoiseSource(50), tiny_vq(), VOCAB, out, CONFIG, 0, shard_records=16, sizes=SIZES, progress=False)
    return out


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second folder, of eight records."""
    out = tmp_path_factory.mktemp("other")
    pretokenize(NoiseSource(8), tiny_vq(), VOCAB, out, CONFIG, 1, sizes=SIZES, progress=False)
    return out


def joined(host_batches: Sequence[Batch]) -> Batch:
    return Batch(*(np.concatenate(rows) for rows in zip(*host_batches, strict=True)))


def equal(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def plan_of(paths, cfg: DataConfig) -> BatchPlan:
    return BatchPlan([Shards(path).lengths for path in paths], cfg, SEED)


def samples_of(batch: Batch, records: BatchRecords):
    """(folder, record, inputs, targets, learn) of each sample of a global batch, in the row that the plan gives it."""
    for row in range(records.rows):
        samples = np.flatnonzero(records.row == row)
        assert batch.segments[row].max() == len(samples)
        for segment, sample in enumerate(samples, start=1):
            span = np.flatnonzero(batch.segments[row] == segment)
            assert (np.diff(span) == 1).all()
            np.testing.assert_array_equal(batch.positions[row, span], np.arange(len(span)))
            arrays = (array[row, span] for array in (batch.inputs, batch.targets, batch.learn))
            yield records.folder[sample], records.record[sample], *arrays
        empty = batch.segments[row] == 0
        assert not any(array[row, empty].any() for array in batch)


@pytest.mark.smoke
@pytest.mark.parametrize("changes", [{"packing": False}, {"packing": True}])
def test_a_batch_is_its_samples_shifted_by_one(path, changes):
    cfg = replace(CONFIG, drop_context=0.0, **changes)
    shards, plan = Shards(path), plan_of([path], cfg)
    packed_batches = 0
    for step, batch in enumerate(batches(path, cfg, VOCAB, SEED, stop=9)):
        records = plan(step)
        assert [x.dtype for x in batch] == [np.int32, np.int32, bool, np.int32, np.int32]
        assert all(x.shape == (records.rows, records.length) for x in batch)
        for _, record, inputs, targets, learned in samples_of(batch, records):
            tokens, learn = shards[int(record)]
            np.testing.assert_array_equal(inputs, tokens[:-1])
            np.testing.assert_array_equal(targets, tokens[1:])
            np.testing.assert_array_equal(learned, learn[1:])
        packed_batches += batch.segments.max() > 1
    assert (packed_batches > 0) == cfg.packing


def test_folders_are_mixed(path, other):
    cfg = replace(TWO, drop_context=0.0)
    shards, plan = [Shards(path), Shards(other)], plan_of([path, other], cfg)
    both = f"{path}, {other}"
    used = set()
    for step, batch in enumerate(batches(both, cfg, VOCAB, SEED, stop=9)):
        for folder, record, inputs, _, _ in samples_of(batch, plan(step)):
            np.testing.assert_array_equal(inputs, shards[folder][int(record)][0][:-1])
            used.add((int(folder), int(record)))
    assert len({record for folder, record in used if folder == 1}) == 8 and len(used) > 40


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_hosts_hold_the_rows_of_one_global_batch(path, other, hosts):
    cfg, both = replace(TWO, drop_context=0.5), f"{path},{other}"
    alone = batches(both, cfg, VOCAB, SEED, stop=20)
    by_host = zip(*(batches(both, cfg, VOCAB, SEED, 0, 20, host, hosts) for host in range(hosts)), strict=True)
    for global_batch, hosts_batches in zip(alone, by_host, strict=True):
        assert equal(global_batch, joined(hosts_batches))


@pytest.mark.parametrize("threads", [0, 3])
def test_starting_at_a_step_equals_skipping_the_steps_before(path, threads):
    cfg = replace(CONFIG, threads=threads)
    skipped = itertools.islice(batches(path, CONFIG, VOCAB, SEED), 11, 18)
    started = batches(path, cfg, VOCAB, SEED, start=11, stop=18)
    pairs = list(zip(skipped, started, strict=True))
    assert len(pairs) == 7 and all(equal(a, b) for a, b in pairs)


def test_resuming_on_another_number_of_hosts_continues_the_order(path):
    """Six steps on four hosts, then six on two, equal twelve on one."""

    def on(hosts: int, start: int, stop: int) -> list[Batch]:
        by_host = (batches(path, CONFIG, VOCAB, SEED, start, stop, host, hosts) for host in range(hosts))
        return [joined(host_batches) for host_batches in zip(*by_host, strict=True)]

    moved, alone = on(4, 0, 6) + on(2, 6, 12), on(1, 0, 12)
    assert len(moved) == 12 and all(equal(a, b) for a, b in zip(moved, alone, strict=True))


def test_contexts_are_dropped_at_the_given_rate_and_only_from_single_images(path):
    cfg = replace(CONFIG, drop_context=0.3)
    shards, plan = Shards(path), plan_of([path], cfg)
    dropped = allowed = 0
    for step, batch in enumerate(batches(path, cfg, VOCAB, SEED, stop=150)):
        for _, record, inputs, _, learned in samples_of(batch, plan(step)):
            tokens, learn = shards[int(record)]
            bare, _ = drop_context(tokens, learn, VOCAB)
            is_bare = not np.array_equal(inputs, tokens[:-1])
            assert not is_bare or (len(bare) < len(tokens) and np.array_equal(inputs, bare[:-1]))
            assert not is_bare or (learned.all() and inputs[0] == VOCAB.boi)
            allowed += len(bare) < len(tokens)
            dropped += is_bare
    assert abs(dropped / allowed - 0.3) < 4 * np.sqrt(0.3 * 0.7 / allowed)


def test_a_full_row_needs_no_padding():
    tokens, learn = np.arange(1, 6, dtype=np.int32), np.array([False, False, True, True, True])
    batch = collate([(tokens, learn)], [0], (1, 4))
    assert batch.inputs.tolist() == [[1, 2, 3, 4]] and batch.targets.tolist() == [[2, 3, 4, 5]]
    assert batch.learn.tolist() == [[False, True, True, True]] and batch.segments.all()
    packed = collate([(tokens, learn), (tokens[2:], learn[2:])], [1, 1], (2, 7))
    assert packed.inputs.tolist() == [[0] * 7, [1, 2, 3, 4, 3, 4, 0]]
    assert packed.segments.tolist() == [[0] * 7, [1, 1, 1, 1, 2, 2, 0]]
    assert packed.positions.tolist() == [[0] * 7, [0, 1, 2, 3, 0, 1, 0]]


def test_wrong_uses_fail_at_the_call(path, tmp_path):
    with pytest.raises(ValueError, match=r"data.batch=8 makes batches of 24 rows of 96.*by 5 hosts.*multiple of 5"):
        batches(path, CONFIG, VOCAB, SEED, host=0, hosts=5)
    with pytest.raises(ValueError, match=r"set data.tokenizer to the one"):
        batches(path, CONFIG, tiny_vocab("<other>"), SEED)
    with pytest.raises(ValueError, match=r"raise data.buckets"):
        batches(path, replace(CONFIG, buckets=(32,)), VOCAB, SEED)
    with pytest.raises(FileNotFoundError, match="pretokenize"):
        batches(path / "none", CONFIG, VOCAB, SEED)
    with pytest.raises(ValueError, match=r"data.weights=\(1, 2\) must be positive, one for each folder"):
        batches(f"{path},{path},{path}", TWO, VOCAB, SEED)
    pretokenize(NoiseSource(4), tiny_vq(1), VOCAB, tmp_path, CONFIG, 0, sizes=SIZES, progress=False)
    with pytest.raises(ValueError, match=r"VQ model .* but .* with .*; pretokenize one of them again"):
        batches(f"{path},{tmp_path}", CONFIG, VOCAB, SEED)


def test_after_a_change_of_batch_and_of_processes_the_epoch_still_holds_each_record_once(path):
    """Batches of 8 read by one process, then batches of 4 by two, then of 2 by one: 50 records, and rows that repeat at the end."""
    cfg = replace(CONFIG, buckets=(320,), packing=False, drop_context=0.0, path=str(path))
    names = fingerprints_of([Shards(path)])
    stages = [
        DataStage(first, replace(cfg, batch=batch), names) for first, batch in ((0, 8), (2, 4), (5, 2))
    ]  # 16, 12 and 22 records
    settings = (VOCAB, SEED)
    first = list(batches(path, stages[0].cfg, *settings, 0, 2, 0, 1, stages[:1]))
    shares = [batches(path, stages[1].cfg, *settings, 2, 5, host, 2, stages[:2]) for host in range(2)]
    second = [joined(parts) for parts in zip(*shares, strict=True)]
    whole = list(batches(path, stages[1].cfg, *settings, 2, 5, 0, 1, stages[:2]))
    assert all(equal(a, b) for a, b in zip(second, whole, strict=True))
    third = list(batches(path, stages[2].cfg, *settings, 5, 16, 0, 1, stages))
    rows = [tuple(row) for batch in [*first, *second, *third] for row in batch.inputs]
    expected = [np.zeros(320, np.int32) for _ in range(50)]
    for row, (tokens, _) in zip(expected, (Shards(path)[record] for record in range(50)), strict=True):
        row[: len(tokens) - 1] = tokens[:-1]
    assert sorted(rows) == sorted(map(tuple, expected))
    named = [record_names(stages[2].cfg, SEED, BatchSpan(number, number + 1, tuple(stages))) for number in (5, 15)]
    for records, batch in zip(named, (third[0], third[10]), strict=True):
        numbers = [int(name.rpartition(":")[2]) for name in records]
        assert [tuple(expected[number]) for number in numbers] == [tuple(row) for row in batch.inputs]
        assert all(name.startswith(f"{path}:") for name in records)

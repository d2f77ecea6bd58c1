"""Laws of the batches: shifted by one, the same for any number of hosts and any start, contexts dropped where allowed."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from data_parts import CONFIG, SIZES, NoiseSource, tiny_vocab, tiny_vq

from lumina_jax.batch import Batch
from lumina_jax.conversation import drop_context
from lumina_jax.data.buckets import BucketPlan
from lumina_jax.data.pipeline import batches, pad
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.data.shards import Shards

VOCAB, SEED = tiny_vocab(), 2


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens")
    pretokenize(NoiseSource(50), tiny_vq(), VOCAB, out, CONFIG, 0, shard_records=16, sizes=SIZES, progress=False)
    return out


def equal(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.smoke
def test_a_batch_is_its_samples_shifted_by_one(path):
    shards = Shards(path)
    plan = BucketPlan(shards.lengths - 1, CONFIG.buckets, CONFIG.batch, SEED)
    for step, batch in enumerate(batches(path, replace(CONFIG, drop_context=0.0), VOCAB, SEED, stop=9)):
        bucket, ids = plan(step)
        assert [x.dtype for x in batch] == [np.int32, np.int32, bool, np.int32, np.int32]
        assert all(x.shape == (CONFIG.batch, bucket) for x in batch)
        for row, index in enumerate(ids):
            tokens, learn = shards[index]
            n = len(tokens) - 1
            np.testing.assert_array_equal(batch.inputs[row, :n], tokens[:-1])
            np.testing.assert_array_equal(batch.targets[row, :n], tokens[1:])
            np.testing.assert_array_equal(batch.learn[row, :n], learn[1:])
            np.testing.assert_array_equal(batch.positions[row, :n], np.arange(n))
            assert (batch.segments[row, :n] == 1).all() and not any(x[row, n:].any() for x in batch)


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_hosts_hold_the_rows_of_one_global_batch(path, hosts):
    cfg = replace(CONFIG, drop_context=0.5)
    alone = batches(path, cfg, VOCAB, SEED, stop=20)
    together = zip(*(batches(path, cfg, VOCAB, SEED, 0, 20, host, hosts) for host in range(hosts)), strict=True)
    for whole, parts in zip(alone, together, strict=True):
        assert equal(whole, Batch(*(np.concatenate(rows) for rows in zip(*parts, strict=True))))


@pytest.mark.parametrize("threads", [0, 3])
def test_starting_later_is_skipping(path, threads):
    cfg = replace(CONFIG, threads=threads)
    skipped = itertools.islice(batches(path, CONFIG, VOCAB, SEED), 11, 18)
    started = batches(path, cfg, VOCAB, SEED, start=11, stop=18)
    pairs = list(zip(skipped, started, strict=True))
    assert len(pairs) == 7 and all(equal(a, b) for a, b in pairs)


def test_contexts_are_dropped_at_their_rate_and_only_from_single_images(path):
    shards = Shards(path)
    plan = BucketPlan(shards.lengths - 1, CONFIG.buckets, CONFIG.batch, SEED)
    cfg = replace(CONFIG, drop_context=0.3)
    dropped = allowed = 0
    for step, batch in enumerate(batches(path, cfg, VOCAB, SEED, stop=150)):
        for row, index in enumerate(plan(step)[1]):
            tokens, learn = shards[index]
            bare, _ = drop_context(tokens, learn, VOCAB)
            found = batch.inputs[row, : int(batch.segments[row].sum())]
            is_bare = not np.array_equal(found, tokens[:-1])
            assert not is_bare or (len(bare) < len(tokens) and np.array_equal(found, bare[:-1]))
            if is_bare:
                assert batch.learn[row, : len(found)].all() and batch.inputs[row, 0] == VOCAB.boi
            allowed += len(bare) < len(tokens)
            dropped += is_bare
    assert abs(dropped / allowed - 0.3) < 4 * np.sqrt(0.3 * 0.7 / allowed)


def test_a_full_row_needs_no_padding():
    batch = pad([(np.arange(1, 6, dtype=np.int32), np.array([False, False, True, True, True]))], 4)
    assert batch.inputs.tolist() == [[1, 2, 3, 4]] and batch.targets.tolist() == [[2, 3, 4, 5]]
    assert batch.learn.tolist() == [[False, True, True, True]] and batch.segments.all()


def test_wrong_uses_fail_at_the_call(path):
    with pytest.raises(ValueError, match=r"data.batch=8 cannot be shared by 3 hosts.*multiple of 3"):
        batches(path, CONFIG, VOCAB, SEED, host=0, hosts=3)
    with pytest.raises(ValueError, match=r"set data.tokenizer to the one"):
        batches(path, CONFIG, tiny_vocab("<other>"), SEED)
    with pytest.raises(ValueError, match=r"raise data.buckets"):
        batches(path, replace(CONFIG, buckets=(32,)), VOCAB, SEED)
    with pytest.raises(FileNotFoundError, match="pretokenize"):
        batches(path / "none", CONFIG, VOCAB, SEED)

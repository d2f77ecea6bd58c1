"""Tokens in a store are read as those on a disk are: by many requests at once, from no open file, through faults."""

import numpy as np
import pytest
from data_parts import tiny_vocab
from gcs_server import GcsFault

from lumina_jax.config import DataConfig
from lumina_jax.data import token_cache
from lumina_jax.data.pipeline import batches
from lumina_jax.data.shard_writer import write_shard, write_totals
from lumina_jax.data.shards import SETTINGS, Settings, Shards, write_json
from lumina_jax.data.token_files import StoreReading
from lumina_jax.data.verify import damaged_shards
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.storage import StorageFolder

VOCAB, RECORDS, SHARD = tiny_vocab(), 60, 16
URL = "gs://bucket/run/tokens"


def write(url) -> None:
    rng = np.random.default_rng(0)
    settings, folder = Settings(RECORDS, "random", VOCAB.fingerprint, "none", 0, (), SHARD), StorageFolder(url)
    write_json(folder, SETTINGS, settings)
    for shard in range(settings.shards):
        sizes = rng.integers(5, 30, len(settings.span(shard)))
        samples = [(rng.integers(0, 200, size, np.int32), np.arange(size) >= 3) for size in sizes]
        write_shard(folder, settings, shard, samples)
    write_totals(folder, settings)


@pytest.fixture
def stored(gcs, tmp_path):
    """The same folder at URL and in ``tmp_path``."""
    write(URL)
    write(tmp_path / "tokens")
    gcs.requests.clear()
    return gcs


def read_all(shards: Shards) -> list[np.ndarray]:
    return [array for sample in shards.read(range(RECORDS)) for array in sample]


def assert_same(arrays, others) -> None:
    for array, other in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array, other)


def token_requests(gcs) -> int:
    return sum(count for request, count in gcs.requests.items() if request.endswith(".tokens"))


def test_records_are_those_of_the_disk(stored, tmp_path):
    assert_same(read_all(Shards(URL)), read_all(Shards(tmp_path / "tokens")))
    assert token_requests(stored) == RECORDS


def test_batches_are_those_of_the_disk(stored, tmp_path):
    cfg = DataConfig(buckets=(32, 64), batch=4, threads=2, drop_context=0.5)
    there, here = (batches(path, cfg, VOCAB, 3, 1, 6) for path in (URL, tmp_path / "tokens"))
    for batch, other in zip(there, here, strict=True):
        assert_same(batch, other)


def test_lengths_are_fetched_once(stored):
    for _ in range(3):
        Shards(URL, check=False)
    assert stored.requests["GET /download/storage/v1/b/bucket/o/run/tokens/lengths.npy"] == 1
    assert not any(request == "GET /storage/v1/b/bucket/o" for request in stored.requests)


def test_what_is_kept_on_the_disk_is_not_asked_for_again(stored, tmp_path):
    reading = StoreReading(str(tmp_path / "kept"), 1.0)
    first = read_all(Shards(URL, reading=reading))
    stored.requests.clear()
    assert_same(read_all(Shards(URL, reading=reading)), first)
    assert token_requests(stored) == 0


def test_a_kept_record_that_changed_on_the_disk_is_asked_for_again(stored, tmp_path):
    reading = StoreReading(str(tmp_path / "kept"), 1.0)
    first = read_all(Shards(URL, reading=reading))
    (file,) = (tmp_path / "kept").glob("*/tokens")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    stored.requests.clear()
    assert_same(read_all(Shards(URL, reading=reading)), first)
    assert token_requests(stored) == 1


def test_no_more_is_kept_than_the_limit(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "LOOK_EVERY", 1)
    reading = StoreReading(str(tmp_path / "kept"), 1e-9)
    first = read_all(Shards(URL, reading=reading))
    stored.requests.clear()
    assert_same(read_all(Shards(URL, reading=reading)), first)
    assert token_requests(stored) > 0


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut": 0.5}, {"reset": True}], ids=str)
def test_faults_that_pass_change_nothing(stored, tmp_path, fault):
    cfg = DataConfig(buckets=(64,), batch=4, threads=1)
    stored.faults.append(GcsFault(r"GET .*\.tokens\?", **fault, times=3, skip=5))
    there, here = (batches(path, cfg, VOCAB, 3, 0, 4) for path in (URL, tmp_path / "tokens"))
    for batch, other in zip(there, here, strict=True):
        assert_same(batch, other)


def test_what_the_store_lacks_is_named_before_training(stored):
    objects = stored.buckets.objects("bucket")
    del objects["run/tokens/00001-of-00004.tokens"]
    with pytest.raises(MissingFileError, match=r"gs://bucket/run/tokens lacks 00001-of-00004\.tokens; copy it whole"):
        Shards(URL)
    write(URL)
    name = "run/tokens/00002-of-00004.tokens"
    stored.buckets.put("bucket", name, objects[name].data[:-4], {})
    with pytest.raises(InputError, match=r"damaged: its \.tokens files have"):
        Shards(URL)
    del objects["run/tokens/manifest.json"]
    with pytest.raises(MissingFileError, match="unfinished pretokenize"):
        Shards(URL)
    with pytest.raises(MissingFileError, match=r"gs://bucket/elsewhere holds no manifest\.json"):
        Shards("gs://bucket/elsewhere")


def test_a_byte_that_changed_in_the_store_is_noticed(stored):
    name = "run/tokens/00001-of-00004.tokens"
    content = bytearray(stored.buckets.objects("bucket")[name].data)
    assert damaged_shards(Shards(URL)) == []
    content[-1] ^= 1
    stored.buckets.put("bucket", name, bytes(content), {})
    (line,) = damaged_shards(Shards(URL))
    assert line.startswith(f"gs://bucket/{name} is damaged")
    last = 2 * SHARD - 1
    with pytest.raises(InputError, match=rf"{name} is damaged: record {last} is not as it was written"):
        Shards(URL)[last]


def test_a_damaged_copy_of_the_lengths_is_fetched_again(stored, tmp_path):
    reading = StoreReading(str(tmp_path / "kept"))
    lengths = np.array(Shards(URL, reading=reading).lengths)
    (file,) = (tmp_path / "kept").glob("*/lengths.npy")
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(Shards(URL, reading=reading).lengths, lengths)

"""The server that stands for Google Cloud Storage keeps the rules of its protocol, and fails as it is told to."""

import fsspec
import pytest
from gcs_server import GcsFault

pytest.importorskip("gcsfs")


@pytest.fixture
def files(gcs):
    system = fsspec.filesystem("gs")
    system.invalidate_cache()
    return system


def test_files_come_back_in_whole_and_in_part(gcs, files):
    files.pipe_file("bucket/a/x y+%.txt", b"hello world")
    assert files.cat_file("bucket/a/x y+%.txt") == b"hello world"
    assert files.cat_file("bucket/a/x y+%.txt", 2, 5) == b"llo"
    assert files.ls("bucket/a", detail=False) == ["bucket/a/x y+%.txt"]
    assert files.ls("bucket", detail=False) == ["bucket/a"]


def test_a_large_file_is_resumed_where_it_stopped(gcs, files, tmp_path):
    content = bytes(range(256)) * (24 << 10)
    tmp_path.joinpath("large").write_bytes(content)
    gcs.faults.append(GcsFault("upload_id", status=503))
    files.put_file(str(tmp_path / "large"), "bucket/large")
    assert gcs.buckets.objects("bucket")["large"].data == content


def test_what_is_there_is_not_created_again(gcs, files):
    files.pipe_file("bucket/x", b"first", mode="create")
    with pytest.raises(FileExistsError):
        files.pipe_file("bucket/x", b"second", mode="create")
    assert files.cat_file("bucket/x") == b"first"


def test_files_move_and_go(gcs, files):
    for name in "abc":
        files.pipe_file(f"bucket/from/{name}", name.encode())
    files.mv("bucket/from/a", "bucket/to/a")
    files.rm("bucket/from", recursive=True)
    assert list(gcs.buckets.objects("bucket")) == ["to/a"]


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut": 0.5}, {"reset": True}], ids=str)
def test_clients_try_again_after_faults(gcs, files, fault):
    files.pipe_file("bucket/x", bytes(1000))
    gcs.faults.append(GcsFault("GET .*/o/x", **fault))
    assert files.cat_file("bucket/x") == bytes(1000)
    assert gcs.faults[0].times == 0


def test_listings_may_be_stale_and_reads_are_not(gcs, files):
    gcs.buckets.freeze_listings()
    files.pipe_file("bucket/new", b"x")
    assert not files.find("bucket")
    assert files.cat_file("bucket/new") == b"x"


def test_tensorstore_reads_writes_and_lists(gcs):
    tensorstore = pytest.importorskip("tensorstore")
    store = tensorstore.KvStore.open("gs://bucket/deep/").result()
    stamp = store.write("a/b c%", b"123456").result()
    assert store.read("a/b c%", byte_range=slice(1, 3)).result().value == b"23"
    assert store.list().result() == [b"a/b c%"]
    assert store.write("a/b c%", b"7", if_equal=stamp.generation).result().generation != stamp.generation
    store.delete_range(tensorstore.KvStore.KeyRange()).result()
    assert not gcs.buckets.objects("bucket")

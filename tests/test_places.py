"""Places: one way to files of this machine and of stores, and nothing that only looks like one."""

import json
from pathlib import Path

import numpy as np
import pytest
from gcs_server import GcsFault

from lumina_jax import places
from lumina_jax.cli.results import claimed
from lumina_jax.errors import ExistingFileError, InputError, MissingPackageError, StorageError
from lumina_jax.places import (
    NewFile,
    below,
    beside,
    copy_file,
    is_url,
    place,
    read_range,
)
from lumina_jax.storage import CLAIMS, atomic_write, atomic_write_text, claim


@pytest.mark.parametrize("address", ["a/b", "./gs:/b", "a:b/c", "C", "/x://y", "out/run:1"])
def test_what_is_no_url_is_a_path_of_this_machine(address):
    assert place(address) == Path(address) and not is_url(address)


def test_a_url_stays_as_it_was_written():
    for address in ("memory://b/a.x/c.txt", "gs://b/a"):
        assert str(place(address)) == address and is_url(place(address)) and is_url(address)
    found = place("memory://b/a.x/c.txt")
    assert (found.name, found.stem, str(found.parent)) == ("c.txt", "c", "memory://b/a.x")
    assert place("memory://b/a/") == place("memory://b/a")
    assert place("file:///tmp/x") == Path("/tmp/x")


@pytest.mark.parametrize("address", ["gs:/bucket/a", "gs:", "s3:/b", "simplecache::gs://b/x", "nosuch://b/x"])
def test_what_would_become_a_folder_named_after_a_scheme_is_refused(address):
    with pytest.raises(InputError) as caught:
        place(address)
    assert str(caught.value).startswith(address)


def test_a_store_without_its_client_names_what_to_install(monkeypatch):
    def absent(scheme):
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr(places.fsspec, "get_filesystem_class", absent)
    with pytest.raises(MissingPackageError, match=r"gs://b/x: Install gcsfs .*; pip install .*\[gcs\]"):
        place("gs://b/x")


def test_names_in_a_folder_are_joined(memory, tmp_path):
    assert str(below(memory, "./models/../tokenizer/t.json")) == "memory://bucket/tokenizer/t.json"
    assert below(Path("a"), "../b") == Path("a/../b")
    assert beside(tmp_path, "memory://x/y.png") == place("memory://x/y.png")
    assert str(beside(memory, "y.png")) == "memory://bucket/y.png"
    assert beside(memory, str(tmp_path)) == tmp_path


def test_a_file_of_a_store_is_whole_or_not_there(memory):
    target = memory / "run" / "a.txt"
    with pytest.raises(StorageError), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise OSError("the line broke")
    assert not target.exists()
    atomic_write_text(target, "whole\n")
    assert target.read_text() == "whole\n"
    with pytest.raises(ExistingFileError), atomic_write(target, new=True) as temporary:
        temporary.write_text("another")
    assert target.read_text() == "whole\n"


def test_a_client_whose_answer_was_lost_does_not_take_its_own_file_for_anothers(gcs):
    gcs.faults.append(GcsFault("POST", reset=True, late=True))
    with atomic_write(place("gs://bucket/a.txt"), new=True) as temporary:
        temporary.write_text("mine")
    gcs.faults.append(GcsFault("POST", reset=True, late=True))
    with claimed(place("gs://bucket/samples.jsonl")):
        assert place("gs://bucket/samples.jsonl").exists()
        with pytest.raises(ExistingFileError, match="another run"), claimed(place("gs://bucket/samples.jsonl")):
            pass
    assert [*gcs.buckets.objects("bucket")] == ["a.txt"] and not any(fault.times for fault in gcs.faults)


def test_a_new_file_is_there_once_it_is_closed_and_never_when_given_up(gcs, tmp_path, monkeypatch):
    monkeypatch.setattr(places, "BLOCK_BYTES", 1 << 18)  # the least part of an upload
    content = np.random.default_rng(0).integers(0, 256, (1 << 19) + 13, np.uint8)
    bucket = place("gs://bucket")
    for folder in (bucket, tmp_path):
        file = NewFile(folder / "a.bin")
        file.write(b"0123456789")
        file.write(memoryview(content))
        assert file.tell() == len(content) + 10 and (folder is tmp_path or not (folder / "a.bin").exists())
        file.close()
        assert (folder / "a.bin").read_bytes() == b"0123456789" + content.tobytes()
    given_up = NewFile(bucket / "b.bin")
    given_up.write(content.tobytes())
    given_up.discard()
    assert not (bucket / "b.bin").exists()
    copy_file(tmp_path / "a.bin", bucket / "c/d.bin")
    copy_file(bucket / "c/d.bin", tmp_path / "e/f.bin")
    assert (tmp_path / "e/f.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()


def test_ranges_are_read_in_parts_and_again_when_they_come_short(memory, monkeypatch):
    content = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
    (memory / "a").write_bytes(content.tobytes())
    monkeypatch.setattr(places, "PART_BYTES", 64)
    monkeypatch.setattr(places, "PARTS_AT_ONCE", 3)
    assert (read_range(memory / "a", 10, 990) == content[10:990]).all() and len(read_range(memory / "a", 5, 5)) == 0
    system, calls, plain = memory.fs, [], memory.fs.cat_ranges

    def short(paths, starts, stops, **options):
        calls.append(len(paths))
        parts = plain(paths, starts, stops, **options)
        return [part[:-1] for part in parts] if len(calls) == 1 else parts

    monkeypatch.setattr(system, "cat_ranges", short)
    assert (read_range(memory / "a", 0, 100) == content[:100]).all() and calls == [2, 2]
    monkeypatch.setattr(system, "cat_ranges", lambda paths, *_, **__: [b""] * len(paths))
    with pytest.raises(StorageError, match="memory://bucket/a: bytes 0 to 64 come back cut short"):
        read_range(memory / "a", 0, 64)


def test_a_command_replaces_what_it_wrote_itself_also_on_a_store(memory):
    claim(memory, ["a.png"], "me")
    (memory / "a.png").write_bytes(b"x")
    claim(memory, ["a.png"], "me")
    assert json.loads((memory / CLAIMS).read_text()) == {"a.png": "me"}
    with pytest.raises(ExistingFileError, match=r"memory://bucket/a\.png exists already"):
        claim(memory, ["a.png"], "another")

"""s3:// addresses against a server of that protocol: what works as on a disk, and what is refused in one line before any work."""

import numpy as np
import pytest
from gcs_server import GcsFault

from lumina_jax.errors import ExistingFileError, MissingFileError
from lumina_jax.first_checks import check_readable, check_writable
from lumina_jax.places import NewFile, copy_file, place, read_range
from lumina_jax.storage import StorageFolder, atomic_write


def test_files_of_s3_are_whole_and_never_replaced_unasked(s3, tmp_path):
    content = np.random.default_rng(0).integers(0, 256, (6 << 20) + 13, np.uint8)
    bucket = place("s3://bucket")
    check_writable("s3://bucket/out")
    assert not s3.buckets.objects("bucket")
    file = NewFile(bucket / "a.bin")
    file.write(content.tobytes())
    assert not (bucket / "a.bin").exists()
    file.close()
    check_readable("s3://bucket/a.bin")
    s3.faults += [GcsFault("GET .*a.bin", status=503), GcsFault("GET .*a.bin", cut=0.5)]
    assert (read_range(bucket / "a.bin", 5, len(content)) == content[5:]).all()
    copy_file(bucket / "a.bin", tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == content.tobytes()
    with pytest.raises(ExistingFileError), atomic_write(bucket / "a.bin", new=True) as temporary:
        temporary.write_text("another")
    given_up = NewFile(bucket / "c.bin")
    given_up.write(content.tobytes())
    given_up.discard()
    assert [*s3.buckets.objects("bucket")] == ["a.bin"]


def test_a_folder_of_s3_is_read_and_written_like_one_of_a_disk(s3):
    folder = StorageFolder("s3://bucket/run")
    folder.write_text("deep/x.txt", "one\n")
    folder.write_new_text("y.txt", "two\n")
    folder.write_new_text("y.txt", "three\n")
    assert folder.sizes() == {"deep": 0, "y.txt": 4} and folder.exists("y.txt") and not folder.exists("z")
    assert folder.read_ranges([("y.txt", 1, 3), ("deep/x.txt", 0, 2)], 2) == [b"wo", b"on"]
    for missing in ("s3://gone/out", "s3://gone"):
        with pytest.raises(MissingFileError, match="its bucket is not there"):
            check_writable(missing)

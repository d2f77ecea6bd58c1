"""Files are complete whenever they exist, and what a disk or a store refuses is named with its path."""

import pytest
from gcs_server import GcsFault

from lumina_jax import storage
from lumina_jax.errors import InputError, MissingFileError, StorageError
from lumina_jax.faults import is_transient
from lumina_jax.storage import StorageFolder, atomic_write, atomic_write_text

pytestmark = pytest.mark.smoke


def test_atomic_write_makes_the_folder_and_leaves_the_file_alone(tmp_path):
    path = tmp_path / "new" / "file.txt"
    atomic_write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_old_content_stands_and_no_temporary_file_remains(tmp_path):
    path = tmp_path / "file.txt"
    atomic_write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/below: .*check its permissions"):
        atomic_write_text(tmp_path / "file" / "below", "text")


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_folder_has_the_same_files_on_every_store(tmp_path, scheme):
    folder = StorageFolder(f"{scheme}{tmp_path}/tokens")
    assert folder.file_names() == set() and not folder.exists("a.json")
    folder.write_text("a.json", "[]")
    assert folder.exists("a.json") and folder.file_names() == {"a.json"} and folder.read_bytes("a.json") == b"[]"
    with pytest.raises(MissingFileError, match=rf"{tmp_path}/tokens has no file b\.json"):
        folder.read_bytes("b.json")


def test_an_unknown_kind_of_url_is_refused():
    with pytest.raises(InputError, match=r"nowhere://x: .*gs://BUCKET/FOLDER"):
        StorageFolder("nowhere://x")


def test_a_bucket_that_is_not_there_is_not_made(gcs):
    with pytest.raises((StorageError, MissingFileError), match="gs://nowhere/folder"):
        StorageFolder("gs://nowhere/folder").write_text("a.txt", "x")
    assert gcs.buckets.names() == ["bucket"]


def test_uploads_are_tried_again_and_are_whole(gcs):
    gcs.faults += [GcsFault("POST", status=503), GcsFault("POST", reset=True, late=True)]
    StorageFolder("gs://bucket/folder").write_text("a.txt", "x" * 1000)
    assert gcs.buckets.objects("bucket")["folder/a.txt"].data == b"x" * 1000


def test_parts_of_files_come_in_the_order_asked_for_and_a_short_one_is_named(gcs):
    folder = StorageFolder("gs://bucket/folder")
    for name in ("a", "b"):
        folder.write_text(name, f"{name}123456789")
    assert folder.read_ranges([("b", 0, 3), ("a", 8, 10), ("b", 9, 10)], 2) == [b"b12", b"89", b"9"]
    with pytest.raises(StorageError, match=r"2 of the 12 bytes from 8 on came back of gs://bucket/folder/a"):
        folder.read_ranges([("a", 8, 20)], 2)


def test_a_file_that_is_there_stays_and_a_reply_that_was_lost_does_no_harm(gcs):
    folder = StorageFolder("gs://bucket/folder")
    gcs.faults.append(GcsFault("POST", reset=True, late=True))
    for text in ("first", "second"):
        folder.write_new_text("a", text)
    assert folder.read_bytes("a") == b"first"


def test_a_store_that_refuses_is_not_taken_for_an_empty_one(gcs):
    gcs.faults.append(GcsFault("GET", status=403, times=-1))
    for ask in (lambda folder: folder.exists("a"), lambda folder: folder.file_names()):
        with pytest.raises(StorageError, match=r"gs://bucket/folder: Forbidden: .*check its permissions"):
            ask(StorageFolder("gs://bucket/folder"))


def test_an_answer_that_never_comes_is_asked_for_again(gcs, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS", 0.3)
    folder = StorageFolder("gs://bucket/folder")
    folder.write_text("a", "content")
    gcs.faults.append(GcsFault("GET", seconds=600))
    with pytest.raises(StorageError, match=r"gs://bucket/folder/a: .*check") as error:
        folder.read_ranges([("a", 0, 3)], 1)
    assert is_transient(error.value)
    assert folder.read_ranges([("a", 0, 3)], 1) == [b"con"]

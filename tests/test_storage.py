"""Files are complete whenever they exist, and what a disk or a store refuses is named with its path."""

import pytest

from lumina_jax.errors import InputError, MissingFileError, StorageError
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

"""Files that are complete whenever they exist, on a local disk or on any store that fsspec knows (gs://, s3://).

A local file is written under a temporary name and then renamed; a remote store shows an upload only when it is complete. So
several processes may write one file at the same time, as long as all of them write the same content.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lumina_jax.errors import (
    ExistingFileError,
    InputError,
    MissingFileError,
    StorageError,
    UserError,
)
from lumina_jax.faults import retried
from lumina_jax.places import Place, missing_client, store_errors

SECONDS, WHOLE_FILE_SECONDS = 60.0, 600.0
"""How long an answer of a store may take: to a question or for parts of files, and for a whole file."""
TEMPORARY = ".tmp"
"""Suffix of files that are still being written."""
TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{8}\.tmp$")
"""The end of their names; other files ending in .tmp are not ours."""
CLAIMS = ".written.json"
"""File name -> the command that wrote it, of the files beside it (:func:`claim`)."""


@contextmanager
def storage_errors(path: Place | str) -> Iterator[None]:
    """Turns the refusal of a disk or store into an error naming ``path`` and the cure; a FileNotFoundError passes unchanged."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except store_errors() as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise StorageError(f"{path}: {why}; check its permissions, the free space and the connection") from error


@contextmanager
def atomic_write(path: Place, new: bool = False) -> Iterator[Path]:
    """Yields a temporary local path; the file written there becomes ``path`` at the end of the with-block: it is renamed, or
    uploaded where ``path`` is the place of a URL.

    Makes the folder of ``path``. After an error in the block ``path`` is as before and the temporary file is removed. Raises
    StorageError when the disk or store refuses, MissingFileError when the temporary file is gone. With ``new`` a file that came to
    be at ``path`` meanwhile stays, and ExistingFileError is raised.
    """
    if not isinstance(path, Path):
        with storage_errors(path), tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch, path.name)
            _upload(Path(scratch, path.name), path, new)
        return
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        try:
            if new:
                _rename_new(temporary, path)
            else:
                os.replace(temporary, path)
        except FileExistsError as error:
            temporary.unlink(missing_ok=True)
            raise ExistingFileError(f"{path} exists already; another process wrote it meanwhile") from error
        except FileNotFoundError as error:
            # Another process may have written the same file first and removed all temporary ones.
            if not path.exists():
                raise MissingFileError(f"{temporary} was removed before it became {path}; write it again") from error


def _upload(file: Path, path: Place, new: bool) -> None:
    """Uploads a local file; with ``new`` ExistingFileError when there is one at ``path``."""
    try:
        if new:  # tried again it would meet the file of its own first attempt
            path.fs.put_file(str(file), path.path, mode="create")
        else:
            retried(lambda: path.fs.put_file(str(file), path.path), f"writing {path}")
    except FileExistsError as error:
        if path.read_bytes() != file.read_bytes():  # else the client, whose answer was lost, met what it wrote itself
            raise ExistingFileError(f"{path} exists already; another process wrote it meanwhile") from error


def _rename_new(temporary: Path, path: Path) -> None:
    """Renames a file; FileExistsError when there is one at ``path``."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a mount without hard links
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)
    else:
        temporary.unlink()


def atomic_write_text(path: Place, text: str) -> None:
    """:func:`atomic_write` of a text, in UTF-8 with its line ends as they are."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def remove_strays(folder: Place, own: Callable[[str], bool]) -> None:
    """Removes what killed processes left in a local ``folder`` of files whose names are ``own``, when no process writes them."""
    for path in folder.iterdir() if isinstance(folder, Path) and folder.is_dir() else ():
        if (suffix := TEMPORARY_NAME.search(path.name)) and own(path.name[: suffix.start()]):
            path.unlink(missing_ok=True)


def claim(folder: Place, names: Iterable[str], command: str) -> None:
    """Records that ``command`` is about to write the files ``names`` into ``folder``: what it wrote itself it may replace.

    Raises ExistingFileError naming a file that is there already and that this command did not write. Makes the folder. A command
    is any text, such as its words: the same text is the same command.
    """
    record = folder / CLAIMS
    try:
        written = dict(json.loads(record.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        written = {}
    names = list(names)
    for name in names:
        if (folder / name).exists() and written.get(name) != command:
            raise ExistingFileError(
                f"{folder / name} exists already and was not written by this command; give another --out, or move it away"
            )
    atomic_write_text(record, json.dumps(written | dict.fromkeys(names, command), indent=1, ensure_ascii=False))


@contextmanager
def held(folder: Place, doing: str) -> Iterator[None]:
    """Makes ``folder`` and holds it for this process alone; its lock ends with the process, however that ends.

    Raises ExistingFileError, which calls the work ``doing``, while another process of this machine holds it. Where the disk knows
    no locks, as some mounts and all stores, nothing is held.
    """
    if not isinstance(folder, Path):
        yield
        return
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Not its consequence for faults.py: it does not pass in a moment.
            raise ExistingFileError(
                f"{folder}: another process is {doing} there; wait for its end, or give another folder"
            ) from None
        except OSError:  # no locks here
            pass
        yield
    finally:
        os.close(descriptor)


class StorageFolder:
    """The folder at a path or URL, which need not exist before the first write.

    What a disk, a store or a network may do right in a moment is tried again (:func:`lumina_jax.faults.retried`). Raises
    MissingPackageError naming what a store needs, InputError for a URL of an unknown kind, StorageError when the disk or store
    refuses.
    """

    def __init__(self, url: str | Path):
        self.url = str(url)
        try:
            # fsspec would take :: in a local path for a chain of stores.
            local = "://" not in self.url
            self._system, self._root = (
                (LocalFileSystem(), os.path.abspath(self.url)) if local else fsspec.core.url_to_fs(self.url)
            )
        except ImportError as error:
            raise missing_client(self.url, error) from error
        except ValueError as error:
            raise InputError(f"{self.url}: {error}; give a local path, or a URL such as gs://BUCKET/FOLDER") from error
        self._local = isinstance(self._system, LocalFileSystem)
        self._requests_at_once = getattr(self._system, "async_impl", False)

    def __str__(self) -> str:
        return self.url

    @property
    def local(self) -> Path | None:
        """The folder's path where it is one of this machine; None in a store."""
        return Path(self._root) if self._local else None

    def file_names(self) -> set[str]:
        """The names of all files and folders, by one listing; empty where there is no folder."""
        return set(self.sizes())

    def sizes(self) -> dict[str, int]:
        """The bytes of each file, and 0 of each folder, by one listing; empty where there is no folder."""

        def listing() -> dict[str, int]:
            self._system.invalidate_cache(self._root)
            try:
                entries = self._call("ls", self._root, detail=True)
            except FileNotFoundError:
                return {}
            names = ((entry["name"].rstrip("/").rpartition("/")[2], entry) for entry in entries)
            return {name: 0 if entry["type"] == "directory" else int(entry["size"] or 0) for name, entry in names}

        with storage_errors(self.url):
            return retried(listing, f"listing {self.url}")

    def exists(self, name: str) -> bool:
        """Whether the file ``name`` is there."""

        def there() -> bool:
            self._system.invalidate_cache(self._root)
            try:
                self._call("info", self._path(name))  # fsspec's exists() takes every error for a no
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

        with storage_errors(self.url):
            return retried(there, f"looking for {self.url}/{name}")

    def read_bytes(self, name: str) -> bytes:
        """The content of a file; MissingFileError when it is not there."""
        with self._reading(name):
            read = partial(self._call, "cat_file", self._path(name), seconds=WHOLE_FILE_SECONDS)
            return retried(read, f"reading {self.url}/{name}")

    def fetch(self, name: str, path: Path) -> None:
        """Copies a file to the local ``path``, which holds all of it or nothing new; MissingFileError when it is not there."""
        content = self.read_bytes(name)  # one request; get_file of gcsfs would list the folder as well
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)

    def read_ranges(self, spans: Sequence[tuple[str, int, int]], at_once: int) -> list[bytes]:
        """The content of each (name, start, stop), bytes ``start`` to ``stop`` of a file, by up to ``at_once`` requests at a time.

        Does not try again by itself. Raises StorageError when less comes back, MissingFileError naming a file that is not there.
        """
        if not spans:
            return []
        names, starts, stops = zip(*spans, strict=True)
        options = {"batch_size": at_once} if self._requests_at_once else {}
        with self._reading(names[0]):
            paths = [self._path(name) for name in names]
            parts = self._call("cat_ranges", paths, list(starts), list(stops), on_error="raise", **options)
            for (name, start, stop), part in zip(spans, parts, strict=True):
                if len(part) != stop - start:
                    short = f"{len(part)} of the {stop - start} bytes from {start:,} on came back"
                    raise ConnectionError(f"{short} of {self.url}/{name}; it may have been cut short")
        return parts

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Calls ``write`` with a temporary local path; its file appears here as ``name`` once it is complete."""
        if self._local:
            with atomic_write(Path(self._path(name))) as temporary:
                write(temporary)
            return
        with storage_errors(f"{self.url}/{name}"), tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch, Path(name).name)
            write(local)
            self.put(local, name)

    def put(self, path: Path, name: str) -> None:
        """Uploads, or copies, a complete local file as ``name``, which may have folders before it."""
        if self._local:
            with atomic_write(Path(self._path(name))) as temporary:
                shutil.copyfile(path, temporary)
            return

        def upload() -> None:
            if not self._requests_at_once:  # such stores have no folders, and would make a bucket of a misspelt name
                self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._call("put_file", str(path), self._path(name), seconds=WHOLE_FILE_SECONDS)

        with storage_errors(f"{self.url}/{name}"):
            try:
                retried(upload, f"writing {self.url}/{name}")
            except FileNotFoundError as error:
                raise MissingFileError(f"{self.url}/{name} cannot be written: its bucket is not there") from error

    def write_text(self, name: str, text: str) -> None:
        """:meth:`write` of a text in UTF-8."""
        self.write(name, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))

    def write_new_text(self, name: str, text: str) -> None:
        """:meth:`write_text` of a file that is not there yet; one that is there stays, whoever wrote it."""
        if not self._local:
            create = partial(self._call, "pipe_file", self._path(name), text.encode(), mode="create")
            with storage_errors(f"{self.url}/{name}"), suppress(FileExistsError):
                retried(create, f"writing {self.url}/{name}")
            return
        with suppress(ExistingFileError), atomic_write(Path(self._path(name)), new=True) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")

    def remove_temporary_files(self) -> None:
        """Removes the temporary files of killed processes; only to be called when no process writes any more."""
        for name in self.file_names() if self._local else ():
            if TEMPORARY_NAME.search(name):
                Path(self._path(name)).unlink(missing_ok=True)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Names what cannot be read, and says so when it is not there."""
        with storage_errors(f"{self.url}/{name}"):
            try:
                yield
            except (FileNotFoundError, NotADirectoryError) as error:
                raise MissingFileError(f"{self.url} has no file {name}; copy all of it, or write it again") from error

    def _call(self, method: str, *arguments: object, seconds: float = 0, **options: object):
        """A method of the store's client; TimeoutError after ``seconds`` (0: SECONDS), since gcsfs waits without end."""
        if self._requests_at_once:
            options["timeout"] = seconds or SECONDS
        return getattr(self._system, method)(*arguments, **options)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

"""Reads local files and those on gs://, http(s):// and every other store that fsspec knows in one way.

A path is a local path or a URL, as str. Each read opens a local file again, so threads and child processes share nothing. Of a
remote file any byte range can be read; requests that fail for a moment are repeated. Errors name the file: MissingFileError when
there is none, StorageError when it cannot be read, MissingPackageError when the URL needs a package that is not installed.
"""

import glob
import hashlib
import itertools
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

import fsspec
from fsspec import AbstractFileSystem

from lumina_jax.errors import InputError, MissingFileError, MissingPackageError, StorageError

ATTEMPTS = 4
FIRST_PAUSE = 0.5
"""Seconds before a remote read is repeated; doubled each time."""

BLOCK = 1 << 24
"""Bytes."""
PERMANENT = (PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors after which a request is not repeated."""
TEMPORARY_STATUS = (408, 429)
"""The HTTP status codes from 400 to 499 after which a request is repeated."""

T = TypeVar("T")


def is_remote(path: str) -> bool:
    return "://" in path


def size(path: str) -> int:
    """The bytes of a file. StorageError also when a server does not say how many."""
    if not is_remote(path):
        with _local_errors(path):
            return os.stat(path).st_size
    length = _remote(path, lambda system: system.size(path))
    if length is None:
        raise StorageError(f"{path}: the server does not say how large it is; download it and give the local path")
    return length


def read(path: str, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes of a file from ``start`` to ``stop`` (default: its end)."""
    if not is_remote(path):
        with _local_errors(path), open(path, "rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(stop - start)
    if stop is None and not start:
        return _remote(path, lambda system: system.cat_file(path))
    stop = size(path) if stop is None else stop
    return _remote(path, lambda system: _cut(system.cat_file(path, start, stop), start, stop))


def open_binary(path: str) -> BinaryIO:
    """A file open for reading and seeking; the caller closes it."""
    if is_remote(path):
        return _remote(path, lambda system: system.open(path, "rb"))
    with _local_errors(path):
        return open(path, "rb")


def blocks(path: str, length: int = BLOCK) -> Iterator[bytes]:
    """A file in blocks of ``length`` bytes, one at a time in memory."""
    with open_binary(path) as file:
        while block := file.read(length):
            yield block


def folder_of(path: str) -> str:
    """The folder of a file."""
    return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path)


def join(folder: str, path: str) -> str:
    """``path`` relative to ``folder``; an absolute path or a URL is returned as it is."""
    if is_remote(path) or not is_remote(folder):
        return path if is_remote(path) else os.path.join(folder, path)
    return f"{folder.rstrip('/')}/{path.removeprefix('./')}"


def listing(folder: str) -> list[tuple[str, int]]:
    """(path below ``folder``, bytes) of every file in it and its subfolders, sorted by path.

    Links are followed, but none back to a folder that it lies in. A link that leads nowhere, and a subfolder that cannot be
    read, whose path ends with ``/``, have 0 bytes.
    """
    if is_remote(folder):
        entries = _remote(folder, lambda system: system.find(folder, detail=True))
        root = fsspec.core.strip_protocol(folder).rstrip("/") + "/"
        return sorted((path.removeprefix(root), entry["size"]) for path, entry in entries.items())
    if not os.path.isdir(folder):
        raise MissingFileError(f"no folder {folder}")
    return sorted(_walk(folder))


def _walk(folder: str) -> Iterator[tuple[str, int]]:
    """:func:`listing` of a local folder, in any order."""
    folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while folders:
        below, above = folders.pop()
        try:
            status = os.stat(os.path.join(folder, below))
            identity = status.st_dev, status.st_ino
            entries = list(os.scandir(os.path.join(folder, below))) if identity not in above else []
        except OSError as error:
            if not below:
                raise StorageError(f"{folder}: {error.strerror}") from error
            yield below, 0
            continue
        for entry in entries:
            path = below + entry.name
            try:
                status = entry.stat()
            except OSError:
                yield path, 0
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append((f"{path}/", (*above, identity)))
            elif stat.S_ISREG(status.st_mode):  # a pipe or socket would keep its reader waiting
                yield path, status.st_size


def listing_digest(listed: Iterable[tuple[str, int]], contents: Iterable[bytes] = ()) -> str:
    """16 hex digits of the SHA-256 of names and sizes, then of ``contents``."""
    digest = hashlib.sha256()
    for path, size in listed:
        digest.update(f"{path}\0{size}\0".encode(errors="surrogateescape"))
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:16]


def expand(pattern: str) -> list[str]:
    """The files that match a pattern: ``{a,b}`` and ``{000..099}`` in the order written, ``*?[`` sorted by name.

    MissingFileError when none does. ``*`` does not work for http(s), where servers do not list their files.
    """
    paths = [path for word in _braces(pattern) for path in _glob(word)]
    if not paths:
        raise MissingFileError(f"{pattern} matches no file; check the path and the pattern")
    return paths


def _braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    inner, span = match[1], re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        first, last = span.groups()
        words = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        words = inner.split(",")
    heads, tails = [pattern[: match.start()] + word for word in words], _braces(pattern[match.end() :])
    return [head + tail for head, tail in itertools.product(heads, tails)]


def _glob(word: str) -> list[str]:
    if not glob.has_magic(word) or word.startswith(("http://", "https://")):
        return [word]
    if not is_remote(word):
        return sorted(glob.glob(word, recursive=True))
    return _remote(word, lambda system: [system.unstrip_protocol(path) for path in sorted(system.glob(word))])


def _cut(content: bytes, start: int, stop: int) -> bytes:
    """The range start to stop. HTTP servers that do not support ranges send the whole file."""
    return content[start:stop] if len(content) > stop - start else content


@contextmanager
def _local_errors(path: str) -> Iterator[None]:
    """Turns the system's errors for a local file into this module's."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error


def _remote(path: str, request: Callable[[AbstractFileSystem], T]) -> T:
    """The result of ``request`` to the file system of ``path``, repeated after a failure that may be temporary."""
    try:
        system = fsspec.filesystem(fsspec.utils.get_protocol(path))
    except ImportError as error:
        raise MissingPackageError(f"{path}: {error}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}; download the files and give a local path") from error
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request(system)
        except FileNotFoundError as error:
            raise MissingFileError(f"{path}: not found") from error
        except Exception as error:  # each file system raises its own classes
            status = getattr(error, "status", None)
            refused = isinstance(status, int) and 400 <= status < 500 and status not in TEMPORARY_STATUS
            if refused or isinstance(error, PERMANENT) or attempt == ATTEMPTS:
                raise StorageError(f"{path}: {type(error).__name__}: {error} (attempt {attempt})") from error
        time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")

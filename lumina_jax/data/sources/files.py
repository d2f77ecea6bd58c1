"""Reads local files and those on gs://, http(s):// and every other store that fsspec knows in one way.

A path is a local path or a URL, as str. Each read opens a local file again, so threads and child processes share nothing. Of a
remote file any byte range can be read; requests that fail for a moment are repeated. Every read has a bound: of a file of records,
which may be large, the time for one block; of a picture the time and the bytes of all of it. Errors name the file, without the
secrets of a URL: MissingFileError when there is none, StorageError when it cannot be read, MissingPackageError when the URL needs
a package that is not installed.
"""

import glob
import hashlib
import io
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO, TypeVar

import aiohttp
import fsspec
from fsspec import AbstractFileSystem

from lumina_jax.data.sources.fetch import LIMITS, TEMPORARY_STATUS, FetchLimits, fetch
from lumina_jax.data.sources.hosts import HOSTS
from lumina_jax.data.sources.patterns import expand_braces, glob_local
from lumina_jax.data.sources.urls import is_http, shown
from lumina_jax.errors import InputError, MissingFileError, MissingPackageError, StorageError, UserError
from lumina_jax.places import missing_client

BLOCK = 1 << 24
"""Bytes."""
BLOCK_LIMITS = FetchLimits(seconds=120.0)
"""Of one request for a part of a file of records: the bytes are those that were asked for."""
LISTING_LIMITS = FetchLimits(seconds=1800.0)
"""Of the listing of a folder, which may take many requests."""
OPTIONS = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=20.0)}}
"""Of fsspec's HTTP file system: seconds until a connection stands, and without a byte."""
PERMANENT = (PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors after which a request is not repeated."""
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")

T = TypeVar("T")


def is_remote(path: str) -> bool:
    return SCHEME.match(path) is not None


def size(path: str) -> int:
    """The bytes of a file. StorageError also when a server does not say how many."""
    if not is_remote(path):
        with _local_errors(path):
            return os.stat(path).st_size
    length = _remote(path, lambda system: system.size(path), BLOCK_LIMITS)
    if length is None:
        raise StorageError(
            f"{shown(path)}: the server does not say how large it is; download it and give the local path"
        )
    return length


def read_picture(path: str) -> bytes:
    """A whole file that belongs to one record, within the bounds of fetch.LIMITS when it is remote."""
    if is_http(path.strip()):
        return fetch(path)
    if not is_remote(path):
        return read(path)
    limits = LIMITS.get()
    content = _remote(path, lambda system: system.cat_file(path, 0, limits.max_bytes + 1), limits)
    if len(content) > limits.max_bytes:
        raise StorageError(
            f"{shown(path)}: it has more than {limits.max_bytes / (1 << 20):g} MB; allow more with data.fetch_mb",
            cause="larger than data.fetch_mb",
        )
    return content


def read(path: str, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes of a file from ``start`` to ``stop`` (default: its end)."""
    if not is_remote(path):
        with open_binary(path) as file, _local_errors(path):
            file.seek(start)
            return file.read() if stop is None else file.read(stop - start)
    if stop is None and not start:
        return b"".join(blocks(path))
    stop = size(path) if stop is None else stop
    return _remote(path, lambda system: _cut(system.cat_file(path, start, stop), start, stop), BLOCK_LIMITS)


def open_binary(path: str) -> BinaryIO:
    """A file open for reading and seeking; the caller closes it."""
    if is_remote(path):
        return io.BufferedReader(_RemoteFile(path))
    with _local_errors(path):
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise StorageError(f"{path} is no regular file; a pipe or a device never ends", cause="no regular file")
        return open(path, "rb")


def blocks(path: str, length: int = BLOCK) -> Iterator[bytes]:
    """A file in blocks of ``length`` bytes, one at a time in memory."""
    with open_binary(path) as file:
        while block := file.read(length):
            yield block


def folder_of(path: str) -> str:
    """The folder of a file."""
    path = re.split("[?#]", path, maxsplit=1)[0] if is_http(path) else path
    return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path)


def join(folder: str, path: str) -> str:
    """``path`` relative to ``folder``; an absolute path or a URL is returned as it is.

    Below the URL of a web server ``?``, ``#`` and a ``%`` that begins no escape are letters of the path.
    """
    if is_remote(path) or not is_remote(folder):
        return path if is_remote(path) else os.path.join(folder, path)
    if is_http(folder):
        path = re.sub(r"[?#]|%(?![0-9A-Fa-f]{2})", lambda match: f"%{ord(match[0]):02X}", path)
    return f"{folder.rstrip('/')}/{path.removeprefix('./')}"


def listing(folder: str) -> list[tuple[str, int]]:
    """(path below ``folder``, bytes) of every file in it and its subfolders, sorted by path.

    Links are followed, but none back to a folder that it lies in. A link that leads nowhere, and a subfolder that cannot be
    read, whose path ends with ``/``, have 0 bytes.
    """
    if is_remote(folder):
        entries = _remote(folder, lambda system: system.find(folder, detail=True), LISTING_LIMITS)
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
    """The files that match a pattern: braces (patterns.expand_braces) in the order written, ``*?[`` and ``**`` sorted by name.

    The name of a file or folder that exists is that file or folder, whatever letters it has. ``*`` does not work for http(s),
    where servers do not list their files. Raises MissingFileError when nothing matches the pattern, or one of the patterns that
    its braces stand for; InputError for braces of too many words.
    """
    if not is_remote(pattern) and os.path.isfile(pattern):
        return [pattern]
    paths = []
    head = "" if is_remote(pattern) else _existing_folder(pattern)
    for word in expand_braces(pattern[len(head) :]):
        matches = _glob(head, word)
        if not matches:
            of = "" if head + word == pattern else f", one of {shown(pattern)},"
            raise MissingFileError(f"{shown(head + word)}{of} matches no file; check the path and the pattern")
        paths += matches
    return paths


def _existing_folder(pattern: str) -> str:
    """The longest beginning of a local pattern, up to a slash, that is a folder as it stands."""
    ends = [match.end() for match in re.finditer("/", pattern)]
    return next((pattern[:end] for end in reversed(ends) if os.path.isdir(pattern[:end])), "")


def _glob(head: str, word: str) -> list[str]:
    """The files of a pattern below the folder ``head``, which is no pattern; the pattern itself where it has no magic."""
    if not glob.has_magic(word) or is_http(word):
        return [head + word]
    if not is_remote(word):
        with _local_errors(head + word):
            return glob_local(head, word)

    def matches(system: AbstractFileSystem) -> list[str]:
        if system.isfile(word):
            return [word]
        found = system.glob(word, detail=True)
        return [system.unstrip_protocol(path) for path in sorted(found) if found[path]["type"] == "file"]

    return _remote(word, matches, LISTING_LIMITS)


def _cut(content: bytes, start: int, stop: int) -> bytes:
    """The range start to stop. HTTP servers that do not support ranges send the whole file."""
    return content[start:stop] if len(content) > stop - start else content


class _RemoteFile(io.RawIOBase):
    """A remote file open for reading, of which every read has the bounds of BLOCK_LIMITS."""

    def __init__(self, path: str):
        self._path = path
        self._file = _remote(path, lambda system: system.open(path, "rb"), BLOCK_LIMITS)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: memoryview) -> int:
        length, position = len(buffer), self._file.tell() if self.seekable() else None

        def piece(_: AbstractFileSystem) -> bytes:
            if position is not None and self._file.tell() != position:
                self._file.seek(position)
            return self._file.read(length)

        limits = BLOCK_LIMITS if position is not None else replace(BLOCK_LIMITS, attempts=1)
        content = _remote(self._path, piece, limits)
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _local_errors(path: str) -> Iterator[None]:
    """Turns the system's errors for a local file into this module's."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise InputError(f"{path!r} is no path: {error}; correct it", cause="no path") from error


def _remote(path: str, request: Callable[[AbstractFileSystem], T], limits: FetchLimits) -> T:
    """The result of ``request`` to the file system of ``path``, repeated within ``limits`` after what may be temporary."""
    protocol, host = fsspec.utils.get_protocol(path), re.match("[^/]*://[^/?#]*", path)[0]
    try:
        system = fsspec.filesystem(protocol, **(OPTIONS if is_http(path) else {}))
    except ImportError as error:
        raise MissingPackageError(str(missing_client(shown(path), error)), cause="package not installed") from error
    except ValueError as error:
        raise InputError(f"{shown(path)}: {error}; download the files and give a local path") from error
    if reason := HOSTS.reason_to_skip(host):
        raise StorageError(f"{shown(path)}: {reason}", cause="a host that does not answer is skipped")
    deadline = time.monotonic() + limits.seconds
    for attempt in range(1, limits.attempts + 1):
        try:
            result = _within(deadline - time.monotonic(), lambda: request(system))
            HOSTS.answered(host)
            return result
        except FileNotFoundError as error:
            HOSTS.answered(host)
            raise MissingFileError(f"{shown(path)}: not found", cause="not found") from error
        except Exception as error:  # each file system raises its own classes
            status = error.status if hasattr(error, "status") else getattr(error, "code", None)
            answered = isinstance(status, int) or isinstance(error, PERMANENT)
            refused = isinstance(status, int) and 400 <= status < 500 and status not in TEMPORARY_STATUS
            pause = limits.pause * 2 ** (attempt - 1)
            last = attempt == limits.attempts or time.monotonic() + pause >= deadline
            if answered:
                HOSTS.answered(host)
            if refused or isinstance(error, PERMANENT) or last:
                reason = f"{type(error).__name__}: {shown(str(error))}".removesuffix(": ")
                if not answered:
                    HOSTS.failed(host, reason, connected=False)
                raise StorageError(
                    f"{shown(path)}: {reason} (attempt {attempt})", cause=type(error).__name__
                ) from error
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of ``call``; TimeoutError when it takes longer. No file system bounds the time of all that it does.

    A call that is given up still runs in its thread, which does not keep the process from ending.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(max(seconds, 0.0))
    except TimeoutError as error:
        if result.done():
            raise
        raise TimeoutError(f"no answer within {seconds:.0f} s") from error

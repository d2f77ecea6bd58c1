"""Bytes from anywhere: local paths, and gs://, http(s):// and every other address that fsspec knows, read alike.

A place is a path or an address, as a text. Local files are opened anew for each read, so nothing is shared between threads
or with child processes; of remote ones any range can be asked for, and what fails for a moment is asked for again.
"""

import glob
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

import fsspec
from fsspec import AbstractFileSystem

from lumina_jax.errors import MissingFileError, StorageError

ATTEMPTS = 4
FIRST_PAUSE = 0.5
"""Seconds before a remote read is tried again; doubled each time."""

BLOCK = 1 << 24
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
PASSING = (408, 429)
"""The answers of http servers from 400 to 499 that a later request may not get."""

T = TypeVar("T")


def is_remote(place: str) -> bool:
    return "://" in place


def size(place: str) -> int:
    """Bytes of a file. FileNotFoundError when there is none, OSError when its size is not to be had."""
    if not is_remote(place):
        if not os.path.isfile(place):
            raise MissingFileError(f"{place}: no such file; give an existing one")
        return os.stat(place).st_size
    found = _asked(place, lambda system: system.size(place))
    if found is None:
        raise StorageError(f"{place}: the server does not say how large it is; download it and give the local path")
    return found


def read(place: str, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes from ``start`` to ``stop`` (the end) of a file; OSError naming it when it cannot be read."""
    if is_remote(place):
        if stop is None and not start:
            return _asked(place, lambda system: system.cat_file(place))
        stop = size(place) if stop is None else stop
        return _asked(place, lambda system: _cut(system.cat_file(place, start, stop), start, stop))
    with open(place, "rb") as file:
        file.seek(start)
        return file.read() if stop is None else file.read(stop - start)


def open_binary(place: str) -> BinaryIO:
    """A file to read and seek in; close it."""
    return _asked(place, lambda system: system.open(place, "rb")) if is_remote(place) else open(place, "rb")


def blocks(place: str, length: int = BLOCK) -> Iterator[bytes]:
    """A file in blocks of ``length`` bytes, one at a time in memory."""
    with open_binary(place) as file:
        while block := file.read(length):
            yield block


def folder_of(place: str) -> str:
    """Where a file lies."""
    return place.rpartition("/")[0] if is_remote(place) else os.path.dirname(place)


def join(folder: str, path: str) -> str:
    """``path`` as seen from ``folder``; an absolute path or an address stands for itself."""
    if is_remote(path) or not is_remote(folder):
        return path if is_remote(path) else os.path.join(folder, path)
    return f"{folder.rstrip('/')}/{path.removeprefix('./')}"


def listing(folder: str) -> list[tuple[str, int]]:
    """(path below ``folder``, bytes) of every file in it and its subfolders, in the order of the paths."""
    if is_remote(folder):
        found = _asked(folder, lambda system: system.find(folder, detail=True))
        root = fsspec.core.strip_protocol(folder).rstrip("/") + "/"
        return sorted((path.removeprefix(root), entry["size"]) for path, entry in found.items())
    if not os.path.isdir(folder):
        raise MissingFileError(f"no folder {folder}")
    paths = (os.path.join(top, name) for top, _, names in os.walk(folder) for name in names)
    return sorted((os.path.relpath(path, folder).replace(os.sep, "/"), os.stat(path).st_size) for path in paths)


def expand(pattern: str) -> list[str]:
    """The files a pattern stands for: ``{a,b}`` and ``{000..099}`` in the order written, ``*?[`` in that of the names.

    FileNotFoundError when there is no such file. An address of http(s) holds no ``*``: servers do not list their files.
    """
    found = [place for word in _braces(pattern) for place in _globbed(word)]
    if not found:
        raise MissingFileError(f"{pattern} matches no file")
    return found


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


def _globbed(word: str) -> list[str]:
    if not glob.has_magic(word) or word.startswith(("http://", "https://")):
        return [word]
    if not is_remote(word):
        return sorted(glob.glob(word, recursive=True))
    return _asked(word, lambda system: [system.unstrip_protocol(path) for path in sorted(system.glob(word))])


def _cut(content: bytes, start: int, stop: int) -> bytes:
    """Some servers of http know no ranges and send the whole file."""
    return content[start:stop] if len(content) > stop - start else content


def _asked(place: str, ask: Callable[[AbstractFileSystem], T]) -> T:
    """What ``ask`` gets from the file system of ``place``, tried again after a failure that may pass; OSError naming it."""
    system = fsspec.filesystem(fsspec.utils.get_protocol(place))
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask(system)
        except FINAL as error:
            reason = "not found" if isinstance(error, FileNotFoundError) else str(error)
            raise type(error)(f"{place}: {reason}") from error
        except Exception as error:  # each file system raises classes of its own
            status = getattr(error, "status", None)
            refused = isinstance(status, int) and 400 <= status < 500 and status not in PASSING
            if refused or attempt == ATTEMPTS:
                raise StorageError(f"{place}: {type(error).__name__}: {error} (attempt {attempt})") from error
        time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")

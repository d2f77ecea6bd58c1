"""Files that a list names as they lay on the machine that wrote it, found where they lie now."""

import os
import posixpath
from collections.abc import Iterator

from lumina_jax.data.sources import files
from lumina_jax.data.sources.lru import LRUCache
from lumina_jax.data.sources.urls import shown
from lumina_jax.errors import InputError, MissingFileError

FOLDERS = 1000
"""Folders that are known at once."""
MAX_PARTS = 32
"""The most names of a path that are looked for below a folder."""


class Relocation:
    """Finds what was written down as a path, absolute or relative, in a list that lies in ``folder`` now.

    A path is taken as it is; else the longest end of it that exists below ``folder``: for ``/a/out/files/7.pkl`` that is
    ``a/out/files/7.pkl``, ``out/files/7.pkl``, ``files/7.pkl`` or ``7.pkl``.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._found: LRUCache[str] = LRUCache(FOLDERS)

    def find(self, path: object) -> str:
        """The path of the file today. Raises InputError for what is no path, MissingFileError when the file is nowhere."""
        candidates = list(self._candidates(_checked(path)))
        if found := next(filter(_exists, candidates), None):
            return found
        raise MissingFileError(
            f"{shown(path)} is not there, and neither is {shown(candidates[-1])}; copy the files there, or beside the list",
            cause="a file that the list names is missing",
        )

    def read(self, path: object, limit: int) -> tuple[str, bytes]:
        """The path of the file today, and its content, of a local one ``limit`` bytes; raises what :meth:`find` raises.

        Files that shared a folder are first looked for where the first of them was found.
        """
        written, name = posixpath.split(_checked(path))
        found = files.join(self._found.get(written, lambda: posixpath.dirname(self.find(path))), name)
        try:
            return found, _content(found, limit)
        except MissingFileError:
            found = self.find(path)
            return found, _content(found, limit)

    def _candidates(self, path: str) -> Iterator[str]:
        yield path
        parts = [part for part in path.split("/") if part not in ("", ".")][-MAX_PARTS:]
        for first in range(len(parts)):
            yield files.join(self._folder, "/".join(parts[first:]))


def _checked(path: object) -> str:
    if not isinstance(path, str) or not posixpath.basename(path):
        raise InputError(f"the path of a file is {path!r:.200}", cause="no path")
    return path


def _content(path: str, limit: int) -> bytes:
    return files.read_picture(path) if files.is_remote(path) else files.read(path, 0, limit)


def _exists(path: str) -> bool:
    if not files.is_remote(path):
        return os.path.isfile(path)
    try:
        return files.size(path) >= 0
    except MissingFileError:
        return False

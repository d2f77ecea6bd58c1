"""A folder of files that are whole whenever they exist: on a local disk, or on any store that fsspec knows (gs://...).

Locally a file is written under a name of its own and then renamed; a store shows an upload only when it is complete. So any
number of processes may write one file at once, as long as they write the same.
"""

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

UNFINISHED = ".tmp"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` fill a temporary file and gives it its name at the end: ``path`` is whole whenever it exists."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    write(unfinished)
    try:
        os.replace(unfinished, path)
    except FileNotFoundError:
        if not path.exists():  # else another process was here first, wrote the same and tidied up
            raise


class Folder:
    """The folder at a path or a URL; :meth:`put` makes it where need be. Raises ImportError naming a store's missing package."""

    def __init__(self, place: str | Path):
        self.place = str(place)
        self._system, self._root = fsspec.core.url_to_fs(self.place)
        self._local = isinstance(self._system, LocalFileSystem)

    def __str__(self) -> str:
        return self.place

    def path(self, name: str) -> str:
        """Where a file lies."""
        return f"{self._root}/{name}"

    def names(self) -> set[str]:
        """The files that are here, in one request; none where there is no folder."""
        self._system.invalidate_cache(self._root)
        if not self._system.exists(self._root):
            return set()
        return {path.rpartition("/")[2] for path in self._system.ls(self._root, detail=False)}

    def has(self, name: str) -> bool:
        """Whether a file is here, whole."""
        self._system.invalidate_cache(self._root)
        return self._system.exists(self.path(name))

    def read(self, name: str) -> bytes:
        """A file's content; FileNotFoundError where there is none."""
        return self._system.cat_file(self.path(name))

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """Has ``write`` fill a local file, which comes to its ``name`` here when it is whole, and not before."""
        self._system.makedirs(self._root, exist_ok=True)
        if not self._local:
            with tempfile.TemporaryDirectory() as scratch:
                write(Path(scratch, name))
                self._system.put_file(str(Path(scratch, name)), self.path(name))
            return
        write_whole(Path(self.path(name)), write)

    def put_text(self, name: str, text: str) -> None:
        """:meth:`put` of a text."""
        self.put(name, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))

    def tidy(self) -> None:
        """Removes what killed processes left unfinished; only when nothing is left to write."""
        for name in self.names() if self._local else ():
            if name.endswith(UNFINISHED):
                Path(self.path(name)).unlink(missing_ok=True)

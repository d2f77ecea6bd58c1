"""The files of a run beside its checkpoints: metrics.jsonl, TensorBoard's, profiles. Written here, and kept where ``out`` is."""

import itertools
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lumina_jax.errors import MissingFileError
from lumina_jax.storage import StorageFolder


class RunFiles:
    """The files below ``out``, a path or a URL, as local files that can be appended to.

    Where ``out`` is local they are the files themselves. A store has no files that grow: there they are written in a temporary
    folder of this machine, and :meth:`upload` puts those that changed into ``out``, each of them whole; ``check`` is called first,
    and raises when ``out`` is no longer this run's. Raises as StorageFolder.
    """

    def __init__(self, out: str, check: Callable[[], object] = lambda: None):
        self._folder = StorageFolder(out)
        self._stored = self._folder.local is None
        self._local = Path(tempfile.mkdtemp(prefix="lumina_jax_")) if self._stored else Path(out)
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._check = check

    def path(self, name: str) -> Path:
        """The local path of a file or folder below ``out``."""
        return self._local / name

    def fetch(self, name: str) -> Path:
        """The local path of a file, with its content in ``out`` if it is there."""
        if self._stored:
            with suppress(MissingFileError):
                self._folder.fetch(name, self.path(name))
                self._uploaded[name] = _state(self.path(name))
        return self.path(name)

    def set_aside(self, name: str) -> str:
        """Keeps a file that is not empty as the first free NAME-N.SUFFIX, which is returned; "" when there is none."""
        path = self.fetch(name)
        if not path.is_file() or not path.stat().st_size:
            return ""
        names = self._folder.file_names()
        free = (f"{path.stem}-{number}{path.suffix}" for number in itertools.count(1))
        aside = path.rename(self.path(next(name for name in free if name not in names)))
        if self._stored:
            self._folder.put(aside, aside.name)
            aside.unlink()
        return aside.name

    def upload(self) -> None:
        """Puts what changed since the last time into a store; returns when it is there."""
        if not self._stored:
            return
        self._check()
        for path in sorted(self._local.rglob("*")):
            name = path.relative_to(self._local).as_posix()
            if path.is_file() and self._uploaded.get(name) != (state := _state(path)):
                self._folder.put(path, name)
                self._uploaded[name] = state

    def close(self) -> None:
        """Uploads, and removes the temporary folder."""
        if self._stored and self._local.is_dir():
            try:
                self.upload()
            finally:
                shutil.rmtree(self._local)


def _state(path: Path) -> tuple[int, int]:
    """What changes whenever a file is written."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns

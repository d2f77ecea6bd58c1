"""The cache of the Hugging Face hub on this machine (HF_HOME, HF_HUB_CACHE), in the layout that its documentation describes:

models--OWNER--NAME/ holds blobs/DIGEST (contents), snapshots/COMMIT/FILE (links to them) and refs/REVISION (the commit of a name).
What is put there is found by transformers and every other program that uses the hub, and the other way round.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lumina_jax.hub.address import COMMIT, HubAddress
from lumina_jax.hub.client import RemoteFile, need_hub
from lumina_jax.storage import atomic_write_text, storage_errors

PART = ".part.incomplete"
"""Suffix of a blob that is not whole yet; an interrupted transfer goes on behind its bytes."""


@dataclass(frozen=True)
class CachedRepository:
    """The ``folder`` of one repository in the cache, and that of the ``locks`` of its files; neither need exist."""

    folder: Path
    locks: Path

    def blob(self, file: RemoteFile) -> Path:
        """Where the content of ``file`` is."""
        return self.folder / "blobs" / file.digest

    def part(self, file: RemoteFile) -> Path:
        """Where what has come of ``file`` is until it is whole."""
        return self.folder / "blobs" / f"{file.digest}{PART}"

    def lock(self, file: RemoteFile) -> Path:
        """The lock that the hub's own client takes for ``file`` as well."""
        return self.locks / f"{file.digest}.lock"

    def snapshot(self, commit: str) -> Path:
        """The folder of all files at one commit."""
        return self.folder / "snapshots" / commit

    def commit_of(self, revision: str) -> str:
        """The commit that a revision was when it was last asked for; "" where it never was."""
        if COMMIT.fullmatch(revision):
            return revision
        with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        return ""

    def names(self, commit: str) -> list[str]:
        """The files that are here at one commit."""
        root = self.snapshot(commit)
        found = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
        return sorted(path.relative_to(root).as_posix() for path in found if path.exists())

    def lacks(self, file: RemoteFile) -> int:
        """How many bytes of ``file`` have to come yet."""
        if self.blob(file).exists():
            return 0
        part = self.part(file)
        return max(file.size - (part.stat().st_size if part.exists() else 0), 0)

    def link(self, commit: str, file: RemoteFile) -> None:
        """Makes ``file`` appear in the snapshot of ``commit``; a disk without links gets a copy."""
        path, blob = self.snapshot(commit) / file.name, self.blob(file)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                return
            path.unlink(missing_ok=True)  # a link whose blob was removed
            try:
                path.symlink_to(os.path.relpath(blob, path.parent))
            except FileExistsError:  # another process made it
                pass
            except OSError:
                shutil.copyfile(blob, path)

    def note(self, revision: str, commit: str) -> None:
        """Remembers what ``revision`` is, for the next time without a network."""
        if not COMMIT.fullmatch(revision) and self.commit_of(revision) != commit:
            atomic_write_text(self.folder / "refs" / revision, commit)


def cache_folder() -> Path:
    """The hub's cache."""
    return Path(need_hub().constants.HF_HUB_CACHE).expanduser()


def cached_repository(address: HubAddress) -> CachedRepository:
    """The place of a repository in the cache."""
    name = "--".join(("models", *address.name.split("/")))
    return CachedRepository(cache_folder() / name, cache_folder() / ".locks" / name)

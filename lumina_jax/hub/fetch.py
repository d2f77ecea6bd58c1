"""The needed files of a repository, as a folder of this machine: from the hub's cache, fetched where they are not there."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lumina_jax.errors import MissingFileError, StorageError
from lumina_jax.faults import retried
from lumina_jax.hub.address import COMMIT, HubAddress
from lumina_jax.hub.cache import CachedRepository, cache_folder, cached_repository
from lumina_jax.hub.client import Repository, is_offline, repository_of
from lumina_jax.hub.download import Transfer
from lumina_jax.progress import ProgressDisplay, print_line

SPARE_BYTES = 1 << 24
"""What stays free of the disk."""
Choose = Callable[[Sequence[str]], Iterable[str]]
"""The needed ones among the names of a repository's files; raises MissingFileError where they are not all there."""


def fetch(address: HubAddress, choose: Choose) -> Path:
    """The folder of the repository at ``address`` with the files that ``choose`` takes, of one commit.

    What is in the hub's cache is not fetched again; without a network, or with HF_HUB_OFFLINE=1, all must be there. A line says
    which commit it is, and before the first byte how many come and how many are free. Raises MissingFileError for an unknown
    repository, revision or file, StorageError for a gated one, a full disk, a wrong checksum, or a hub that cannot be reached.
    """
    cache = cached_repository(address)
    if is_offline() or COMMIT.fullmatch(address.revision):
        try:
            return _cached(address, cache, choose, "HF_HUB_OFFLINE is set" if is_offline() else "")
        except MissingFileError:
            if is_offline():
                raise
    try:
        # With a copy at hand nobody waits for a hub that does not answer.
        repository = repository_of(address) if cache.commit_of(address.revision) else _asked(address)
    except StorageError as error:
        try:
            return _cached(address, cache, choose, str(error))
        except MissingFileError:
            raise error from None
    if repository.now != address.name:
        print_line(f"{address}: the repository is now called {repository.now}")
    _bring(repository, cache, list(choose(list(repository.files))))
    return cache.snapshot(repository.commit)


def _asked(address: HubAddress) -> Repository:
    return retried(lambda: repository_of(address), f"asking for {address}")


def _cached(address: HubAddress, cache: CachedRepository, choose: Choose, why: str) -> Path:
    """The snapshot in the cache, where it has all that is needed; ``why`` nothing is asked of the hub. Raises MissingFileError."""
    commit = cache.commit_of(address.revision)
    if not commit or not cache.snapshot(commit).is_dir():
        raise MissingFileError(
            f"{address} is not in the hub's cache {cache_folder()}{f', and {why}' * bool(why)}; fetch it once with a network, or "
            "copy the cache of another machine"
        )
    choose(cache.names(commit))
    print_line(f"{address}: commit {commit[:12]} from the cache {cache.folder}{f' ({why})' * bool(why)}")
    return cache.snapshot(commit)


def _bring(repository: Repository, cache: CachedRepository, names: list[str]) -> None:
    """Fetches what is not in the cache of the files ``names``, and makes them a snapshot."""
    files = [repository.files[name] for name in names]
    by_digest = {file.digest: file for file in files}  # two files may have one content
    lacking = [file for file in by_digest.values() if not cache.blob(file).exists()]
    needed, whole = sum(map(cache.lacks, lacking)), sum(file.size for file in files)
    if lacking:
        free = _free_bytes(cache_folder())
        sizes = f"{_size(needed)} of {_size(whole)} to fetch in {len(lacking)} of {len(files)} files"
        print_line(f"{repository.address}: commit {repository.short}, {sizes}; {_size(free)} free in {cache_folder()}")
        if needed + SPARE_BYTES > free:
            raise StorageError(
                f"{repository.address}: {_size(needed)} are to be fetched, but {cache_folder()} has {_size(free)} free; free "
                "space, or set HF_HOME to a folder of a larger disk"
            )
        total = sum(file.size for file in lacking)
        with ProgressDisplay(f"fetching {repository.address}", total, unit="MB", unit_size=10**6) as progress:
            progress.skip(total - needed)
            Transfer(repository, cache, progress).run(lacking)
    else:
        print_line(f"{repository.address}: commit {repository.short}, all {len(files)} files are in {cache.folder}")
    for file in files:
        cache.link(repository.commit, file)
    cache.note(repository.address.revision, repository.commit)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free


def _size(count: int) -> str:
    unit, size = next(((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6)) if count >= size), ("kB", 1e3))
    return f"{count / size:,.1f} {unit}"

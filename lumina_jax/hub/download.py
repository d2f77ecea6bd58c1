"""Files of a repository into the hub's cache: several at once, each resumed behind what an earlier attempt or process left, and
whole only when its checksum is the one that the hub tells.

Always by HTTP with byte ranges, also where a repository is stored as Xet: the hub serves those through the same addresses. The
hub's client throws an interrupted file away and verifies none that came by HTTP; hence this one, on that client's connections.
"""

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from lumina_jax.errors import StorageError, interrupted
from lumina_jax.faults import retried
from lumina_jax.hub.cache import CachedRepository
from lumina_jax.hub.client import LIBRARY, PassingHubError, RemoteFile, Repository, hub_errors, need_hub
from lumina_jax.progress import ProgressDisplay, print_line, waiting
from lumina_jax.storage import storage_errors

FILES_AT_ONCE = 4
BLOCK = 1 << 22
"""Bytes read at once of what is there already."""
LOCK_SECONDS = 0.5
"""Between two looks whether another process has finished, and whether to go on waiting."""
SHA256_DIGITS = 64


class Transfer:
    """The transfer of files of one repository; all of it stops when one file fails."""

    def __init__(self, repository: Repository, cache: CachedRepository, progress: ProgressDisplay):
        self._repository, self._cache, self._progress = repository, cache, progress
        self._stopped, self._counting = threading.Event(), threading.Lock()

    def run(self, files: Iterable[RemoteFile]) -> None:
        """Fetches ``files`` that are not in the cache. Raises StorageError, PassingHubError, MissingFileError."""
        pool = ThreadPoolExecutor(FILES_AT_ONCE)
        try:
            with interrupted("what came is kept in the hub's cache; the same command goes on behind it"):
                for fetched in as_completed([pool.submit(self._fetch, file) for file in files]):
                    fetched.result()
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)

    def _fetch(self, file: RemoteFile) -> None:
        blob, part = self._cache.blob(file), self._cache.part(file)
        with storage_errors(blob):
            blob.parent.mkdir(parents=True, exist_ok=True)
            self._cache.lock(file).parent.mkdir(parents=True, exist_ok=True)
        lacking = self._cache.lacks(file)
        with self._held(file):
            if blob.exists():  # another process has fetched it meanwhile
                self._count(lacking)
                return
            self._count(lacking - self._cache.lacks(file))
            retried(lambda: self._grow(file, part), f"fetching {file.name}", self._pause)
            with storage_errors(blob):
                os.replace(part, blob)

    @contextmanager
    def _held(self, file: RemoteFile) -> Iterator[None]:
        """Holds ``file`` for this process; says so while another one fetches it."""
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock

        with ExitStack() as stack, waiting(f"waiting for another process that fetches {file.name}"):
            while True:
                self._check_going()
                try:
                    stack.enter_context(WeakFileLock(self._cache.lock(file), timeout=LOCK_SECONDS))
                    break
                except Timeout:
                    pass
            holding = stack.pop_all()
        with holding:
            yield

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _check_going(self) -> None:
        if self._stopped.is_set():
            raise StorageError(f"{self._repository.address}: given up, for another file failed")

    def _grow(self, file: RemoteFile, part: Path) -> None:
        """Fetches what ``part`` lacks, again as long as every attempt brings something."""
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                return self._attempt(file, part)
            except PassingHubError as error:
                self._check_going()
                if part.stat().st_size <= before:
                    raise
                print_line(f"{file.name}: {error}; goes on at byte {part.stat().st_size:,} of {file.size:,}")

    def _attempt(self, file: RemoteFile, part: Path) -> None:
        self._check_going()
        with storage_errors(part), part.open("a+b") as content:
            digest, done = _digest_of(content, file)
            if done < file.size:
                with hub_errors(self._repository.address):
                    digest, done = self._receive(file, content, digest, done)
            if done < file.size:
                raise PassingHubError(f"{self._repository.address}: the connection ended early")
        if done > file.size or digest.hexdigest() != file.digest:
            part.unlink()
            self._count(-file.size)
            raise StorageError(
                f"{file.name} of {self._repository.address} came with another content than the hub says: {done:,} bytes with "
                f"checksum {digest.hexdigest()[:12]}..., but {file.size:,} with {file.digest[:12]}... are right; it was removed: "
                "run this again, and where it comes again, look for a proxy or mirror in between"
            )

    def _receive(self, file: RemoteFile, content: BinaryIO, digest, done: int):
        """Adds what comes behind the byte ``done``; returns the digest and how many bytes there are."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        hub, address = need_hub(), self._repository.address
        url = hub.hf_hub_url(address.name, file.name, revision=self._repository.commit, endpoint=hub.constants.ENDPOINT)
        headers = build_hf_headers(library_name=LIBRARY) | {"Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={done}-"} if done else {}
        seconds = hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=seconds) as response:
            hf_raise_for_status(response)
            if done and response.status_code != 206:  # it sends all of it once more
                content.truncate(0)
                self._count(-done)
                digest, done = _new_digest(file), 0
            elif done and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                content.truncate(0)
                self._count(-done)
                raise PassingHubError(f"{address}: the server sends other bytes than those behind byte {done:,}")
            for block in response.iter_bytes():  # as it comes: of a larger block an interruption would leave nothing
                self._check_going()
                content.write(block)
                content.flush()
                digest.update(block)
                done += len(block)
                self._count(len(block))
                if done > file.size:  # of a body without end nothing more is kept
                    break
        return digest, done

    def _count(self, count: int) -> None:
        with self._counting:
            self._progress.advance(count)


def _new_digest(file: RemoteFile):
    """What the checksum of ``file`` is computed by: SHA-256, or SHA-1 as git has it of a file."""
    if len(file.digest) == SHA256_DIGITS:
        return hashlib.sha256()
    return hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)


def _digest_of(content: BinaryIO, file: RemoteFile):
    """(the digest of what is in ``content``, its number of bytes); the file is left at its end."""
    digest, done = _new_digest(file), 0
    content.seek(0)
    while block := content.read(BLOCK):
        digest.update(block)
        done += len(block)
    return digest, done

"""The bytes of a folder of tokens: on a disk by reading where a record lies, in a store by requests for many records at once."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from lumina_jax.config import DataConfig
from lumina_jax.data.token_cache import TokenCache
from lumina_jax.faults import retried
from lumina_jax.open_files import allow_open_files
from lumina_jax.storage import StorageFolder

BYTES_PER_GB = 10**9
BLOCK_BYTES, STORED_BLOCK_BYTES = 1 << 20, 1 << 24
"""Of a shard that is read as a whole, at once: from a disk, and from a store, which takes a while to answer."""


class RecordSpan(NamedTuple):
    """Where a record lies: bytes ``start`` to ``stop`` of the file of ``shard``. ``record`` is its number in the folder."""

    record: int
    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class StoreReading:
    """How a store is read: see DataConfig, ``cache``, ``cache_gb`` and ``fetchers``."""

    cache: str = ""
    cache_gb: float = 0.0
    requests: int = 128

    @classmethod
    def of(cls, cfg: DataConfig) -> "StoreReading":
        return cls(cfg.cache, cfg.cache_gb, cfg.fetchers)

    @property
    def folder(self) -> Path:
        """The folder of what is kept on this machine; by default that of the user's caches."""
        default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lumina_jax")
        return Path(self.cache or default).expanduser()


class TokenFiles(Protocol):
    """The files of the shards of a folder, and those with a number for each record."""

    def index(self, name: str, anew: bool) -> Path:
        """The local path of a file with a number for each record; ``anew``: of a new copy, where it is one.

        Raises FileNotFoundError.
        """

    def sizes(self) -> list[int | None]:
        """The bytes of each shard; None for one that is not there."""

    def read(self, spans: Sequence[RecordSpan]) -> list[bytes]:
        """The bytes of each record, which may be fewer where a file ended in it. From several threads at once."""

    def blocks(self, shard: int) -> Iterator[bytes]:
        """The content of the file of a shard, a part at a time."""

    def open(self, shard_bytes: Sequence[int], checksums: np.ndarray | None) -> None:
        """Prepares reading; ``shard_bytes`` is what each shard should have, ``checksums`` u32[N] the CRC-32 of each record."""


class DiskTokenFiles:
    """:class:`TokenFiles` on a local or mounted disk. Each shard is opened at its first use and stays open."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self._folder, self._files = folder, [folder / name for name in names]
        self._handles: dict[int, int] = {}
        self._opening = threading.Lock()

    def index(self, name: str, anew: bool) -> Path:
        return self._folder / name

    def sizes(self) -> list[int | None]:
        return [file.stat().st_size if file.is_file() else None for file in self._files]

    def blocks(self, shard: int) -> Iterator[bytes]:
        file = self._files[shard]
        with file.open("rb") as stream:
            while block := _named(file, lambda: _block(stream)):
                yield block

    def open(self, shard_bytes: Sequence[int], checksums: np.ndarray | None) -> None:
        """Raises StorageError when so many files cannot be open at once."""
        cure = "raise it (ulimit -Hn), or pretokenize again with more records per shard"
        allow_open_files(count := len(self._files), f"{self._folder} has {count} shards", cure)

    def read(self, spans: Sequence[RecordSpan]) -> list[bytes]:
        return [self._record(span) for span in spans]

    def _record(self, span: RecordSpan) -> bytes:
        handle = self._handle(span.shard)
        return _named(self._files[span.shard], lambda: os.pread(handle, span.stop - span.start, span.start))

    def _handle(self, shard: int) -> int:
        """The file descriptor of a shard."""
        if (handle := self._handles.get(shard)) is None:
            with self._opening:
                if (handle := self._handles.get(shard)) is None:
                    handle = self._handles[shard] = os.open(self._files[shard], os.O_RDONLY)
        return handle

    def __del__(self):
        # While the interpreter shuts down the module may be gone; the system closes the files then.
        if os.close is not None:
            for handle in getattr(self, "_handles", {}).values():
                os.close(handle)


def _block(stream: BinaryIO) -> bytes:
    return stream.read(BLOCK_BYTES)


def _named(file: Path, read: Callable[[], bytes]) -> bytes:
    """What ``read`` gives back; its OSError names the ``file``, which that of an open file does not."""
    try:
        return read()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error


class StoreTokenFiles:
    """:class:`TokenFiles` in a store. No file is open: records come by ranged requests, many at a time.

    The numbers of all records are fetched once, to a folder of this machine that is named after ``manifest``, the content of the
    folder's manifest; with ``reading.cache_gb`` records stay there too.
    """

    def __init__(self, folder: StorageFolder, names: Sequence[str], manifest: bytes, reading: StoreReading):
        self._folder, self._names, self._reading = folder, names, reading
        key = hashlib.sha256(f"{folder}\n".encode() + manifest).hexdigest()[:16]
        self._local = reading.folder / key
        self._cache: TokenCache | None = None
        self._begins = np.zeros(1, np.int64)

    def index(self, name: str, anew: bool) -> Path:
        path = self._local / name
        if anew or not path.is_file():
            self._folder.fetch(name, path)
        return path

    def sizes(self) -> list[int | None]:
        """By one listing, however many shards there are."""
        sizes = self._folder.sizes()
        return [sizes.get(name) for name in self._names]

    def blocks(self, shard: int) -> Iterator[bytes]:
        size = int(self._begins[shard + 1] - self._begins[shard])
        for start in range(0, size, STORED_BLOCK_BYTES):
            stop = min(start + STORED_BLOCK_BYTES, size)
            read = partial(self._folder.read_ranges, [(self._names[shard], start, stop)], 1)
            yield retried(read, f"reading {self._folder}/{self._names[shard]}")[0]

    def open(self, shard_bytes: Sequence[int], checksums: np.ndarray | None) -> None:
        self._begins = np.cumsum([0, *shard_bytes])
        if self._reading.cache_gb and checksums is not None:
            self._cache = TokenCache(
                self._local, checksums, int(self._begins[-1]), int(self._reading.cache_gb * BYTES_PER_GB)
            )

    def read(self, spans: Sequence[RecordSpan]) -> list[bytes]:
        """Raises StorageError when a part comes back short; the caller tries again."""
        if self._cache is None:
            return self._fetch(spans)
        content = [self._cache.get(span.record, self._place(span), span.stop - span.start) for span in spans]
        absent = [number for number, part in enumerate(content) if part is None]
        for number, part in zip(absent, self._fetch([spans[number] for number in absent]), strict=True):
            content[number] = part
            self._cache.put(self._place(spans[number]), part)
        return content

    def _fetch(self, spans: Sequence[RecordSpan]) -> list[bytes]:
        ranges = [(self._names[span.shard], span.start, span.stop) for span in spans]
        return self._folder.read_ranges(ranges, self._reading.requests)

    def _place(self, span: RecordSpan) -> int:
        """The record's first byte, counted through all shards."""
        return int(self._begins[span.shard]) + span.start


def token_files(folder: StorageFolder, names: Sequence[str], manifest: bytes, reading: StoreReading) -> TokenFiles:
    """The files ``names`` of the shards of ``folder``, whose manifest is ``manifest``."""
    if folder.local:
        return DiskTokenFiles(folder.local, names)
    return StoreTokenFiles(folder, names, manifest, reading)

"""Whether the files of tokens are those that the manifest describes: before the first step, while training runs, or all at once.

Each record is compared with its checksum whenever it is read (data.shards), so none is trained on that changed. What stands here
finds a damaged file before it is needed.
"""

import random
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from lumina_jax.data.shards import TOKEN_BYTES, TOKENS, Shards
from lumina_jax.errors import InputError
from lumina_jax.faults import retried

READERS = 8
"""Files read at once."""
PAUSE = 0.016
"""Seconds between two blocks in the background: at most 64 MiB a second, so that reading batches comes first."""

Item = TypeVar("Item")
Shard = tuple[Shards, int]
"""A folder and the number of a shard in it."""


def damaged_shards(folder: Shards, advance: Callable[[int], object] = lambda count: None) -> list[str]:
    """What is wrong with the files of tokens of ``folder``, a line for each damaged one; reads all of it.

    Calls ``advance`` with the bytes of each block read. A folder of an older version has no checksums and nothing is found.
    """
    shards = [(folder, number) for number in range(len(folder.manifest.shard_crc32))]
    lock = threading.Lock()

    def count(size: int) -> None:
        with lock:
            advance(size)

    with ThreadPoolExecutor(READERS) as pool:
        return [reason for reason in pool.map(lambda shard: damage_of(shard, count), shards) if reason]


def damage_of(shard: Shard, advance: Callable[[int], object] = lambda count: None) -> str:
    """What is wrong with the file of tokens of a shard, in words; empty when its bytes are those that were written."""
    folder, number = shard
    file = f"{folder.path}/{folder.manifest.settings.file(number, TOKENS)}"
    crc = 0
    for block in folder.blocks(number):
        crc = zlib.crc32(block, crc)
        advance(len(block))
    if crc == folder.manifest.shard_crc32[number]:
        return ""
    return f"{file} is damaged: its bytes are not those that were written; copy it again from where it is whole"


class TokenCheck:
    """Compares the tokens of ``folders`` with their checksums, on host ``host`` of ``hosts``; raises InputError, naming the file.

    :meth:`before` reads as many bytes as ``limit_mb`` MiB say before the first step: all shards where they are so few, else some
    drawn at random, on every host others. :meth:`during` reads this host's share of the rest in the background while batches
    are taken. With a limit of 0 neither reads anything. Folders in a store are the same for all hosts and are left out. A disk that
    cannot be read is tried again (faults.retried); then its OSError is raised.
    """

    def __init__(self, folders: Sequence[Shards], limit_mb: int, host: int, hosts: int):
        self._limit, self._share = limit_mb << 20, (host, hosts)
        folders = [folder for folder in folders if isinstance(folder.path, Path)]
        shards = [(folder, number) for folder in folders for number in range(len(folder.manifest.shard_crc32))]
        random.Random(host).shuffle(shards)
        self._left = deque(shards)
        self._sorted = False
        self._found: Exception | None = None
        self._reading = threading.Lock()

    def before(self) -> None:
        """Reads the first shards, up to the limit."""
        first, size = [], 0
        while self._left:
            size += _size(*self._left[0])
            if size > self._limit:
                break
            first.append(self._left.popleft())
        with ThreadPoolExecutor(READERS) as pool:
            if reason := next(filter(None, pool.map(_damage_retried, first)), ""):
                raise InputError(reason)

    def during(self, items: Iterator[Item]) -> Iterator[Item]:
        """``items``, while a thread reads this host's share of the shards that are left; raises before the next item.

        Called again, when a run goes back, it goes on where the thread before stopped.
        """
        if not self._sorted:
            host, hosts = self._share
            self._left = deque(sorted(self._left, key=lambda shard: (str(shard[0].path), shard[1]))[host::hosts])
            self._sorted = True
        stopped = threading.Event()
        if self._limit and self._left:
            threading.Thread(target=self._read, args=(stopped,), name="token check", daemon=True).start()
        try:
            for item in items:
                if self._found:
                    raise self._found
                yield item
        finally:
            stopped.set()

    def _read(self, stopped: threading.Event) -> None:
        """Reads the shards that are left until it is ``stopped``; the one that it reads then is left."""

        def pause(count: int) -> None:
            if stopped.is_set():
                raise _StoppedError
            time.sleep(PAUSE)

        with self._reading, suppress(_StoppedError):
            while self._left and not self._found and not stopped.is_set():
                try:
                    if reason := _damage_retried(self._left[0], pause):
                        self._found = InputError(reason)
                except OSError as error:
                    self._found = error
                self._left.popleft()


class _StoppedError(Exception):
    """Ends the reading of a shard."""


def _damage_retried(shard: Shard, advance: Callable[[int], object] = lambda count: None) -> str:
    """:func:`damage_of`, again where a disk fails for a moment; its OSError names the file."""
    return retried(lambda: damage_of(shard, advance), f"verifying shard {shard[1]} of {shard[0].path}")


def _size(folder: Shards, number: int) -> int:
    """Bytes of the file of tokens of a shard, about: those of an average record, times its records."""
    manifest = folder.manifest
    return TOKEN_BYTES * manifest.tokens * manifest.shard_kept[number] // max(manifest.kept, 1)

"""Whether the files of tokens are those that the manifest describes: before the first step, while training runs, or all at once.

Each record is compared with its checksum whenever it is read (data.shards), so none is trained on that changed. What stands here
finds a damaged file before it is needed.
"""

import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lumina_jax.data.shards import TOKEN_BYTES, TOKENS, Shards
from lumina_jax.errors import InputError

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
    are taken. With a limit of 0 neither reads anything. Folders in a store are the same for all hosts and are left out.
    """

    def __init__(self, folders: Sequence[Shards], limit_mb: int, host: int, hosts: int):
        self._limit, self._share = limit_mb << 20, (host, hosts)
        folders = [folder for folder in folders if isinstance(folder.path, Path)]
        self._shards = [(folder, number) for folder in folders for number in range(len(folder.manifest.shard_crc32))]
        random.Random(host).shuffle(self._shards)
        self._damage = ""
        self._stopped = threading.Event()

    def before(self) -> None:
        """Reads the first shards, up to the limit."""
        count, size = 0, 0
        for folder, number in self._shards:
            size += _size(folder, number)
            if size > self._limit:
                break
            count += 1
        first, self._shards = self._shards[:count], self._shards[count:]
        with ThreadPoolExecutor(READERS) as pool:
            if reason := next(filter(None, pool.map(damage_of, first)), ""):
                raise InputError(reason)

    def during(self, items: Iterator[Item]) -> Iterator[Item]:
        """``items``, while a thread reads this host's share of the shards that :meth:`before` left; raises before the next item."""
        host, hosts = self._share
        share = sorted(self._shards, key=lambda shard: (str(shard[0].path), shard[1]))[host::hosts]
        if self._limit and share:
            threading.Thread(target=self._read, args=(share,), name="token check", daemon=True).start()
        try:
            for item in items:
                if self._damage:
                    raise InputError(self._damage)
                yield item
        finally:
            self._stopped.set()

    def _read(self, shards: Sequence[Shard]) -> None:
        for shard in shards:
            try:
                self._damage = damage_of(shard, self._pause)
            except OSError as error:
                self._damage = f"{shard[0].path}: {error}; check the disk, then start again"
            if self._damage or self._stopped.is_set():
                return

    def _pause(self, count: int) -> None:
        if not self._stopped.is_set():
            time.sleep(PAUSE)


def _size(folder: Shards, number: int) -> int:
    """Bytes of the file of tokens of a shard, about: those of an average record, times its records."""
    manifest = folder.manifest
    return TOKEN_BYTES * manifest.tokens * manifest.shard_kept[number] // max(manifest.kept, 1)

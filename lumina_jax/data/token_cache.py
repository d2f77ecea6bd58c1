"""Records of a folder in a store, kept on a local disk once they were read.

An epoch reads every record about once, in an order that is new each time. So nothing is gained by putting new records in the
place of old ones: what is in the cache stays until it is deleted, and the cache serves the share of the reads that it has room for.
"""

import os
import threading
import zlib
from pathlib import Path

import numpy as np

from lumina_jax.progress import print_line
from lumina_jax.storage import storage_errors

TOKENS, CHECKSUMS = "tokens", "checksums"
"""Sparse files: of the records at their places, one shard after another, and u32[N], the CRC of each; 0: it is not there."""
BLOCK_BYTES = 512
"""The unit of st_blocks."""
LOOK_EVERY = 256
"""Records written between two looks at how much the cache takes."""


class TokenCache:
    """The records of one folder of ``records`` records and ``size`` bytes, in ``folder``; several processes may share it.

    Nothing is added once the tokens of all folders beside ``folder`` take ``limit`` bytes of the disk. A record whose CRC is not
    that of its bytes, since the machine lost power or the disk lies, counts as absent. Raises StorageError when the disk refuses.
    """

    def __init__(self, folder: Path, records: int, size: int, limit: int):
        self._folder, self._limit = folder, limit
        self._unseen, self._has_room, self._lock = LOOK_EVERY, True, threading.Lock()
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = _sparse(folder / TOKENS, size)
            os.close(_sparse(folder / CHECKSUMS, 4 * records))
            self._checksums = np.memmap(folder / CHECKSUMS, np.uint32, "r+", shape=(records,))

    def get(self, record: int, start: int, size: int) -> bytes | None:
        """Record number ``record``, which has ``size`` bytes from ``start`` on; None when it is not here."""
        checksum = self._checksums[record]
        if not checksum:
            return None
        with storage_errors(self._folder):
            content = os.pread(self._file, size, start)
        return content if len(content) == size and _checksum(content) == checksum else None

    def put(self, record: int, start: int, content: bytes) -> None:
        """Keeps a record, unless the cache is full or becomes full by it."""
        if not self._room():
            return
        try:
            os.pwrite(self._file, content, start)
        except OSError as error:
            self._has_room = False
            print_line(f"{self._folder}: {error}; no more tokens are kept there, training goes on")
            return
        self._checksums[record] = _checksum(content)

    def _room(self) -> bool:
        with self._lock:
            self._unseen += 1
            if self._has_room and self._unseen >= LOOK_EVERY:
                self._unseen = 0
                files = self._folder.parent.glob(f"*/{TOKENS}")
                self._has_room = sum(file.stat().st_blocks for file in files) * BLOCK_BYTES < self._limit
            return self._has_room

    def __del__(self):
        # While the interpreter shuts down the module may be gone; the system closes the file then.
        if os.close is not None and hasattr(self, "_file"):
            os.close(self._file)


def _checksum(content: bytes) -> int:
    return zlib.crc32(content) or 1


def _sparse(path: Path, size: int) -> int:
    """A descriptor of the file at ``path``, which is made of ``size`` bytes, or filled up to them, without taking space."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if os.fstat(file).st_size != size:
        os.ftruncate(file, size)
    return file

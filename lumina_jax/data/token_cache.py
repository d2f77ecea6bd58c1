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

TOKENS = "tokens"
"""A sparse file of the records at their places, one shard after another. Where one is not, there are zeros."""
BLOCK_BYTES = 512
"""The unit of st_blocks."""
LOOK_EVERY = 256
"""Records written between two looks at how much the cache takes."""


class TokenCache:
    """The records of one folder, of ``size`` bytes in all, in ``folder``; several processes may share it.

    ``checksums`` u32[N] are the CRC-32 of the records: bytes with another are not there, or no longer, since the machine lost
    power or the disk lies. Nothing is added once the tokens of all folders beside ``folder`` take ``limit`` bytes of the disk.
    Raises StorageError when the disk refuses.
    """

    def __init__(self, folder: Path, checksums: np.ndarray, size: int, limit: int):
        self._folder, self._checksums, self._limit = folder, checksums, limit
        self._unseen, self._has_room, self._lock = LOOK_EVERY, True, threading.Lock()
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / TOKENS, os.O_RDWR | os.O_CREAT, 0o666)
            os.ftruncate(self._file, size)

    def get(self, record: int, start: int, size: int) -> bytes | None:
        """Record number ``record``, which has ``size`` bytes from ``start`` on; None when it is not here."""
        with storage_errors(self._folder):
            content = os.pread(self._file, size, start)
        return content if zlib.crc32(content) == self._checksums[record] else None

    def put(self, start: int, content: bytes) -> None:
        """Keeps a record, unless the cache is full."""
        if not self._room():
            return
        try:
            os.pwrite(self._file, content, start)
        except OSError as error:
            self._has_room = False
            print_line(f"{self._folder}: {error}; no more tokens are kept there, training goes on")

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

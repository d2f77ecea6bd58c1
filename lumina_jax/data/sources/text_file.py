"""Text files read by byte ranges, local or remote, in any encoding that has a byte-order mark."""

from collections.abc import Callable, Iterator
from functools import partial

from lumina_jax.data.sources import files
from lumina_jax.data.sources.lru import LRUCache
from lumina_jax.errors import InputError
from lumina_jax.text import decode_text, encoding_of

REMOTE_BLOCK = 1 << 22
REMOTE_BLOCKS = 16
"""A remote file is read in blocks of REMOTE_BLOCK bytes, the last REMOTE_BLOCKS of which stay in memory."""
PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip or Excel",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"PAR1": "Parquet",
}
"""First bytes of files that are no text, and what they are."""
HEAD = 8


class TextFile:
    """A text file as UTF-8; offsets count its bytes from behind the byte-order mark.

    A file in UTF-8 is read where it lies. One in UTF-16 or UTF-32, which has no such offsets, is in memory. Raises
    MissingFileError, or InputError for a file that is packed or in another encoding.
    """

    def __init__(self, path: str):
        self.path = path
        head = files.read(path, 0, HEAD)
        if packed := next((name for magic, name in PACKED.items() if head.startswith(magic)), ""):
            raise InputError(f"{path} is no text but {packed}; unpack it, or name its format")
        encoding, self._mark = encoding_of(head, path)
        self._decoded = None if encoding == "utf-8" else decode_text(files.read(path), path).encode()
        self._size = 0
        self._cache: LRUCache[bytes] = LRUCache(REMOTE_BLOCKS)

    def blocks(self, note: Callable[[bytes], object], length: int = files.BLOCK) -> Iterator[bytes]:
        """The text in blocks, one at a time in memory; ``note`` receives the bytes of the file as they are."""
        skip, self._size = self._mark, 0
        for block in files.blocks(self.path, length):
            note(block)
            self._size += len(block)
            if self._decoded is None and len(block) > skip:
                yield block[skip:]
            skip = max(skip - len(block), 0)
        if self._decoded:
            yield self._decoded

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to ``stop``. Of a remote file whole blocks are fetched once :meth:`blocks` has passed it."""
        if self._decoded is not None:
            return self._decoded[start:stop]
        start, stop = start + self._mark, stop + self._mark
        if not files.is_remote(self.path) or not self._size:
            return files.read(self.path, start, stop)
        first, last = start // REMOTE_BLOCK, (stop - 1) // REMOTE_BLOCK
        blocks = (self._cache.get(number, partial(self._block, number)) for number in range(first, last + 1))
        return b"".join(blocks)[start - first * REMOTE_BLOCK : stop - first * REMOTE_BLOCK]

    def text(self, start: int, stop: int) -> str:
        """The same as text; InputError naming the first byte that is no UTF-8."""
        content = self.read(start, stop)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"byte 0x{content[error.start]:02x} at offset {start + error.start + self._mark} is no UTF-8; "
                "save the file as UTF-8",
                cause="no UTF-8",
            ) from error

    def _block(self, number: int) -> bytes:
        return files.read(self.path, number * REMOTE_BLOCK, min((number + 1) * REMOTE_BLOCK, self._size))

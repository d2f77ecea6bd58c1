"""Lumina's own files: a JSON list or JSONL of conversations and captions, local or remote."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lumina_jax.data.sources import files, json_spans
from lumina_jax.data.sources.images import ImageFile, read_image
from lumina_jax.data.sources.lru import LRUCache
from lumina_jax.data.sources.record import StoredRecord, StoredSource, stored_record
from lumina_jax.errors import InputError, MissingFileError, prefixed_errors

REMOTE_BLOCK = 1 << 22
REMOTE_BLOCKS = 16
"""A remote file is read in blocks of REMOTE_BLOCK bytes, the last REMOTE_BLOCKS of which stay in memory."""


def unchanged(item: object) -> object:
    return item


class JsonSource(StoredSource):
    """Records of a JSON list or a JSONL file (original: FinetuneConversationDataset).

    A record is ``{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...], "image": ...}``
    with one path or a list of paths under ``image`` (or ``<|image|>``), or ``{"image": ..., "caption": ...}`` (or ``text``),
    whose conversation asks for the image. The file and the images may be local or remote (see files). Image paths are absolute
    or relative to ``folder``, by default the folder of the file. ``adapt`` converts records of other forms into this one.

    In memory are only the byte spans of the records. Raises MissingFileError, or InputError when a file that begins with ``[``
    is no complete JSON list.
    """

    def __init__(self, path: str | Path, folder: str | None = None, adapt: Callable[[object], object] = unchanged):
        self.path = str(path)
        if not files.is_remote(self.path) and not Path(self.path).is_file():
            raise MissingFileError(f"no file {self.path}; a JSON list or a JSONL file of records is expected there")
        self.folder = files.folder_of(self.path) if folder is None else folder
        self._adapt = adapt
        self._spans, self.fingerprint = (
            json_spans.index_list(self.path) if json_spans.begins_list(self.path) else json_spans.index_lines(self.path)
        )
        self._blocks: LRUCache[bytes] = LRUCache(REMOTE_BLOCKS)

    def __len__(self) -> int:
        return len(self._spans)

    def stored(self, index: int) -> StoredRecord:
        with prefixed_errors(f"{self.path}, record {index}", ValueError, RecursionError):
            return stored_record(self.item(index), self._fetch)

    def item(self, index: int) -> object:
        """The JSON of record ``index``, which should have Lumina's form, not checked; ValueError when it is no JSON."""
        return self._adapt(json.loads(self._read(*map(int, self._spans[index]))))

    def _fetch(self, image: object) -> ImageFile:
        if not isinstance(image, str):
            raise InputError(f"an image is a JSON {type(image).__name__}, neither a path nor a list of paths")
        return read_image(files.join(self.folder, image))

    def _read(self, start: int, stop: int) -> bytes:
        if not files.is_remote(self.path):
            return files.read(self.path, start, stop)
        first, last = start // REMOTE_BLOCK, (stop - 1) // REMOTE_BLOCK
        blocks = (self._blocks.get(number, partial(self._block, number)) for number in range(first, last + 1))
        content = b"".join(blocks)
        return content[start - first * REMOTE_BLOCK : stop - first * REMOTE_BLOCK]

    def _block(self, number: int) -> bytes:
        end = int(self._spans[-1, 1])
        return files.read(self.path, number * REMOTE_BLOCK, min((number + 1) * REMOTE_BLOCK, end))

"""Parquet files as Hugging Face publishes data sets: random access to rows, with few row groups in memory."""

import hashlib
import json
import posixpath
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import PAIR_CAPTIONS, PAIR_IMAGES, dialogue, pair
from lumina_jax.data.sources.images import ImageFile, read_image
from lumina_jax.data.sources.lru import LRUCache
from lumina_jax.data.sources.record import StoredRecord, StoredSource, stored_record
from lumina_jax.errors import InputError, prefixed_errors

CACHED_GROUPS = 4
"""Row groups in memory."""
MAGIC = b"PAR1"


class ParquetSource(StoredSource):
    """The rows of the Parquet files that match ``pattern`` (see files.expand), file by file.

    The image column holds ``{bytes, path}``, bytes, a path relative to the file, or lists of these. The text column holds a
    caption, or ``conversations`` of ``from`` and ``value`` in Lumina's or LLaVA's form. ``image`` and ``text`` name the columns;
    by default they follow from the file's Hugging Face features, or from the usual names (adapters.pair).

    In memory are 16 bytes for each row group, and the CACHED_GROUPS groups used last. Raises MissingFileError, or InputError
    when a file is no Parquet or no column fits.
    """

    def __init__(self, pattern: str, image: str | None = None, text: str | None = None):
        self.paths = files.expand(pattern)
        digest, counts, groups = hashlib.sha256(), [], []
        for number, path in enumerate(self.paths):
            footer, rows, schema = _footer(path)
            digest.update(posixpath.basename(path).encode() + footer)
            counts += rows
            groups += [(number, group) for group in range(len(rows))]
            if number == 0:
                self._image, self._text = _columns(schema, path, image, text)
        self.fingerprint = digest.hexdigest()[:16]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._groups = np.array(groups, np.int32).reshape(-1, 2)
        self._cache: LRUCache[pa.Table] = LRUCache(CACHED_GROUPS)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def stored(self, index: int) -> StoredRecord:
        group = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[group - 1]) if group else 0)
        path = self.paths[self._groups[group, 0]]
        name = f"{path}, row group {self._groups[group, 1]}, row {row}"
        with prefixed_errors(name, ValueError, pa.ArrowException):
            table = self._cache.get(group, lambda: self._read_group(group))
            (values,) = table.slice(row, 1).to_pylist()
            return stored_record(self._item(values), lambda image: _image_file(image, path, name))

    def _read_group(self, group: int) -> pa.Table:
        number, group_of_file = map(int, self._groups[group])
        columns = [name for name in (self._image, self._text) if name is not None]
        try:
            with files.open_binary(self.paths[number]) as file:
                return pq.ParquetFile(file).read_row_group(group_of_file, columns=columns)
        except OSError as error:  # also how pyarrow says "damaged"
            raise InputError(str(error).strip()) from error

    def _item(self, values: Mapping[str, object]) -> object:
        image = values[self._image] if self._image else None
        if isinstance(values[self._text], list) and self._text == "conversations":
            return dialogue({"conversations": values[self._text], "image": image})
        return pair({"image": image, "caption": values[self._text]})


def _footer(path: str) -> tuple[bytes, list[int], pa.Schema]:
    """The bytes of a file's footer, the number of rows of each of its row groups, and its columns."""
    size = files.size(path)
    tail = files.read(path, max(size - 8, 0), size)
    if tail[4:] != MAGIC:
        raise InputError(f"{path} is no Parquet file, or is cut short: it does not end with {MAGIC.decode()}")
    footer = files.read(path, max(size - 8 - int.from_bytes(tail[:4], "little"), 0), size)
    with prefixed_errors(path, OSError, pa.ArrowException):
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer))
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return footer, rows, metadata.schema.to_arrow_schema()


def _columns(schema: pa.Schema, path: str, image: str | None, text: str | None) -> tuple[str | None, str]:
    """The image column or None, and the column of captions or conversations."""
    if unknown := [name for name in (image, text) if name is not None and name not in schema.names]:
        raise InputError(f"{path} has no column {unknown[0]!r}, only {', '.join(schema.names)}")
    by_name = {name.lower(): name for name in reversed(schema.names)}
    declared = _image_features(schema)
    image = image or next(iter(declared), None) or next((by_name[n] for n in PAIR_IMAGES if n in by_name), None)
    text = text or next((by_name[n] for n in ("conversations", *PAIR_CAPTIONS) if n in by_name), None)
    if text is None or (image is None and text != "conversations"):
        raise InputError(
            f"{path} has columns {', '.join(schema.names)}: which is the image, which the caption or the conversations? "
            "Name them after the pattern: @image=COLUMN,text=COLUMN"
        )
    return image, text


def _image_features(schema: pa.Schema) -> list[str]:
    """The columns that are images by the file's Hugging Face features."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    return [name for name, feature in features.items() if '"Image"' in json.dumps(feature) and name in schema.names]


def _image_file(image: object, parquet_path: str, name: str) -> ImageFile:
    if isinstance(image, Mapping):
        content, path = image.get("bytes"), image.get("path")
        image = path if content is None else content
        name = f"{name}, {path}" if path else name
    if isinstance(image, bytes):
        return ImageFile(name, image)
    if isinstance(image, str):
        return read_image(files.join(files.folder_of(parquet_path), image))
    raise InputError("the image is neither {bytes, path} nor bytes nor a path")

"""Parquet files as Hugging Face publishes data sets: random access to rows, with few row groups in memory."""

import hashlib
import json
import posixpath
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import PAIR_CAPTIONS, PAIR_IMAGES, dialogue, pair
from lumina_jax.data.sources.images import ImageFile, read_image
from lumina_jax.data.sources.lru import LRUCache
from lumina_jax.data.sources.record import StoredRecord, StoredSource, stored_record
from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.text import parse_json

CACHED_GROUPS = 4
"""Row groups in memory."""
MAGIC = b"PAR1"
CONVERSATIONS = "conversations"
DAMAGED = (OSError, ValueError, pa.ArrowException, ArithmeticError, LookupError, MemoryError)
"""What pyarrow raises for a damaged file."""


class ParquetSource(StoredSource):
    """The rows of the Parquet files ``paths``, file by file.

    The image column holds ``{bytes, path}``, bytes, a path relative to the file, a URL, or lists of these. The text column holds
    a caption, or ``conversations`` of ``from`` and ``value`` in Lumina's or LLaVA's form, also as JSON. ``image`` and ``text``
    name the columns; by default they follow from the Hugging Face features of the first file that has fitting ones, or from the
    usual names (adapters.pair). The rows of a file without these columns, and of a damaged row group, are bad records; one
    stands for all rows of a damaged file.

    In memory are 16 bytes for each row group, and the CACHED_GROUPS groups used last. Raises InputError when no file is Parquet
    with columns that fit.
    """

    def __init__(self, paths: Sequence[str], image: str | None = None, text: str | None = None):
        self.paths = paths
        footers = [_footer_or_error(path) for path in paths]
        self._image, self._text = _first_columns(paths, footers, image, text)
        digest, counts, groups = hashlib.sha256(), [], []
        self._faults: dict[int, InputError] = {}
        for number, (path, footer) in enumerate(zip(paths, footers, strict=True)):
            digest.update(posixpath.basename(path).encode(errors="surrogateescape"))
            if isinstance(footer, InputError):
                self._faults[number] = footer
                rows, content = [1], str(files.size(path)).encode()
            else:
                content, rows, schema = footer
                if lacking := [name for name in self._columns if schema.names.count(name) != 1]:
                    self._faults[number] = InputError(
                        f"{path} has columns {', '.join(schema.names)}, but {lacking[0]!r}, a column of the other files, not once; "
                        "open it alone",
                        cause="other columns",
                    )
            digest.update(content)
            counts += rows
            groups += [(number, group) for group in range(len(rows))]
        self.fingerprint = digest.hexdigest()[:16]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._groups = np.array(groups, np.int32).reshape(-1, 2)
        self._cache: LRUCache[pa.Table | InputError] = LRUCache(CACHED_GROUPS)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def stored(self, index: int) -> StoredRecord:
        number, group, row = self._place(index)
        path = self.paths[number]
        name = f"{path}, row group {self._groups[group, 1]}, row {row}"
        with prefixed_errors(name):
            return stored_record(self.item(index), lambda image: _image_file(image, path, name))

    def item(self, index: int) -> object:
        """Row ``index`` in Lumina's form, not checked; InputError when its file or its row group is damaged."""
        _, group, row = self._place(index)
        table = self._cache.get(group, lambda: self._read_group(group))
        if isinstance(table, InputError):
            raise InputError(str(table), cause=table.cause)
        try:
            values = {column: table.column(column)[row].as_py() for column in self._columns}
        except DAMAGED as error:
            raise InputError(f"the row cannot be read: {error}", cause="a row that cannot be read") from error
        image = values[self._image] if self._image else None
        text = values[self._text]
        if text is None:
            raise InputError(f"column {self._text!r} is null", cause="no caption")
        if self._text == CONVERSATIONS:
            return dialogue({CONVERSATIONS: parse_json(text) if isinstance(text, str) else text, "image": image})
        return pair({"image": image, "caption": text})

    @property
    def _columns(self) -> list[str]:
        return [name for name in (self._image, self._text) if name is not None]

    def _place(self, index: int) -> tuple[int, int, int]:
        """The file of a row, its row group counted over all files, and its number in the group; InputError for a bad file."""
        group = int(np.searchsorted(self._ends, index, side="right"))
        number = int(self._groups[group, 0])
        if fault := self._faults.get(number):
            raise InputError(str(fault), cause=fault.cause)
        return number, group, index - (int(self._ends[group - 1]) if group else 0)

    def _read_group(self, group: int) -> pa.Table | InputError:
        """The columns of a row group; if it is damaged the error, which is kept, so that its rows do not read it again."""
        number, group_of_file = map(int, self._groups[group])
        with files.open_binary(self.paths[number]) as file:
            try:
                reader = pq.ParquetFile(file, page_checksum_verification=True)
                return reader.read_row_group(group_of_file, columns=self._columns)
            except DAMAGED as error:
                damage = InputError(f"the row group cannot be read: {str(error).strip()}", cause="damaged row group")
                if files.is_remote(self.paths[number]):
                    raise damage from error  # it may be the network
                return damage


Footer = tuple[bytes, list[int], pa.Schema]
"""The bytes of a file's footer, the number of rows of each of its row groups, and its columns."""


def _footer_or_error(path: str) -> Footer | InputError:
    """The footer of a file, or why it has none that can be read."""
    try:
        return _footer(path)
    except InputError as error:
        return error


def _first_columns(
    paths: Sequence[str], footers: Sequence[Footer | InputError], image: str | None, text: str | None
) -> tuple[str | None, str]:
    """:func:`_choose_columns` of the first file that fits; the first file's InputError when none does."""
    errors = []
    for path, footer in zip(paths, footers, strict=True):
        try:
            if isinstance(footer, InputError):
                raise footer
            return _choose_columns(footer[2], path, image, text)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _footer(path: str) -> Footer:
    size = files.size(path)
    tail = files.read(path, max(size - 8, 0), size)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length > size - 8:
        raise InputError(
            f"{path} is no Parquet file, or is cut short: it does not end with its footer and {MAGIC.decode()}",
            cause="no Parquet file",
        )
    footer = files.read(path, size - 8 - length, size)
    with prefixed_errors(path, *DAMAGED):
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer))
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        schema = metadata.schema.to_arrow_schema()
        schema.names  # noqa: B018  raises for names that are no UTF-8
        return footer, rows, schema


def _choose_columns(schema: pa.Schema, path: str, image: str | None, text: str | None) -> tuple[str | None, str]:
    """The image column or None, and the column of captions or conversations."""
    if unknown := [name for name in (image, text) if name is not None and name not in schema.names]:
        raise InputError(f"{path} has no column {unknown[0]!r}, only {', '.join(schema.names)}")
    by_name = {name.lower(): name for name in reversed(schema.names)}
    declared = _image_features(schema)
    image = image or next(iter(declared), None) or next((by_name[n] for n in PAIR_IMAGES if n in by_name), None)
    text = text or next((by_name[n] for n in (CONVERSATIONS, *PAIR_CAPTIONS) if n in by_name), None)
    if text is None or (image is None and text != CONVERSATIONS):
        raise InputError(
            f"{path} has columns {', '.join(schema.names)}: which is the image, which the caption or the conversations? "
            "Name them after the pattern: @image=COLUMN,text=COLUMN"
        )
    return image, text


def _image_features(schema: pa.Schema) -> list[str]:
    """The columns that are images by the file's Hugging Face features; none where these are not as Hugging Face writes them."""
    try:
        features = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
    except InputError:
        return []
    for key in ("info", "features"):
        features = features.get(key) if isinstance(features, Mapping) else None
    if not isinstance(features, Mapping):
        return []
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

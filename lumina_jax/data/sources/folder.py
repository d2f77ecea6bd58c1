"""A folder of images with a caption file for each, or with metadata files."""

import bisect
import hashlib
import itertools
import os
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NoReturn

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import imagefolder
from lumina_jax.data.sources.images import SUFFIXES
from lumina_jax.data.sources.json_list import JsonSource
from lumina_jax.data.sources.names import is_picture, is_visible, suffix_of
from lumina_jax.data.sources.record import StoredRecord, StoredSource, checked_object, image_reader, stored_record
from lumina_jax.data.sources.table import TableSource
from lumina_jax.errors import InputError, StorageError, UserError, cause_of, prefixed_errors
from lumina_jax.text import decode_text, parse_json

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TEXTS = (".txt", ".caption", ".text", ".json")
"""The caption files of an image, the first that exists counts."""


def open_folder(folder: str) -> StoredSource:
    """The rows of all metadata files (METADATA) in ``folder`` and below it, then a FolderSource of what no row names.

    Metadata are as Hugging Face's imagefolder has them: ``file_name``, relative to the metadata, and ``text`` (or ``caption``, or
    ``conversations``). A metadata file that cannot be read is one bad record. Hidden files and what systems leave (see names) are
    no records. Raises InputError when there are none, or when a folder has two metadata files.
    """
    listed = [(path, size) for path, size in files.listing(folder) if is_visible(path)]
    metadata = [path for path, _ in listed if posixpath.basename(path) in METADATA]
    folders = list(map(posixpath.dirname, metadata))
    if twice := next((path for path in folders if folders.count(path) > 1), None):
        names = [path for path in metadata if posixpath.dirname(path) == twice]
        raise InputError(f"{folder} holds {' and '.join(names)}, which may say the same twice; keep one of them")
    sources = [_open_metadata(files.join(folder, path)) for path in metadata]
    refused = [source.error for source in sources if isinstance(source, RefusedFile)]
    if refused and len(refused) == len(sources):
        raise refused[0]
    named = {
        _whole_path(files.join(folder, posixpath.dirname(path)), image)
        for path, source in zip(metadata, sources, strict=True)
        for image in _images_of(source)
    }
    images = {path for path, _ in listed if _whole_path(folder, path) in named}
    rest = FolderSource(folder, [entry for entry in listed if entry[0] not in metadata], images)
    if len(rest) or not sources:
        sources.append(rest)
    if not any(map(len, sources)):
        raise InputError(f"{folder} holds no image ({', '.join(SUFFIXES[:4])}, ...) and no row in a {METADATA[0]}")
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


class JoinedSource(StoredSource):
    """The records of several sources, one source after the other."""

    def __init__(self, sources: Sequence[StoredSource]):
        self._sources, self._ends = sources, list(itertools.accumulate(map(len, sources)))
        self.fingerprint = hashlib.sha256(" ".join(source.fingerprint for source in sources).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._ends[-1]

    def stored(self, index: int) -> StoredRecord:
        number = bisect.bisect_right(self._ends, index)
        return self._sources[number].stored(index - (self._ends[number - 1] if number else 0))


class RefusedFile(StoredSource):
    """One bad record, which stands for all those of a file that cannot be read because of ``error``."""

    def __init__(self, error: UserError):
        self.error = error
        self.fingerprint = hashlib.sha256(str(error).encode(errors="surrogateescape")).hexdigest()[:16]

    def __len__(self) -> int:
        return 1

    def stored(self, index: int) -> StoredRecord:
        return self.item(index)

    def item(self, index: int) -> NoReturn:
        raise InputError(str(self.error), cause=cause_of(self.error))


class FolderSource(StoredSource):
    """Every image of a folder, sorted by path, with the caption in the file of TEXTS of the same name.

    ``a.jpg`` has its caption in ``a.txt`` or ``a.jpg.txt``. A .json file may hold a whole record, also one without an image. An
    image without a caption, a text file without an image, a dangling link and a folder that cannot be read are bad records.
    ``listed`` are the files by files.listing; the images in ``named`` and their captions are left out. All names are in memory:
    pack more than a few million images into tar shards.
    """

    def __init__(self, folder: str, listed: list[tuple[str, int]], named: Collection[str] = ()):
        self.folder = folder
        self._records = list(_records([path for path, _ in listed], named))
        texts = (text for _, texts in self._records for text in texts)
        self.fingerprint = files.listing_digest(listed, map(self._content, texts))

    def __len__(self) -> int:
        return len(self._records)

    def stored(self, index: int) -> StoredRecord:
        image, texts = self._records[index]
        path = files.join(self.folder, image or texts[0])
        if path.endswith("/"):
            raise StorageError(
                f"{path}: the folder cannot be read; allow it, or move it away", cause="unreadable folder"
            )
        with prefixed_errors(path):
            if not texts:
                looked = f"looked for {', '.join(TEXTS)} and for a row in metadata.jsonl, .csv or .parquet"
                raise InputError(f"no caption beside it; {looked}", cause="no caption")
            if len(texts) > 1:
                raise InputError(f"{' and '.join(texts)} are captions of one image; keep one", cause="several captions")
            item = self._item(texts[0]) | ({"image": image} if image else {})
            return stored_record(item, image_reader(self.folder))

    def _item(self, text: str) -> Mapping:
        content = files.read(files.join(self.folder, text))
        if suffix_of(text) != ".json":
            return {"caption": decode_text(content, text).strip()}
        item = checked_object(parse_json(content), f"{text} holds")
        return {key: item[key] for key in ("conversations", "caption", "text") if key in item}

    def _content(self, text: str) -> bytes:
        """The content of a text file for the fingerprint; none of one that cannot be read, as its record will say."""
        try:
            return files.read(files.join(self.folder, text))
        except OSError:
            return b""


Metadata = JsonSource | TableSource | RefusedFile
"""Or a ParquetSource, which is imported only when there is one."""


def _open_metadata(path: str) -> Metadata:
    try:
        if path.endswith(".parquet"):
            from lumina_jax.data.sources.parquet import ParquetSource  # half a second of imports

            return ParquetSource([path])
        return (JsonSource if path.endswith(".jsonl") else TableSource)(path, adapt=imagefolder)
    except UserError as error:
        return RefusedFile(error)


def _whole_path(folder: str, path: str) -> str:
    path = files.join(folder, path)
    return path if files.is_remote(path) else os.path.abspath(path)


def _images_of(source: Metadata) -> Iterator[str]:
    """The images that the rows of a metadata file name."""
    for index in range(len(source)):
        try:
            item = source.item(index)
        except InputError:  # a bad record, which names no image
            continue
        images = item.get("image") if isinstance(item, Mapping) else None
        yield from (image for image in (images if isinstance(images, list) else [images]) if isinstance(image, str))


def _records(paths: Sequence[str], named: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """(image, its texts, of which there should be one) for each image, or ("", [text file]) where there is no image."""
    texts: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if suffix_of(path) in TEXTS:
            texts[posixpath.splitext(path)[0]].append(path)
    images = [path for path in paths if is_picture(path)]
    stems = {posixpath.splitext(image)[0] for image in images}
    used, records = set(), []
    for image in images:
        stem = posixpath.splitext(image)[0]
        # a.jpg.txt belongs to a.jpg unless there is an image such as a.jpg.png.
        beside = [stem] if image in stems else [image, stem]
        used.update(beside)
        if image in named:
            continue
        choices = ([t for t in texts.get(name, ()) if suffix_of(t) == suffix] for suffix in TEXTS for name in beside)
        records.append((stem, image, next(filter(None, choices), [])))
    records += [(stem, "", _preferred(texts[stem])) for stem in texts if stem not in used]
    records += [(path, path, []) for path in paths if path.endswith("/")]
    return ((image, chosen) for _, image, chosen in sorted(records))


def _preferred(texts: Sequence[str]) -> list[str]:
    """The text file of the suffix that counts first."""
    return [min(texts, key=lambda text: TEXTS.index(suffix_of(text)))]

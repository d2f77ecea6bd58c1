"""Any source -> one TFDS data set of a few large files, to be made once and shared."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import grain
from PIL import Image

from lumina_jax.data.items.items_dataset_builder import Builder
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.record import Source, StoredRecord, StoredSource
from lumina_jax.errors import ExistingFileError, InputError
from lumina_jax.progress import ProgressDisplay

REJECTS = "rejects.jsonl"
NAME = re.compile(r"[a-z][a-z0-9_]*")
BAD_RECORD = (ValueError, OSError)
LOSSLESS = ("1", "L", "LA", "P", "RGB", "RGBA")
"""The modes a PNG holds as they are; other pictures are kept as TIFF."""


def prepare(source: Source, data_dir: str | Path, name: str, threads: int = 4, progress: bool = True) -> Path:
    """Writes the good records of ``source`` as the data set ``name`` in ``data_dir``; returns its folder.

    ``tfds:NAME@DATA_DIR`` reads it back, and so does ``tfds.builder_from_directory``. Image files are copied as they are,
    to the last bit; pictures of a source that has no files are kept without loss. A bad record is listed with its number
    and reason in rejects.jsonl in the folder. What is broken off leaves no data set, and is begun anew.

    Raises ValueError for a name that TFDS would not find, and FileExistsError when the data set exists already.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"name {name!r}: a data set is called by small letters, digits and _, as my_pictures")
    if not len(source):
        raise InputError("the source has no records; there is nothing to prepare")
    rejects: list[dict[str, object]] = []
    with ProgressDisplay(f"prepare {name}", len(source), progress) as meter:
        records = good_records(source, threads, meter, rejects)
        builder = Builder(name, records, f"{len(source)} records of source {source.fingerprint}", str(data_dir))
        folder = Path(builder.data_path)
        if folder.exists():
            raise ExistingFileError(f"{folder} exists already; choose another name, or delete it to make it anew")
        builder.download_and_prepare()
    lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
    (folder / REJECTS).write_text(lines, encoding="utf-8")
    return folder


def good_records(
    source: Source, threads: int, meter: ProgressDisplay, rejects: list[dict[str, object]]
) -> Iterator[tuple[int, StoredRecord]]:
    """(number, record) of the good records in order, read ahead by ``threads`` threads; the others go to ``rejects``."""
    read = grain.MapDataset.range(len(source)).map(lambda index: (index, *_read(source, index)))
    for index, record, reason in read.to_iter_dataset(grain.ReadOptions(threads, 4 * threads)):
        if record is None:
            rejects.append({"index": index, "reason": reason})
        else:
            yield index, record
        meter.advance(1)


def _read(source: Source, index: int) -> tuple[StoredRecord | None, str]:
    """A record and "", or None and the reason why it is bad."""
    try:
        if isinstance(source, StoredSource):
            stored = source.stored(index)
            stored.decode()  # a damaged image is found now, not by those the set is shared with
            return stored, ""
        record = source[index]
        return StoredRecord(record.turns, [_file(image) for image in record.images], record.caption), ""
    except BAD_RECORD as error:
        return None, str(error) or repr(error)


def _file(image: Image.Image) -> ImageFile:
    content = io.BytesIO()
    image.save(content, "PNG" if image.mode in LOSSLESS else "TIFF")
    return ImageFile("picture", content.getvalue())

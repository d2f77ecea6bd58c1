"""Any source -> a TFDS data set of a few large files, made once and shared."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import grain
from PIL import Image

from lumina_jax.data.items.items_dataset_builder import Builder
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.record import BAD_RECORD, Source, StoredRecord, StoredSource, reason_of
from lumina_jax.errors import ExistingFileError, InputError
from lumina_jax.progress import ProgressDisplay

REJECTS = "rejects.jsonl"
NAME = re.compile(r"[a-z][a-z0-9_]*")
LOSSLESS = ("1", "L", "LA", "P", "RGB", "RGBA")
"""The image modes that PNG holds unchanged; pictures of other modes are stored as TIFF."""


def prepare(source: Source, data_dir: str | Path, name: str, threads: int = 4, progress: bool = True) -> Path:
    """Writes the good records of ``source`` as the data set ``name`` in ``data_dir``; returns its folder.

    ``tfds:NAME@DATA_DIR`` and ``tfds.builder_from_directory`` read it back. Image files are copied bit for bit; pictures of a
    source without files are stored without loss. A bad record is listed with its number and reason in rejects.jsonl in the
    folder. An interrupted run leaves no data set and starts again from the beginning.

    Raises InputError for a name that TFDS would not find, ExistingFileError when the data set exists already.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"name {name!r}: use small letters, digits and _, as in my_pictures")
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
    write_rejects(folder, rejects)
    return folder


def write_rejects(folder: Path, rejects: list[dict[str, object]]) -> None:
    """Writes rejects.jsonl into ``folder``."""
    lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
    (folder / REJECTS).write_text(lines, encoding="utf-8")


def good_records(
    source: Source, threads: int, meter: ProgressDisplay, rejects: list[dict[str, object]]
) -> Iterator[tuple[int, StoredRecord]]:
    """(number, record) of the good records in order, prefetched by ``threads`` threads; bad ones are added to ``rejects``."""
    read = grain.MapDataset.range(len(source)).map(lambda index: (index, *_read(source, index)))
    for index, record, reason in read.to_iter_dataset(grain.ReadOptions(threads, 4 * threads)):
        if record is None:
            rejects.append({"index": index, "reason": reason})
        else:
            yield index, record
        meter.advance(1)


def _read(source: Source, index: int) -> tuple[StoredRecord | None, str]:
    """(record, ""), or (None, reason) when it is bad."""
    try:
        if isinstance(source, StoredSource):
            stored = source.stored(index)
            stored.decode()  # finds damaged images now, not when others read the data set
            return stored, ""
        record = source[index]
        return StoredRecord(record.turns, [_file(image) for image in record.images], record.caption), ""
    except BAD_RECORD as error:
        return None, reason_of(error)


def _file(image: Image.Image) -> ImageFile:
    content = io.BytesIO()
    image.save(content, "PNG" if image.mode in LOSSLESS else "TIFF")
    return ImageFile("picture", content.getvalue())

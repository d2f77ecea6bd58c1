"""Any source -> a TFDS data set of a few large files, made once and shared."""

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TypeVar

import grain
import tensorflow_datasets as tfds
from PIL import Image

from lumina_jax.data.items.items_dataset_builder import RECORD, Builder, to_example
from lumina_jax.data.shards import REJECTS, RejectLine, rejects_in_words, sum_causes
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.record import (
    MAX_CONSECUTIVE_REJECTS,
    Reject,
    RejectStreak,
    Source,
    StoredRecord,
    StoredSource,
    read_record,
)
from lumina_jax.errors import ExistingFileError, InputError, interrupted
from lumina_jax.places import Place, is_url
from lumina_jax.progress import ProgressDisplay, print_line
from lumina_jax.storage import storage_errors

NAME = re.compile(r"[a-z][a-z0-9_]*")
LOSSLESS = ("1", "L", "LA", "P", "RGB", "RGBA")
"""The image modes that PNG holds unchanged; pictures of other modes are stored as TIFF."""
STREAK_OPTION = "--max-consecutive-rejects"

T = TypeVar("T")


def prepare(
    source: Source,
    data_dir: str | Path,
    name: str,
    threads: int = 4,
    progress: bool = True,
    max_consecutive_rejects: int = MAX_CONSECUTIVE_REJECTS,
) -> Path:
    """Writes the good records of ``source`` as the data set ``name`` in ``data_dir``; returns its folder.

    ``tfds:NAME@DATA_DIR`` and ``tfds.builder_from_directory`` read it back. Image files are copied bit for bit; pictures of a
    source without files are stored without loss. A bad record is listed with its number and reason in rejects.jsonl in the
    folder. An interrupted run leaves no data set and starts again from the beginning.

    Raises InputError for a name that TFDS would not find or a source without any good record, ExistingFileError when the data
    set exists already, SourceError when ``max_consecutive_rejects`` records in a row are rejected for one cause.
    """
    if is_url(data_dir):
        raise InputError(f"{data_dir}: TFDS writes its files on a disk; give a local folder and copy it from there")
    if not NAME.fullmatch(name):
        raise InputError(f"name {name!r}: use small letters, digits and _, as in my_pictures")
    if not len(source):
        raise InputError("the source has no records; there is nothing to prepare")
    rejects: list[RejectLine] = []
    with ProgressDisplay(f"prepare {name}", len(source), progress) as meter:
        records = good_records(source, stored_and_checked, threads, meter, rejects, max_consecutive_rejects)
        builder = Builder(name, records, f"{len(source)} records of source {source.fingerprint}", str(data_dir))
        folder = Path(builder.data_path)
        if folder.exists():
            raise ExistingFileError(f"{folder} exists already; choose another name, or delete it to make it anew")
        keeps = f"{folder} was not made; give the same command again, and it starts from the beginning"
        # TFDS speaks of downloads, and draws bars of its own into the progress.
        tfds.disable_progress_bar()
        with interrupted(keeps), storage_errors(folder), redirect_stdout(io.StringIO()):
            try:
                builder.download_and_prepare()
            except AssertionError as error:  # how TFDS says that there are no examples
                if len(rejects) < len(source):
                    raise
                first = sum_causes(rejects)[0]
                raise InputError(
                    f"{folder}: none of the {len(source):,} records could be kept, {first.count:,} of them because of: "
                    f"{first.cause}; such as record {first.index:,}: {first.reason}; mend the source and start again"
                ) from error
    with storage_errors(folder):
        write_rejects(folder, rejects)
    check_counts(folder, builder.info.splits["train"].num_examples, rejects, source, progress)
    return folder


def write_rejects(folder: Place, rejects: list[RejectLine]) -> None:
    """Writes rejects.jsonl into ``folder``."""
    lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
    # Half a surrogate pair, of a file name that is no UTF-8, becomes its JSON escape.
    (folder / REJECTS).write_text(lines, encoding="utf-8", errors="backslashreplace")


def check_counts(folder: Place, kept: int, rejects: list[RejectLine], source: Source, show: bool) -> None:
    """Says what was rejected, summed up by cause; AssertionError unless every record was either kept or rejected."""
    if show:
        for line in rejects_in_words(str(folder), kept, sum_causes(rejects)):
            print_line(line)
    if kept + len(rejects) != len(source):
        raise AssertionError(
            f"{folder}: {kept} records kept and {len(rejects)} rejected, but the source has {len(source)}"
        )


def good_records(
    source: Source,
    read: Callable[[Source, int], T],
    threads: int,
    meter: ProgressDisplay,
    rejects: list[RejectLine],
    max_consecutive_rejects: int,
) -> Iterator[tuple[int, T]]:
    """(number, ``read(source, number)``) of the good records in order, prefetched by ``threads`` threads.

    Bad ones are added to ``rejects``.
    """
    streak = RejectStreak(max_consecutive_rejects, STREAK_OPTION)
    numbered = grain.MapDataset.range(len(source)).map(lambda index: (index, read_record(read, source, index)))
    for index, record in numbered.to_iter_dataset(grain.ReadOptions(threads, 4 * threads)):
        rejected = isinstance(record, Reject)
        streak.add(index, record if rejected else None)
        if rejected:
            rejects.append(record.line(index))
        else:
            yield index, record
        meter.advance(1)


def stored_and_checked(source: Source, index: int) -> StoredRecord:
    """Record ``index`` with its images as files. What would stop its writer, or others who read the copy, is found here."""
    if isinstance(source, StoredSource):
        stored = source.stored(index)
        stored.decode()
    else:
        record = source[index]
        stored = StoredRecord(record.turns, [_file(image) for image in record.images], record.caption)
    to_example(stored)[RECORD].encode()
    return stored


def _file(image: Image.Image) -> ImageFile:
    content = io.BytesIO()
    image.save(content, "PNG" if image.mode in LOSSLESS else "TIFF")
    return ImageFile("picture", content.getvalue())

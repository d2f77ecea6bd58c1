"""Any source -> JSON lines in Lumina's form, for people and for other trainers."""

import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lumina_jax.data.items.items_dataset_builder import RECORD, to_example
from lumina_jax.data.prepare import check_counts, good_records, stored_and_checked, write_rejects
from lumina_jax.data.shards import SETTINGS, RejectLine
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.record import MAX_CONSECUTIVE_REJECTS, Source
from lumina_jax.errors import ExistingFileError, interrupted
from lumina_jax.pictures.formats import opened, suffix_of
from lumina_jax.places import Place, place
from lumina_jax.progress import ProgressDisplay
from lumina_jax.storage import atomic_write, storage_errors

RECORDS = "records.jsonl"
PER_FOLDER = 1000
"""Records whose pictures share a folder of out/pictures."""


@dataclass(frozen=True)
class _Exported:
    """A record as it is written: its JSON without images, and for each image its own file's path, or its content to be written."""

    item: dict[str, object]
    images: list[str | ImageFile]


def export(
    source: Source,
    out: str | Place,
    threads: int = 4,
    progress: bool = True,
    max_consecutive_rejects: int = MAX_CONSECUTIVE_REJECTS,
) -> tuple[Place, int, int]:
    """Writes the good records of ``source`` as ``out``/records.jsonl; returns its path and the numbers of good and bad records.

    A picture that is a file stays there and is named by its absolute path. One that was painted, or lies in an archive, is
    written below ``out``/pictures, and so is every picture where ``out`` is a URL; for many millions of records use data.prepare.
    A bad record is listed with its number and reason in rejects.jsonl. An interrupted export leaves no records.jsonl and starts
    again from the beginning.

    JsonSource reads records.jsonl back. Raises ExistingFileError when it is there already, or ``out`` is a folder of tokens, and
    SourceError when ``max_consecutive_rejects`` records in a row (0: any number) are rejected for one cause.
    """
    out = place(out)
    if (out / RECORDS).exists():
        raise ExistingFileError(f"{out / RECORDS} exists already; choose another folder, or delete it to make it anew")
    if (out / SETTINGS).exists():
        raise ExistingFileError(f"{out} is a folder that run.py pretokenize wrote; choose another")
    read = _read if isinstance(out, Path) else _read_with_pictures
    rejects: list[RejectLine] = []
    kept = 0
    keeps = f"{out / RECORDS} was not made; give the same command again, and it starts from the beginning"
    with (
        interrupted(keeps),
        ProgressDisplay("export", len(source), progress) as meter,
        atomic_write(out / RECORDS, new=True) as temporary,
    ):
        # Half a surrogate pair, of a file name that is no UTF-8, becomes its JSON escape.
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as lines:
            for number, record in good_records(source, read, threads, meter, rejects, max_consecutive_rejects):
                paths = [_path(image, out, number, position) for position, image in enumerate(record.images)]
                item = {"image": paths} | record.item if paths else record.item
                lines.write(json.dumps(item, ensure_ascii=False) + "\n")
                kept += 1
        write_rejects(out, rejects)
    check_counts(out, kept, rejects, source, progress)
    return out / RECORDS, kept, len(rejects)


def _read(source: Source, index: int) -> _Exported:
    exported = _read_with_pictures(source, index)
    return replace(
        exported, images=[str(Path(file.name).resolve()) if _is_own_file(file) else file for file in exported.images]
    )


def _read_with_pictures(source: Source, index: int) -> _Exported:
    record = stored_and_checked(source, index)
    return _Exported(json.loads(to_example(record)[RECORD]), list(record.files))


def _is_own_file(file: ImageFile) -> bool:
    """Whether the picture is a file of its name."""
    path = Path(file.name)
    try:
        return path.is_file() and path.stat().st_size == len(file.content) and path.read_bytes() == file.content
    except (OSError, ValueError):  # no name of a file here: too long, or with a NUL
        return False


def _path(image: str | ImageFile, out: Place, number: int, position: int) -> str:
    """The path of image ``position`` of record ``number``: that of its own file, or relative to ``out``, where it is written."""
    if isinstance(image, str):
        return image
    with opened(image.content, image.name) as picture:
        suffix = suffix_of(str(picture.format))
    path = PurePosixPath("pictures", f"{number // PER_FOLDER:06d}", f"{number:09d}_{position}{suffix}")
    with storage_errors(out / path):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(image.content)
    return str(path)

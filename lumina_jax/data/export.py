"""Any source -> JSON lines in Lumina's form, to read, to edit and to give to other trainers."""

import io
import json
from pathlib import Path

from PIL import Image

from lumina_jax.data.items.items_dataset_builder import RECORD, to_example
from lumina_jax.data.prepare import REJECTS, good_records
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.record import Source
from lumina_jax.errors import ExistingFileError
from lumina_jax.progress import ProgressDisplay

RECORDS = "records.jsonl"
PER_FOLDER = 1000
"""Records whose pictures share a folder."""


def export(source: Source, out: str | Path, threads: int = 4, progress: bool = True) -> tuple[Path, int, int]:
    """Writes the good records of ``source`` as ``out``/records.jsonl; returns its path, and how many were good and bad.

    A picture that is a file already stays where it is, named by its whole path. One that was painted, or lies in an archive,
    is written below ``out``/pictures: for many millions of records data.prepare is the better form. A bad record is listed
    with its number and reason in rejects.jsonl. What is broken off leaves no records.jsonl, and is begun anew.

    The lines read back as ``out``/records.jsonl (JsonSource). Raises FileExistsError when they are there already.
    """
    out = Path(out)
    if (out / RECORDS).exists():
        raise ExistingFileError(f"{out / RECORDS} exists already; choose another folder, or delete it to make it anew")
    out.mkdir(parents=True, exist_ok=True)
    rejects: list[dict[str, object]] = []
    unfinished, good = out / f"{RECORDS}.tmp", 0
    with ProgressDisplay("export", len(source), progress) as meter, open(unfinished, "w", encoding="utf-8") as lines:
        for number, record in good_records(source, threads, meter, rejects):
            places = [_place(file, out, f"{number:09d}_{at}") for at, file in enumerate(record.files)]
            item = json.loads(to_example(record)[RECORD])
            lines.write(json.dumps({"image": places} | item if places else item, ensure_ascii=False) + "\n")
            good += 1
    listed = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
    (out / REJECTS).write_text(listed, encoding="utf-8")
    unfinished.replace(out / RECORDS)
    return out / RECORDS, good, len(rejects)


def _place(file: ImageFile, out: Path, name: str) -> str:
    """Where a picture lies, relative to ``out`` when it is written there."""
    found = Path(file.name)
    if found.is_file() and found.stat().st_size == len(file.content) and found.read_bytes() == file.content:
        return str(found.resolve())
    with Image.open(io.BytesIO(file.content)) as image:
        suffix = str(image.format).lower()
    place = Path("pictures") / f"{int(name.partition('_')[0]) // PER_FOLDER:06d}" / f"{name}.{suffix}"
    (out / place).parent.mkdir(parents=True, exist_ok=True)
    (out / place).write_bytes(file.content)
    return str(place)

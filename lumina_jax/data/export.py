"""Any source -> JSON lines in Lumina's form, for people and for other trainers."""

import io
import json
from pathlib import Path

from PIL import Image

from lumina_jax.data.items.items_dataset_builder import RECORD, to_example
from lumina_jax.data.prepare import good_records, write_rejects
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.record import Source
from lumina_jax.errors import ExistingFileError
from lumina_jax.progress import ProgressDisplay
from lumina_jax.storage import atomic_write

RECORDS = "records.jsonl"
PER_FOLDER = 1000
"""Records whose pictures share a folder of out/pictures."""


def export(source: Source, out: str | Path, threads: int = 4, progress: bool = True) -> tuple[Path, int, int]:
    """Writes the good records of ``source`` as ``out``/records.jsonl; returns its path and the numbers of good and bad records.

    A picture that is a file stays there and is named by its absolute path. One that was painted, or lies in an archive, is
    written below ``out``/pictures; for many millions of records use data.prepare. A bad record is listed with its number and
    reason in rejects.jsonl. An interrupted export leaves no records.jsonl and starts again from the beginning.

    JsonSource reads records.jsonl back. Raises ExistingFileError when it is there already.
    """
    out = Path(out)
    if (out / RECORDS).exists():
        raise ExistingFileError(f"{out / RECORDS} exists already; choose another folder, or delete it to make it anew")
    rejects: list[dict[str, object]] = []
    with ProgressDisplay("export", len(source), progress) as meter, atomic_write(out / RECORDS) as temporary:
        with open(temporary, "w", encoding="utf-8") as lines:
            for number, record in good_records(source, threads, meter, rejects):
                paths = [_path_of(file, out, f"{number:09d}_{image}") for image, file in enumerate(record.files)]
                item = json.loads(to_example(record)[RECORD])
                lines.write(json.dumps({"image": paths} | item if paths else item, ensure_ascii=False) + "\n")
        write_rejects(out, rejects)
    return out / RECORDS, len(source) - len(rejects), len(rejects)


def _path_of(file: ImageFile, out: Path, name: str) -> str:
    """The path of a picture: that of its own file, or relative to ``out``, where it is written as ``name``."""
    path = Path(file.name)
    if path.is_file() and path.stat().st_size == len(file.content) and path.read_bytes() == file.content:
        return str(path.resolve())
    with Image.open(io.BytesIO(file.content)) as image:
        suffix = str(image.format).lower()
    path = Path("pictures") / f"{int(name.partition('_')[0]) // PER_FOLDER:06d}" / f"{name}.{suffix}"
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    (out / path).write_bytes(file.content)
    return str(path)

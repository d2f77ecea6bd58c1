"""The folder of tokens that pretokenize writes and training reads: the single home of its format.

::

    settings.json                  what the tokens were made from, written first
    00003-of-00010.array_record    the kept records of one range of the source, in order
    00003-of-00010.lengths.npy     i32[n 2]: tokens and learned tokens of each
    00003-of-00010.rejects.jsonl   {"index", "reason"} of each source record that was not kept
    lengths.npy                    i32[N]: tokens of each record of all shards, in order
    rejects.jsonl                  all rejects
    manifest.json                  the counts, written last: with it the folder is whole

A record is n little-endian int32: the token where it is learned, its bitwise complement (negative) where it is not.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from lumina_jax.config import from_dict, to_dict

SETTINGS = "settings.json"
MANIFEST = "manifest.json"
LENGTHS = "lengths.npy"
REJECTS = "rejects.jsonl"
RECORDS = "array_record"


@dataclass(frozen=True)
class Settings:
    """Everything the tokens depend on. ``source``, ``tokenizer`` and ``vq`` are fingerprints; ``records`` counts the source.

    ``crops`` are the candidate sizes as "WxH" in pixels; a shard covers ``shard_records`` records of the source.
    """

    records: int
    source: str
    tokenizer: str
    vq: str
    seed: int
    crops: tuple[str, ...]
    shard_records: int

    @property
    def shards(self) -> int:
        return -(-self.records // self.shard_records)

    def span(self, shard: int) -> range:
        """The source records of a shard."""
        return range(shard * self.shard_records, min((shard + 1) * self.shard_records, self.records))

    def file(self, folder: Path, shard: int, kind: str) -> Path:
        """A file of a shard; ``kind`` is RECORDS, LENGTHS or REJECTS."""
        return folder / f"{shard:05d}-of-{self.shards:05d}.{kind}"

    def differences(self, other: "Settings") -> list[str]:
        """Each field that ``other`` has otherwise, as "name=ours instead of theirs"."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return [f"{name}={_short(ours)} instead of {_short(theirs)}" for name, ours, theirs in pairs if ours != theirs]


@dataclass(frozen=True)
class Manifest:
    """What a whole folder holds. ``histogram`` counts the records of edges[i] <= tokens < edges[i + 1]."""

    settings: Settings
    kept: int
    rejected: int
    tokens: int
    learned: int
    edges: tuple[int, ...]
    histogram: tuple[int, ...]


Stored = TypeVar("Stored", Settings, Manifest)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def pack(tokens: np.ndarray, learn: np.ndarray) -> bytes:
    """Tokens i32[n] and learn bool[n] -> the bytes of a record."""
    return np.where(learn, tokens, ~tokens).astype("<i4").tobytes()


def unpack(record: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of :func:`pack`."""
    signed = np.frombuffer(record, "<i4")
    learn = signed >= 0
    return np.where(learn, signed, ~signed).astype(np.int32), learn


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` fill a temporary file and gives it its name at the end: ``path`` is whole whenever it exists."""
    temporary = path.with_name(f"{path.name}.tmp")
    write(temporary)
    os.replace(temporary, path)


def write_json(path: Path, value: Settings | Manifest) -> None:
    """Writes a record of this module, whole or not at all."""
    write_whole(path, lambda file: file.write_text(json.dumps(to_dict(value), indent=1) + "\n"))


def read_json(path: Path, kind: type[Stored]) -> Stored:
    """Reads what :func:`write_json` wrote; ValueError naming the file when it is something else."""
    try:
        return from_dict(kind, json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} was not written by this version's pretokenize: {error}") from error


def write_shard(
    folder: Path,
    settings: Settings,
    shard: int,
    samples: list[tuple[np.ndarray, np.ndarray]],
    rejects: list[tuple[int, str]],
) -> None:
    """Writes the three files of a shard: ``samples`` are (tokens i32[n], learn bool[n]), ``rejects`` (source index, reason).

    The records come to their name last: a shard that has them is whole.
    """

    def records(path: Path) -> None:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for tokens, learn in samples:
            writer.write(pack(tokens, learn))
        writer.close()

    lengths = np.array([(len(tokens), learn.sum()) for tokens, learn in samples], np.int32).reshape(-1, 2)
    lines = "".join(json.dumps({"index": index, "reason": reason}) + "\n" for index, reason in rejects)
    write_whole(settings.file(folder, shard, LENGTHS), lambda path: _save(path, lengths))
    write_whole(settings.file(folder, shard, REJECTS), lambda path: path.write_text(lines))
    write_whole(settings.file(folder, shard, RECORDS), records)


def write_totals(folder: Path, settings: Settings) -> Manifest:
    """Joins what lies beside the shards, once all are written, and writes the manifest last."""
    shards = range(settings.shards)
    lengths = np.concatenate([np.load(settings.file(folder, shard, LENGTHS)) for shard in shards])
    rejects = "".join(settings.file(folder, shard, REJECTS).read_text() for shard in shards)
    tokens = lengths[:, 0]
    shortest, longest = (tokens.min(), tokens.max()) if len(tokens) else (0, 0)
    edges = np.unique(np.linspace(shortest, longest + 1, 17).astype(int))
    manifest = Manifest(
        settings=settings,
        kept=len(tokens),
        rejected=rejects.count("\n"),
        tokens=int(tokens.sum(dtype=np.int64)),
        learned=int(lengths[:, 1].sum(dtype=np.int64)),
        edges=tuple(edges.tolist()),
        histogram=tuple(np.histogram(tokens, edges)[0].tolist()),
    )
    write_whole(folder / LENGTHS, lambda path: _save(path, tokens))
    write_whole(folder / REJECTS, lambda path: path.write_text(rejects))
    write_json(folder / MANIFEST, manifest)
    return manifest


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save would append .npy to the name
        np.save(file, array)


class Shards:
    """A folder written by pretokenize, as one list of samples.

    ``lengths`` i32[N] are their numbers of tokens, memory-mapped. Raises FileNotFoundError when the folder is none of
    pretokenize's or is not finished, ValueError when it is empty or its files do not belong together.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        if not (path / MANIFEST).is_file():
            begun = (path / SETTINGS).is_file()
            raise FileNotFoundError(
                f"{path} is an unfinished pretokenize; give its command again and it goes on where it stopped"
                if begun
                else f"{path} holds no {MANIFEST}: it is no folder written by `run.py pretokenize`; make it first"
            )
        self.manifest = read_json(path / MANIFEST, Manifest)
        if self.manifest.kept == 0:
            raise ValueError(f"{path} holds no records; {path / REJECTS} says why all were rejected")
        settings = self.manifest.settings
        files = [settings.file(path, shard, RECORDS) for shard in range(settings.shards)]
        missing = [file.name for file in [*files, path / LENGTHS] if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"{path} lacks {', '.join(missing[:3])}; copy it whole or pretokenize it again")
        self.lengths = np.load(path / LENGTHS, mmap_mode="r")
        self._records = ArrayRecordDataSource([str(file) for file in files])
        if not len(self._records) == len(self.lengths) == self.manifest.kept:
            raise ValueError(
                f"{path} is damaged: {len(self._records)} records, {len(self.lengths)} lengths, but {MANIFEST} says "
                f"{self.manifest.kept}; pretokenize it again"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sample: tokens i32[n] and learn bool[n]."""
        return unpack(self._records[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Several samples, in the order asked for."""
        return [unpack(record) for record in self._records.__getitems__(indices)]

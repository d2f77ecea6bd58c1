"""Writing the folder of tokens (its format: data.shards): a shard at a time, then what they come to together."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lumina_jax.data.shards import (
    LENGTHS,
    MANIFEST,
    REJECTS,
    REPORT,
    TOKENS,
    Manifest,
    Reject,
    Settings,
    pack,
    read_json,
    write_json,
)
from lumina_jax.storage import StorageFolder

BINS = 16
"""Of the histogram of lengths."""
READERS = 32
"""Reports read at once when they are added up: a store answers slowly, but many at a time."""


@dataclass(frozen=True)
class ShardReport:
    """What a shard holds: tokens of each record, learned ones in all, and how many records there are of each kind and crop."""

    lengths: tuple[int, ...]
    learned: int
    kinds: dict[str, int]
    crops: dict[str, int]
    rejects: tuple[Reject, ...]


def write_shard(
    folder: StorageFolder,
    settings: Settings,
    shard: int,
    samples: Sequence[tuple[np.ndarray, np.ndarray]],
    rejects: Sequence[Reject] = (),
    kinds: Mapping[str, int] | None = None,
    crops: Mapping[str, int] | None = None,
) -> None:
    """Writes the two files of a shard: ``samples`` are (tokens i32[n], learn bool[n]). The tokens come last."""
    lengths = tuple(len(tokens) for tokens, _ in samples)
    learned = sum(int(learn.sum()) for _, learn in samples)
    counts = (dict(sorted((count or {}).items())) for count in (kinds, crops))
    report = ShardReport(lengths, learned, *counts, tuple(rejects))

    def tokens(path: Path) -> None:
        with open(path, "wb") as file:
            file.writelines(pack(*sample) for sample in samples)

    write_json(folder, settings.file(shard, REPORT), report, indent=None)
    folder.write(settings.file(shard, TOKENS), tokens)


def write_totals(folder: StorageFolder, settings: Settings) -> Manifest:
    """Adds up the reports of all shards, once all are whole, and writes the manifest last; no record is read again."""
    names = [settings.file(shard, REPORT) for shard in range(settings.shards)]
    with ThreadPoolExecutor(READERS) as pool:
        reports = list(pool.map(lambda name: _compact(read_json(folder, name, ShardReport)), names))
    lengths = [lengths for lengths, _ in reports]
    rejects = [reject for _, report in reports for reject in report.rejects]
    edges, histogram = _histogram(lengths)
    manifest = Manifest(
        settings=settings,
        kept=sum(map(len, lengths)),
        rejected=len(rejects),
        tokens=sum(int(part.sum(dtype=np.int64)) for part in lengths),
        learned=sum(report.learned for _, report in reports),
        edges=edges,
        histogram=histogram,
        kinds=_added(report.kinds for _, report in reports),
        crops=_added(report.crops for _, report in reports),
        shard_kept=tuple(map(len, lengths)),
    )
    folder.write(LENGTHS, lambda path: _save(path, lengths))
    folder.write_text(REJECTS, "".join(json.dumps(reject) + "\n" for reject in rejects))
    write_json(folder, MANIFEST, manifest)
    folder.remove_temporary_files()
    return manifest


def _compact(report: ShardReport) -> tuple[np.ndarray, ShardReport]:
    """The lengths as i32[n], a ninth of their size in Python, and the rest."""
    return np.array(report.lengths, np.int32), replace(report, lengths=())


def _histogram(lengths: list[np.ndarray]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    parts = [part for part in lengths if len(part)] or [np.zeros(0, np.int32)]
    shortest, longest = min(part.min(initial=2**31 - 1) for part in parts), max(part.max(initial=0) for part in parts)
    edges = np.unique(np.linspace(min(shortest, longest), longest + 1, BINS + 1).astype(int))
    counts = sum(np.histogram(part, edges)[0] for part in parts)
    return tuple(edges.tolist()), tuple(counts.tolist())


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sorted(sum(map(Counter, counts), Counter()).items()))


def _save(path: Path, parts: list[np.ndarray]) -> None:
    """np.save of i32 ``parts`` as one array, without joining them in memory."""
    header = {"descr": "<i4", "fortran_order": False, "shape": (sum(map(len, parts)),)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.writelines(part.astype("<i4").tobytes() for part in parts)

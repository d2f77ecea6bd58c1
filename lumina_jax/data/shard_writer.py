"""Writing the folder of tokens (format: data.shards): one shard at a time, then the totals."""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lumina_jax.data import shards
from lumina_jax.errors import InputError
from lumina_jax.storage import StorageFolder

BINS = 16
"""Bins of the histogram of lengths."""
READERS = 32
"""Shard reports read at once: a store answers slowly, but many requests at a time."""


@dataclass(frozen=True)
class ShardReport:
    """The counts of a shard: tokens of each record, learned tokens in total, records of each kind, images of each crop.

    ``checksums`` are the CRC-32 of each record, ``crc32`` that of the file of tokens (None in one of an older version).
    """

    lengths: tuple[int, ...]
    learned: int
    kinds: dict[str, int]
    crops: dict[str, int]
    rejects: tuple[shards.RejectLine, ...]
    checksums: tuple[int, ...] = ()
    crc32: int | None = None


def write_shard(
    folder: StorageFolder,
    settings: shards.Settings,
    shard: int,
    samples: Sequence[tuple[np.ndarray, np.ndarray]],
    rejects: Sequence[shards.RejectLine] = (),
    kinds: Mapping[str, int] | None = None,
    crops: Mapping[str, int] | None = None,
) -> None:
    """Writes the two files of a shard; ``samples`` are (tokens i32[n], learn bool[n]). The file of tokens comes last."""
    lengths = tuple(len(tokens) for tokens, _ in samples)
    learned = sum(int(learn.sum()) for _, learn in samples)
    counts = (dict(sorted((count or {}).items())) for count in (kinds, crops))
    checksums, whole = [], 0
    for sample in samples:
        record = shards.pack(*sample)
        checksums.append(zlib.crc32(record))
        whole = zlib.crc32(record, whole)
    report = ShardReport(lengths, learned, *counts, tuple(rejects), tuple(checksums), whole)

    def tokens(path: Path) -> None:
        with open(path, "wb") as file:
            file.writelines(shards.pack(*sample) for sample in samples)

    shards.write_json(folder, settings.file(shard, shards.REPORT), report, indent=None)
    folder.write(settings.file(shard, shards.TOKENS), tokens)


def write_totals(folder: StorageFolder, settings: shards.Settings) -> shards.Manifest:
    """Adds up the reports of all shards, which must be complete, and writes the manifest last. Reads no tokens."""
    names = [settings.file(shard, shards.REPORT) for shard in range(settings.shards)]
    with ThreadPoolExecutor(READERS) as pool:
        reports = list(pool.map(lambda name: _compact(shards.read_json(folder, name, ShardReport)), names))
    for shard, (shard_lengths, _, report) in enumerate(reports):
        if (counted := len(shard_lengths) + len(report.rejects)) != len(settings.span(shard)):
            raise InputError(
                f"{folder}: shard {shard} has {counted} records, kept and rejected, of the {len(settings.span(shard))} that the "
                f"source has there; delete {settings.file(shard, '*')} and give the same command again"
            )
    lengths = [lengths for lengths, *_ in reports]
    rejects = [reject for *_, report in reports for reject in report.rejects]
    checksums = [checksums for _, checksums, _ in reports]
    checked = all(report.crc32 is not None for *_, report in reports)
    edges, histogram = _histogram(lengths)
    manifest = shards.Manifest(
        settings=settings,
        kept=sum(map(len, lengths)),
        rejected=len(rejects),
        tokens=sum(int(shard.sum(dtype=np.int64)) for shard in lengths),
        learned=sum(report.learned for *_, report in reports),
        edges=edges,
        histogram=histogram,
        kinds=_sum(report.kinds for *_, report in reports),
        crops=_sum(report.crops for *_, report in reports),
        shard_kept=tuple(map(len, lengths)),
        causes=shards.sum_causes(rejects),
        shard_crc32=tuple(report.crc32 for *_, report in reports) if checked else (),
        index_crc32=tuple(map(_joined_crc32, (lengths, checksums))) if checked else (),
    )
    folder.write(shards.LENGTHS, lambda path: _save_joined(path, lengths, "<i4"))
    if checked:
        folder.write(shards.CHECKSUMS, lambda path: _save_joined(path, checksums, "<u4"))
    folder.write_text(shards.REJECTS, "".join(json.dumps(reject) + "\n" for reject in rejects))
    shards.write_json(folder, shards.MANIFEST, manifest)
    folder.remove_temporary_files()
    return manifest


def _compact(report: ShardReport) -> tuple[np.ndarray, np.ndarray, ShardReport]:
    """The lengths as i32[n] and the checksums as u32[n], a ninth of their memory as Python ints, and the report without them."""
    return (
        np.array(report.lengths, np.int32),
        np.array(report.checksums, np.uint32),
        replace(report, lengths=(), checksums=()),
    )


def _histogram(lengths: list[np.ndarray]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Edges and counts over the lengths i32[n] of all shards."""
    filled = [shard for shard in lengths if len(shard)] or [np.zeros(0, np.int32)]
    shortest, longest = min(s.min(initial=2**31 - 1) for s in filled), max(s.max(initial=0) for s in filled)
    edges = np.unique(np.linspace(min(shortest, longest), longest + 1, BINS + 1).astype(int))
    counts = sum(np.histogram(shard, edges)[0] for shard in filled)
    return tuple(edges.tolist()), tuple(counts.tolist())


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sorted(sum(map(Counter, counts), Counter()).items()))


def _save_joined(path: Path, arrays: list[np.ndarray], dtype: str) -> None:
    """np.save of ``arrays`` as one array of ``dtype``, four bytes a number, without joining them in memory."""
    header = {"descr": dtype, "fortran_order": False, "shape": (sum(map(len, arrays)),)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.writelines(array.astype(dtype).tobytes() for array in arrays)


def _joined_crc32(arrays: list[np.ndarray]) -> int:
    """The CRC-32 of the numbers of ``arrays``, four bytes each, one after another."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(array.astype(array.dtype.newbyteorder("<")).tobytes(), crc)
    return crc

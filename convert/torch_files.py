"""Checkpoints written for PyTorch: which file holds which part of which weight, planned first and then filled in order."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert.files import SafetensorsWriter, Scratch, Tensor, TorchWriter, Writer, copy_into, need_torch, writing
from convert.sources import WEIGHT_FILES, Source, check_shardable, layers_of
from convert.table import ROWS, Index, Row, cut, is_qk_norm, rearrange, shape_of, sizes_of
from lumina_jax.config import ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.progress import ProgressDisplay

FILE_BYTES = 5_000_000_000
"""Size of a safetensors file where the number of files is not given, as transformers has it."""
FREQUENCIES = Row("rope.freqs", "k", "", "", "rope.freqs", "k")
"""Not a weight: Meta's loader insists on finding it."""

Read = Callable[[Row, int, Index], np.ndarray]


class Entry(NamedTuple):
    """One tensor of one file: the part ``index`` of a layer of ``row``, whose letters have ``sizes`` there.

    QK-norm rows are repeated ``copies`` times. ``order`` counts layers of weights as they are read; entries of one order, in
    several files, come from the same layer.
    """

    order: int
    tensor: Tensor
    row: Row
    layer: int
    index: Index
    sizes: Mapping[str, int]
    layout: str
    copies: int = 1


class File(NamedTuple):
    """One file and its tensors, in the order they are written: by weight, then by layer."""

    name: str
    entries: tuple[Entry, ...]


def plan_hugging_face(
    source: Source, dtypes: Mapping[str, np.dtype], layout: str, shards: int | None, binary: bool = False
) -> list[File]:
    """The safetensors (or .bin) files of a model in layout "hf" or "lumina", about equally large.

    Raises ValueError for a number of files that does not fit, or QK-norm rows that the layout cannot say.
    """
    entries = []
    for row in source.rows:
        copies = _copies(row, source.cfg, layout)
        sizes = source.sizes[row.path] | ({"G": source.sizes[row.path]["G"] * copies} if is_qk_norm(row) else {})
        for layer in layers_of(source, row):
            tensor = Tensor(row.hf_name.format(L=layer), shape_of(row.hf, sizes), dtypes[row.path])
            entries.append(Entry(len(entries), tensor, row, layer, {}, source.sizes[row.path], row.hf, copies))
    total = sum(entry.tensor.nbytes for entry in entries)
    count = -(-total // FILE_BYTES) if shards is None else shards
    if not 1 <= count <= len(entries):
        raise InputError(f"--shards {shards}; choose 1 to {len(entries)}, the number of weights")
    single = WEIGHT_FILES[binary]
    if count == 1:
        return [File(single, tuple(entries))]
    stem, kind = single.split(".")
    names = [f"{stem}-{number:05d}-of-{count:05d}.{kind}" for number in range(1, count + 1)]
    return [File(name, part) for name, part in zip(names, _parts(entries, count), strict=True)]


def plan_meta(source: Source, dtypes: Mapping[str, np.dtype], shards: int | None) -> list[File]:
    """The consolidated files of a model in Meta's layout; each holds its share of every weight.

    Raises ValueError for a number of files that does not divide the model or does not fit its QK-norm groups.
    """
    cfg = source.cfg
    shards = cfg.qk_groups if shards is None else shards
    _check_meta(cfg, shards)
    names = ["consolidated.pth"] if shards == 1 else [f"consolidated.{shard:02d}.pth" for shard in range(shards)]
    return [File(name, tuple(_meta_entries(source, dtypes, shard, shards))) for shard, name in enumerate(names)]


def write_files(folder: Path, files: list[File], cfg: ModelConfig, read: Read, meter: ProgressDisplay) -> None:
    """Fills ``files`` in ``folder``.

    Reads weight by weight and layer by layer, so that one is in memory at a time however many files it goes into.
    """
    order = sorted(
        ((entry.order, number, entry) for number, file in enumerate(files) for entry in file.entries),
        key=lambda at: at[:2],
    )
    left = [len(file.entries) for file in files]
    writers: dict[int, Writer] = {}
    scratch = Scratch()
    try:
        for _, number, entry in order:
            path = folder / files[number].name
            if number not in writers:
                tensors = [entry.tensor for entry in files[number].entries]
                with writing(path):
                    writers[number] = _writer(path, tensors)
            scratch.reset(entry.tensor.nbytes)
            array = _tensor(entry, cfg, read)
            ordered = scratch.take(array.shape, entry.tensor.dtype)
            copy_into(ordered, array)
            left[number] -= 1
            with writing(path):
                writers[number].append(ordered)
                if not left[number]:
                    writers.pop(number).close()
            meter.advance(entry.tensor.nbytes)
    finally:
        for unfinished in writers.values():
            unfinished.abort()


def index_of(files: list[File]) -> dict:
    """The index of several safetensors files: which of them holds which weight."""
    tensors = [(entry.tensor, file.name) for file in files for entry in file.entries]
    total = sum(tensor.nbytes for tensor, _ in tensors)
    return {"metadata": {"total_size": total}, "weight_map": {tensor.name: name for tensor, name in tensors}}


def _writer(path: Path, tensors: list[Tensor]) -> Writer:
    return SafetensorsWriter(path, tensors) if path.suffix == ".safetensors" else TorchWriter(path, tensors)


def _tensor(entry: Entry, cfg: ModelConfig, read: Read) -> np.ndarray:
    row = entry.row
    if row is FREQUENCIES:
        return _frequencies(cfg)
    array = read(row, entry.layer, entry.index)
    array = rearrange(array, row.ours, entry.layout, entry.sizes)
    return np.repeat(array, entry.copies, axis=0) if entry.copies > 1 else array


def _meta_entries(source: Source, dtypes: Mapping[str, np.dtype], shard: int, shards: int) -> list[Entry]:
    entries = []
    for row in ROWS:
        index = _share(row, source.sizes[row.path], shard, shards)
        sizes = cut(source.sizes[row.path], index)
        for layer in layers_of(source, row):
            tensor = Tensor(row.meta_name.format(L=layer), shape_of(row.meta, sizes), dtypes[row.path])
            entries.append(Entry(len(entries), tensor, row, layer, index, sizes, row.meta))
    frequencies = Tensor(FREQUENCIES.meta_name, (source.cfg.head_dim // 2,), np.dtype(np.float32))
    return [*entries, Entry(len(entries), frequencies, FREQUENCIES, 0, {}, {}, FREQUENCIES.meta)]


def _share(row: Row, sizes: Mapping[str, int], shard: int, shards: int) -> Index:
    """The part of ``row`` in file ``shard``: an equal share, or the one QK-norm row that its heads use."""
    if not row.split:
        return {}
    if is_qk_norm(row):
        group = shard * sizes["G"] // shards
        return {"G": slice(group, group + 1)}
    share = sizes[row.split] // shards
    return {row.split: slice(shard * share, (shard + 1) * share)}


def _frequencies(cfg: ModelConfig) -> np.ndarray:
    torch = need_torch("writing Meta's layout")
    return (1.0 / cfg.rope_base ** (torch.arange(0, cfg.head_dim, 2).float() / cfg.head_dim)).numpy()


def _check_meta(cfg: ModelConfig, shards: int) -> None:
    if shards < 1 or shards % cfg.qk_groups:
        raise InputError(
            f"--shards {shards}: the model has {cfg.qk_groups} QK-norm groups and a file of Meta's layout holds one; choose "
            f"a multiple of {cfg.qk_groups}"
        )
    check_shardable(cfg, shards, f"--shards {shards}")


def _copies(row: Row, cfg: ModelConfig, layout: str) -> int:
    """How often each of our QK-norm rows stands in the layout: once per group for Lumina-mGPT, per head for transformers."""
    if not is_qk_norm(row):
        return 1
    heads = cfg.kv_heads if "k_norm" in row.path else cfg.heads
    own = sizes_of(cfg, row)["G"]
    if layout == "hf":
        return heads // own
    if own != cfg.qk_groups:
        raise InputError(
            f"the {cfg.heads} query heads have {cfg.qk_groups} different QK-norm rows and the {cfg.kv_heads} key heads {own}; "
            "layout 'lumina' has one number for both: export with --layout hf"
        )
    return 1


def _parts(entries: list[Entry], count: int) -> list[tuple[Entry, ...]]:
    """``entries`` in ``count`` runs of about equal size, none empty."""
    total = sum(entry.tensor.nbytes for entry in entries)
    parts, part, written = [], [], 0
    for place, entry in enumerate(entries):
        part.append(entry)
        written += entry.tensor.nbytes
        left = len(entries) - place - 1
        full = written * count >= total * (len(parts) + 1)
        if (full and left >= count - len(parts) - 1) or left == count - len(parts) - 1:
            parts.append(tuple(part))
            part = []
    return parts

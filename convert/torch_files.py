"""Checkpoints written for PyTorch: first a plan of which file holds which part of which weight, then the files in that order."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from convert.buffers import Scratch, copy_into
from convert.errors import write_errors
from convert.file_sums import FileSum
from convert.sources import Checkpoint, Read, check_shardable, layers_of
from convert.table import ROWS, Index, WeightRow, cut_sizes, is_qk_norm, rearrange, shape_of, sizes_of
from convert.tensor_files import WEIGHT_FILES
from convert.tensor_formats import need_torch
from convert.tensor_writers import SafetensorsWriter, TensorSpec, TorchWriter
from lumina_jax.config import ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.places import Place
from lumina_jax.progress import ProgressDisplay

FILE_BYTES = 5_000_000_000
"""Size of a safetensors file where the number of files is not given, as in transformers."""
FREQUENCIES = WeightRow("rope.freqs", "k", "", "", "rope.freqs", "k")
"""RoPE's frequencies are computed, not learned, but Meta's loader requires them."""


class PlannedTensor(NamedTuple):
    """One tensor of one file: the part ``index`` of a layer of ``row``, whose letters have ``sizes`` there.

    ``axes`` are those in the file. QK-norm rows are repeated ``copies`` times. ``order`` numbers the reads: tensors of one order,
    in several files, come from the same layer of the same weight.
    """

    order: int
    spec: TensorSpec
    row: WeightRow
    layer: int
    index: Index
    sizes: Mapping[str, int]
    axes: str
    copies: int = 1


class PlannedFile(NamedTuple):
    """One file and its tensors, in the order in which they are written: by weight, then by layer."""

    name: str
    tensors: tuple[PlannedTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.spec.nbytes for tensor in self.tensors)


def plan_hugging_face(
    source: Checkpoint, dtypes: Mapping[str, np.dtype], layout: str, shards: int | None, binary: bool = False
) -> list[PlannedFile]:
    """The safetensors (or .bin) files of a model in layout "hf" or "lumina", about equally large.

    Raises InputError for a number of files that is out of range, or for QK-norm rows that the layout cannot represent.
    """
    tensors = []
    for row in source.rows:
        copies = _copies(row, source.cfg, layout)
        sizes = source.sizes[row.path]
        file_sizes = {**sizes, "G": sizes["G"] * copies} if is_qk_norm(row) else sizes
        for layer in layers_of(source, row):
            spec = TensorSpec(row.hf_name.format(L=layer), shape_of(row.hf_axes, file_sizes), dtypes[row.path])
            tensors.append(PlannedTensor(len(tensors), spec, row, layer, {}, sizes, row.hf_axes, copies))
    total = sum(tensor.spec.nbytes for tensor in tensors)
    count = -(-total // FILE_BYTES) if shards is None else shards
    if not 1 <= count <= len(tensors):
        raise InputError(f"--shards {shards}; choose 1 to {len(tensors)}, the number of weights")
    single = WEIGHT_FILES[binary]
    if count == 1:
        return [PlannedFile(single, tuple(tensors))]
    stem, suffix = single.split(".")
    names = [f"{stem}-{number:05d}-of-{count:05d}.{suffix}" for number in range(1, count + 1)]
    return [PlannedFile(name, run) for name, run in zip(names, _runs(tensors, count), strict=True)]


def plan_meta(source: Checkpoint, dtypes: Mapping[str, np.dtype], shards: int | None) -> list[PlannedFile]:
    """The consolidated files of a model in Meta's layout; each holds its share of every weight.

    Raises InputError for a number of files that does not divide the model or is not a multiple of its QK-norm groups.
    """
    groups = source.cfg.qk_groups
    shards = groups if shards is None else shards
    if shards < 1 or shards % groups:
        why = f"the model has {groups} QK-norm groups and a file of Meta's layout holds one"
        raise InputError(f"--shards {shards}: {why}; choose a multiple of {groups}")
    check_shardable(source.cfg, shards, f"--shards {shards}")
    names = ["consolidated.pth"] if shards == 1 else [f"consolidated.{shard:02d}.pth" for shard in range(shards)]
    return [PlannedFile(name, tuple(_meta_tensors(source, dtypes, n, shards))) for n, name in enumerate(names)]


def write_files(
    folder: Place, files: list[PlannedFile], cfg: ModelConfig, read: Read, progress: ProgressDisplay
) -> dict[str, FileSum]:
    """Writes ``files`` into ``folder``; returns the checksums of safetensors by file name. Raises StorageError naming a file.

    One layer of one weight is in memory at a time, however many files it goes into.
    """
    order = sorted(
        ((tensor.order, number, tensor) for number, file in enumerate(files) for tensor in file.tensors),
        key=lambda item: item[:2],
    )
    remaining = [len(file.tensors) for file in files]
    writers: dict[int, SafetensorsWriter | TorchWriter] = {}
    scratch, sums = Scratch(), {}
    try:
        for _, number, tensor in order:
            path = folder / files[number].name
            if number not in writers:
                specs = [planned.spec for planned in files[number].tensors]
                with write_errors(path):
                    writers[number] = (SafetensorsWriter if path.suffix == ".safetensors" else TorchWriter)(path, specs)
            scratch.reset(tensor.spec.nbytes)
            array = _array(tensor, cfg, read)
            contiguous = scratch.take(array.shape, tensor.spec.dtype)
            copy_into(contiguous, array)
            remaining[number] -= 1
            with write_errors(path):
                writers[number].append(contiguous)
                if not remaining[number]:
                    writer = writers.pop(number)
                    writer.close()
                    if isinstance(writer, SafetensorsWriter):
                        sums[path.name] = writer.sum
            progress.advance(tensor.spec.nbytes)
    finally:
        for unfinished in writers.values():
            unfinished.abort()
    return sums


def index_of(files: list[PlannedFile]) -> dict:
    """The content of the index of several Hugging Face files: which of them holds which weight."""
    total = sum(file.nbytes for file in files)
    weight_map = {tensor.spec.name: file.name for file in files for tensor in file.tensors}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _array(tensor: PlannedTensor, cfg: ModelConfig, read: Read) -> np.ndarray:
    row = tensor.row
    if row is FREQUENCIES:
        torch = need_torch("writing Meta's layout")
        return (1.0 / cfg.rope_base ** (torch.arange(0, cfg.head_dim, 2).float() / cfg.head_dim)).numpy()
    array = rearrange(read(row, tensor.layer, tensor.index), row.axes, tensor.axes, tensor.sizes, {})
    return np.repeat(array, tensor.copies, axis=0) if tensor.copies > 1 else array


def _meta_tensors(source: Checkpoint, dtypes: Mapping[str, np.dtype], shard: int, shards: int) -> list[PlannedTensor]:
    tensors = []
    for row in ROWS:
        index = _shard_index(row, source.sizes[row.path], shard, shards)
        sizes = cut_sizes(source.sizes[row.path], index)
        for layer in layers_of(source, row):
            spec = TensorSpec(row.meta_name.format(L=layer), shape_of(row.meta_axes, sizes), dtypes[row.path])
            tensors.append(PlannedTensor(len(tensors), spec, row, layer, index, sizes, row.meta_axes))
    spec = TensorSpec(FREQUENCIES.meta_name, (source.cfg.head_dim // 2,), np.dtype(np.float32))
    return [*tensors, PlannedTensor(len(tensors), spec, FREQUENCIES, 0, {}, {}, FREQUENCIES.meta_axes)]


def _shard_index(row: WeightRow, sizes: Mapping[str, int], shard: int, shards: int) -> Index:
    """The part of ``row`` in file ``shard``: an equal share, or the one QK-norm row that its heads use."""
    if not row.meta_split:
        return {}
    if is_qk_norm(row):
        group = shard * sizes["G"] // shards
        return {"G": slice(group, group + 1)}
    share = sizes[row.meta_split] // shards
    return {row.meta_split: slice(shard * share, (shard + 1) * share)}


def _copies(row: WeightRow, cfg: ModelConfig, layout: str) -> int:
    """How often the layout stores each QK-norm row: once per group for Lumina-mGPT, once per head for transformers."""
    if not is_qk_norm(row):
        return 1
    heads = cfg.kv_heads if "k_norm" in row.path else cfg.heads
    groups = sizes_of(cfg, row)["G"]
    if layout == "hf":
        return heads // groups
    if groups != cfg.qk_groups:
        raise InputError(
            f"the {cfg.heads} query heads have {cfg.qk_groups} different QK-norm rows and the {cfg.kv_heads} key heads {groups}; "
            "layout 'lumina' has one number for both: export with --layout hf"
        )
    return 1


def _runs(tensors: list[PlannedTensor], count: int) -> list[tuple[PlannedTensor, ...]]:
    """``tensors`` in ``count`` consecutive runs of about equal size, none empty."""
    total = sum(tensor.spec.nbytes for tensor in tensors)
    runs, run, size = [], [], 0
    for position, tensor in enumerate(tensors):
        run.append(tensor)
        size += tensor.spec.nbytes
        tensors_left, runs_left = len(tensors) - position - 1, count - len(runs) - 1
        full = size * count >= total * (len(runs) + 1)
        if (full and tensors_left >= runs_left) or tensors_left == runs_left:
            runs.append(tuple(run))
            run = []
    return runs

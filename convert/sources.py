"""Checkpoints opened for reading through one interface: one layer of one weight at a time, in lumina_jax's axes.

Opening a checkpoint checks every name, shape and dtype, so that reading cannot contradict its config.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from convert.buffers import Scratch, copy_into
from convert.settings import NOT_WEIGHTS, VQ_PREFIX, meta_config, meta_settings, model_config, read_json, vq_config
from convert.table import ROWS, Index, WeightRow, axis_groups, cut_sizes, is_qk_norm, rearrange, shape_of, sizes_of
from convert.tensor_files import TensorFiles, listed, open_tensors, weight_files
from convert.vqvae import encoder_shapes
from lumina_jax.config import ModelConfig, VQConfig
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.numbers import FLOATS
from lumina_jax.places import Place

VQ_PATH = "vqmodel/"
"""Paths of the VQ encoder's weights in Orbax checkpoints begin with this; their values are those of the Hugging Face checkpoint."""
REPLICA_TOLERANCE = 2.0**-7
"""Largest relative difference among Meta's copies of one norm: a unit in the last place of bfloat16."""

Read = Callable[[WeightRow, int, Index], np.ndarray]
"""The signature of :meth:`Checkpoint.read`."""


class Checkpoint(Protocol):
    """A checkpoint: the config of its model, and access to any layer of any of its weights.

    ``layout`` is "hf", "lumina", "meta" or "ours" (Orbax). ``rows`` are the weights it holds: all of :data:`convert.table.ROWS`,
    and those of the VQ encoder if it has one. ``sizes`` and ``dtypes`` are by ``row.path``; a weight whose parts have several
    dtypes gets one that can represent them all. ``dtype_examples`` maps every dtype of the decoder to a weight that has it.
    ``settings`` is the content of the checkpoint's own config; ``vq`` has the VQ encoder's sizes where ``settings`` lack them.
    """

    layout: str
    folder: Place
    cfg: ModelConfig
    rows: tuple[WeightRow, ...]
    sizes: Mapping[str, Mapping[str, int]]
    dtypes: Mapping[str, np.dtype]
    dtype_examples: Mapping[str, str]
    settings: dict
    vq: VQConfig | None

    def read(self, row: WeightRow, layer: int, index: Index) -> np.ndarray:
        """The part ``index`` of one layer of ``row``, with the axes ``row.axes``; a view, valid until the next read."""
        ...


class HuggingFaceSource:
    """A folder with config.json and safetensors or .bin files, as Lumina-mGPT or transformers saved it."""

    vq = None

    def __init__(self, folder: Place):
        self.folder = folder
        self.settings = read_json(folder / "config.json")
        cfg = model_config(self.settings, folder / "config.json")
        self._tensors = TensorFiles(weight_files(folder))
        has_encoder = any(name.startswith(VQ_PREFIX) for name in self._tensors.headers)
        encoder = encoder_shapes(vq_config(self.settings, folder / "config.json")) if has_encoder else {}
        expected = {
            name: None if is_qk_norm(row) else shape_of(row.hf_axes, sizes_of(cfg, row))
            for row in ROWS
            for name in layer_names(row.hf_name, cfg.layers)
        } | {VQ_PREFIX + name: shape for name, shape in encoder.items()}
        _check(expected, self._tensors, folder)
        self.cfg, self.layout = self._with_groups(cfg)
        self.rows = (*ROWS, *vq_rows(encoder))
        self.sizes = {row.path: sizes_of(self.cfg, row) for row in ROWS} | vq_sizes(encoder)
        names = {row.path: layer_names(row.hf_name, cfg.layers) for row in self.rows}
        self.dtypes, self.dtype_examples = _dtypes(names, [self._tensors])

    def read(self, row: WeightRow, layer: int, index: Index) -> np.ndarray:
        array, sizes = self._tensors[row.hf_name.format(L=layer)], self.sizes[row.path]
        if is_qk_norm(row):
            array = _regroup(array, sizes["G"])
        return rearrange(array, row.hf_axes, row.axes, sizes, index)

    def _with_groups(self, cfg: ModelConfig) -> tuple[ModelConfig, str]:
        """The config with as many QK-norm groups as there are different rows, and the layout in which the rows are stored."""
        row_counts, groups = set(), cfg.qk_groups
        self._tensors.read_ahead([n for row in filter(is_qk_norm, ROWS) for n in layer_names(row.hf_name, cfg.layers)])
        for row in filter(is_qk_norm, ROWS):
            heads = cfg.kv_heads if "k_norm" in row.path else cfg.heads
            for name in layer_names(row.hf_name, cfg.layers):
                array = self._tensors[name]
                if array.shape not in ((cfg.qk_groups, cfg.head_dim), (heads, cfg.head_dim)):
                    raise InputError(
                        f"{self._tensors.files[name]}: {name} has shape {list(array.shape)}; expected head size "
                        f"{cfg.head_dim} and a row for each of {cfg.qk_groups} groups or of {heads} heads"
                    )
                row_counts.add(len(array))
                if not _repeats(array, min(cfg.qk_groups, heads)):
                    groups = cfg.heads
        per_head = cfg.heads in row_counts and cfg.heads != cfg.qk_groups
        return replace(cfg, qk_groups=groups), "hf" if per_head else "lumina"


class MetaSource:
    """A folder with consolidated*.pth, params.json and consolidate_params.json, as Meta released Chameleon."""

    layout = "meta"
    rows = ROWS
    vq = None

    def __init__(self, folder: Place):
        self.folder = folder
        self.settings = meta_settings(folder)
        self.cfg, self._shards = meta_config(self.settings, folder / "params.json")
        check_shardable(self.cfg, self._shards, f"{folder}: model_parallel_size {self._shards}")
        files, self._scratch = self._files(), Scratch()
        self._tensors = [TensorFiles(dict.fromkeys(open_tensors(file), file)) for file in files]
        self.sizes = {row.path: sizes_of(self.cfg, row) for row in ROWS}
        expected = {name: shape_of(row.meta_axes, self._shard_sizes(row)) for row in ROWS for name in self._names(row)}
        for file, tensors in zip(files, self._tensors, strict=True):
            _check(expected, tensors, file)
        self.dtypes, self.dtype_examples = _dtypes({row.path: self._names(row) for row in ROWS}, self._tensors)

    def read(self, row: WeightRow, layer: int, index: Index) -> np.ndarray:
        name, sizes, letter = row.meta_name.format(L=layer), self._shard_sizes(row), row.meta_split
        if not letter:
            return rearrange(self._replicated(name), row.meta_axes, row.axes, sizes, index)
        share, total_sizes = sizes[letter], self.sizes[row.path]
        requested = range(total_sizes[letter])[index.get(letter, slice(None))]

        def read_shard(shard: int) -> tuple[slice, np.ndarray]:
            """(its range within ``requested``, what file ``shard`` holds of it)."""
            start, stop = max(requested.start, shard * share), min(requested.stop, (shard + 1) * share)
            inside = {**index, letter: slice(start - shard * share, stop - shard * share)}
            array = rearrange(self._tensors[shard][name], row.meta_axes, row.axes, sizes, inside)
            return slice(start - requested.start, stop - requested.start), array

        shards = range(requested.start // share, (requested.stop - 1) // share + 1)
        if len(shards) == 1:
            return read_shard(shards[0])[1]
        shape, dtype = shape_of(row.axes, cut_sizes(total_sizes, index)), self.dtypes[row.path]
        self._scratch.reset(math.prod(shape) * dtype.itemsize)
        array = self._scratch.take(shape, dtype)
        leading = (slice(None),) * axis_groups(row.axes).index([letter])
        for shard in shards:
            span, part = read_shard(shard)
            copy_into(array[(*leading, span)], part)
        return array

    def _shard_sizes(self, row: WeightRow) -> dict[str, int]:
        """The sizes of the part of ``row`` in one file."""
        sizes = sizes_of(self.cfg, row)
        return sizes | {row.meta_split: sizes[row.meta_split] // self._shards} if row.meta_split else sizes

    def _names(self, row: WeightRow) -> list[str]:
        return layer_names(row.meta_name, self.cfg.layers)

    def _files(self) -> list[Place]:
        single = self.folder / "consolidated.pth"
        if self._shards == 1 and single.is_file():
            return [single]
        files = [self.folder / f"consolidated.{shard:02d}.pth" for shard in range(self._shards)]
        absent = [file.name for file in files if not file.is_file()]
        extra = sorted({file.name for file in self.folder.glob("consolidated*.pth")} - {file.name for file in files})
        if absent or extra:
            raise MissingFileError(
                f"{self.folder}: model_parallel_size is {self._shards}, so {', '.join(file.name for file in files)} belong "
                f"here; missing: {', '.join(absent) or 'none'}; too many: {', '.join(extra) or 'none'}"
            )
        return files

    def _replicated(self, name: str) -> np.ndarray:
        """A norm that every file holds: the mean of the copies, which must be equal up to rounding."""
        copies = [tensors[name] for tensors in self._tensors]
        if all(np.array_equal(copies[0], copy, equal_nan=True) for copy in copies[1:]):
            return copies[0]
        stacked = np.stack([copy.astype(np.float32) for copy in copies])
        difference = np.abs(stacked - stacked[0]).max()
        if not difference <= REPLICA_TOLERANCE * np.abs(stacked[0]).max():
            raise InputError(
                f"{self.folder}: {name} should be the same in all {len(copies)} files but differs by up to {difference:.3g}; "
                "the files are not of one checkpoint: fetch them again"
            )
        return stacked.mean(0).astype(copies[0].dtype)


class SourceWithEncoder:
    """A checkpoint without a VQ encoder, combined with the encoder of a vqgan.ckpt."""

    def __init__(self, source: Checkpoint, checkpoint: Place, cfg: VQConfig):
        self.layout, self.folder, self.cfg, self.settings = source.layout, source.folder, source.cfg, source.settings
        self._source, self._encoder, self.vq = source, open_tensors(checkpoint), cfg
        shapes = encoder_shapes(cfg)
        if wrong := [n for n, shape in shapes.items() if n not in self._encoder or self._encoder[n].shape != shape]:
            raise InputError(f"{checkpoint} does not fit its .yaml: {', '.join(wrong[:5])} missing or of another shape")
        self.rows = (*source.rows, *vq_rows(shapes))
        self.sizes = {**source.sizes, **vq_sizes(shapes)}
        self.dtypes = {**source.dtypes, **{VQ_PATH + name: self._encoder[name].dtype for name in shapes}}
        self.dtype_examples = source.dtype_examples

    def read(self, row: WeightRow, layer: int, index: Index) -> np.ndarray:
        if row.path.startswith(VQ_PATH):
            return np.asarray(self._encoder[row.path.removeprefix(VQ_PATH)])
        return self._source.read(row, layer, index)


def vq_rows(shapes: Mapping[str, tuple[int, ...]]) -> tuple[WeightRow, ...]:
    """The rows of the VQ encoder's weights, {torch's name: shape}, which have the same axes in every layout."""
    axes = {name: " ".join("abcd"[: len(shape)]) for name, shape in shapes.items()}
    return tuple(WeightRow(VQ_PATH + name, axes[name], VQ_PREFIX + name, axes[name]) for name in shapes)


def vq_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, int]]:
    """row.path -> the sizes of its letters, for the rows of :func:`vq_rows`."""
    return {VQ_PATH + name: dict(zip("abcd", shape, strict=False)) for name, shape in shapes.items()}


def check_shardable(cfg: ModelConfig, shards: int, subject: str) -> None:
    """Raises InputError, beginning with ``subject``, when the model cannot be divided into ``shards`` equal files."""
    sizes = dict(heads=cfg.heads, kv_heads=cfg.kv_heads, width=cfg.width, mlp=cfg.mlp, vocab=cfg.vocab)
    if wrong := [f"{name}={size}" for name, size in sizes.items() if size % shards]:
        raise InputError(f"{subject} does not divide model.{', model.'.join(wrong)}")


def layer_names(name: str, layers: int) -> list[str]:
    """The torch names that a name of the table stands for: one per layer if it contains ``{L}``."""
    return [name.format(L=layer) for layer in range(layers)] if "{L}" in name else [name]


def dtype_examples(dtypes: Mapping[str, np.dtype]) -> dict[str, str]:
    """:attr:`Checkpoint.dtype_examples` of a checkpoint in which every weight has one dtype."""
    return {dtypes[row.path].name: row.path for row in ROWS}


def layers_of(source: Checkpoint, row: WeightRow) -> range:
    """The layers to read of ``row``: all of the model's, or the single 0 of a weight outside of the layers."""
    return range(source.cfg.layers if row.per_layer else 1)


def _check(expected: Mapping[str, tuple[int, ...] | None], tensors: TensorFiles, location: Place) -> None:
    """Raises InputError listing what is missing, unknown or misshapen; a shape of None is checked elsewhere."""
    shapes = {name: shape for name, (shape, _) in tensors.headers.items() if not name.startswith(NOT_WEIGHTS)}
    locations = {name: f"{name} in {tensors.files[name].name}" for name in shapes}
    faults = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unknown": [locations[name] for name in sorted(shapes.keys() - expected.keys())],
        "misshapen": [
            f"{locations[name]} is {list(shapes[name])}, its config says {list(shape)}"
            for name, shape in expected.items()
            if shape is not None and shapes.get(name, shape) != shape
        ],
    }
    if problems := [f"{len(names)} {fault}: {listed(names, 8)}" for fault, names in faults.items() if names]:
        raise InputError(f"{location}: weights and config do not fit. {'; '.join(problems)}")


def _dtypes(names: dict[str, list[str]], files: list[TensorFiles]) -> tuple[dict[str, np.dtype], dict[str, str]]:
    """(``dtypes``, ``dtype_examples``) of a checkpoint whose weights have these ``names``, {row.path: one per layer}.

    Raises InputError for a dtype that is not one of FLOATS.
    """
    dtypes, examples = {}, {}
    for path, tensor_names in names.items():
        examples_here: dict[np.dtype, str] = {}
        for tensors in files:
            for name in tensor_names:
                examples_here.setdefault(tensors.headers[name][1], f"{name} in {tensors.files[name]}")
        if unsupported := [dtype for dtype in examples_here if dtype.name not in FLOATS]:
            example = examples_here[unsupported[0]]
            raise InputError(f"{example} is {unsupported[0]}; weights must be one of {', '.join(FLOATS)}")
        dtypes[path] = np.dtype(reduce(jnp.promote_types, examples_here))
        if not path.startswith(VQ_PATH):
            examples = {dtype.name: example for dtype, example in examples_here.items()} | examples
    return dtypes, examples


def _repeats(rows: np.ndarray, groups: int) -> bool:
    """Whether ``rows`` are ``groups`` rows, each repeated equally often."""
    return len(rows) % groups == 0 and np.array_equal(_regroup(_regroup(rows, groups), len(rows)), rows)


def _regroup(rows: np.ndarray, groups: int) -> np.ndarray:
    """QK-norm rows [stored K] -> [groups K], where one count is a multiple of the other and rows repeat."""
    return rows[:: len(rows) // groups] if len(rows) >= groups else np.repeat(rows, groups // len(rows), 0)

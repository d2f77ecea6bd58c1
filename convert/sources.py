"""Checkpoints opened for reading, each layout alike: one layer of one weight at a time, laid out as ours.

Opening a checkpoint checks every name, shape and dtype; reading then cannot disagree with its config.
"""

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from convert.files import Scratch, copy_into, open_tensors
from convert.settings import meta_config, model_config, read_json, vq_config
from convert.table import ROWS, Index, Row, cut, groups, is_qk_norm, part, rearrange, shape_of, sizes_of
from convert.vqvae import encoder_shapes, to_torch
from lumina_jax.config import ModelConfig
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.params import is_param
from lumina_jax.model.vqvae import VQVAE

INDEX_SUFFIX = ".index.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
META_FILES = ("consolidated.pth", "consolidated.*.pth")
VQ_PREFIX = "model.vqmodel."
VQ_PATH = "vqmodel/"
"""Where our own checkpoints keep the VQ encoder that a Hugging Face checkpoint carried, as it was."""
EXTRAS = ("rope.freqs", "loss.", "model.rotary_emb.", "rotary_emb.")
"""Beginnings of names that checkpoints may hold beside their weights: nothing is learned in them."""
FLOATS = ("float32", "float16", "bfloat16")
MAPPED_BYTES = 1 << 29
"""How much of mapped files is read before they are closed and opened again, so that what was read leaves the memory."""
REPLICA_TOLERANCE = 2.0**-7
"""How far Meta's copies of one norm may lie apart, relatively: a unit in the last place of bfloat16."""


class Source(Protocol):
    """A checkpoint: what model it holds, and any layer of any of its weights.

    ``rows`` are the weights it holds: all of :data:`convert.table.ROWS`, and the VQ encoder's where it carries them.
    ``sizes`` and ``dtypes`` are by ``row.path``; a weight whose parts have several dtypes counts as one that holds them all.
    ``kinds`` are all dtypes of the decoder, each with a weight that has it. ``settings`` is what its own config says.
    """

    layout: str
    folder: Path
    cfg: ModelConfig
    rows: tuple[Row, ...]
    sizes: Mapping[str, Mapping[str, int]]
    dtypes: Mapping[str, np.dtype]
    kinds: Mapping[str, str]
    settings: dict

    def read(self, row: Row, layer: int, index: Index) -> np.ndarray:
        """The part ``index`` of one layer of ``row``, in the layout ``row.ours``; a view, good until the next read."""
        ...


class Tensors:
    """The tensors of several files by name, mapped; files whose tensors were read are closed again and again.

    ``files`` says which file holds which name; what else the files hold counts as well.
    """

    def __init__(self, files: Mapping[str, Path]):
        self._files, self._open, self._read = dict(files), {}, 0
        absent = sorted({path.name for path in files.values() if not path.is_file()})
        if absent:
            folder = next(iter(files.values())).parent
            raise MissingFileError(f"{folder} lacks {', '.join(absent)}, which its index names; fetch them as well")
        lost = [f"{name} ({path.name})" for name, path in files.items() if name not in self._mapped(path)]
        if lost:
            raise InputError(
                f"{next(iter(files.values())).parent}: the index names weights absent from their files: {_some(lost)}"
            )
        for path, held in self._open.items():
            self._files |= {name: path for name in held if name not in self._files}
        self.about = {name: (array.shape, array.dtype) for name in self._files for array in [self._stored(name)]}

    def where(self, name: str) -> Path:
        """The file that holds ``name``."""
        return self._files[name]

    def __getitem__(self, name: str) -> np.ndarray:
        if self._read > MAPPED_BYTES:
            self._open.clear()
            self._read = 0
        array = self._stored(name)
        self._read += array.nbytes
        return array

    def _stored(self, name: str) -> np.ndarray:
        return self._mapped(self._files[name])[name]

    def _mapped(self, path: Path) -> dict[str, np.ndarray]:
        if path not in self._open:
            self._open[path] = open_tensors(path)
        return self._open[path]


class HuggingFace:
    """A folder with config.json and safetensors or .bin files, as Lumina-mGPT or transformers saved it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.settings = read_json(folder / "config.json")
        cfg = model_config(self.settings, folder / "config.json")
        self._tensors = Tensors(_weight_files(folder))
        about = self._tensors.about
        encoder = [name for name in about if name.startswith(VQ_PREFIX)]
        shapes = encoder_shapes(vq_config(self.settings)) if encoder else {}
        expected = {
            name: None if is_qk_norm(row) else shape_of(row.hf, sizes_of(cfg, row))
            for row in ROWS
            for name in names_of(row.hf_name, cfg.layers)
        } | {VQ_PREFIX + name: shape for name, shape in shapes.items()}
        _check(expected, self._tensors, folder)
        self.cfg, self.layout = self._with_groups(cfg)
        self.rows = (*ROWS, *(vq_row(name, len(shape)) for name, shape in shapes.items()))
        self.sizes = {row.path: sizes_of(self.cfg, row) for row in ROWS}
        self.sizes |= vq_sizes(shapes)
        names = {row.path: names_of(row.hf_name, cfg.layers) for row in self.rows}
        self.dtypes, self.kinds = _dtypes(names, [self._tensors])

    def read(self, row: Row, layer: int, index: Index) -> np.ndarray:
        array, sizes = self._tensors[row.hf_name.format(L=layer)], self.sizes[row.path]
        if is_qk_norm(row):
            array = _regroup(array, sizes["G"])
        return rearrange(part(array, row.hf, sizes, index), row.hf, row.ours, cut(sizes, index))

    def _with_groups(self, cfg: ModelConfig) -> tuple[ModelConfig, str]:
        """The config with as many QK-norm groups as there are distinct rows, and the layout those rows are stored in."""
        stored, distinct = {}, cfg.qk_groups
        for row in filter(is_qk_norm, ROWS):
            heads = cfg.kv_heads if "k_norm" in row.path else cfg.heads
            for name in names_of(row.hf_name, cfg.layers):
                array = self._tensors[name]
                if array.shape not in ((cfg.qk_groups, cfg.head_dim), (heads, cfg.head_dim)):
                    raise InputError(
                        f"{self._tensors.where(name)}: {name} has shape {list(array.shape)}; expected head size "
                        f"{cfg.head_dim} and a row for each of {cfg.qk_groups} groups or of {heads} heads"
                    )
                stored[len(array)] = True
                if not _repeats(array, min(cfg.qk_groups, heads)):
                    distinct = cfg.heads
        per_head = cfg.heads in stored and cfg.heads != cfg.qk_groups
        return ModelConfig(**{**vars(cfg), "qk_groups": distinct}), "hf" if per_head else "lumina"


class Meta:
    """A folder with consolidated*.pth, params.json and consolidate_params.json, as Meta released Chameleon."""

    layout = "meta"
    rows = ROWS

    def __init__(self, folder: Path):
        self.folder = folder
        consolidate = folder / "consolidate_params.json"
        params = read_json(folder / "params.json")
        self.settings = {
            **params,
            **(params.get("model") or {}),
            **(read_json(consolidate) if consolidate.is_file() else {}),
        }
        self.cfg, self._shards = meta_config(self.settings, folder / "params.json")
        check_shardable(self.cfg, self._shards, f"{folder}: model_parallel_size {self._shards}")
        files = self._files()
        found = [Tensors(dict.fromkeys(open_tensors(file), file)) for file in files]
        self.sizes = {row.path: sizes_of(self.cfg, row) for row in ROWS}
        expected = {n: shape_of(row.meta, self._share(row)) for row in ROWS for n in self._names(row)}
        for file, tensors in zip(files, found, strict=True):
            _check(expected, tensors, file)
        self._tensors, self._scratch = found, Scratch()
        self.dtypes, self.kinds = _dtypes({row.path: self._names(row) for row in ROWS}, found)

    def read(self, row: Row, layer: int, index: Index) -> np.ndarray:
        name, sizes, letter = row.meta_name.format(L=layer), self._share(row), row.split
        if not letter:
            array = self._replicated(name)
            return rearrange(part(array, row.meta, sizes, index), row.meta, row.ours, cut(sizes, index))
        share, whole = sizes[letter], self.sizes[row.path]
        wanted = range(whole[letter])[index.get(letter, slice(None))]

        def piece(shard: int) -> tuple[slice, np.ndarray]:
            """(where it belongs in ``wanted``, what file ``shard`` has of it)."""
            first, last = max(wanted.start, shard * share), min(wanted.stop, (shard + 1) * share)
            here = {**index, letter: slice(first - shard * share, last - shard * share)}
            array = part(self._tensors[shard][name], row.meta, sizes, here)
            return slice(first - wanted.start, last - wanted.start), rearrange(
                array, row.meta, row.ours, cut(sizes, here)
            )

        shards = range(wanted.start // share, (wanted.stop - 1) // share + 1)
        if len(shards) == 1:
            return piece(shards[0])[1]
        shape, dtype = shape_of(row.ours, cut(whole, index)), self.dtypes[row.path]
        self._scratch.reset(math.prod(shape) * dtype.itemsize)
        array = self._scratch.take(shape, dtype)
        before = (slice(None),) * groups(row.ours).index([letter])
        for shard in shards:
            where, numbers = piece(shard)
            copy_into(array[(*before, where)], numbers)
        return array

    def _share(self, row: Row) -> dict[str, int]:
        """The sizes of one file's part."""
        sizes = sizes_of(self.cfg, row)
        return sizes | {row.split: sizes[row.split] // self._shards} if row.split else sizes

    def _names(self, row: Row) -> list[str]:
        return names_of(row.meta_name, self.cfg.layers)

    def _files(self) -> list[Path]:
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
        """A norm that every file holds: the mean of what they say, once it is sure that they say the same."""
        copies = [tensors[name] for tensors in self._tensors]
        if all(np.array_equal(copies[0], copy, equal_nan=True) for copy in copies[1:]):
            return copies[0]
        wide = np.stack([copy.astype(np.float32) for copy in copies])
        apart = np.abs(wide - wide[0]).max()
        if not apart <= REPLICA_TOLERANCE * np.abs(wide[0]).max():
            raise InputError(
                f"{self.folder}: {name} should be the same in all {len(copies)} files but differs by up to {apart:.3g}; "
                "the files are not of one checkpoint"
            )
        return wide.mean(0).astype(copies[0].dtype)


class Memory:
    """A model in memory, seen as a checkpoint; with the encoder of ``vqvae`` where one is given."""

    layout = "ours"

    def __init__(self, model: Chameleon, cfg: ModelConfig, vqvae: VQVAE | None = None):
        self.folder, self.cfg, self.settings = Path("the model"), cfg, {}
        self.vq = vqvae.cfg if vqvae else None
        leaves = jax.tree_util.tree_leaves_with_path(model, is_leaf=is_param)
        self._weights = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf[...] for path, leaf in leaves}
        encoder = encoder_shapes(vqvae.cfg) if vqvae else {}
        self._weights |= {VQ_PATH + name: array for name, array in (to_torch(vqvae) if vqvae else {}).items()}
        self.rows = (*ROWS, *(vq_row(name, len(shape)) for name, shape in encoder.items()))
        self.sizes = {row.path: sizes_of(cfg, row) for row in ROWS} | vq_sizes(encoder)
        self.dtypes = {row.path: np.dtype(self._weights[row.path].dtype) for row in self.rows}
        self.kinds = kinds_of(self.dtypes)

    def read(self, row: Row, layer: int, index: Index) -> np.ndarray:
        weight = self._weights[row.path]
        array = np.asarray(weight[layer] if row.per_layer else weight)
        return part(array, row.ours, self.sizes[row.path], index)


def vq_row(name: str, axes: int) -> Row:
    """The row of a VQ encoder's weight (torch's name), which stays as it is in every layout."""
    layout = " ".join("abcd"[:axes])
    return Row(VQ_PATH + name, layout, VQ_PREFIX + name, layout)


def check_shardable(cfg: ModelConfig, shards: int, what: str) -> None:
    """Raises ValueError, beginning with ``what``, when ``shards`` files cannot hold equal shares of the model."""
    sizes = dict(heads=cfg.heads, kv_heads=cfg.kv_heads, width=cfg.width, mlp=cfg.mlp, vocab=cfg.vocab)
    if wrong := [f"{name}={size}" for name, size in sizes.items() if size % shards]:
        raise InputError(f"{what} does not divide model.{', model.'.join(wrong)}")


def names_of(name: str, layers: int) -> list[str]:
    """A torch name of the table, written out for each layer."""
    return [name.format(L=layer) for layer in range(layers)] if "{L}" in name else [name]


def vq_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, int]]:
    """row.path -> the sizes of its letters, for the rows of :func:`vq_row`."""
    return {VQ_PATH + name: dict(zip("abcd", shape, strict=False)) for name, shape in shapes.items()}


def kinds_of(dtypes: Mapping[str, np.dtype]) -> dict[str, str]:
    """What :attr:`Source.kinds` is where each weight has one dtype."""
    return {dtypes[row.path].name: row.path for row in ROWS}


def layers_of(source: Source, row: Row) -> range:
    """The layers of ``row``: all of the model's, or one."""
    return range(source.cfg.layers if row.per_layer else 1)


def _weight_files(folder: Path) -> dict[str, Path]:
    """Weight name -> the file that holds it."""
    for single in WEIGHT_FILES:
        index = folder / (single + INDEX_SUFFIX)
        if index.is_file():
            named = read_json(index).get("weight_map")
            if not isinstance(named, dict) or not named or any(Path(str(file)).name != file for file in named.values()):
                raise InputError(
                    f"{index}: no weight_map that names a file of this folder for each weight; fetch it again"
                )
            return {name: folder / file for name, file in named.items()}
        if (folder / single).is_file():
            return dict.fromkeys(open_tensors(folder / single), folder / single)
    kinds = ", ".join(f"{single} or {single}{INDEX_SUFFIX}" for single in WEIGHT_FILES)
    raise MissingFileError(f"{folder} holds a config.json but no weights; looked for {kinds}")


def _check(expected: Mapping[str, tuple[int, ...] | None], tensors: Tensors, where: Path) -> None:
    """Raises ValueError listing what is missing, unknown or misshapen; a shape of None is checked elsewhere."""
    about = tensors.about
    missing = sorted(expected.keys() - about.keys())
    unknown = sorted(name for name in about.keys() - expected.keys() if not name.startswith(EXTRAS))
    wrong = [
        f"{name} in {tensors.where(name).name} is {list(about[name][0])}, its config says {list(shape)}"
        for name, shape in expected.items()
        if shape is not None and name in about and about[name][0] != shape
    ]
    problems = [
        f"{len(found)} {what}: {_some(found)}"
        for what, found in (
            ("missing", missing),
            ("unknown", [f"{name} in {tensors.where(name).name}" for name in unknown]),
            ("misshapen", wrong),
        )
        if found
    ]
    if problems:
        raise InputError(f"{where}: weights and config do not fit. {'; '.join(problems)}")


def _dtypes(names: Mapping[str, Iterable[str]], files: Iterable[Tensors]) -> tuple[dict[str, np.dtype], dict[str, str]]:
    """(``dtypes``, ``kinds``) of a :class:`Source`. Raises ValueError for a dtype that is no float."""
    dtypes, kinds = {}, {}
    for path, of_layers in names.items():
        found = {}
        for tensors in files:
            for name in of_layers:
                found.setdefault(tensors.about[name][1], f"{name} in {tensors.where(name)}")
        if strange := [dtype for dtype in found if dtype.name not in FLOATS]:
            raise InputError(f"{found[strange[0]]} is {strange[0]}; weights are one of {', '.join(FLOATS)}")
        dtypes[path] = np.dtype(reduce(jnp.promote_types, found))
        if not path.startswith(VQ_PATH):
            kinds = {dtype.name: where for dtype, where in found.items()} | kinds
    return dtypes, kinds


def _repeats(rows: np.ndarray, groups: int) -> bool:
    """Whether ``rows`` are ``groups`` rows, each repeated."""
    return len(rows) % groups == 0 and bool(
        (np.repeat(rows[:: len(rows) // groups], len(rows) // groups, 0) == rows).all()
    )


def _regroup(rows: np.ndarray, groups: int) -> np.ndarray:
    """QK-norm rows [stored K] -> [groups K], where either count is a multiple of the other and rows repeat."""
    return rows[:: len(rows) // groups] if len(rows) >= groups else np.repeat(rows, groups // len(rows), 0)


def _some(found: list[str], limit: int = 8) -> str:
    return ", ".join(found[:limit]) + (f" and {len(found) - limit} more" if len(found) > limit else "")

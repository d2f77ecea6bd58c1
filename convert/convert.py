"""A conversion from any layout to any other: opened, checked, streamed, and put in place only when it is whole."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from convert import tokenizer_files
from convert.files import open_tensors, writing
from convert.orbax_folder import ORIGIN, Ours, write_ours
from convert.settings import hugging_face_settings, meta_params, read_json, vq_settings
from convert.sources import (
    INDEX_SUFFIX,
    VQ_PATH,
    WEIGHT_FILES,
    HuggingFace,
    Memory,
    Meta,
    Source,
    layers_of,
    vq_row,
    vq_sizes,
)
from convert.table import Index, Row
from convert.tokenizer_files import Companions
from convert.torch_files import File, index_of, plan_hugging_face, plan_meta, write_files
from convert.vqvae import encoder_shapes, read_config
from lumina_jax.config import Experiment, MeshConfig, VQConfig, from_dict, to_dict
from lumina_jax.errors import ExistingFileError, InputError, MissingFileError, StorageError
from lumina_jax.progress import ProgressDisplay
from lumina_jax.sharding import make_mesh
from lumina_jax.train.checkpoint import EXPERIMENT, newest

LAYOUTS = ("hf", "lumina", "meta", "ours")
UNFINISHED = ".unfinished"
"""So end the names of folders that are still being written to."""
EXPERIMENT_FILE = "experiment.json"
CHECKPOINT_FILES = (
    "model*.safetensors*",
    "pytorch_model*.bin*",
    "consolidated*.pth",
    "consolidate_params.json",
    "params.json",
    "config.json",
)
"""The files of a checkpoint for PyTorch, of any layout."""
RENAMED = ("<reserved08707>", "<image>")
"""Chameleon's name of the token that stands for a picture in a prompt, and the one transformers looks for."""


@dataclass(frozen=True)
class Wish:
    """What is to be written: the ``layout``, the number of files (None: what suits it), the dtype (numpy's name; "": as it is).

    ``binary`` asks for torch's .bin files where safetensors are usual. ``zero_image_head`` zeroes the image tokens' rows of
    the output head, from which FP-SFT starts (original: the Chameleon_*_mGPT checkpoints). ``tokenizer`` and ``vq`` name
    companions that do not lie with the weights.
    """

    layout: str
    shards: int | None = None
    dtype: str = ""
    binary: bool = False
    zero_image_head: bool = False
    tokenizer: str = ""
    vq: str = ""


def open_source(path: str | Path) -> Source:
    """The checkpoint at ``path``, of whatever layout. Raises FileNotFoundError saying what was looked for, or ValueError."""
    folder = Path(path)
    if folder.is_file():
        folder = folder.parent
    if folder.name.endswith(UNFINISHED):
        raise InputError(f"{folder} is what an interrupted conversion left; run it again, or delete the folder")
    if (folder / "config.json").is_file():
        return HuggingFace(folder)
    if (folder / "params.json").is_file() or any(folder.glob("consolidated*.pth")):
        return Meta(folder)
    released = sorted(found.parent for found in folder.glob("models/*/params.json"))
    if len(released) > 1:
        raise InputError(f"{folder} holds several models; name one of {', '.join(map(str, released))}")
    if released:
        return Meta(released[0])
    try:
        newest(folder)
    except FileNotFoundError:
        raise MissingFileError(
            f"{folder} is no checkpoint: it holds neither config.json (Hugging Face), nor params.json or models/*/params.json "
            "(Meta), nor a finished checkpoint of run.py train or run.py convert import"
        ) from None
    return Ours(folder)


def convert(path: str | Path, target: str | Path, wish: Wish, mesh: Mesh | None = None, show: bool = True) -> list[str]:
    """Writes the checkpoint at ``path`` as ``target``, a folder that must not exist (or be empty); returns notes to the user.

    All processes of ``mesh`` (default: all devices along fsdp) call this together. Nothing is read but headers until
    names, shapes, dtypes, companions and free space are found to be right; a failure leaves no ``target`` behind.
    """
    source, target = open_source(path), Path(target)
    found = tokenizer_files.find(source.folder, run_of(source), wish.tokenizer, wish.vq)
    tokenizer_files.check(found, source.cfg)
    if wish.layout == "hf":
        source = with_encoder(source, found)
    with whole(target) as folder:
        write(source, found, _weights_in(folder, source, wish), wish, mesh, show)
        if jax.process_index() == 0:
            tokenizer_files.copy(found, folder, wish.layout)
    missing = tokenizer_files.notes(found, target)
    if wish.layout == "hf" and not any(row.path.startswith(VQ_PATH) for row in source.rows):
        missing.append("no VQ encoder to write: transformers will say that it draws model.vqmodel.* at random")
    return missing


def write(
    source: Source, found: Companions, folder: Path, wish: Wish, mesh: Mesh | None = None, show: bool = True
) -> None:
    """Streams the weights of ``source`` into ``folder``, with what the layout says about them."""
    dtypes = dtypes_of(source, wish.dtype)
    read = _zeroed(source, _image_tokens(found)) if wish.zero_image_head else source.read
    files = plan(source, dtypes, wish)
    total = sum(
        math.prod(source.sizes[row.path].values()) * dtypes[row.path].itemsize * len(layers_of(source, row))
        for row in source.rows
    )
    _check_space(folder, total + tokenizer_files.nbytes(found))
    process, processes = jax.process_index(), jax.process_count()
    shown = dict(show=show and process == 0, unit="MB", unit_size=10**6)
    if wish.layout == "ours":
        metadata = _metadata(source, found, wish)
        with ProgressDisplay("to Orbax", total, **shown) as meter:
            write_ours(folder, source, read, dtypes, mesh or make_mesh(MeshConfig()), metadata, meter)
        return
    if process == 0:
        _describe(folder, source, found, files, dtypes, wish)
    multihost_utils.sync_global_devices(f"{folder} described")
    mine = files[process::processes]
    total = sum(entry.tensor.nbytes for file in mine for entry in file.entries)
    with ProgressDisplay(f"to {wish.layout}", total, **shown) as meter:
        write_files(folder, mine, source.cfg, read, meter)


def plan(source: Source, dtypes: Mapping[str, np.dtype], wish: Wish) -> list[File]:
    """The files that ``wish`` asks for, with every tensor's name, shape and dtype (none for our own); reads nothing."""
    if wish.layout == "meta":
        return plan_meta(source, dtypes, wish.shards)
    if wish.layout in ("hf", "lumina"):
        return plan_hugging_face(source, dtypes, wish.layout, wish.shards, wish.binary)
    if wish.layout != "ours":
        raise InputError(f"layout {wish.layout!r}; choose one of {', '.join(LAYOUTS)}")
    return []


def dtypes_of(source: Source, wanted: str = "") -> dict[str, np.dtype]:
    """row.path -> the dtype to write: ``wanted`` (numpy's name) for all of the model, or the one that all of it has.

    The VQ encoder keeps its own. Raises ValueError when nothing is wanted and the weights have several.
    """
    if not wanted and len(source.kinds) > 1:
        told = ", ".join(f"{kind} ({weight})" for kind, weight in source.kinds.items())
        raise InputError(f"{source.folder} holds weights of several dtypes: {told}; say which you want with --dtype")
    chosen = np.dtype(jnp.dtype(wanted or next(iter(source.kinds))))
    return {row.path: source.dtypes[row.path] if row.path.startswith(VQ_PATH) else chosen for row in source.rows}


class WithEncoder:
    """A checkpoint that carries no VQ encoder, with that of a vqgan.ckpt."""

    def __init__(self, source: Source, checkpoint: Path, cfg: VQConfig):
        self.layout, self.folder, self.cfg, self.settings = source.layout, source.folder, source.cfg, source.settings
        self._source, self._encoder, self.vq = source, open_tensors(checkpoint), cfg
        shapes = encoder_shapes(cfg)
        if wrong := [n for n, shape in shapes.items() if n not in self._encoder or self._encoder[n].shape != shape]:
            raise InputError(f"{checkpoint} does not fit its .yaml: {', '.join(wrong[:5])} missing or of another shape")
        self.rows = (*source.rows, *(vq_row(name, len(shape)) for name, shape in shapes.items()))
        self.sizes = {**source.sizes, **vq_sizes(shapes)}
        self.dtypes = {**source.dtypes, **{VQ_PATH + name: self._encoder[name].dtype for name in shapes}}
        self.kinds = source.kinds

    def read(self, row: Row, layer: int, index: Index) -> np.ndarray:
        if row.path.startswith(VQ_PATH):
            return self._encoder[row.path.removeprefix(VQ_PATH)]
        return self._source.read(row, layer, index)


def with_encoder(source: Source, found: Companions) -> Source:
    """``source`` with the VQ encoder that transformers expects in a checkpoint, where there is one to be had."""
    if any(row.path.startswith(VQ_PATH) for row in source.rows) or not found.vq or found.vq.suffix != ".ckpt":
        return source
    return WithEncoder(source, found.vq, read_config(found.vq.with_suffix(".yaml")))


@contextmanager
def whole(target: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to write to, which becomes ``target`` when all went well and vanishes when not.

    With ``replace`` a ``target`` that has files keeps them, but for those of a checkpoint, in whose place the new ones come.
    Else raises FileExistsError, before anything is written. What an interrupted run left behind is removed first.
    """
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken and not (replace and target.is_dir()):
        raise ExistingFileError(f"{target} exists already; give another folder or delete it")
    unfinished = target.absolute().with_name(target.absolute().name + UNFINISHED)
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    multihost_utils.sync_global_devices(f"{unfinished} made")
    try:
        yield unfinished
        multihost_utils.sync_global_devices(f"{unfinished} filled")
        if first and taken:
            _move_into(unfinished, target)
        elif first:
            os.replace(unfinished, target)
    except BaseException:
        _remove(unfinished)
        raise
    multihost_utils.sync_global_devices(f"{target} in place")


def _remove(folder: Path) -> None:
    """Removes ``folder``, again if need be: threads of a library may still write into it for a moment after its error."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def _move_into(folder: Path, target: Path) -> None:
    for pattern in CHECKPOINT_FILES:
        for old in target.glob(pattern):
            old.unlink()
    for file in folder.iterdir():
        os.replace(file, target / file.name)
    folder.rmdir()


def _weights_in(folder: Path, source: Source, wish: Wish) -> Path:
    """Where the weights go: Meta's release keeps its models apart from their tokenizer, under these two names."""
    if wish.layout != "meta":
        return folder
    inside = folder / "models" / ("7b" if (wish.shards or source.cfg.qk_groups) == 1 else "30b")
    inside.mkdir(parents=True, exist_ok=True)
    return inside


def _zeroed(source: Source, tokens: np.ndarray) -> Callable[[Row, int, Index], np.ndarray]:
    """How to read ``source`` with the output head's rows of ``tokens`` zero."""

    def read(row: Row, layer: int, index: Index) -> np.ndarray:
        array = source.read(row, layer, index)
        if row.path == "head":
            first, last, _ = index.get("V", slice(None)).indices(source.cfg.vocab)
            array = array.copy()
            array[:, tokens[(tokens >= first) & (tokens < last)] - first] = 0
        return array

    return read


def _image_tokens(found: Companions) -> np.ndarray:
    vocab = found.vocab()
    if vocab is None:
        raise InputError(
            "--zero-image-head needs the tokenizer to know which rows are image tokens; give --tokenizer PATH"
        )
    return vocab.code_ids


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB will be written; make room or choose "
            "another disk"
        )


def run_of(source: Source) -> Experiment | None:
    """The experiment that trained the weights, if they were trained here: a run's own, or that of a run's export."""
    if isinstance(source, Ours):
        return source.experiment if source.settings.get("trained_here", True) else None
    file = source.folder / EXPERIMENT_FILE
    return from_dict(Experiment, read_json(file)) if file.is_file() else None


def _placeless(experiment: Experiment) -> Experiment:
    """Where things lay on the machine that trained is nobody's business."""
    data, vq = replace(experiment.data, path="", weights=(), tokenizer=""), replace(experiment.vq, path="")
    return replace(experiment, out="", start="", data=data, vq=vq)


def _metadata(source: Source, found: Companions, wish: Wish) -> dict:
    """What an imported checkpoint says of itself: an experiment around the model, and where the weights came from."""
    run = run_of(source)
    if run is None:
        vq = read_config(found.vq.with_suffix(".yaml")) if found.vq and found.vq.suffix == ".ckpt" else VQConfig()
        run = Experiment(name=source.folder.resolve().name, model=source.cfg, vq=vq)
    origin = {
        "layout": source.layout,
        "name": source.folder.resolve().name,
        "trained_here": run_of(source) is not None,
        "zero_image_head": _is_zeroed(source, wish),
        # The vocabulary stands in the tokenizer's file, if there is one.
        "settings": {n: value for n, value in _base(source).items() if n != "vocabulary_map" or not found.tokenizer},
    }
    return {EXPERIMENT: to_dict(_placeless(run)), ORIGIN: origin}


def _is_zeroed(source: Source, wish: Wish) -> bool:
    """Whether the image rows of the head are zero: now, or because what is read says so of itself."""
    return wish.zero_image_head or bool(source.settings.get("zero_image_head"))


def _origin(source: Source) -> dict:
    return source.settings if source.layout == "ours" else {}


def _base(source: Source) -> dict:
    """The fields of a config.json that are no business of the model's own numbers."""
    return source.settings if source.layout in ("hf", "lumina") else _origin(source).get("settings", {})


def _describe(
    folder: Path, source: Source, found: Companions, files: list[File], dtypes: Mapping[str, np.dtype], wish: Wish
) -> None:
    """Writes what stands beside the weights: params.json, or config.json and the index of several files."""
    if wish.layout == "meta":
        params, consolidate = meta_params(source.cfg, len(files))
        _write_json(folder / "params.json", params)
        _write_json(folder / "consolidate_params.json", consolidate)
        return
    base = dict(_base(source))
    vocab = found.vocab()
    if vocab and not base.get("vocabulary_map"):
        names = vocab.names(source.cfg.vocab)
        base["vocabulary_map"] = {
            RENAMED[1] if n == RENAMED[0] and RENAMED[1] not in names else n: i for n, i in names.items()
        }
    if isinstance(source, WithEncoder | Memory) and source.vq:
        base["vq_config"] = vq_settings(source.vq)
    settings = hugging_face_settings(source.cfg, dtypes["head"], wish.layout, base)
    if _is_zeroed(source, wish):
        settings["zero_image_head"] = True
    _write_json(folder / "config.json", settings)
    if len(files) > 1:
        _write_json(folder / (WEIGHT_FILES[wish.binary] + INDEX_SUFFIX), index_of(files))
    if run := run_of(source):
        _write_json(folder / EXPERIMENT_FILE, to_dict(_placeless(run)))


def _write_json(file: Path, content: dict) -> None:
    with writing(file):
        file.write_text(json.dumps(content, indent=2) + "\n")

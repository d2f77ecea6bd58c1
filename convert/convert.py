"""Conversion of a checkpoint from any layout to any other: checked, streamed, and given its name only when it is complete."""

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from upath import UPath

from convert import tokenizer_files
from convert.errors import read_errors, write_errors
from convert.file_sums import SUMS, check_files, join_shares, write_share
from convert.metadata import Target, experiment_of, orbax_metadata, write_settings
from convert.orbax_folder import OrbaxSource, orbax_address, write_orbax
from convert.pictures import image_layout_of
from convert.sources import VQ_PATH, Checkpoint, HuggingFaceSource, MetaSource, Read, SourceWithEncoder, layers_of
from convert.table import Index, WeightRow
from convert.target_sizes import EXPERIMENT, UNKNOWN, target_size_of
from convert.tokenizer_files import TokenizerFiles
from convert.torch_files import PlannedFile, plan_hugging_face, plan_meta, write_files
from convert.vqvae import read_config
from lumina_jax.cluster.agreement import first_text
from lumina_jax.config import MeshConfig
from lumina_jax.errors import ExistingFileError, InputError, MissingFileError
from lumina_jax.first_checks import check_space
from lumina_jax.numbers import dtype_name
from lumina_jax.places import Place, is_url, place, store_errors
from lumina_jax.progress import ProgressDisplay
from lumina_jax.sharding import make_mesh
from lumina_jax.train.checkpoint import newest
from lumina_jax.train.integrity import unverified
from lumina_jax.vocab import CHAMELEON

LAYOUTS = {
    "hf": "Hugging Face, as transformers saves it",
    "lumina": "Hugging Face, as Lumina-mGPT saves it",
    "meta": "Meta's Chameleon",
    "ours": "lumina_jax (Orbax)",
}
UNFINISHED = ".unfinished"
"""Suffix of folders that are still being written to."""
MARK = "convert.unfinished"
"""On a store, the file in a folder that is still being written to."""
CHECKPOINT_FILES = (
    "model*.safetensors*",
    "pytorch_model*.bin*",
    "consolidated*.pth",
    "consolidate_params.json",
    "params.json",
    "config.json",
    SUMS,
)
"""The files of a PyTorch checkpoint, of any layout."""


def open_source(path: str | Place) -> Checkpoint:
    """The checkpoint at ``path``, of any layout. Raises MissingFileError saying what was looked for, StorageError, InputError."""
    folder = place(path)
    with read_errors(folder):
        if folder.is_file():
            folder = folder.parent
        if folder.name.endswith(UNFINISHED) or (is_url(folder) and (folder / MARK).is_file()):
            raise InputError(f"{folder} is what an interrupted conversion left; run it again, or delete the folder")
        if (folder / "config.json").is_file():
            return HuggingFaceSource(folder)
        if (folder / "params.json").is_file() or any(folder.glob("consolidated*.pth")):
            return MetaSource(folder)
        models = sorted(params.parent for params in folder.glob("models/*/params.json"))
        if len(models) > 1:
            raise InputError(f"{folder} holds several models; name one of {', '.join(map(str, models))}")
        if models:
            return MetaSource(models[0])
        try:
            newest(orbax_address(folder))
        except MissingFileError:
            raise MissingFileError(
                f"{folder} is no checkpoint: it holds neither config.json (Hugging Face), nor params.json or "
                "models/*/params.json (Meta), nor a finished checkpoint of run.py train or run.py convert import"
                f"{_models_near(folder)}"
            ) from None
        return OrbaxSource(folder)


def _models_near(folder: Place) -> str:
    """ "; did you mean NEIGHBOUR?" where what holds ``folder``, or a folder in it, looks like a model, else nothing."""
    if is_url(folder) or not folder.is_dir():
        return ""
    near = [path for path in (folder.parent, *sorted(folder.iterdir())) if _looks_like_model(path)]
    return f"; did you mean {' or '.join(map(str, near[:3]))}?" if near else ""


def _looks_like_model(folder: Place) -> bool:
    return any((folder / name).exists() for name in ("config.json", "params.json", "checkpoints"))


def convert(
    path: str | Place, destination: str | Place, target: Target, mesh: Mesh | None = None, show: bool = True
) -> list[str]:
    """Writes the checkpoint at ``path`` into the folder ``destination``, which must be absent or empty; returns notes for the user.

    All processes of ``mesh`` (default: all devices along fsdp) call this together. Only headers are read until names, shapes,
    dtypes, tokenizer files and free space have been checked; after an error there is no ``destination``. Raises UserErrors.
    """
    source, destination = open_source(path), place(destination)
    doubt = unverified(source.checkpoint) if isinstance(source, OrbaxSource) else ""
    if target.layout == "ours":
        orbax_address(destination)
    files = tokenizer_files.find(source.folder, experiment_of(source), target.tokenizer, target.vq)
    tokenizer_files.check(files, source.cfg)
    with read_errors(source.folder):
        check_files(source.folder, jax.process_index(), jax.process_count())
    found = image_layout_of(source, target.image_layout, target.target_size)
    pictures = target_size_of(source, target.target_size)
    if found.image_layout and (experiment_of(source) is None or target.layout == "meta"):
        target = replace(target, image_layout=found.image_layout.name)
    if found.is_chameleon:
        target = replace(target, target_size=None)
    elif pictures.source != EXPERIMENT or target.layout == "meta":  # whose files hold no experiment
        target = replace(target, target_size=pictures.size)
    has_encoder = any(row.path.startswith(VQ_PATH) for row in source.rows)
    if target.layout == "hf" and not has_encoder and files.vq and files.vq.suffix == ".ckpt":
        source = SourceWithEncoder(source, files.vq, read_config(files.vq.with_suffix(".yaml")))
        has_encoder = True
    with atomic_folder(destination) as folder:
        weights = folder
        if target.layout == "meta":  # the folders of Meta's release
            weights /= "models/7b" if (target.shards or source.cfg.qk_groups) == 1 else "models/30b"
            if isinstance(weights, Path):
                weights.mkdir(parents=True, exist_ok=True)
        write(source, files, weights, target, mesh, show)
        if jax.process_index() == 0:
            tokenizer_files.copy(files, folder, target.layout)
    lines = [found.line, "" if found.is_chameleon else pictures.line]
    notes = [*tokenizer_files.notes(files, destination), *filter(None, [*lines, doubt])]
    if pictures.source == UNKNOWN and target.layout == "ours" and not found.is_chameleon:
        notes.append(
            "its target size is unknown and not recorded; painting and showing pictures will need --target-size, or --image-layout "
            f"{CHAMELEON.name} for a model of Meta's Chameleon"
        )
    if target.layout == "hf" and not has_encoder:
        notes.append("no VQ encoder to write: transformers will say that it draws model.vqmodel.* at random")
    return notes


def write(
    source: Checkpoint,
    files: TokenizerFiles,
    folder: Place,
    target: Target,
    mesh: Mesh | None = None,
    show: bool = True,
) -> None:
    """Streams the weights of ``source`` into ``folder``, with the settings that the layout needs beside them."""
    dtypes = target_dtypes(source, target.dtype)
    read = _with_zeroed_head(source, files) if target.zero_image_head else source.read
    planned = plan(source, dtypes, target)
    total = sum(
        math.prod(source.sizes[row.path].values()) * dtypes[row.path].itemsize * len(layers_of(source, row))
        for row in source.rows
    )
    needed = total + sum(path.stat().st_size for path in (files.tokenizer, files.vq) if path)
    check_space(folder.parent, needed)
    process, processes = jax.process_index(), jax.process_count()
    display = dict(show=show and process == 0, unit="MB", unit_size=10**6)
    if target.layout == "ours":
        metadata = orbax_metadata(source, files, target)
        with ProgressDisplay("to Orbax", total, **display) as progress:
            write_orbax(folder, source, read, dtypes, mesh or make_mesh(MeshConfig()), metadata, progress)
        return
    if process == 0:
        write_settings(folder, source, files, planned, dtypes["head"], target)
    multihost_utils.sync_global_devices(f"settings written to {folder}")
    share = planned[process::processes]
    with ProgressDisplay(f"to {target.layout}", sum(file.nbytes for file in share), **display) as progress:
        sums = write_files(folder, share, source.cfg, read, progress)
    if target.layout == "meta" or target.binary:
        return
    with write_errors(folder):
        write_share(folder, sums, process)
    multihost_utils.sync_global_devices(f"checksums of {folder} written")
    if process == 0:
        with write_errors(folder):
            join_shares(folder, processes)


def plan(source: Checkpoint, dtypes: Mapping[str, np.dtype], target: Target) -> list[PlannedFile]:
    """The weight files of ``target``, with every tensor's name, shape and dtype (none for Orbax); reads nothing.

    Raises InputError for an unknown layout, and what :func:`plan_hugging_face` and :func:`plan_meta` raise.
    """
    if target.layout == "meta":
        return plan_meta(source, dtypes, target.shards)
    if target.layout in ("hf", "lumina"):
        return plan_hugging_face(source, dtypes, target.layout, target.shards, target.binary)
    if target.layout != "ours":
        raise InputError(f"layout {target.layout!r}; choose one of {', '.join(LAYOUTS)}")
    return []


def target_dtypes(source: Checkpoint, dtype: str = "") -> dict[str, np.dtype]:
    """row.path -> the dtype to write: ``dtype`` (a name of numbers.DTYPES) for the whole decoder, by default the one that it has.

    The VQ encoder keeps its dtype. Raises InputError for another name, and when ``dtype`` is empty and the decoder has several.
    """
    if not dtype and len(source.dtype_examples) > 1:
        examples = ", ".join(f"{name} ({weight})" for name, weight in source.dtype_examples.items())
        raise InputError(f"{source.folder} holds weights of several dtypes: {examples}; choose one with --dtype")
    chosen = np.dtype(jnp.dtype(dtype_name(dtype) if dtype else next(iter(source.dtype_examples))))
    return {row.path: source.dtypes[row.path] if row.path.startswith(VQ_PATH) else chosen for row in source.rows}


@contextmanager
def atomic_folder(destination: Place, replace: bool = False) -> Iterator[Place]:
    """A folder to write to, renamed to ``destination`` at the end, and removed after an error.

    With ``replace``, a ``destination`` that holds files keeps them, except a checkpoint's, which the new ones replace; without it,
    such a ``destination`` raises ExistingFileError before anything is written. What an interrupted run left is removed first.
    A store cannot rename: there the folder is ``destination`` itself, which must be new, and a file MARK in it says until the end
    that it is unfinished. Raises StorageError where folders cannot be made.
    """
    if not isinstance(destination, Path):
        with _marked_folder(destination):
            yield destination
        return
    unfinished = destination.absolute().with_name(destination.absolute().name + UNFINISHED)
    first = jax.process_index() == 0
    with write_errors(destination):
        occupied = destination.exists() and (not destination.is_dir() or any(destination.iterdir()))
        if occupied and not (replace and destination.is_dir()):
            raise ExistingFileError(f"{destination} exists already; give another folder or delete it")
        if first:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
    multihost_utils.sync_global_devices(f"{unfinished} created")
    try:
        yield unfinished
        multihost_utils.sync_global_devices(f"{unfinished} filled")
        with write_errors(destination):
            if first and occupied:
                _move_into(unfinished, destination)
            elif first:
                os.replace(unfinished, destination)
    except BaseException:
        _remove(unfinished)
        raise
    multihost_utils.sync_global_devices(f"{destination} in place")


@contextmanager
def _marked_folder(destination: UPath) -> Iterator[None]:
    """:func:`atomic_folder` on a store."""
    first, mark = jax.process_index() == 0, destination / MARK
    with write_errors(destination):
        if first and mark.is_file():
            destination.fs.rm(destination.path, recursive=True)
        occupied = first and destination.is_dir() and any(destination.iterdir())
        if reason := first_text(f"{destination} exists already; give another folder or delete it" if occupied else ""):
            raise ExistingFileError(reason)
        if first:
            mark.write_text("this folder is being written, or its writing was interrupted\n")
    multihost_utils.sync_global_devices(f"{destination} created")
    try:
        yield
        multihost_utils.sync_global_devices(f"{destination} filled")
    except BaseException:
        with suppress(*store_errors()):
            destination.fs.rm(destination.path, recursive=True)
        raise
    with write_errors(destination):
        if first:
            mark.unlink()
    multihost_utils.sync_global_devices(f"{destination} in place")


def _remove(folder: Path) -> None:
    """Removes ``folder``, repeatedly if need be: threads of a library may write into it for a moment after its error."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def _move_into(folder: Path, destination: Path) -> None:
    for pattern in CHECKPOINT_FILES:
        for old in destination.glob(pattern):
            old.unlink()
    for file in folder.iterdir():
        os.replace(file, destination / file.name)
    folder.rmdir()


def _with_zeroed_head(source: Checkpoint, files: TokenizerFiles) -> Read:
    """``source.read`` with the image tokens' rows of the output head set to zero."""
    if not (vocab := files.vocab()):
        raise InputError("--zero-image-head needs the tokenizer, which names the image tokens; give --tokenizer PATH")
    tokens = vocab.code_ids

    def read(row: WeightRow, layer: int, index: Index) -> np.ndarray:
        array = source.read(row, layer, index)
        if row.path == "head":
            start, stop, _ = index.get("V", slice(None)).indices(source.cfg.vocab)
            array = array.copy()
            array[:, tokens[(tokens >= start) & (tokens < stop)] - start] = 0
        return array

    return read

"""Checks that all processes of a run do the same: one with older code or another folder would spoil the run silently."""

import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Mapping
from pathlib import Path

import jax

from lumina_jax.cluster.agreement import text_from_first
from lumina_jax.cluster.processes import Group
from lumina_jax.config import Experiment, to_dict
from lumina_jax.places import Place, is_url
from lumina_jax.storage import storage_errors

MARKER = ".shared-"
"""How the names of the files begin that process 0 writes to see whether all hosts share a folder."""
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")
COMPILER_VARIABLES = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")
"""Environment variables that change what is compiled."""
HOST_FIELDS = (
    "data.path",
    "data.cache",
    "data.tokenizer",
    "vq.path",
    "watch.held_out",
    "watch.prompts",
    "compile_cache",
)
"""Config fields that may differ between hosts: paths of files that are compared by content, or that change no result."""


def check_consistency(cfg: Experiment, group: Group, values: Mapping[str, object]) -> None:
    """Ends the run when processes differ in ``values`` or :func:`run_values`, naming process, field and both values.

    Then checks that ``cfg.out`` is one folder for all of them, which a URL is by itself.
    """
    group.barrier("comparing the processes", cfg.pod.join_timeout, run_values(cfg) | _flatten(values))
    if not is_url(cfg.out):
        check_shared_folder(Path(cfg.out), group, cfg.pod.join_timeout)


def run_values(cfg: Experiment) -> dict[str, str]:
    """Code, packages, compiler variables and config fields, but for :data:`HOST_FIELDS`, by name."""
    values = {"the code of lumina_jax": _code_hash(), "python": ".".join(platform.python_version_tuple()[:2])}
    values |= {package: _version(package) for package in PACKAGES}
    values |= {variable: os.environ.get(variable, "") for variable in COMPILER_VARIABLES}
    return values | {name: value for name, value in _flatten(to_dict(cfg)).items() if name not in HOST_FIELDS}


def check_shared_folder(folder: Place, group: Group, timeout: float) -> None:
    """Ends the run when a process does not see the ``folder`` of process 0: all write their shards of a checkpoint there.

    Raises StorageError when process 0 cannot write to ``folder``.
    """
    marker = folder / text_from_first(lambda: _new_marker(folder))
    # By its name: no host but the first lists the folder.
    there = marker.name if marker.exists() else "without that file"
    group.barrier(f"looking into {folder}", timeout, {f"out={folder}, which all hosts must share,": there})
    if jax.process_index() == 0:
        _remove_markers(folder)


def _new_marker(folder: Place) -> str:
    """The name of a new file in ``folder``, which is made."""
    with storage_errors(f"out={folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_markers(folder)
        # A new name each time: a mounted bucket may serve an old listing, or old content, of a known name for a while.
        name = f"{MARKER}{secrets.token_hex(4)}"
        (folder / name).touch()
    return name


def _remove_markers(folder: Place) -> None:
    for path in folder.glob(f"{MARKER}*"):
        path.unlink()


def _code_hash() -> str:
    """12 hex digits of all Python files of lumina_jax."""
    root = Path(__file__).parents[1]
    files = (f"{path.relative_to(root)}\0".encode() + path.read_bytes() for path in sorted(root.rglob("*.py")))
    return hashlib.sha256(b"\0".join(files)).hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested values -> {dotted name: value as JSON}."""
    flat = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= _flatten(value, f"{prefix}{name}.") if nested else {prefix + name: json.dumps(value)}
    return flat

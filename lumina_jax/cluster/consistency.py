"""That all processes of a run do the same: one with older code, or another folder, would spoil it without a word."""

import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Mapping
from pathlib import Path

import jax

from lumina_jax.cluster.processes import Group
from lumina_jax.config import Experiment, to_dict

MARK = ".shared-"
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")
SETTINGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")
"""Environment variables that change what is compiled."""
OWN = ("data.path", "data.tokenizer", "vq.path", "compile_cache")
"""Fields that may differ between hosts: paths to what is compared by its content, or changes no result."""


def agree(cfg: Experiment, group: Group, facts: Mapping[str, object]) -> None:
    """Ends the run, naming process, field and both values, when processes differ in ``facts`` or in what a run depends on."""
    group.meet("comparing the processes", cfg.pod.wait, facts_of(cfg) | _facts(facts))
    check_shared(Path(cfg.out), group, cfg.pod.wait)


def facts_of(cfg: Experiment) -> dict[str, str]:
    """The code, the packages, the settings of the compiler and the config without :data:`OWN`, by name."""
    found = {"the code of lumina_jax": _code(), "python": ".".join(platform.python_version_tuple()[:2])}
    found |= {name: _version(name) for name in PACKAGES}
    found |= {name: os.environ.get(name, "") for name in SETTINGS}
    return found | {name: value for name, value in _facts(to_dict(cfg)).items() if name not in OWN}


def check_shared(folder: Path, group: Group, limit: float) -> None:
    """Ends the run when a process does not see the ``folder`` of process 0: all write their parts of a checkpoint into one."""
    first = jax.process_index() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_marks(folder)
        # A new name each time: mounted buckets remember for a while what a file held.
        (folder / f"{MARK}{secrets.token_hex(4)}").touch()
    group.meet(f"writing to {folder}", limit)
    seen = " ".join(sorted(path.name for path in folder.glob(f"{MARK}*"))) or "empty"
    group.meet(f"looking into {folder}", limit, {f"out={folder}, which all hosts must share,": seen})
    if first:
        _remove_marks(folder)


def _remove_marks(folder: Path) -> None:
    for path in folder.glob(f"{MARK}*"):
        path.unlink()


def _code() -> str:
    home = Path(__file__).parents[1]
    parts = (f"{file.relative_to(home)}\0".encode() + file.read_bytes() for file in sorted(home.rglob("*.py")))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _facts(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested values -> {dotted name: value as JSON}."""
    flat = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= _facts(value, f"{prefix}{name}.") if nested else {prefix + name: json.dumps(value)}
    return flat

"""The folder of a run's checkpoints, on a disk or in a store: their names, who wrote them, and how one is set aside."""

import socket
import sys
from collections.abc import Mapping
from functools import cache
from itertools import chain, count
from pathlib import Path

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from lumina_jax.cluster.agreement import first_text, from_first
from lumina_jax.config import Experiment, from_dict
from lumina_jax.errors import InputError
from lumina_jax.train.integrity import UNFINISHED, is_complete

FOLDER = "checkpoints"
EXPERIMENT = "experiment"
"""Key in a checkpoint's metadata of the experiment that wrote it."""


def folder_at(path: epath.PathLike) -> epath.Path:
    """The folder at a path or URL, to be read and written in the same way."""
    return epath.Path(str(path)) if "://" in str(path) else Path(path).absolute()


def step_folders(folder: epath.Path) -> list[epath.Path]:
    """The folders in ``folder`` whose name is a step, newest first; none where there is no folder."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if path.name.isdigit()), key=lambda path: int(path.name), reverse=True)


def read_experiment(checkpoint: epath.Path) -> Experiment:
    """The experiment that wrote ``checkpoint``. Raises InputError when its metadata has none."""
    metadata = ocp.checkpointables_metadata(checkpoint).custom_metadata or {}
    if EXPERIMENT not in metadata:
        raise InputError(f"{checkpoint} does not say which experiment wrote it; it is not a checkpoint of run.py")
    return from_dict(Experiment, metadata[EXPERIMENT])


def steps_to_try(folder: epath.Path, point: str) -> list[int]:
    """The steps of the checkpoints in ``folder`` that a run may go on from by ``resume.point``, the first choice first.

    For the number of a step that are those that the run saved since it went back there, then that step. Raises InputError when it
    is not there.
    """
    steps = [int(path.name) for path in step_folders(folder)]
    if not point.isdigit():
        return steps
    if int(point) not in steps:
        there = f"{folder} holds {', '.join(map(str, steps)) or 'none'}"
        raise InputError(
            f"resume={point}: there is no checkpoint of that step; {there}; choose one of them, or 'newest'"
        )
    return [
        step for step in steps if step == int(point) or (step > int(point) and _is_since(folder / str(step), point))
    ]


def agreed_steps(folder: epath.Path, point: str) -> list[int]:
    """What :func:`steps_to_try` gives process 0, in all processes: the same list, or the same InputError."""
    steps, refusal = [], ""
    if jax.process_index() == 0:
        try:
            steps = steps_to_try(folder, point)
        except InputError as error:
            refusal = str(error)
    if refusal := first_text(refusal):
        raise InputError(refusal)
    return from_first(steps)


def unseen(checkpoint: epath.Path) -> str:
    """That this process does not see a whole ``checkpoint`` that process 0 sees, in words; empty where it does."""
    if is_complete(checkpoint):
        return ""
    where = f"process {jax.process_index()} on {socket.gethostname()}"
    return f"{where} does not see {checkpoint}, which process 0 sees: mount out without caches of listings, start again"


def _is_since(checkpoint: epath.Path, point: str) -> bool:
    """Whether ``checkpoint`` was saved by a run that went back to ``point``."""
    try:
        saved = read_experiment(checkpoint).resume.point
    except Exception:  # damaged metadata makes Orbax raise errors of any kind; then it is set aside with the others
        return False
    return saved.isdigit() and int(saved) == int(point)


def set_aside(checkpoints: Mapping[epath.Path, str], suffix: str, outcome: str) -> None:
    """Renames ``checkpoints`` {folder: why} to STEP.``suffix``, so that their numbers can be written again, and says so."""
    for path, reason in checkpoints.items():
        aside = path.rename(_free_name(path, "unfinished" if reason == UNFINISHED else suffix))
        warn(f"{path} {reason and f'is not whole: {reason}; it '}is now {aside.name}, and {outcome}")


def _free_name(path: epath.Path, suffix: str) -> epath.Path:
    """``path`` with ``suffix``, and a number where that exists."""
    names = (path.with_name(f"{path.name}.{suffix}{number}") for number in chain([""], count(2)))
    return next(name for name in names if not name.exists())


def none_whole(folder: epath.Path, passed_over: Mapping[epath.Path, str]) -> InputError:
    """The error that no checkpoint in ``folder`` is whole."""
    reasons = "; ".join(f"{path}: {reason}" for path, reason in passed_over.items())
    cure = "copy one again from where it is whole, or delete the folder to start again"
    return InputError(f"{folder} holds no whole checkpoint, all are damaged: {reasons}; {cure}")


@cache
def warn(line: str) -> None:
    """Says ``line`` on stderr, once."""
    print(line, file=sys.stderr)

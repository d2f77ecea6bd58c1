"""What changed in a run between its first step and now: other settings, and batches left out.

Each checkpoint carries the history of its run, so a run that goes on from an older checkpoint has the history of that one.
"""

import getpass
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from lumina_jax.config import DataConfig, from_dict, to_dict

DATA = "data."
Folders = tuple[str, ...]
"""The fingerprints of the folders of data.path, in order."""


@dataclass(frozen=True)
class Change:
    """What is otherwise from the step behind ``step`` on.

    ``before`` and ``after`` are the values of the changed fields by dotted name, ``folders`` the token folders before the change
    (empty: unchanged). ``skipped`` batches are not trained on. ``why`` tells the reason; ``who`` is USER@HOST and ``when`` the time
    in UTC.
    """

    step: int
    why: str
    before: dict[str, object]
    after: dict[str, object]
    folders: Folders = ()
    skipped: int = 0
    who: str = ""
    when: str = ""


History = tuple[Change, ...]


class DataStage(NamedTuple):
    """The settings ``cfg`` of the batches from number ``first`` on, and the fingerprints of its folders (empty: unknown)."""

    first: int
    cfg: DataConfig
    folders: Folders


class BatchSpan(NamedTuple):
    """The batches ``start`` to ``stop``, ``stop`` excluded, of a run whose data had the settings of ``stages``, oldest first."""

    start: int
    stop: int
    stages: tuple[DataStage, ...]


def changed_now(step: int, why: str, **fields) -> Change:
    """A :class:`Change` by this user on this machine."""
    values = {"before": {}, "after": {}, **fields}
    return Change(step, why, who=signature(), when=utc_now(), **values)


def signature() -> str:
    """USER@HOST of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def utc_now() -> str:
    """The time, to the second, as 2026-11-30T18:59:01Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def batch_number(step: int, history: History) -> int:
    """The number of the batch that the step behind ``step`` trains on: the batches skipped until there are counted too."""
    return step + sum(change.skipped for change in history if change.step <= step)


def batch_span(step: int, last: int, cfg: DataConfig, folders: Folders, history: History) -> BatchSpan:
    """The batches of the steps behind ``step`` to ``last``, for a run that now has ``cfg`` and ``folders``."""
    start = batch_number(step, history)
    return BatchSpan(start, start + last - step, data_stages(cfg, folders, history))


def data_stages(cfg: DataConfig, folders: Folders, history: History) -> tuple[DataStage, ...]:
    """The settings of data that a run had, oldest first, the last of them ``cfg``."""
    stages = []
    for index in range(len(history) - 1, -1, -1):
        change = history[index]
        before = {name.removeprefix(DATA): value for name, value in change.before.items() if name.startswith(DATA)}
        if not before and not change.folders:
            continue
        first = change.step + sum(other.skipped for other in history[: index + 1])
        stages.append(DataStage(first, cfg, folders))
        cfg = from_dict(DataConfig, {**to_dict(cfg), **before})
        folders = change.folders or folders
    return (DataStage(0, cfg, folders), *reversed(stages))


def to_json(history: Sequence[Change]) -> list[dict]:
    """As plain JSON values."""
    return [asdict(change) for change in history]


def from_json(values: Sequence[Mapping]) -> History:
    """The inverse of :func:`to_json`."""
    return tuple(replace(Change(**value), folders=tuple(value.get("folders", ()))) for value in values)

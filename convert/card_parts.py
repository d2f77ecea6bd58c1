"""The parts of a model's page that are tables: how it was trained, and what it scores."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import fields

from convert.errors import read_errors
from convert.metadata import experiment_of
from convert.settings import read_json
from convert.sources import Checkpoint
from lumina_jax.errors import InputError
from lumina_jax.places import Place, place
from lumina_jax.train.metrics import FILE as METRICS

SCORES = "scores.json"
"""The file beside the page that has all numbers."""
ROWS = 60
"""The most numbers in the table of scores."""
TRAINING = ("optim", "data")
"""The groups of an experiment's fields that a page shows."""
NOT_TOLD = ("path", "tokenizer", "cache", "threads", "fetchers", "verify_mb", "max_consecutive_rejects", "weights")
"""Fields of DataConfig that speak of a machine and not of a model."""


def training(source: Checkpoint) -> Iterator[str]:
    """How the run trained that wrote a checkpoint, and the last numbers of its metrics; nothing for weights from elsewhere."""
    if (experiment := experiment_of(source)) is None:
        return
    yield "## Training"
    rows = [("experiment", experiment.name), ("seed", experiment.seed), ("dropout", experiment.model.dropout)]
    for group in TRAINING:
        values = getattr(experiment, group)
        rows += [
            (f"{group}.{f.name}", _word(getattr(values, f.name))) for f in fields(values) if f.name not in NOT_TOLD
        ]
    yield table(("setting", "value"), rows)
    if last := _last_metrics(source.folder):
        words = ", ".join(f"{name} {_number(value)}" for name, value in last.items() if name != "step")
        yield f"After {last.get('step', experiment.optim.steps):,} steps: {words}."


def _last_metrics(folder: Place) -> dict[str, int | float]:
    """The numbers of the last line of a run's metrics.jsonl; none where it is not beside the checkpoint."""
    file = folder / METRICS
    with read_errors(file):
        if not file.is_file():
            return {}
        lines = file.read_text(encoding="utf-8").splitlines()
    try:
        last = dict(json.loads(lines[-1])) if lines else {}
    except (ValueError, TypeError) as error:
        raise InputError(f"{file}: its last line is damaged ({error}); remove that line") from None
    return {name: value for name, value in last.items() if isinstance(value, int | float)}


def read_scores(path: str) -> dict[str, float]:
    """The numbers of a JSON file of run.py evaluate as {"held_out / loss": number}. Raises InputError where it holds none."""
    if not path:
        return {}
    found: dict[str, float] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name} / {key}" if name else str(key))
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[name] = value

    walk(read_json(place(path)), "")
    if not found:
        raise InputError(f"--scores {path} holds no numbers; give the JSON that run.py evaluate prints or writes")
    return found


def score_table(scores: dict[str, float]) -> Iterator[str]:
    """The first ROWS of the numbers of :func:`read_scores`."""
    if scores:
        yield "## Scores"
        yield table(("measured", "value"), [(name, _number(value)) for name, value in [*scores.items()][:ROWS]])
        yield f"By `run.py evaluate` of lumina_jax; all of them are in [{SCORES}]({SCORES})."


def table(head: tuple[str, str], rows: Iterable[tuple[str, object]]) -> str:
    """A table of two columns in Markdown."""
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return _number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"

"""What a run's metrics.jsonl keeps of what was there."""

import json

import numpy as np
import pytest

from lumina_jax.cluster.pace import Pace
from lumina_jax.config import Experiment
from lumina_jax.train.metrics import FILE, PROCESS_CURVES, MetricsLog, read_metrics
from lumina_jax.train.step import Metrics

LINES = [{"step": step, "loss": 1.0} for step in (1, 2, 3)]


@pytest.fixture
def run(tmp_path):
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return Experiment(name="run", out=str(tmp_path))


def opened(run: Experiment, start: int) -> None:
    MetricsLog(run, start, show=False).close()


def test_a_resumed_run_drops_what_came_after_its_checkpoint(run, tmp_path):
    opened(run, start=2)
    assert read_metrics(tmp_path) == LINES[:2]
    assert [path.name for path in tmp_path.glob("metrics*")] == [FILE]


def test_metrics_without_a_checkpoint_are_kept_under_another_name(run, tmp_path):
    opened(run, start=0)
    assert read_metrics(tmp_path) == []
    assert [json.loads(line) for line in (tmp_path / "metrics-1.jsonl").read_text().splitlines()] == LINES


def test_metrics_kept_before_are_not_overwritten(run, tmp_path):
    for _ in range(2):
        opened(run, start=0)
        (tmp_path / FILE).write_text(json.dumps(LINES[0]) + "\n")
    opened(run, start=0)
    kept = [len((tmp_path / f"metrics-{number}.jsonl").read_text().splitlines()) for number in (1, 2, 3)]
    assert kept == [3, 1, 1]
    assert not (tmp_path / "metrics-4.jsonl").exists()


def test_tensorboard_shows_what_each_process_works_by_itself(tmp_path):
    paces = {
        f"process {number} on host{number % 3}": Pace(1.0, 0.1, 0.2 + number) for number in range(PROCESS_CURVES + 2)
    }
    log = MetricsLog(Experiment(name="run", out=str(tmp_path)), 0, show=False, paces=lambda: paces)
    log.write(10, Metrics(*np.ones(6, np.float32)))
    log.flush()
    log.close()
    events = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
    assert b"processes/own_seconds/process_2_on_host2" in events and b"processes/reading_seconds_most" in events
    assert f"own_seconds/process_{PROCESS_CURVES - 1}_".encode() in events
    assert f"own_seconds/process_{PROCESS_CURVES}_".encode() not in events
    assert b"processes" not in (tmp_path / FILE).read_bytes()

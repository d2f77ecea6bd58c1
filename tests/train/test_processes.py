"""Several processes, as the hosts of a pod, train what one does, and end together, whatever ends one of them."""

import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from train_parts import batches, experiment, worker

from lumina_jax.cluster.membership import MEND, RETRY
from lumina_jax.config import override
from lumina_jax.train.checkpoint import newest
from lumina_jax.train.loop import train
from lumina_jax.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("compiled")
ACCUMULATE = ["optim.accumulate=2"]


def free_port() -> int:
    """A port that is free, like the one after it."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(("localhost", 0))
            port = one.getsockname()[1]
            with suppress(OSError):
                next_one.bind(("localhost", port + 1))
                return port


def together(compiled, mesh: tuple[int, int, int], own: list[dict], **shared) -> tuple[list[int], list[str]]:
    """Exit codes of the processes of one run, and the lines of all that name the run; ``own`` is what differs between them."""
    shared = {"devices": 1, "processes": len(own), "port": free_port(), "changes": ACCUMULATE, **shared}
    running = [
        worker(compiled, subprocess.PIPE, mesh=mesh, **{"rank": rank, **shared, **arguments})
        for rank, arguments in enumerate(own)
    ]
    try:
        errors = [process.communicate(timeout=150)[1] for process in running]
        return [process.returncode for process in running], [
            line for text in errors for line in text.splitlines() if line.startswith("process ")
        ]
    finally:
        for process in running:
            process.kill()


@pytest.fixture(scope="module")
def alone(compiled, tmp_path_factory) -> list[dict[str, float]]:
    """The metrics of a run of one process that nothing stopped, with accumulation."""
    cfg = override(replace(experiment(), out=str(tmp_path_factory.mktemp("alone"))), ACCUMULATE)
    train(cfg, batches(cfg), show=False)
    return read_metrics(cfg.out)


def assert_measured(alone, out: Path) -> None:
    """Every step measured the same, to float32 rounding."""
    for ours, theirs in zip(read_metrics(out), alone, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)


def test_processes_train_as_one(alone, compiled, tmp_path):
    """Two processes until one of them gets SIGTERM, then four, with replicas, to the end."""
    out = dict(out=str(tmp_path))
    assert together(compiled, (1, 2, 1), [{}, {"term_at": 3}], **out) == ([143, 143], [])
    stopped = int(newest(tmp_path).name)
    assert stopped == 5 and len(read_metrics(tmp_path)) == 5
    assert together(compiled, (2, 2, 1), [{}] * 4, **out) == ([0] * 4, [])
    assert_measured(alone, tmp_path)


def test_when_one_is_killed_all_end_and_the_run_goes_on(alone, compiled, tmp_path):
    """Kill -9 first of a process, then of the one that keeps the roll; the axis tensor inside a process, then across them."""
    out = dict(out=str(tmp_path), devices=2)
    codes, lines = together(compiled, (1, 2, 2), [{}, {"kill_at": 5}], **out)
    assert codes == [RETRY, -signal.SIGKILL]
    assert len(lines) == 1 and "process 0 of 2: the run ends: process 1 on " in lines[0] and "died" in lines[0]
    assert newest(tmp_path).name in ("2", "4")  # a save that is under way does not count
    codes, lines = together(compiled, (1, 2, 2), [{"kill_at": 6}, {}], **out)
    assert codes[0] == -signal.SIGKILL and codes[1] != 0
    assert len(lines) == 1 and "process 1 of 2: the run ends: process 0 at localhost" in lines[0]
    assert together(compiled, (1, 1, 4), [{}, {}], **out) == ([0, 0], [])
    assert_measured(alone, tmp_path)


def test_one_that_never_comes_is_named(compiled, tmp_path):
    codes, lines = together(compiled, (1, 2, 1), [{"processes": 2}], out=str(tmp_path), changes=["pod.wait=1"])
    assert codes == [RETRY]
    (line,) = lines
    assert line.startswith("process 0 of 2: the run ends: joining: waited 1 s for process 1, which never came")


def test_an_error_in_one_ends_all_and_is_told_by_all(compiled, tmp_path):
    codes, lines = together(compiled, (1, 2, 1), [{}, {"fail_at": 3}], out=str(tmp_path))
    assert codes[0] == MEND and codes[1] != 0
    assert lines and all("ended with ValueError: a batch that cannot be read" in line for line in lines)

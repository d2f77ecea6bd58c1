"""Several processes, as the hosts of a pod, train what one does; each reads its own rows and all write one checkpoint."""

import socket
from dataclasses import replace

import pytest
from train_parts import batches, experiment, worker

from lumina_jax.train.checkpoint import newest
from lumina_jax.train.loop import train
from lumina_jax.train.metrics import read

pytestmark = pytest.mark.usefixtures("compiled")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def together(compiled, out, mesh: tuple[int, int, int], own: list[dict]) -> list[int]:
    """Exit codes of the processes of one run on one device each; ``own`` are the arguments of each alone."""
    shared = dict(out=str(out), mesh=mesh, devices=1, processes=len(own), port=free_port())
    running = [worker(compiled, rank=rank, **shared, **arguments) for rank, arguments in enumerate(own)]
    try:
        return [process.wait(timeout=150) for process in running]
    finally:
        for process in running:
            process.kill()


def test_processes_train_as_one(compiled, tmp_path):
    """Two processes until one of them gets SIGTERM, then four to the end, measure at every step what one process does."""
    cfg = replace(experiment(), out=str(tmp_path / "one"))
    train(cfg, batches(cfg), show=False)
    assert together(compiled, tmp_path / "many", (1, 2, 1), [{}, {"term_at": 3}]) == [143, 143]
    stopped = int(newest(tmp_path / "many").name)
    assert stopped == 5 and len(read(tmp_path / "many")) == 5
    assert together(compiled, tmp_path / "many", (2, 2, 1), [{}] * 4) == [0] * 4
    for ours, theirs in zip(read(tmp_path / "many"), read(cfg.out), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)

"""One process of a training run, started by the tests: python train_worker.py '{"out": FOLDER, "mesh": [1, 1, 2], ...}'."""

import functools
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

sys.modules["torch"] = None  # tensorboardX would import it where it is installed, for nothing

import jax  # noqa: E402

from lumina_jax.config import override  # noqa: E402


def main(
    out: str,
    mesh: list[int],
    devices: int,
    rank: int = 0,
    processes: int = 1,
    port: int = 0,
    kill_at: int = -1,
    term_at: int = -1,
    fail_at: int = -1,
    changes: Sequence[str] = (),
) -> None:
    """Trains the tiny experiment on ``devices`` fake devices; after ``kill_at``, ``term_at`` or ``fail_at`` batches sends itself
    SIGKILL or SIGTERM, or raises."""
    from train_parts import batches, experiment

    from lumina_jax.cluster.consistency import check_consistency
    from lumina_jax.cluster.processes import SingleProcess, join
    from lumina_jax.sharding import data_share, make_mesh
    from lumina_jax.train.loop import train

    jax.config.update("jax_num_cpu_devices", devices)
    cfg = override(replace(experiment(tuple(mesh)), out=out), changes)
    signals = {kill_at: signal.SIGKILL, term_at: signal.SIGTERM}
    actions = {step: functools.partial(os.kill, os.getpid(), number) for step, number in signals.items()}
    actions[fail_at] = fail
    address = (f"localhost:{port}", processes, rank)
    with join(cfg.pod, *address) if processes > 1 else nullcontext(SingleProcess()) as group:
        check_consistency(cfg, group, {})
        host, hosts = data_share(make_mesh(cfg.mesh), rank)
        train(cfg, batches(cfg, host, hosts, actions), show=False, group=group)


def fail() -> None:
    raise ValueError("a batch that cannot be read")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

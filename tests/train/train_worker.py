"""One process of a training run, started by the tests: python train_worker.py '{"out": FOLDER, "mesh": [1, 1, 2], ...}'."""

import functools
import json
import os
import signal
import sys
from dataclasses import replace

sys.modules["torch"] = None  # tensorboardX would import it where it is installed, for nothing

import jax  # noqa: E402


def main(
    out: str,
    mesh: list[int],
    devices: int,
    rank: int = 0,
    processes: int = 1,
    port: int = 0,
    kill_at: int = -1,
    term_at: int = -1,
) -> None:
    """Trains the tiny experiment on ``devices`` of its own; sends itself SIGKILL or SIGTERM after so many batches."""
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", num_processes=processes, process_id=rank)
    from train_parts import batches, experiment

    from lumina_jax.train.loop import train

    cfg = replace(experiment(tuple(mesh)), out=out)
    signals = {kill_at: signal.SIGKILL, term_at: signal.SIGTERM}
    at = {step: functools.partial(os.kill, os.getpid(), number) for step, number in signals.items()}
    train(cfg, batches(cfg, rank, processes, at), show=False)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

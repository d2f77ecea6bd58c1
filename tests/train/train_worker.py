"""One process of a training run, started by the tests: python train_worker.py '{"out": FOLDER, "mesh": [1, 1, 2], ...}'."""

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

sys.modules["torch"] = None  # tensorboardX would import it where it is installed, for nothing

import jax  # noqa: E402

from lumina_jax.cli.ending import tell_error  # noqa: E402
from lumina_jax.config import override  # noqa: E402
from lumina_jax.errors import UserError  # noqa: E402


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
    wait_at: int = -1,
    wait_for: str = "",
    other_port: int = 0,
    changes: Sequence[str] = (),
    bad: Mapping[str, float] | None = None,
    unseen: str = "",
) -> None:
    """Trains the tiny experiment on ``devices`` fake devices; after ``kill_at``, ``term_at`` or ``fail_at`` batches sends itself
    SIGKILL or SIGTERM, or raises; after ``wait_at`` waits for the file ``wait_for``. ``other_port`` is that of a second slice.
    ``bad`` are the factors of gradient norms by the number of their batch; the checkpoint of the step ``unseen`` is in no listing
    that this process gets."""
    from train_parts import batches, experiment, spoiled

    from lumina_jax.cluster.consistency import check_consistency
    from lumina_jax.cluster.joining import join
    from lumina_jax.cluster.processes import SingleProcess
    from lumina_jax.cluster.slices import on_slices, slice_counts
    from lumina_jax.sharding import data_share, make_mesh
    from lumina_jax.train import loop, run_folder

    jax.config.update("jax_num_cpu_devices", devices)
    cfg = override(replace(experiment(tuple(mesh)), out=out), changes)
    signals = {kill_at: signal.SIGKILL, term_at: signal.SIGTERM}
    actions = {step: functools.partial(os.kill, os.getpid(), number) for step, number in signals.items()}
    actions |= {fail_at: fail, wait_at: functools.partial(wait, Path(wait_for))}
    address = (f"localhost:{port}" + f",localhost:{other_port}" * bool(other_port), processes, rank)
    joined = join(cfg.pod, *address, cfg.name, slice_counts(cfg)) if processes > 1 else nullcontext(SingleProcess())
    with joined as group:
        cfg = on_slices(cfg, group.present or cfg.pod.slices)
        check_consistency(cfg, group, {})
        host, hosts = data_share(make_mesh(cfg.mesh), jax.process_index())
        loop.make_step = spoiled(loop.make_step, {int(number): bad[number] for number in bad or {}}, host, hosts)
        whole = run_folder.is_complete
        run_folder.is_complete = lambda folder: folder.name != unseen and whole(folder)
        loop.train(cfg, batches(cfg, host, hosts, actions), show=False, group=group)


def wait(file: Path) -> None:
    while not file.exists():
        time.sleep(0.05)


def fail() -> None:
    raise ValueError("a batch that cannot be read")


if __name__ == "__main__":
    try:
        main(**json.loads(sys.argv[1]))
    except UserError as error:
        os._exit(tell_error("run.py train", error))

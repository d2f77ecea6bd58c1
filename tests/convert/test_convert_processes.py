"""Several processes, like the hosts of a pod, write the files that one process writes, and each reads its own part only."""

import json
import os
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from checkpoints import Sizes, differences, torch_tensors, write_meta  # noqa: E402

from convert.convert import Target, convert, open_source  # noqa: E402

HERE = Path(__file__).resolve().parent
SHARDS = 4


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def run_workers(processes: int, **arguments) -> list[int]:
    """Runs convert_worker.py as several processes; returns their exit codes."""
    shared = dict(processes=processes, port=free_port(), **arguments)
    settings = {"PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(HERE / "convert_worker.py")]
    running = [
        subprocess.Popen([*command, json.dumps({"rank": rank, **shared})], env={**os.environ, **settings})
        for rank in range(processes)
    ]
    try:
        return [process.wait(timeout=150) for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.mark.parametrize(("processes", "devices", "mesh"), [(2, 2, (1, 2, 2)), (4, 1, (1, 4, 1))])
def test_processes_convert_as_one(processes, devices, mesh, tmp_path):
    meta = write_meta(tmp_path / "meta", Sizes(width=128, layers=3, mlp=352))
    convert(meta, tmp_path / "start", Target("lumina"), show=False)
    convert(tmp_path / "start", tmp_path / "alone", Target("lumina", SHARDS), show=False)
    names = ("start", "orbax", "again", "back")
    folders = [str(tmp_path / name) for name in names]
    layouts = [("ours", None), ("ours", None), ("lumina", SHARDS)]
    steps = [(*pair, *layout) for pair, layout in zip(pairwise(folders), layouts, strict=True)]
    codes = run_workers(processes, steps=steps, mesh=mesh, devices=devices, counts=str(tmp_path))
    assert codes == [0] * processes

    assert not differences(torch_tensors(tmp_path / "alone"), torch_tensors(tmp_path / "back"))
    assert {f.name for f in (tmp_path / "alone").iterdir()} == {f.name for f in (tmp_path / "back").iterdir()}
    assert not open_source(tmp_path / "again").training_state
    total = sum(tensor.nbytes for tensor in torch_tensors(tmp_path / "start").values())
    counts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    for step, bytes_read in enumerate(zip(*counts, strict=True)):
        # Every device holds the norms, and every file complete weights.
        assert total <= sum(bytes_read) <= 1.05 * total, step
        assert max(bytes_read) <= 1.5 * total / processes, step


def test_the_command_line_joins_processes(tmp_path):
    start, target = write_meta(tmp_path / "meta", Sizes()), tmp_path / "ours"
    repository = HERE.parents[1]
    command = [sys.executable, "run.py", "convert", "import", str(start), str(target), "--distributed"]
    options = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process"]
    shared = dict(cwd=repository, env={**os.environ, "JAX_PLATFORMS": "cpu"}, text=True, stdout=subprocess.PIPE)
    running = [subprocess.Popen([*command, *options, str(rank)], **shared) for rank in range(2)]
    try:
        output = [process.communicate(timeout=150)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0]
    assert str(target) in output[0] and str(target) not in output[1]
    verified = subprocess.run([sys.executable, "run.py", "convert", "verify", start, target], **shared)
    assert verified.returncode == 0, verified.stdout

"""Whole programs: hosts whose files differ, a second run on the folder of the first, and conversions that are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_processes import free_port

import run
from lumina_jax.faults import EXIT_ERROR

REPO = Path(__file__).resolve().parents[2]
CONFIG = "configs/toy_stage1.py"
SMALL = ["optim.steps=1000000", "model.layers=1", "mesh.unroll=1", "data.buckets=50", "data.batch=8"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with tokens, their tokenizer and image tokenizer."""
    folder, before = tmp_path_factory.mktemp("root"), os.getcwd()
    os.chdir(REPO)
    try:
        assert run.main(["pretokenize", CONFIG, "--source", "toy:16", "--fit", *paths(folder)]) == 0
    finally:
        os.chdir(before)
    return folder


def paths(folder: Path) -> list[str]:
    names = {"data.path": "tokens", "data.tokenizer": "tokenizer", "vq.path": "vq.npz"}
    return [f"{field}={folder}/{name}" for field, name in names.items()]


def start(stack: ExitStack, *words: str) -> subprocess.Popen:
    """Starts run.py train with one device; it is ended with ``stack``."""
    process = subprocess.Popen(
        [sys.executable, "run.py", "train", CONFIG, *SMALL, *words],
        cwd=REPO,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def last_line(process: subprocess.Popen) -> str:
    return process.communicate(timeout=600)[1].splitlines()[-1]


def test_a_host_whose_tokens_have_other_bytes_ends_all_before_the_first_step(root, tmp_path):
    """The manifests are the same."""
    other = shutil.copytree(root / "tokens", tmp_path / "tokens")
    (file,) = other.glob("*.tokens")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    out = tmp_path / "out"
    words = [*paths(root), f"out={out}", "mesh.replica=1", "mesh.fsdp=2", "--distributed"]
    words += ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process"]
    with ExitStack() as stack:
        processes = [start(stack, *words, "0"), start(stack, *words, "1", f"data.path={other}")]
        lines = [last_line(process) for process in processes]
        assert [process.returncode for process in processes] == [EXIT_ERROR] * 2
    reason = f"{file} is damaged: its bytes are not those that were written; copy it again from where it is whole"
    for number, line in enumerate(lines):
        assert line.startswith(f"process {number} of 2: the run ends: process 1 on ") and reason in line
    assert not (out / "metrics.jsonl").exists() and not (out / "checkpoints").exists()


def test_a_second_run_on_one_folder_is_refused_and_the_first_goes_on(root, tmp_path):
    words = [*paths(root), f"out={tmp_path}/out", "mesh.fsdp=1"]
    with ExitStack() as stack:
        first = start(stack, *words)
        while not list(tmp_path.glob("out/lease/*.json")):
            assert first.poll() is None
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)  # it would only compile meanwhile
        second = start(stack, *words)
        assert f"{tmp_path}/out: another process is training there; wait for its end, or give another folder" in (
            last_line(second)
        )
        assert second.returncode == EXIT_ERROR and first.poll() is None


def test_conversions_that_are_killed_are_done_by_the_same_command():
    """Two kills of many; the benchmark has more of them, and of the other verbs."""
    kills = {"train": 0, "pods": 0, "sleeps": 0, "pretokenize": 0, "convert": 1, "import": 1, "sample": 0}
    words = [word for name, number in kills.items() for word in (f"--{name}", str(number))]
    command = [sys.executable, "tests/bench/kills.py", "--model", "assets/toy", *words]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert [(count["kills"], count["equal"]) for count in counts.values()] == [(1, 1), (1, 1)]

"""A run whose every path is in a store: it trains as on a disk, and goes on where a kill left it, on other processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from gcs_server import GcsFault
from train_parts import assert_equal, experiment

import run
from lumina_jax.config import Experiment
from lumina_jax.sharding import make_mesh
from lumina_jax.train.checkpoint import Saver, newest
from lumina_jax.train.loop import initial_state
from lumina_jax.train.metrics import FILE, MetricsLog, read_metrics
from lumina_jax.train.run_files import RunFiles
from lumina_jax.train.step import init_state

REPO = Path(__file__).resolve().parents[2]
OUT = "gs://bucket/out"
SMALL = ["optim.steps=6", "optim.warmup=1", "save_every=2", "model.layers=1", "mesh.unroll=1", "data.buckets=50"]
CONFIG = "configs/toy_stage1.py"


def paths(root: object) -> list[str]:
    """The fields of all files that a run reads and writes, below ``root``."""
    names = {"out": "out", "data.path": "tokens", "data.tokenizer": "tokenizer", "vq.path": "vq.npz"}
    return [f"{field}={root}/{name}" for field, name in names.items()]


@pytest.fixture
def in_the_repository(gcs, monkeypatch):
    monkeypatch.chdir(REPO)
    return gcs


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def run_two(command: list[str]) -> None:
    """Runs ``command`` as two processes of four devices each, to their end."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
    processes = [subprocess.Popen([*command, "--process", str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(600) for process in processes] == [0, 0]


def wait_until(done, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_on_a_store_that_was_killed_ends_as_one_on_a_disk(in_the_repository, tmp_path, capsys):
    gcs, objects = in_the_repository, in_the_repository.buckets.objects("bucket")
    for root in (tmp_path, "gs://bucket"):
        assert run.main(["pretokenize", CONFIG, "--source", "toy:32", "--fit", *paths(root)]) == 0
    assert run.main(["train", CONFIG, *SMALL, *paths(tmp_path)]) == 0
    command = [
        sys.executable,
        "run.py",
        "train",
        CONFIG,
        *SMALL,
        *paths("gs://bucket"),
        "compile_cache=gs://bucket/compiled",
    ]
    gcs.faults.append(GcsFault(r"(POST|PUT) .*out/checkpoints/4", seconds=600, times=-1))
    committed = "out/checkpoints/2/commit_success.txt"
    with subprocess.Popen(command, env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"}) as process:
        try:
            wait_until(lambda: committed in objects and objects[f"out/{FILE}"].data.count(b"\n") >= 4)
        finally:
            process.send_signal(signal.SIGKILL)
    gcs.clear()
    gcs.faults += [
        GcsFault(r"GET .*tokens\?", cut=0.5, times=2),
        GcsFault("GET", status=503, times=3, skip=10),
        GcsFault("POST", status=503, times=3, skip=1),
        GcsFault("POST", reset=True, late=True, skip=4),
    ]
    killed = dict(objects)
    assert run.main(["train", CONFIG, *SMALL, *paths("gs://bucket")]) == 0
    assert not any(fault.times for fault in gcs.faults)
    assert objects[f"out/{FILE}"].data == (tmp_path / "out" / FILE).read_bytes()
    assert {name.split("/")[2] for name in objects if name.startswith("out/checkpoints/")} >= {"4", "6"}
    assert {name.split("/")[0] for name in objects} >= {"out", "tokens", "tokenizer", "vq.npz", "compiled"}
    assert any(name.startswith("out/tensorboard/") for name in objects)
    assert not (REPO / "gs:").exists()
    of_one, _ = read_metrics(OUT), objects.clear()
    objects.update(killed)
    run_two([*command, "--distributed", "--coordinator", f"localhost:{free_port()}", "--processes", "2"])
    assert read_metrics(OUT)[:2] == of_one[:2]  # of the rest, sums over two processes round otherwise
    for line, other in zip(read_metrics(OUT), of_one, strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    gcs.buckets.freeze_listings()
    gcs.faults += [GcsFault("GET .*alt=media", status=503, times=2, skip=3), GcsFault("GET .*state/d/", cut=0.5)]
    words = ["sample", "--model", OUT, "--prompt", "a red circle", "--size", "32x32", "--out", f"{OUT}/painted"]
    assert run.main(words) == 0
    assert "out/painted/000-0.png" in objects and not any(fault.times for fault in gcs.faults)
    gcs.clear()
    assert run.main(["convert", "export", OUT, "gs://bucket/hf", "--layout", "hf"]) == 0
    held_out = []
    for model in (OUT, "gs://bucket/hf"):
        capsys.readouterr()
        assert run.main(["evaluate", "--model", model, "--data", "gs://bucket/tokens"]) == 0
        said = capsys.readouterr().out
        held_out.append(json.loads(said[said.index("{") :])["held_out"])
    assert held_out[0] == held_out[1] and held_out[0]["tokens"] > 0
    assert not (REPO / "gs:").exists()


def test_a_stage_starts_from_weights_in_a_store(gcs):
    cfg = replace(experiment(), out=OUT)
    mesh = make_mesh(cfg.mesh)
    state = init_state(cfg, mesh)
    with closing(Saver(cfg)) as saver:
        saver.save(3, state)
    assert_equal(initial_state(replace(cfg, start=OUT, seed=1), mesh).model, state.model)
    objects = gcs.buckets.objects("bucket")  # of which another process saves one more
    objects.update({name.replace("/3/", "/5/"): found for name, found in objects.items() if "/checkpoints/3/" in name})
    assert newest(OUT).name == "5"


def test_metrics_in_a_store_are_kept_up_to_the_checkpoint(gcs):
    lines = "".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in (1, 2, 3))
    gcs.buckets.put("bucket", f"out/{FILE}", lines.encode(), {})
    MetricsLog(Experiment(name="run", out=OUT), 2, show=False).close()
    assert [line["step"] for line in read_metrics(OUT)] == [1, 2]


def test_metrics_in_a_store_without_a_checkpoint_are_kept_under_another_name(gcs):
    for number in (1, 2):
        gcs.buckets.put("bucket", f"out/{FILE}", b'{"step": 1, "loss": 1.0}\n', {})
        MetricsLog(Experiment(name="run", out=OUT), 0, show=False).close()
        assert read_metrics(OUT) == [] and f"out/metrics-{number}.jsonl" in gcs.buckets.objects("bucket")


def test_only_what_changed_is_uploaded_and_the_local_copy_goes(gcs):
    files = RunFiles(OUT)
    files.path("a").write_text("1")
    files.path("deep").mkdir()
    files.path("deep/b").write_text("2")
    files.upload()
    files.path("a").write_text("11")
    gcs.requests.clear()
    files.close()
    assert {name: found.data for name, found in gcs.buckets.objects("bucket").items()} == {
        "out/a": b"11",
        "out/deep/b": b"2",
    }
    assert sum(count for request, count in gcs.requests.items() if request.startswith("POST")) == 1
    assert not files.path("a").parent.exists()


def test_nothing_is_uploaded_into_a_folder_that_another_run_took(gcs):
    def check() -> None:
        raise RuntimeError("taken")

    files = RunFiles(OUT, check)
    files.path("a").write_text("1")
    with pytest.raises(RuntimeError, match="taken"):
        files.close()
    assert not gcs.buckets.objects("bucket")

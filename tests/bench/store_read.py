"""Tokens from a store, as the hosts of a pod read them: ``python tests/bench/store_read.py`` prints one JSON line.

A server of the protocol of Google Cloud Storage on this machine waits --latency milliseconds before each answer. --hosts
simulated hosts, threads of one process, each read their share of every batch, 52 rows of 1,280 tokens as on a v5p-128, and
then "train" for --step seconds. ``wait`` is the share of the time that the hosts wait for a batch, on average and in the worst
host, without the first batch; ``cpu_seconds_per_host_step`` is what reading costs. Nothing is kept on the disk but the lengths.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from data_parts import tiny_vocab

from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig
from lumina_jax.data.pipeline import batches
from lumina_jax.data.shard_writer import write_shard, write_totals
from lumina_jax.data.shards import Settings
from lumina_jax.storage import StorageFolder

RECORDS, SHARD, LENGTH, ROWS = 8192, 512, 1280, 52
URL = "gs://bucket/tokens"
VOCAB = tiny_vocab()


def start_server(latency: float) -> subprocess.Popen:
    """The server in a process of its own, in the environment of this one."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve().parents[1] / "gcs_server.py"), "bucket"],
        stdout=subprocess.PIPE,
        text=True,
    )
    os.environ.update(json.loads(process.stdout.readline()))
    write()
    control({"latency": latency})
    return process


def control(orders: dict | None = None) -> dict:
    """Gives the server orders, if any; what it counts."""
    data = json.dumps(orders).encode() if orders else None
    address = f"{os.environ['STORAGE_EMULATOR_HOST']}/control"
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def write() -> None:
    """Writes random samples that fill a row each."""
    rng, folder = np.random.default_rng(0), StorageFolder(URL)
    settings = Settings(RECORDS, "random", VOCAB.fingerprint, "none", 0, (), SHARD)
    for shard in range(settings.shards):
        spans = settings.span(shard)
        samples = [(rng.integers(0, 65536, LENGTH + 1, np.int32), np.arange(LENGTH + 1) >= 200) for _ in spans]
        write_shard(folder, settings, shard, samples)
    write_totals(folder, settings)


def host_waits(rows: Iterator[Batch], step: float, waits: list[float]) -> None:
    """Takes all batches, as a trainer would whose step takes ``step`` seconds; adds the seconds that each was waited for."""
    while True:
        begin = time.monotonic()
        if next(rows, None) is None:
            return
        waits.append(time.monotonic() - begin)
        time.sleep(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=16, help="simulated hosts (16)")
    parser.add_argument("--latency", type=float, default=50, help="milliseconds before each answer of the store (50)")
    parser.add_argument("--step", type=float, default=2.0, help="seconds of a step (2)")
    parser.add_argument("--steps", type=int, default=20, help="steps (20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        server = start_server(options.latency / 1000)
        try:
            print(json.dumps(measure(options, scratch)))
        finally:
            server.kill()


def measure(options: argparse.Namespace, scratch: str) -> dict[str, float]:
    """The figures of one run."""
    cfg = DataConfig(buckets=(LENGTH,), batch=ROWS * options.hosts, cache=scratch, drop_context=0)
    waits: list[list[float]] = [[] for _ in range(options.hosts)]
    streams = [batches(URL, cfg, VOCAB, 0, 0, options.steps + 1, host, options.hosts) for host in range(options.hosts)]
    threads = [
        threading.Thread(target=host_waits, args=(stream, options.step, wait))
        for stream, wait in zip(streams, waits, strict=True)
    ]
    cpu = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shares = [sum(wait[1:]) / (options.steps * options.step + sum(wait[1:])) for wait in waits]
    requests = sum(count for name, count in control()["requests"].items() if name.startswith("GET /download"))
    return {
        "hosts": options.hosts,
        "latency_ms": options.latency,
        "step_seconds": options.step,
        "steps": options.steps,
        "wait": round(statistics.mean(shares), 5),
        "worst_wait": round(max(shares), 5),
        "first_batch_seconds": round(max(wait[0] for wait in waits), 3),
        "requests": requests,
        "cpu_seconds_per_host_step": round((time.process_time() - cpu) / options.hosts / options.steps, 4),
    }


if __name__ == "__main__":
    main()

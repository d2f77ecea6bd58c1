"""Reading tokens for training: ``python tests/bench/data_read.py`` prints one JSON line.

Compares a folder of pretokenize with the original's form: a pickle of {"token", "label", "id"} with lists for each sample, read
in random order and padded into the tensors of a batch. Samples have 2,000 tokens. Rates are tokens per second of CPU time of all
threads, medians of rounds in which the readers take turns; files are in the page cache.

``wait`` is the time that a loop like the trainer's waits for its batches on the device, when a step takes --step seconds and has
the share of one host of a v5p-128: 52 rows of 1,280 tokens.
"""

import argparse
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from data_parts import tiny_vocab

from lumina_jax.cluster.pace import StepTimes
from lumina_jax.cluster.processes import SingleProcess
from lumina_jax.config import DataConfig, MeshConfig, PodConfig
from lumina_jax.data.pipeline import batches
from lumina_jax.data.shard_writer import write_shard, write_totals
from lumina_jax.data.shards import Settings
from lumina_jax.sharding import make_mesh
from lumina_jax.storage import StorageFolder
from lumina_jax.train.global_batches import GlobalBatches

TOKENS, RECORDS, SHARD = 2000, 4096, 1024
ROWS, LENGTH = 32, 4096
HOST_ROWS = 52 * 1280 // LENGTH
IGNORED = -100
VOCAB = tiny_vocab()


def write(folder: Path) -> None:
    """Writes the same samples in both forms."""
    rng = np.random.default_rng(0)
    settings = Settings(RECORDS, "random", VOCAB.fingerprint, "none", 0, (), SHARD)
    (folder / "pickles").mkdir()
    for shard in range(settings.shards):
        samples = [(rng.integers(0, 65536, TOKENS, np.int32), np.arange(TOKENS) >= 200) for _ in settings.span(shard)]
        write_shard(StorageFolder(folder / "tokens"), settings, shard, samples)
        for index, (tokens, learn) in zip(settings.span(shard), samples, strict=True):
            labels = np.where(learn, tokens, IGNORED)
            item = {"token": tokens.tolist(), "label": labels.tolist(), "id": index}
            (folder / "pickles" / f"{index}.pkl").write_bytes(pickle.dumps(item))
    write_totals(StorageFolder(folder / "tokens"), settings)


def shard_tokens(folder: Path, threads: int, start: int) -> Iterator[int]:
    """The number of tokens of each batch."""
    cfg = DataConfig(buckets=(LENGTH,), batch=ROWS, threads=threads)
    for batch in batches(folder / "tokens", cfg, VOCAB, 0, start):
        yield int((batch.segments > 0).sum())


def pickle_tokens(folder: Path, start: int) -> Iterator[int]:
    """The same for the pickles, padded to the longest sample of a batch."""
    order = np.random.default_rng(start).permutation(RECORDS)
    for chosen in order[: RECORDS // ROWS * ROWS].reshape(-1, ROWS):
        items = []
        for index in chosen:
            with open(folder / "pickles" / f"{index}.pkl", "rb") as file:
                items.append(pickle.load(file))
        longest = max(len(item["token"]) for item in items)
        rows = [item["token"] + [0] * (longest - len(item["token"])) for item in items]
        labels = [item["label"] + [IGNORED] * (longest - len(item["label"])) for item in items]
        torch.tensor(rows, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)
        yield sum(len(item["token"]) for item in items)


def rate(make: Callable[[], Iterator[int]], steps: int) -> float:
    """Tokens per second of CPU time."""
    stream = make()
    next(stream)
    begin = time.process_time()
    tokens = sum(islice(stream, steps))
    return tokens / (time.process_time() - begin)


def wait_seconds(folder: Path, step: float, steps: int, threads: int) -> list[float]:
    """Seconds that each step but the first waits for its batch."""
    cfg = DataConfig(buckets=(LENGTH,), batch=HOST_ROWS, threads=threads)
    mesh = make_mesh(MeshConfig())
    rows = islice(batches(folder / "tokens", cfg, VOCAB, 0), steps + 1)
    feed = GlobalBatches(rows, mesh, 0, SingleProcess(), StepTimes.of(PodConfig()))
    waits = []
    for _ in feed:
        waits.append(feed.wait_seconds)
        time.sleep(step)
    return waits[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often the readers take turns (5)")
    parser.add_argument("--steps", type=int, default=40, help="batches of a turn, and steps that may wait (40)")
    parser.add_argument("--step", type=float, default=0.1, help="seconds of a step (0.1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, rates = Path(name), {"threads_0": [], "threads_2": [], "pickles": []}
        write(folder)
        for start in range(options.rounds):
            rates["threads_0"].append(rate(lambda s=start: shard_tokens(folder, 0, 50 * s), options.steps))
            rates["threads_2"].append(rate(lambda s=start: shard_tokens(folder, 2, 50 * s), options.steps))
            rates["pickles"].append(rate(lambda s=start: pickle_tokens(folder, s), options.steps))
        waits = wait_seconds(folder, options.step, options.steps, 2)
    median = {name: statistics.median(rates_of_reader) for name, rates_of_reader in rates.items()}
    result = {
        "benchmark": "reading samples of 2,000 tokens",
        "tokens_per_second_per_core": {name: round(rates_of_reader) for name, rates_of_reader in median.items()},
        "ratio": round(median["threads_2"] / median["pickles"], 2),
        "ratios": [round(a / b, 2) for a, b in zip(rates["threads_2"], rates["pickles"], strict=True)],
        "wait": {
            "step_seconds": options.step,
            "tokens_per_step": HOST_ROWS * LENGTH,
            "median_milliseconds": round(1e3 * statistics.median(waits), 3),
            "largest_milliseconds": round(1e3 * max(waits), 3),
            "share_of_the_run": round(sum(waits) / (sum(waits) + options.step * options.steps), 5),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

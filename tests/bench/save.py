"""How long a save keeps the devices idle: ``python tests/bench/save.py`` prints one JSON line.

A model of ``--millions`` weights trains on this machine's CPU. ``blocked_s`` is how long Saver.save keeps the loop, in which no
step is queued: it waits for the last step and for the checksums, and copies the state to the host. ``step_s`` are the medians of a
step without a save, and of those that begin while one is being written in the background, which takes ``background_s``; on a CPU
both compute on the same cores, on an accelerator they do not. ``derived`` is what the same costs a slice: bytes of its state over
assumed bandwidths, of a chip to its host and of a host to the store.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimConfig
from lumina_jax.sharding import global_batch, make_mesh
from lumina_jax.train.checkpoint import Saver
from lumina_jax.train.step import init_state, make_step

ROWS, TOKENS = 2, 64
WIDTH, VOCAB = 256, 1024
LAYER_WEIGHTS = 4 * WIDTH**2 + 3 * WIDTH * 3 * WIDTH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--millions", type=float, default=10, help="weights of the model that is trained here")
    parser.add_argument("--saves", type=int, default=3, help="saves that are measured")
    parser.add_argument("--steps", type=int, default=8, help="steps between two saves")
    parser.add_argument("--state-gb", type=float, default=84.2, help="of the slice's state (default: 7B)")
    parser.add_argument("--chips", type=int, default=64, help="of the slice, four to a host")
    parser.add_argument("--chip-gbps", type=float, default=4.0, help="GB/s from a chip to its host, assumed")
    parser.add_argument("--store-gbps", type=float, default=0.5, help="GB/s from a host to the store, assumed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(folder, arguments.millions, arguments.saves, arguments.steps)
    hosts = max(1, arguments.chips // 4)
    result["derived"] = {
        "state_gb": arguments.state_gb,
        "chips": arguments.chips,
        "blocked_s": round(arguments.state_gb / arguments.chips / arguments.chip_gbps, 2),
        "background_s": round(arguments.state_gb / hosts / arguments.store_gbps, 1),
        "assumed": {"GB/s of a chip": arguments.chip_gbps, "GB/s of a host to the store": arguments.store_gbps},
    }
    print(json.dumps(result))


def experiment(out: str, millions: float) -> Experiment:
    """A model of about so many weights, on one device."""
    layers = max(1, round((millions * 1e6 - 2 * VOCAB * WIDTH) / LAYER_WEIGHTS))
    model = ModelConfig(VOCAB, WIDTH, layers, 4, 4, WIDTH // 4, 3 * WIDTH, dropout=0.0)
    mesh = MeshConfig(fsdp=1, compute="float32", remat="none")
    return Experiment(out=out, keep=1, model=model, data=DataConfig(batch=ROWS), optim=OptimConfig(), mesh=mesh)


def measure(folder: str, millions: float, saves: int, steps: int) -> dict[str, object]:
    """The seconds of steps and saves, of a run in ``folder``."""
    cfg = experiment(folder, millions)
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    state, step, saver = init_state(cfg, mesh), make_step(cfg, mesh), Saver(cfg)
    batch = global_batch(random_batch(), mesh)
    size = sum(x.nbytes for x in jax.tree.leaves((state.model, state.opt)))
    alone, beside, blocked, background = [], [], [], []
    state, _ = timed_step(step, state, batch)
    saver.save(0, state)  # compiles the checksums
    saver.check(wait=True)
    for number in range(1, saves + 1):
        for _ in range(steps):
            state, seconds = timed_step(step, state, batch)
            alone.append(seconds)
        begin = time.monotonic()
        saver.save(number, state)
        blocked.append(time.monotonic() - begin)
        while not saver.idle:
            state, seconds = timed_step(step, state, batch)
            beside.append(seconds)
        background.append(time.monotonic() - begin - blocked[-1])
    saver.close()
    median = {
        name: round(statistics.median(found), 3) for name, found in (("alone", alone), ("beside", beside)) if found
    }
    return {
        "state_mb": round(size / 1e6, 1),
        "step_s": median,
        "blocked_s": round(statistics.median(blocked), 3),
        "background_s": round(statistics.median(background), 3),
    }


def timed_step(step, state, batch: Batch):
    """(the state after a step, its seconds)."""
    begin = time.monotonic()
    state, _ = step(state, batch)
    jax.block_until_ready(state)
    return state, time.monotonic() - begin


def random_batch() -> Batch:
    """One of rows of one segment, all of whose tokens are learned."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (ROWS, TOKENS + 1), dtype=np.int32)
    slots, ones = np.tile(np.arange(TOKENS, dtype=np.int32), (ROWS, 1)), np.ones((ROWS, TOKENS), np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], ones.astype(bool), slots, ones)


if __name__ == "__main__":
    main()

"""Training throughput on the CPU beside PyTorch: ``python tests/bench/train.py`` prints one JSON line.

This project and transformers' Chameleon under torch's AdamW start from the same weights (our export, which transformers reads) and
train on the same random tokens in float32, with the same number of threads; all tokens are learned. Both do complete steps:
forward, cross-entropy, backward, clipping to the global norm, AdamW on every weight. Neither has z-loss or dropout: transformers
has no z-loss, so ours is switched off. Both sides have the same weights (QK-norm rows are one per head on both), and the benchmark
fails if their losses differ.

The two take turns, so that other load on the machine slows both; figures are medians over the turns. ``cpu_seconds`` is the
processor time of a step, which other load changes less than wall time.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
import torch
import transformers

from convert import save_model
from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.params import count
from lumina_jax.sharding import global_batch, make_mesh
from lumina_jax.train.step import init_state, make_step

Step = Callable[[], tuple[float, tuple[float, ...]]]
"""Runs one step: (its loss, the times at which its parts ended)."""


class Size(NamedTuple):
    """A model, and the default batch: rows of length tokens, steps in a turn."""

    model: ModelConfig
    rows: int
    length: int
    steps: int


SIZES = {
    # The model of configs/toy_stage1.py.
    "toy": Size(
        ModelConfig(vocab=663, width=64, layers=4, heads=2, kv_heads=2, head_dim=32, mlp=192, qk_groups=2, dropout=0.0),
        rows=16,
        length=56,
        steps=20,
    ),
    # 50.9M weights. Pre-norm, heads of 64, an MLP three times as wide, and a vocabulary of Chameleon's 8,192 image codes and as
    # many text tokens: a third of the weights is embedding and head, as is usual at this size.
    "50m": Size(
        ModelConfig(
            vocab=16384, width=512, layers=10, heads=8, kv_heads=8, head_dim=64, mlp=1536, qk_groups=8, dropout=0.0
        ),
        rows=4,
        length=256,
        steps=1,
    ),
}
OPTIM = OptimConfig(steps=10_000, lr=1e-3, min_lr=1e-3, warmup=0, clip=1.0, z_loss=0.0)


def experiment(model: ModelConfig, rows: int, length: int) -> Experiment:
    """No recomputation, and a fully unrolled scan: a model this small trains fastest this way."""
    return Experiment(
        name="bench",
        model=model,
        data=DataConfig(batch=rows, buckets=(length,)),
        optim=OPTIM,
        mesh=MeshConfig(fsdp=1, compute="float32", remat="none", unroll=model.layers),
    )


def ours(cfg: Experiment, ids: np.ndarray) -> tuple[Step, Chameleon]:
    """(our train step, its initial weights on the host)."""
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    state, step = init_state(cfg, mesh), make_step(cfg, mesh)
    first = jax.device_get(state.model)
    learn = np.ones(ids.shape, bool)
    learn[:, -1] = False  # as in transformers, whose labels are the inputs shifted by one
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    batch = global_batch(Batch(ids, np.roll(ids, -1, 1), learn, positions, np.ones_like(ids)), mesh)

    def run_step() -> tuple[float, tuple[float, ...]]:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
        return float(metrics.loss), (time.perf_counter(),)

    return run_step, first


def torch_s(cfg: Experiment, model: Chameleon, ids: np.ndarray) -> tuple[Step, int]:
    """(the same step in PyTorch, the number of weights that it trains); its parts are forward, backward and update."""
    unused = dict(
        base_channels=32, channel_multiplier=[1], num_res_blocks=1
    )  # transformers builds a VQ encoder as well
    transformers.logging.set_verbosity_error()  # it says that our export has none
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, cfg.model, folder)
        theirs = transformers.ChameleonForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, vq_config=unused
        )
    theirs.train().model.vqmodel.requires_grad_(False)
    weights = [weight for weight in theirs.parameters() if weight.requires_grad]
    optim, inputs = cfg.optim, torch.tensor(ids, dtype=torch.long)
    adam = torch.optim.AdamW(
        weights, lr=optim.lr, betas=(optim.b1, optim.b2), eps=optim.eps, weight_decay=optim.weight_decay, fused=True
    )

    def run_step() -> tuple[float, tuple[float, ...]]:
        loss = theirs(input_ids=inputs, labels=inputs, use_cache=False).loss
        forward = time.perf_counter()
        adam.zero_grad()
        loss.backward()
        backward = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(weights, optim.clip)
        adam.step()
        return loss.item(), (forward, backward, time.perf_counter())

    return run_step, sum(weight.numel() for weight in weights)


class Turn(NamedTuple):
    """Means over the steps of one turn, in seconds, and the loss of its last step."""

    seconds: float
    cpu: float
    parts: tuple[float, ...]
    loss: float


def turn(step: Step, steps: int) -> Turn:
    cpu, spans = time.process_time(), []
    for _ in range(steps):
        begin = time.perf_counter()
        loss, ends = step()
        spans.append([end - start for start, end in zip((begin, *ends), ends, strict=False)])
    parts = tuple(sum(span) / steps for span in zip(*spans, strict=True))
    return Turn(sum(parts), (time.process_time() - cpu) / steps, parts, loss)


def take_turns(our_step: Step, torch_step: Step, steps: int) -> tuple[Turn, Turn]:
    """A turn of each. Raises SystemExit if their losses differ."""
    turns = turn(our_step, steps), turn(torch_step, steps)
    a, b = (t.loss for t in turns)
    if not math.isclose(a, b, rel_tol=5e-3):
        raise SystemExit(f"our loss is {a:.5f} and PyTorch's {b:.5f} after the same steps; they do not train the same")
    return turns


def medians(turns: list[Turn]) -> dict[str, float | list[float]]:
    def middle(values) -> float:
        return round(statistics.median(values), 4)

    return {
        "seconds": middle(t.seconds for t in turns),
        "cpu_seconds": middle(t.cpu for t in turns),
        "parts": [middle(part) for part in zip(*(t.parts for t in turns), strict=True)],
        "last_loss": round(turns[-1].loss, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="50m", help="the model (50m)")
    parser.add_argument("--threads", type=int, default=1, help="processors and threads of each (1)")
    parser.add_argument("--rows", type=int, help="sequences in a batch (toy: 16, 50m: 4)")
    parser.add_argument("--length", type=int, help="tokens in a sequence (toy: 56, 50m: 256)")
    parser.add_argument("--rounds", type=int, default=5, help="how often the two take turns (5)")
    parser.add_argument("--steps", type=int, help="steps of each in a turn (toy: 20, 50m: 1)")
    options = parser.parse_args()
    size = SIZES[options.size]
    rows, length, steps = options.rows or size.rows, options.length or size.length, options.steps or size.steps
    processors = sorted(os.sched_getaffinity(0))
    if options.threads > len(processors):
        parser.error(f"--threads {options.threads}: there are {len(processors)} processors")
    os.sched_setaffinity(0, processors[: options.threads])  # before either starts its threads
    torch.set_num_threads(options.threads)
    cfg = experiment(size.model, rows, length)
    ids = np.random.default_rng(0).integers(0, size.model.vocab, (rows, length), dtype=np.int32)
    our_step, first = ours(cfg, ids)
    torch_step, weights = torch_s(cfg, first, ids)
    warm = take_turns(our_step, torch_step, 1)  # compiles
    turns = [take_turns(our_step, torch_step, steps) for _ in range(options.rounds)]
    us, them = (medians(list(column)) for column in zip(*turns, strict=True))
    result = {
        "benchmark": "training step on the CPU",
        "size": options.size,
        "ratio": round(statistics.median(b.seconds / a.seconds for a, b in turns), 3),
        "ratios": [round(b.seconds / a.seconds, 3) for a, b in turns],
        "cpu_ratio": round(statistics.median(b.cpu / a.cpu for a, b in turns), 3),
        "tokens_per_second": round(rows * length / us["seconds"], 1),
        "torch_tokens_per_second": round(rows * length / them["seconds"], 1),
        "ours": us,
        "torch (parts: forward, backward, update)": them,
        "first_loss": [round(t.loss, 5) for t in warm],
        "batch": [rows, length],
        "threads": options.threads,
        "weights": [count(first), weights],
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""What the guard against steps that are not finite costs a train step: ``python tests/bench/guards.py`` prints one JSON line.

The same step is compiled with the guard and with a guard that keeps nothing back, on the CPU. The two take turns, so that other
load slows both; ``share`` is the median over the turns of guarded / plain time, less 1. ``cpu_share`` is that of processor time.
``bytes``, ``flops`` and ``temp_bytes`` are what XLA says of both programs: the guard costs passes over the weights, the same
however many tokens a step has.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

import lumina_jax.train.step as step_module
from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig
from lumina_jax.sharding import make_mesh
from lumina_jax.train.compiled_steps import batch_shapes
from lumina_jax.train.step import init_state, jitted_step, state_shapes


def experiment(width: int, layers: int, rows: int, length: int) -> Experiment:
    model = ModelConfig(
        vocab=663, width=width, layers=layers, heads=2, kv_heads=2, head_dim=width // 2, mlp=3 * width, dropout=0.0
    )
    data, mesh = DataConfig(batch=rows, buckets=(length,)), MeshConfig(fsdp=1, compute="float32")
    return Experiment(model=model, data=data, mesh=mesh)


def random_batch(cfg: Experiment) -> Batch:
    rng, shape = np.random.default_rng(0), (cfg.data.batch, cfg.data.buckets[-1])
    tokens = rng.integers(0, cfg.model.vocab, (shape[0], shape[1] + 1), dtype=np.int32)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy()
    return Batch(tokens[:, :-1], tokens[:, 1:], np.ones(shape, bool), positions, np.ones(shape, np.int32))


def compiled(cfg: Experiment, keep: Callable) -> jax.stages.Compiled:
    """The step whose guard is ``keep``."""
    guard, step_module.keep_unless = step_module.keep_unless, keep
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    try:
        with jax.set_mesh(mesh):
            shape = (cfg.data.batch, cfg.data.buckets[-1])
            return jitted_step(cfg, mesh).lower(state_shapes(cfg, mesh), batch_shapes(shape, mesh)).compile()
    finally:
        step_module.keep_unless = guard


def seconds(program: jax.stages.Compiled, cfg: Experiment, steps: int) -> tuple[float, float]:
    """Wall and processor seconds of a step."""
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    state, batch = init_state(cfg, mesh), random_batch(cfg)
    with jax.set_mesh(mesh):
        state, _ = program(state, batch)
        jax.block_until_ready(state)
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            state, _ = program(state, batch)
        jax.block_until_ready(state)
    return (time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 256), ("layers", 4), ("rows", 8), ("length", 512), ("steps", 3), ("turns", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    cfg = experiment(options.width, options.layers, options.rows, options.length)
    programs = {"guarded": compiled(cfg, step_module.keep_unless), "plain": compiled(cfg, lambda finite, new, old: new)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(options.turns):
        for name, program in programs.items():
            times[name].append(seconds(program, cfg, options.steps))
    ratios = [
        [g / p for g, p in zip(*pair, strict=True)] for pair in zip(times["guarded"], times["plain"], strict=True)
    ]
    result = {"bench": "guards", **vars(options)}
    for index, name in enumerate(("share", "cpu_share")):
        result[name] = round(statistics.median(ratio[index] for ratio in ratios) - 1, 4)
    for name, program in programs.items():
        costs = program.cost_analysis()
        result[name] = {
            "ms": round(1e3 * statistics.median(wall for wall, _ in times[name]), 2),
            "bytes": int(costs["bytes accessed"]),
            "flops": int(costs["flops"]),
            "temp_bytes": program.memory_analysis().temp_size_in_bytes,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

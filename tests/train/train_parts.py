"""A tiny experiment and its batches, for the tests of training."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimConfig
from lumina_jax.history import BatchSpan
from lumina_jax.train.step import TrainState, new_state

TOKENS = 12
MODEL = ModelConfig(
    vocab=32, width=16, layers=2, heads=16, kv_heads=8, head_dim=4, mlp=16, qk_groups=2, eps=1e-3, dropout=0.1
)
# With a small optim.eps Adam would turn the rounding errors of gradients near zero into full steps.
OPTIM = OptimConfig(steps=7, lr=1e-2, min_lr=1e-3, warmup=2, eps=1e-3, clip=1.0)


def experiment(mesh: tuple[int, int, int] = (2, 2, 2), **changes) -> Experiment:
    """Seven steps in float32, saved every two, on ``mesh`` = (replica, fsdp, tensor)."""
    axes = dict(zip(("replica", "fsdp", "tensor"), mesh, strict=True))
    tiny = Experiment(
        name="tiny",
        save_every=2,
        model=MODEL,
        data=DataConfig(batch=8, buckets=(TOKENS,)),
        optim=OPTIM,
        mesh=MeshConfig(compute="float32", loss_chunk=5, **axes),
    )
    return replace(tiny, **changes)


def batch(cfg: Experiment, step: int, host: int = 0, hosts: int = 1) -> Batch:
    """The rows of ``host`` in the batch of ``step``, each of one or two packed samples and padding; a function of (seed, step)."""
    rng, shape = np.random.default_rng([cfg.seed, step]), (cfg.data.batch, TOKENS)
    tokens = rng.integers(0, cfg.model.vocab, (shape[0], TOKENS + 1), dtype=np.int32)
    cut, end = rng.integers(3, 8, (shape[0], 1)), rng.integers(8, TOKENS + 1, (shape[0], 1))
    slot = np.arange(TOKENS, dtype=np.int32)[None]
    segments = np.where(slot < cut, 1, np.where(slot < end, 2, 0)).astype(np.int32)
    positions = np.where(segments == 2, slot - cut, slot).astype(np.int32)
    learn = (rng.random(shape) < 0.7) & (segments > 0)
    rows = slice(host * shape[0] // hosts, (host + 1) * shape[0] // hosts)
    return Batch(*(array[rows] for array in (tokens[:, :-1], tokens[:, 1:], learn, positions, segments)))


def batches(
    cfg: Experiment, host: int = 0, hosts: int = 1, actions: dict[int, Callable[[], None]] | None = None
) -> Callable[[BatchSpan], Iterator[Batch]]:
    """The ``batches`` argument of ``train``; ``actions[n]`` is called before batch n, that of step n + 1, is yielded."""

    def batches_from(span: BatchSpan) -> Iterator[Batch]:
        step = span.start
        while True:
            (actions or {}).get(step, lambda: None)()
            yield batch(cfg, step, host, hosts)
            step += 1

    return batches_from


def spoiled(make_step: Callable, bad: Mapping[int, float], host: int = 0, hosts: int = 1) -> Callable:
    """``make_step`` whose steps multiply the gradient norm of each batch of ``bad`` {number: factor}, on ``host`` of ``hosts``
    (with one device each, where they are several)."""

    def make(cfg: Experiment, mesh: Mesh) -> Callable:
        step = make_step(cfg, mesh)
        rows_of = {number: batch(cfg, number, host, hosts).inputs for number in bad}

        def run(state: TrainState, rows: Batch) -> tuple:
            mine = np.asarray(rows.inputs if hosts == 1 else rows.inputs.addressable_shards[0].data)
            state, metrics = step(state, rows)
            for number, expected in rows_of.items():
                if np.array_equal(mine, expected):
                    metrics = metrics._replace(grad_norm=metrics.grad_norm * bad[number])
            return state, metrics

        return run

    return make


def without(cfg: Experiment, left_out: Collection[int]) -> Callable[[BatchSpan], Iterator[Batch]]:
    """The ``batches`` argument of ``train`` without the batches of these numbers."""

    def rows(span: BatchSpan) -> Iterator[Batch]:
        numbers = (number for number in itertools.count() if number not in left_out)
        return (batch(cfg, number) for number in itertools.islice(numbers, span.start, span.stop))

    return rows


def host_state(cfg: Experiment) -> TrainState:
    """A state of numpy arrays with random weights, made without compiling anything."""
    shapes = jax.eval_shape(lambda: new_state(cfg))
    rng = np.random.default_rng(cfg.seed)
    model = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape).astype(s.dtype), shapes.model)
    opt = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes.opt)
    return TrainState(np.zeros((), np.int32), model, opt, jax.random.key(cfg.seed))


def assert_equal(tree, other) -> None:
    """The trees have the same structure and, bit for bit, the same numbers."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(_numbers(a), _numbers(b))


def _numbers(x: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def worker(stderr: int | None = None, **arguments) -> subprocess.Popen:
    """Starts train_worker.py as a new process, which shares the compiled programs of the tests."""
    folder = Path(__file__).resolve().parent
    paths = {"PYTHONPATH": f"{folder.parents[1]}{os.pathsep}{folder}"}
    command = [sys.executable, str(folder / "train_worker.py"), json.dumps(arguments)]
    return subprocess.Popen(command, env={**os.environ, **paths}, stderr=stderr, text=True)

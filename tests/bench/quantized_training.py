"""Loss of quantized training beside plain one on the embedded world's first stage: ``python tests/bench/quantized_training.py``.

For every seed all kinds start from the same weights and see the same batches in the same order; a CPU computes the same int8 codes
and exact sums as a TPU, slowly. One JSON line for each run, with the loss (cross-entropy, mean over each fiftieth of the steps),
then one with each kind's loss over that of the first kind in the last tenth of the steps, seed by seed. What is not quantized is
computed in ``--compute``.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

import run
from lumina_jax.batch import Batch
from lumina_jax.config import Experiment, MeshConfig
from lumina_jax.data.pipeline import batches
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sharding import global_batch, make_mesh
from lumina_jax.toyworld.fit import fit_world
from lumina_jax.toyworld.scenes import MINI
from lumina_jax.toyworld.source import ToySource, training_sizes
from lumina_jax.train.step import Step, make_step, new_state, state_shardings, steps
from lumina_jax.vocab import Vocab

KINDS = {
    "none": {"quant": "none"},
    "int8": {"quant": "int8"},
    "fp8": {"quant": "fp8"},
    "int8_skip": {"quant": "int8", "quant_skip": (1, 1)},
}
"""Name -> fields of MeshConfig."""
POINTS = 50


def prepare(home: Path, options: argparse.Namespace) -> Experiment:
    """Writes codebook, tokenizer and tokens of stage 1 into ``home`` and returns its config for one device, with AdamW."""
    changes = [f"vq.path={home / 'vq.npz'}", f"data.tokenizer={home}", f"data.path={home / 'data'}"]
    changes += [f"optim.steps={options.steps}", f"data.batch={options.rows}", f"model.layers={options.layers}"]
    changes += ["optim.muon_lr=0", f"optim.lr={options.lr}", f"optim.min_lr={options.lr / 20}"]
    changes += ["mesh.replica=1", "mesh.unroll=1"]
    changes += [f"mesh.compute={options.compute}"]
    cfg = run.load_experiment(str(run.REPOSITORY / "configs/toy_stage1.py"), changes)
    fit_world(cfg.vq, cfg.data)
    source = ToySource(MINI, training_sizes(cfg.data.size), options.scenes, 0)
    pretokenize(source, PatchVQ.load(cfg.vq.path), Vocab.load(home), cfg.data.path, cfg.data, 0, sizes=source.sizes)
    return cfg


def losses(cfg: Experiment, step: Step, rows: Iterator[Batch]) -> np.ndarray:
    """The cross-entropy of every step of a run of ``cfg`` from its seed."""
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    arrived = (global_batch(local, mesh) for local in rows)
    state = jax.device_put(new_state(cfg), state_shardings(cfg, mesh))
    return np.asarray([float(metrics.xent) for *_, metrics in steps(state, arrived, step, 0)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each run, a multiple of 50 (2000)")
    parser.add_argument("--scenes", type=int, default=10_000, help="training scenes (10000)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (3)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["none", "int8"], help="(none int8)")
    parser.add_argument("--layers", type=int, default=4, help="layers of the model (4)")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch (16)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of AdamW (0.002)")
    parser.add_argument("--compute", default="float32", help="mesh.compute of all kinds: float32 or bfloat16 (float32)")
    options = parser.parse_args()
    if options.steps % POINTS:
        parser.error(f"--steps {options.steps} is not a multiple of {POINTS}")
    last: dict[str, list[float]] = {kind: [] for kind in options.kinds}
    with tempfile.TemporaryDirectory() as home:
        cfg = prepare(Path(home), options)
        vocab = Vocab.load(cfg.data.tokenizer)
        variants = {kind: replace(cfg, mesh=replace(cfg.mesh, **KINDS[kind])) for kind in options.kinds}
        compiled = {
            kind: make_step(variant, make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))
            for kind, variant in variants.items()
        }
        for seed in range(options.seeds):
            for kind, variant in variants.items():
                rows = batches(cfg.data.path, cfg.data, vocab, seed, 0, options.steps)
                start = time.monotonic()
                curve = losses(replace(variant, seed=seed), compiled[kind], rows)
                last[kind].append(float(curve[-options.steps // 10 :].mean()))
                points = [round(float(loss), 4) for loss in curve.reshape(POINTS, -1).mean(1)]
                line = {"benchmark": "quantized training", "kind": kind, "seed": seed, "steps": options.steps}
                seconds = round(time.monotonic() - start)
                print(
                    json.dumps(line | {"last_tenth": round(last[kind][-1], 5), "seconds": seconds, "loss": points}),
                    flush=True,
                )
    first = np.asarray(last[options.kinds[0]])
    ratios = {kind: [round(float(r), 5) for r in np.asarray(values) / first] for kind, values in last.items()}
    print(json.dumps({"benchmark": "quantized training", f"loss over that of {options.kinds[0]}": ratios}))


if __name__ == "__main__":
    main()

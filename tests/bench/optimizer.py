"""Muon beside AdamW on the embedded world's first stage: ``python tests/bench/optimizer.py`` prints one JSON line.

Both start from the same weights and take the same number of steps on the same batches; two minutes in all. AdamW's learning rate
is ``--adamw-lr``, Muon's that of the config. Reported are the share of right fresh pictures and the loss of the last tenth.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import run
from lumina_jax.config import Experiment
from lumina_jax.data.pipeline import batches
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.toyworld.fit import fit_world
from lumina_jax.toyworld.scenes import MINI
from lumina_jax.toyworld.source import ToySource, training_sizes
from lumina_jax.toyworld.tasks import score_table
from lumina_jax.train.checkpoint import newest, restore_model
from lumina_jax.train.loop import train
from lumina_jax.train.metrics import read_metrics
from lumina_jax.vocab import Vocab


def prepare(home: Path, steps: int, scenes: int) -> Experiment:
    """Writes codebook, tokenizer and tokens of stage 1 into ``home`` and returns its config."""
    paths = [f"vq.path={home / 'vq.npz'}", f"data.tokenizer={home}", f"data.path={home / 'data'}"]
    cfg = run.load_experiment(str(run.REPOSITORY / "configs/toy_stage1.py"), [f"optim.steps={steps}", *paths])
    fit_world(cfg.vq, cfg.data)
    source = ToySource(MINI, training_sizes(cfg.data.size), scenes, 0)
    pretokenize(source, PatchVQ.load(cfg.vq.path), Vocab.load(home), cfg.data.path, cfg.data, 0, sizes=source.sizes)
    return cfg


def train_and_score(cfg: Experiment, prompts: int) -> dict[str, float]:
    """Trains with ``cfg``: final loss, wall seconds, and the shares of right fresh and held-out pictures."""
    vocab, start = Vocab.load(cfg.data.tokenizer), time.monotonic()
    train(cfg, lambda span: batches(cfg.data.path, cfg.data, vocab, cfg.seed, span.start, span.stop))
    seconds = time.monotonic() - start
    model, vq = restore_model(newest(cfg.out), cfg.model), PatchVQ.load(cfg.vq.path)
    losses = [line["xent"] for line in read_metrics(cfg.out)]
    table = score_table(model, vq, vocab, cfg.sample, cfg.data.size, prompts, 0)
    right = {name: score["all_right"] for name, score in table.items()}
    return {"xent": float(np.mean(losses[-len(losses) // 10 :])), "seconds": round(seconds, 1)} | right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=750, help="training steps with each optimizer (750)")
    parser.add_argument("--scenes", type=int, default=10_000, help="training scenes (10000)")
    parser.add_argument("--prompts", type=int, default=128, help="fresh prompts, and as many held-out ones (128)")
    parser.add_argument("--adamw-lr", type=float, default=8e-3, help="peak learning rate of AdamW (0.008)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        cfg = prepare(Path(home), options.steps, options.scenes)
        adamw = replace(cfg.optim, lr=options.adamw_lr, min_lr=options.adamw_lr / 20, muon_lr=0.0)
        optimizers = {"adamw": adamw, "muon": cfg.optim}
        results = {
            name: train_and_score(replace(cfg, optim=optim, out=str(Path(home) / name)), options.prompts)
            for name, optim in optimizers.items()
        }
    ratio = results["muon"]["fresh"] / max(results["adamw"]["fresh"], 1 / options.prompts)
    print(json.dumps({"benchmark": "optimizer", "steps": options.steps, **results, "ratio": ratio}))


if __name__ == "__main__":
    main()

"""How much "No edit." improves a coarse tokenizer: ``python tests/bench/refine.py`` prints one JSON line in about three minutes.

A codebook of few patches (k-means, ``--codes``) loses much of a picture. A small model is trained from scratch to repeat, paint and
recolour pictures. Then fresh pictures are reconstructed by the tokenizer alone and refined by the model, without guidance, and both
results are compared with the original pixels.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from PIL import Image

import run
from lumina_jax.conversation import served
from lumina_jax.data.pipeline import batches
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.evaluate.refine import refine
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample.prompt import PromptBuilder
from lumina_jax.toyworld.fit import fit_omni
from lumina_jax.toyworld.omni import OmniSource, evaluation_exercises
from lumina_jax.toyworld.scenes import OMNI
from lumina_jax.toyworld.source import stage_sizes, training_sizes
from lumina_jax.train.checkpoint import newest, restore_model
from lumina_jax.train.loop import train
from lumina_jax.vocab import Vocab

AREA, MIX = 64, {"refine": 1.0, "generate": 1.0, "recolour": 0.5}


def train_model(codes: int, steps: int, records: int, home: Path):
    """Trains the model in ``home``: (model, its prompt builder, its sampling settings)."""
    paths = [
        f"vq.path={home / 'vq.npz'}",
        f"data.tokenizer={home}",
        f"data.path={home / 'data'}",
        f"out={home / 'run'}",
    ]
    changes = ["data.weights=", "start=", "optim.min_lr=4e-4", f"vq.codes={codes}", f"optim.steps={steps}", *paths]
    cfg = run.load_experiment(str(run.REPOSITORY / "configs/toy_omni_first.py"), changes)
    fit_omni(cfg.vq, cfg.data)
    vq, vocab = PatchVQ.load(cfg.vq.path), Vocab.load(home)
    cfg = replace(cfg, model=replace(cfg.model, vocab=len(vocab)))
    source = OmniSource(OMNI, training_sizes(AREA), records, 3, MIX)
    max_tokens = cfg.data.buckets[-1] + 1
    pretokenize(source, vq, vocab, cfg.data.path, cfg.data, 0, sizes=source.sizes, max_tokens=max_tokens)
    train(cfg, lambda span: batches(cfg.data.path, cfg.data, vocab, cfg.seed, span.start, span.stop))
    model = restore_model(newest(cfg.out), cfg.model)
    settings = replace(served("refine", cfg.sample), guidance=1.0, image_top_k=200)
    return model, PromptBuilder(vq, vocab, cfg.data, as_is=True), settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codes", type=int, default=96, help="patches in the codebook (96)")
    parser.add_argument("--steps", type=int, default=900, help="training steps (900)")
    parser.add_argument("--records", type=int, default=6000, help="training records (6000)")
    parser.add_argument("--pictures", type=int, default=24, help="fresh pictures (24)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        model, builder, cfg = train_model(options.codes, options.steps, options.records, Path(home))
        tables = []
        for index, exercise in enumerate(evaluation_exercises("refine", stage_sizes(AREA), options.pictures, 0)):
            image = Image.fromarray(exercise.pictures[0])
            tables.append(refine(model, builder, image, cfg, jax.random.key(index)).table())
    results = {"benchmark": "refine", "codes": options.codes, "pictures": len(tables)}
    for side in ("before", "after"):
        results[side] = {name: float(np.mean([table[side][name] for table in tables])) for name in ("psnr_db", "ssim")}
    change = np.array([table["after"]["psnr_db"] - table["before"]["psnr_db"] for table in tables])
    results |= {"better": int((change > 0).sum()), "worse": int((change < 0).sum()), "same": int((change == 0).sum())}
    print(json.dumps(results))


if __name__ == "__main__":
    main()

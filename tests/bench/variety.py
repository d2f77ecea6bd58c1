"""Variety of a model's pictures of one prompt beside their truth: ``python tests/bench/variety.py`` prints a JSON line per setting.

Prompts that leave much open, so that at least ENOUGH pictures of the world fit them, are painted several times, half of them on
canvases of about 64 px, half of about 128 px. ``different`` is the mean number of different pictures of a prompt, ``right`` the
share of pictures with every fact right. All settings but a guidance of 1 run in one program; a setting takes seconds on two cores.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

import run
from lumina_jax.cli.models import model_arguments
from lumina_jax.config import SampleConfig
from lumina_jax.toyworld.captions import Caption, Thing, facts_true
from lumina_jax.toyworld.scenes import MINI, SIZES, Object, Pixels, Scene, clear
from lumina_jax.toyworld.source import EVALUATION, captioned_scene, stage_sizes
from lumina_jax.toyworld.tasks import paint

AREAS = (64, 128)
ENOUGH = 32


def open_prompts(count: int, seed: int) -> list[tuple[Caption, Pixels]]:
    """``count`` fresh captions that fit at least ENOUGH scenes, and their canvases, on AREAS in turn."""
    chosen, index = [], 0
    while len(chosen) < count:
        sizes = stage_sizes(AREAS[len(chosen) % len(AREAS)])
        scene, caption = captioned_scene(MINI, sizes, EVALUATION + seed, index)
        if sum(1 for _ in islice(fitting(caption, scene.canvas), ENOUGH)) == ENOUGH:
            chosen.append((caption, scene.canvas))
        index += 1
    return chosen


def fitting(caption: Caption, canvas: Pixels) -> Iterator[Scene]:
    """All scenes of the world that the caption is true of."""
    things = [claim for claim in caption.claims if isinstance(claim, Thing)]
    choices = [
        [Object(thing.shape, thing.colour, size, x, y) for size in SIZES for x, y in MINI.centres(size, canvas)]
        for thing in things
    ]
    for background, *objects in product(MINI.backgrounds, *choices):
        scene = Scene(*canvas, background, tuple(objects))
        if facts_true(scene, caption.claims) and (len(objects) == 1 or clear(*objects, canvas)):
            yield scene


def measure(models: tuple, prompts: list, copies: int, cfg: SampleConfig) -> dict[str, float]:
    """Paints every prompt ``copies`` times: the mean number of different pictures, and the share of right ones."""
    samples = paint(*models, [pair for pair in prompts for _ in range(copies)], cfg, jax.random.key(0))
    rows = [samples[first : first + copies] for first in range(0, len(samples), copies)]
    pictures = [{b"" if sample.image is None else sample.image.tobytes() for sample in row} for row in rows]
    return {
        "different": float(np.mean([len(row) for row in pictures])),
        "right": float(np.mean([sample.all_right for sample in samples])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model_arguments(parser)
    parser.add_argument("--prompts", type=int, default=32, help="prompts that leave something open (32)")
    parser.add_argument("--copies", type=int, default=16, help="pictures of each (16)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0])
    parser.add_argument("--min-p", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2, 0.3])
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    options = parser.parse_args()
    model, vocab, vq, experiment = run.load_for_sampling(options)
    prompts = open_prompts(options.prompts, 3)
    for guidance, min_p, temperature in product(options.guidance, options.min_p, options.temperature):
        setting = {"guidance": guidance, "min_p": min_p, "temperature": temperature}
        result = measure((model, vq, vocab), prompts, options.copies, replace(experiment.sample, **setting))
        print(json.dumps({"benchmark": "variety", **setting, **result}), flush=True)


if __name__ == "__main__":
    main()

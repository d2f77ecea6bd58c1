"""Sampling on the CPU: ``python tests/bench/sample.py toy|peer|length`` prints one JSON line.

``toy``: the embedded world's model at its largest canvases, with its shipped guidance. All methods of decoding take turns on the
same prompts, one image at a time and all in one batch: passes, forced tokens, wall and processor seconds of an image.

``peer``: 50M random weights beside transformers' generate with guidance as it does it, a second forward for every token, from
the same exported weights: images per minute, one by one, in parallel, and eight at once. Random weights accept few drafts, so
the parallel figure is the cost of windows; ``toy`` shows their gain for a trained model.

``length``: milliseconds of a pass in the first and in the last row of an image, and the growth of the bytes that a pass reads.

All take turns, so that other load on the machine affects each; figures are medians over the turns, and the memory's bandwidth
is measured between them.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from sample_small import Turn, length, median, peer, settings, take_turns

from convert import load_model
from convert.metadata import EXPERIMENT_FILE
from lumina_jax.config import PARALLEL, Experiment, SampleConfig, from_dict
from lumina_jax.conversation import image_prompt, tokenize
from lumina_jax.layout import answer_tokens
from lumina_jax.sample.decode import answers
from lumina_jax.sample.request import lay_out
from lumina_jax.toyworld.scenes import MINI
from lumina_jax.toyworld.source import prompts, stage_sizes
from lumina_jax.vocab import Vocab

TOY, AREA, STRIDE = Path(__file__).resolve().parents[2] / "assets" / "toy", 128, 16


def toy(options) -> dict:
    experiment = from_dict(Experiment, json.loads((TOY / EXPERIMENT_FILE).read_text()))
    model, vocab = load_model(TOY)[0], Vocab.load(TOY)
    requests = prompts(MINI, stage_sizes(AREA), options.images, 3)
    ids = [tokenize([(image_prompt(*size, caption.text), None)], [], vocab)[0] for caption, size in requests]
    longest = answer_tokens((height // STRIDE, width // STRIDE) for _, (width, height) in requests)
    cfg = replace(experiment.sample, max_new_tokens=longest, **settings(options))
    keys = jax.random.split(jax.random.key(0), len(ids))
    drawn, counted = {}, {}
    turns: dict[str, Turn] = {}

    def together(name: str, cfg: SampleConfig) -> float:
        laid_out = lay_out(ids, keys[0], vocab, model.cfg.vocab, keys=keys)
        drawn[name], counted[name] = answers(model, laid_out, cfg, vocab)
        return float(counted[name].mean())

    def alone(cfg: SampleConfig) -> float:
        single = (lay_out(ids[i : i + 1], keys[0], vocab, model.cfg.vocab, keys=keys[i : i + 1]) for i in first)
        return float(np.mean([answers(model, laid_out, cfg, vocab)[1] for laid_out in single]))

    first = range(min(options.alone, len(ids)))
    configs = {
        f"{method} {window}": replace(cfg, parallel=method, window=window) for method, window in methods_of(options)
    }
    for name, config in configs.items():
        turns[f"batch {name}"] = lambda name=name, config=config: together(name, config)
        turns[f"alone {name}"] = lambda config=config: alone(config)
    timings = take_turns(turns, options.rounds)
    base = next(iter(configs))
    tokens = float(np.mean([len(answer) + 1 for answer in drawn[base]]))
    table = {}
    for name in configs:
        single, batch = timings[f"alone {name}"], timings[f"batch {name}"]
        # Each round's ratio compares neighbours in time.
        ratios = [[a[i] / b[i] for a, b in zip(timings[f"alone {base}"], single, strict=True)] for i in (0, 1)]
        table[name] = {
            "passes": round(float(counted[name].mean()), 2),
            "most_passes": int(counted[name].max()),
            "fewer_passes": round(float(counted[base].sum() / counted[name].sum()), 3),
            "seconds_alone": median(wall / len(first) for wall, _, _ in single),
            "cpu_seconds_alone": median(cpu / len(first) for _, cpu, _ in single),
            "faster_alone": median(ratios[0]),
            "cpu_faster_alone": median(ratios[1]),
            "seconds_in_batch": median(wall / len(ids) for wall, _, _ in batch),
            "faster_in_batch": median(a[0] / b[0] for a, b in zip(timings[f"batch {base}"], batch, strict=True)),
            "same_answers": round(
                float(np.mean([np.array_equal(a, b) for a, b in zip(drawn[name], drawn[base], strict=True)])), 3
            ),
        }
    forced = tokens - table[base]["passes"]
    return {
        "benchmark": "toy",
        "images": len(ids),
        "tokens": round(tokens, 2),
        "forced_tokens": round(forced, 2),
    } | table


def methods_of(options) -> list[tuple[str, int]]:
    """The (method, window) pairs to measure, one-by-one decoding first."""
    methods = [method for method in options.methods.split(",") if method != "off"]
    windows = [int(window) for window in options.windows.split(",")]
    return [("off", windows[0]), *((method, window) for window in windows for method in methods)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("toy", "peer", "length"))
    parser.add_argument("--threads", type=int, default=1, help="processors and threads of each (1)")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take turns (3)")
    parser.add_argument("--methods", default=",".join(PARALLEL), help="toy: ways of decoding (all)")
    parser.add_argument("--windows", default="16,10", help="toy: windows, by commas (16,10)")
    parser.add_argument("--images", type=int, default=48, help="toy: prompts in the batch (48)")
    parser.add_argument("--alone", type=int, default=8, help="toy: how many of them are painted one by one as well (8)")
    parser.add_argument("--side", type=int, default=16, help="peer, length: rows and columns of an image (16)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="another setting of SampleConfig"
    )
    options = parser.parse_args()
    processors = sorted(os.sched_getaffinity(0))
    if options.threads > len(processors):
        parser.error(f"--threads {options.threads}: there are {len(processors)} processors")
    os.sched_setaffinity(0, processors[: options.threads])  # before anything starts its threads
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    print(json.dumps({"toy": toy, "peer": peer, "length": length}[options.what](options)))


if __name__ == "__main__":
    main()

"""Passes of parallel decoding at a large model's entropy: ``python tests/bench/simulated_decoding.py`` prints JSON lines.

The model is simulated (simulated_model.py): its next-token entropy and drift are those measured on Lumina-mGPT 7B. What decodes it
is this project's own code. The first line is the calibration: entropy and drift of the simulated model beside their targets. Then
comes a line for each way of decoding and number of tokens in a pass: passes for a picture of 48 x 48 codes (mean over the pictures,
and the half-width of its 95% interval), and how many times fewer these are than its 2,357 tokens. Nothing depends on how high a
picture is, so lower ones are drawn and their passes scaled. "matched+tree" has half of a pass's tokens in the chain of drafts and
half branching off it. ``--drift 1`` takes the drift of one changed token as it was measured; by default it is larger by the factor
with which "sjd" takes as many passes as is published (2.2 to 2.3 times fewer, arXiv 2410.01699). Published beside it: "sjd" gains
nothing by windows of 32 and 64, "coupled" and "continued" take 4.2 times fewer passes with 64 (arXiv 2510.24211).
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import t as student
from simulated_model import (
    ENTROPIES,
    GUIDANCE,
    PUBLISHED,
    REACH,
    SimulatedModel,
    calibrated,
    drift_by_offset,
    entropy,
    simulated_vocab,
    total_variation,
)

from lumina_jax.config import PARALLEL, SampleConfig
from lumina_jax.layout import encode_grid
from lumina_jax.sample.decode import answers
from lumina_jax.sample.guidance import DynamicConfig, code_scores
from lumina_jax.sample.request import lay_out
from lumina_jax.vocab import Vocab

SPACING = REACH + 17
"""Tokens between two that are changed, so that no place depends on two of them."""
TREE = "+tree"
PICTURE_TOKENS = 2357
"""Tokens of a picture of 768 x 768 px and the end of its turn."""
HEAD = 3
"""Tokens of an image before its first code."""


def prompt(vocab: Vocab, picture: int, shape: tuple[int, int]) -> np.ndarray:
    """i32[5]: the prompt that leaves the codes of picture number ``picture`` to be drawn."""
    start = encode_grid(np.zeros(shape, int), vocab)[:HEAD]
    return np.array([vocab.bos, vocab.id_of(f"picture{picture}"), *start], np.int32)


def measured(
    model: SimulatedModel,
    vocab: Vocab,
    codes: int,
    shape: tuple[int, int],
    guidance: float,
    offsets: list[int],
    pictures: int = 4,
) -> dict:
    """Mean entropy and its deciles over places, and mean total variation by ``offsets`` of a changed token, with ``guidance``.

    They are of the scores that tokens are drawn from, in ``pictures`` of random codes.
    """
    config = DynamicConfig.of(SampleConfig(guidance=guidance, image_top_k=codes))

    @jax.jit
    def streams(ids):
        """f32[2 T HIDDEN] behind each of i32[T], conditional and not."""
        cache = model.empty_cache(2, len(ids))._replace(visible_from=jnp.array([0, 2]))
        return model.cached(jnp.stack([ids, ids]), cache)[0]

    @jax.jit
    def scores(streams, places):
        """f32[n E] behind ``places`` i32[n]."""
        cond, uncond = model.logits(streams[:, places])[..., :codes]
        return code_scores(cond, None if guidance == 1 else uncond, config)

    entropies, variations = [], {offset: [] for offset in offsets}
    for picture in range(pictures):
        rng = np.random.default_rng(picture)
        grid = encode_grid(rng.integers(0, codes, shape), vocab)
        ids = np.array([*prompt(vocab, picture, shape)[:2], *grid[:-1]], np.int32)
        changed = np.arange(2 + HEAD + picture, len(ids) - max(offsets) - pictures, SPACING)
        other = ids.copy()
        other[changed] = rng.integers(0, codes, len(changed))
        hidden = [streams(x) for x in (ids, other)]
        for offset in offsets:
            before, after = (scores(x, changed + offset - 1) for x in hidden)
            drawn = (ids[changed] != vocab.newline) & (ids[changed + offset] != vocab.newline)
            variations[offset] += list(np.asarray(total_variation(before, after))[drawn])
            entropies += list(np.asarray(entropy(before))[drawn])
    return {
        "entropy": round(float(np.mean(entropies)), 2),
        "entropy_deciles": [round(float(x), 2) for x in np.quantile(entropies, (0.1, 0.5, 0.9))],
        "drift": {offset: round(float(np.mean(values)), 4) for offset, values in variations.items()},
    }


def calibration(
    model: SimulatedModel, vocab: Vocab, codes: int, shape: tuple[int, int], drift: float, pictures: int = 4
) -> dict:
    """:func:`measured` with guidance, which the model was fitted to, and without; and the targets."""
    above = shape[1] + 1
    offsets = [offset for offset in (1, 3, 5, 7, 15, above) if offset <= REACH]
    low, high = ENTROPIES
    wanted = drift_by_offset(shape[1])
    return {
        "benchmark": "calibration",
        "target": {
            "entropy": (low + high) / 2,
            "entropy_deciles": [low + share * (high - low) for share in (0.1, 0.5, 0.9)],
            "drift": {offset: round(drift * float(wanted[offset - 1]), 4) for offset in offsets},
        },
        "guidance": measured(model, vocab, codes, shape, GUIDANCE, offsets, pictures),
        "no_guidance": measured(model, vocab, codes, shape, 1.0, offsets, pictures),
    }


def decode(
    model: SimulatedModel, vocab: Vocab, codes: int, shape: tuple[int, int], pictures: int, cfg: SampleConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(the tokens i32[pictures n] of each picture, the passes i32[pictures] that it took)."""
    prompts = [prompt(vocab, picture, shape) for picture in range(pictures)]
    keys = jax.random.split(jax.random.key(4), pictures)
    drawn, passes = answers(model, lay_out(prompts, keys[0], vocab, model.cfg.vocab, keys=keys), cfg, vocab)
    return np.stack(drawn), np.asarray(passes)


def row(model: SimulatedModel, vocab: Vocab, options, guidance: float, method: str, window: int) -> dict:
    """Passes a picture of one way of decoding, with the 95% interval of their mean over the pictures."""
    codes, pictures = options.codes, options.pictures
    tokens, tree = options.rows * (options.cols + 1) + 1, window // 2 if method.endswith(TREE) else 0
    cfg = SampleConfig(
        guidance=guidance,
        image_top_k=codes,
        max_new_tokens=tokens,
        parallel=method.removesuffix(TREE),
        window=0 if method == "off" else window - tree,
        tree=tree,
    )
    begin = time.perf_counter()
    passes = decode(model, vocab, codes, (options.rows, options.cols), pictures, cfg)[1] * (PICTURE_TOKENS / tokens)
    half = student.ppf(0.975, pictures - 1) * passes.std(ddof=1) / pictures**0.5 if pictures > 1 else float("nan")
    return {
        "benchmark": "decoding",
        "guidance": guidance,
        "method": method,
        "window": 1 if method == "off" else window,
        "passes": round(float(passes.mean()), 1),
        "half_width": round(float(half), 1),
        "fewer": round(PICTURE_TOKENS / float(passes.mean()), 3),
        "pictures": pictures,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def table(rows: list[dict]) -> str:
    """Markdown: a line for each way and guidance, a column for each window."""
    windows = sorted({entry["window"] for entry in rows if entry["method"] != "off"})
    lines = ["| guidance | way | " + " | ".join(f"window {window}" for window in windows) + " |"]
    lines.append("|---|---|" + "---|" * len(windows))
    for guidance in dict.fromkeys(entry["guidance"] for entry in rows):
        for method in dict.fromkeys(entry["method"] for entry in rows):
            found = {e["window"]: e for e in rows if (e["guidance"], e["method"]) == (guidance, method)}
            cells = [found.get(window, found.get(1)) for window in windows]
            text = [f"{c['passes']:,.0f} ± {c['half_width']:.0f} ({c['fewer']:.2f}x)" if c else "" for c in cells]
            lines.append(f"| {guidance:g} | {method} | " + " | ".join(text) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--methods", default=",".join([*PARALLEL, "matched" + TREE]), help="ways of decoding, by commas (all)"
    )
    parser.add_argument("--windows", default="16,32,64", help="tokens of a pass, by commas (16,32,64)")
    parser.add_argument("--guidance", default=f"{GUIDANCE:g}", help=f"guidances, by commas ({GUIDANCE:g})")
    parser.add_argument("--pictures", type=int, default=6, help="pictures, each with its own seed (6)")
    parser.add_argument("--rows", type=int, default=12, help="rows of a picture (12)")
    parser.add_argument("--cols", type=int, default=48, help="columns of a picture (48)")
    parser.add_argument("--codes", type=int, default=1000, help="image codes (1000)")
    parser.add_argument("--drift", type=float, default=PUBLISHED, help=f"in units of the measured one ({PUBLISHED})")
    parser.add_argument("--table", action="store_true", help="print Markdown")
    options = parser.parse_args()
    vocab = simulated_vocab(options.codes, max(options.pictures, 4))
    model = calibrated(SimulatedModel.drawn(vocab, options.cols), options.codes, options.drift)
    fitted = calibration(model, vocab, options.codes, (options.rows, options.cols), options.drift)
    show = (lambda entry: None) if options.table else (lambda entry: print(json.dumps(entry), flush=True))
    show(fitted)
    rows = []
    for guidance in map(float, options.guidance.split(",")):
        for method in options.methods.split(","):
            windows = [int(window) for window in options.windows.split(",")]
            for window in windows[:1] if method == "off" else windows:
                rows.append(row(model, vocab, options, guidance, method, window))
                show(rows[-1])
    if options.table:
        print(table(rows))


if __name__ == "__main__":
    main()

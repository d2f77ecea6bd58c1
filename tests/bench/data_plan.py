"""Padding of the batch plan and of the original's rule, and the plan of 100 million records: ``python tests/bench/data_plan.py``.

Prints one JSON line for each stage of FP-SFT, one for the large plan, and one for what a step of 133,120 rows costs each of 2,048
hosts. A million records a stage are drawn from a seeded
generator: 75% text to image, 15% image to text, 10% text alone. Pictures have log-normal aspect ratios (0.35 around 1:1) and
take the tokens of the best crop of the stage (layout.py); captions are log-normal around 90 tokens, within 10 to 300, answers
around 120, within 20 to 300, and texts around 350, within 20 to 4,000, a fifth of it questions. A text-to-image sample is <s>,
22 tokens of request, caption, end of turn, picture, end of turn; image to text is <s>, picture, 20 tokens of question, end of
turn, answer, end of turn. A sample takes one position less than its tokens.

"text_to_picture" is how much the texts weigh in the loss, divided by how much the pictures painted from texts do: the original's
token means over microbatches of 8, averaged, and ours by optim.loss_weight. The windows are here as narrow as among ten million
records; among a million there are fewer texts than a window holds, so that they share it with pictures, and weigh less.

The original sorts by length, shuffles within windows of 500 global batches, shuffles the batches, gives each of 32 GPUs 8
samples of a batch, pads to the longest with one sample per row, and drops the remainder. "padding" is to the longest sample of
the global batch: a GPU pads to the longest of its own, but waits for the GPU with the longest. A step of 7B costs 6 FLOPs per
weight and position, and 6 * layers * width * length**2 for causal attention; 64 chips run at half of a v5p's peak each.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from configs.lumina_7b_512 import experiment as stage_1
from configs.lumina_7b_768 import experiment as stage_2
from configs.lumina_7b_1024 import experiment as stage_3
from lumina_jax.config import DataConfig, ModelConfig
from lumina_jax.data.batch_plan import BatchPlan
from lumina_jax.layout import best_crop, crop_sizes, grid_tokens
from lumina_jax.train.weighting import length_classes

RECORDS = 1_000_000
KINDS = ("text to image", "image to text", "text")
SHARES = (0.75, 0.15, 0.10)
REQUEST, QUESTION = 22, 20
STAGES = {stage.data.size: replace(stage.data, path="") for stage in (stage_1, stage_2, stage_3)}
CHIPS, FLOPS = 64, 0.5 * 459e12
"""A v5p-128 at half of its peak."""
GPUS, PER_GPU, WINDOW = 32, 8, 500
WEIGHTS = 6.74e9
"""The parameters of 7B without the embedding."""
LARGE, PUBLISHED = 100_000_000, 10_000_000


def draw(size: int, records: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The length in positions, i32[records], the kind, i64[records], and the number of learned tokens, i64[records], of each."""
    rng = np.random.default_rng([seed, size])
    kind = rng.choice(len(KINDS), records, p=SHARES)
    picture = np.array(tuple(_picture_tokens(size)))[_crops(size, rng.normal(0, 0.35, records))]
    caption, answer, text = (
        np.exp(rng.normal(np.log(middle), spread, records)).clip(*within).astype(int)
        for middle, spread, within in ((90, 0.6, (10, 300)), (120, 0.6, (20, 300)), (350, 0.9, (20, 4000)))
    )
    tokens = np.select([kind == 0, kind == 1], [REQUEST + caption + picture + 3, QUESTION + picture + answer + 3], text)
    return (
        (tokens - 1).astype(np.int32),
        kind,
        np.select([kind == 0, kind == 1], [picture + 1, answer + 1], text * 4 // 5),
    )


def _picture_tokens(size: int) -> list[int]:
    return [grid_tokens(height // 16, width // 16) for width, height in crop_sizes(size)]


def _crops(size: int, logs: np.ndarray) -> np.ndarray:
    """The best crop for each logarithm of an aspect ratio, found on a grid of 2,001 ratios."""
    sizes = crop_sizes(size)
    grid = np.linspace(-2, 2, 2001)
    best = np.array(
        [sizes.index(best_crop((round(1e4 * np.exp(log / 2)), round(1e4 / np.exp(log / 2))), sizes)) for log in grid]
    )
    return best[np.searchsorted(grid, logs.clip(-2, 2))]


def flops(rows: np.ndarray | int, length: np.ndarray | int) -> np.ndarray | float:
    """The FLOPs of a training step of 7B on ``rows`` rows of ``length``."""
    model = ModelConfig()
    return rows * length * (6 * WEIGHTS + 6 * model.layers * model.width * length)


def microbatches(lengths: np.ndarray, seed: int = 0, window: int = WINDOW) -> np.ndarray:
    """The records of the original's global batches, shuffled within ``window`` of them, i64[steps GPUS PER_GPU]."""
    rng, samples = np.random.default_rng(seed), PER_GPU * GPUS
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), samples * window):
        rng.shuffle(order[begin : begin + samples * window])
    batches = order[: len(order) // samples * samples].reshape(-1, GPUS, PER_GPU)
    return batches[rng.permutation(len(batches))]


def text_to_picture(lengths: np.ndarray, kind: np.ndarray, learned: np.ndarray, cfg: DataConfig) -> dict[str, float]:
    """How much texts weigh in the loss, divided by how much pictures do: in the original, and in ours."""
    batches = microbatches(lengths, window=max(1, WINDOW * len(lengths) // PUBLISHED))
    weight = learned[batches] / learned[batches].sum(2, keepdims=True)
    shares = {"original": np.bincount(kind[batches].ravel(), weight.ravel(), 3)}
    shares |= {"tokens": np.bincount(kind, learned, 3), "rows": np.zeros(3)}
    plan, classes = BatchPlan([lengths + 1], cfg, 0), length_classes(cfg.buckets[-1])
    for step in range(min(plan.steps, 2000)):
        records = plan(step).record
        alike = classes[lengths[records]]
        weight = np.bincount(alike) / np.maximum(np.bincount(alike, learned[records]), 1)
        shares["rows"] += np.bincount(kind[records], weight[alike] * learned[records], 3) / len(records)
    return {name: round(float(share[2] / share[0]), 4) for name, share in shares.items()}


def original(lengths: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Padding and speed of the original's rule."""
    samples, batches = PER_GPU * GPUS, lengths[microbatches(lengths, seed)]
    longest, used = batches.max(2), batches.sum()
    seconds = flops(PER_GPU, longest.max(1).astype(float)).sum() / FLOPS
    return {
        "padding": round(1 - used / (longest.max(1).sum() * samples), 4),
        "padding_within_each_gpu": round(1 - used / (longest.sum() * PER_GPU), 4),
        "tokens_per_second": round(used / seconds * CHIPS / GPUS),
        "shapes": len(np.unique(longest)),
    }


def planned(lengths: np.ndarray, kind: np.ndarray, cfg: DataConfig) -> dict[str, object]:
    """The same of the batch plan, and how evenly its batches mix the kinds of records."""
    begin = time.perf_counter()
    plan = BatchPlan([lengths + 1], cfg, 0)
    build_seconds = time.perf_counter() - begin
    seconds = sum(s.steps * flops(s.rows, s.length) for s in plan.buckets) / FLOPS / CHIPS
    steps = [plan(step) for step in range(min(plan.steps, 1000))]
    text = [lengths[p.record][kind[p.record] == 2].sum() / lengths[p.record].sum() for p in steps]
    samples_per_row = [np.bincount(p.row, minlength=p.rows).mean() for p in steps]
    return {
        "padding": round(plan.padding, 4),
        "tokens_per_second": round(int(lengths.sum()) / seconds),
        "shapes": [[s.rows, s.length, s.steps] for s in plan.buckets],
        "cut": 0,
        "samples_per_row": round(float(np.mean(samples_per_row)), 2),
        "text_share_of_a_batch": [round(float(np.percentile(text, q)), 3) for q in (0, 50, 100)],
        "padding_that_dropping_contexts_adds": round(dropping(lengths, kind, cfg), 4),
        "seconds_to_build": round(build_seconds, 2),
    }


def dropping(lengths: np.ndarray, kind: np.ndarray, cfg: DataConfig) -> float:
    """The share of positions that ``drop_context`` empties: the requests and captions of text-to-image samples."""
    pictures = np.mean(_picture_tokens(cfg.size))
    is_picture = kind == 0
    return cfg.drop_context * float(lengths[is_picture].sum() - pictures * is_picture.sum()) / float(lengths.sum())


def large(records: int) -> dict[str, object]:
    """Seconds and memory to build the plan of ``records`` records, and the time to compute a batch."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = np.lib.format.open_memmap(f"{folder}/lengths.npy", "w+", np.int32, (records,))
        for begin in range(0, records, RECORDS):
            tokens[begin : begin + RECORDS] = draw(512, min(RECORDS, records - begin), begin)[0] + 1
        tokens.flush()
        del tokens
        before = memory()
        begin = time.perf_counter()
        plan = BatchPlan([np.load(f"{folder}/lengths.npy", mmap_mode="r")], STAGES[512], 0)
        build_seconds, after = time.perf_counter() - begin, memory()
        times = []
        for step in np.random.default_rng(0).integers(0, 10 * plan.steps, 2000).tolist():
            begin, cpu = time.perf_counter(), time.process_time()
            records_of_step = plan(step)
            times.append((time.perf_counter() - begin, time.process_time() - cpu))
    wall, cpu = zip(*times, strict=True)
    return {
        "benchmark": "plan of many records",
        "records": records,
        "steps_per_epoch": plan.steps,
        "seconds_to_build": round(build_seconds, 2),
        "anonymous_mib": {"before": before, "after": after},
        "peak_mib_with_mapped_lengths": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "microseconds_per_step": {
            "median": round(1e6 * np.median(wall)),
            "mean_of_the_core": round(1e6 * np.mean(cpu)),
        },
        "samples_per_step": len(records_of_step.row),
    }


def many_hosts(records: int) -> dict[str, object]:
    """The processor time to compute one host's rows of a batch, by the number of hosts."""
    rows, all_hosts = 133_120, (1, 64, 2048)
    cfg = replace(STAGES[512], batch=rows, row_multiple=2048)
    plan = BatchPlan([draw(512, records)[0] + 1], cfg, 0)
    milliseconds = {}
    for hosts in all_hosts:
        times = []
        for step in range(9):
            begin = time.process_time()
            plan(step, hosts // 2, hosts)
            times.append(time.process_time() - begin)
        milliseconds[hosts] = round(1e3 * float(np.median(times)), 3)
    return {"benchmark": "one host's rows of a step", "rows": rows, "processor_milliseconds_by_hosts": milliseconds}


def memory() -> int:
    """The memory of this process without mapped files, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=RECORDS, help="of each stage (1,000,000)")
    parser.add_argument("--large", type=int, default=LARGE, help="records of the large plan, 0 for none (100,000,000)")
    options = parser.parse_args()
    if options.large:
        print(json.dumps(large(options.large)), flush=True)
    print(json.dumps(many_hosts(options.records)), flush=True)
    for size, cfg in STAGES.items():
        lengths, kind, learned = draw(size, options.records)
        original_result, plan_result = original(lengths), planned(lengths, kind, cfg)
        unpacked = planned(lengths, kind, replace(cfg, packing=False))["padding"]
        result = {
            "benchmark": f"padding, stage {size}",
            "lengths": {KINDS[k]: [int(lengths[kind == k].min()), int(lengths[kind == k].max())] for k in range(3)},
            "ours": plan_result,
            "ours_without_packing": unpacked,
            "original": original_result,
            "samples_per_step": round(options.records / sum(steps for *_, steps in plan_result["shapes"])),
            "text_to_picture": text_to_picture(lengths, kind, learned, cfg),
            "tokens_per_second_ratio": round(
                plan_result["tokens_per_second"] / original_result["tokens_per_second"], 3
            ),
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

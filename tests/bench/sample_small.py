"""The benchmarks of tests/bench/sample.py that need no trained model, and how benchmarks take turns."""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from flax import nnx
from tokenizers import Tokenizer, models

from convert import save_model
from lumina_jax.config import ModelConfig, SampleConfig
from lumina_jax.layout import encode_grid
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sample import decode
from lumina_jax.sample.decode import answers
from lumina_jax.sample.request import bucket, lay_out
from lumina_jax.vocab import BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_LINE, END_OF_TURN, Vocab, image_code_name, size_name

# The size "50m" of tests/bench/train.py.
SMALL = ModelConfig(
    vocab=16384, width=512, layers=10, heads=8, kv_heads=8, head_dim=64, mlp=1536, qk_groups=8, dropout=0.0
)
SPARE_SLOTS = 16
CODES, UNITS, PROMPT = 8192, 64, 32
CHOICES = SampleConfig(guidance=3.0, image_top_k=2000)

Turn = Callable[[], float]
"""Does its work once and returns how much of it there was: passes of an image, or images."""


def take_turns(turns: dict[str, Turn], rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """(wall seconds, processor seconds, result) of each turn; a first round compiles and is not counted."""
    timings: dict[str, list[tuple[float, float, float]]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            wall, cpu = time.perf_counter(), time.process_time()
            result = turn()
            if number:
                timings[name].append((time.perf_counter() - wall, time.process_time() - cpu, result))
            print(f"round {number} of {rounds}: {name} {time.perf_counter() - wall:.2f} s", file=sys.stderr, flush=True)
    return timings


def median(values) -> float:
    return round(statistics.median(values), 5)


def bandwidth(threads: int) -> float:
    """Bytes a second that ``threads`` threads read from memory, at best."""
    chunks = np.array_split(np.ones(64 << 20, np.float32), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begin = time.perf_counter()
            list(pool.map(np.sum, chunks))
            best = max(best, sum(chunk.nbytes for chunk in chunks) / (time.perf_counter() - begin))
    return best


def settings(options) -> dict[str, float | int]:
    """``name=value`` of SampleConfig from the command line."""
    pairs = (pair.split("=") for pair in options.set)
    return {name: type(getattr(SampleConfig(), name))(value) for name, value in pairs}


def small_model(vocab_size: int = SMALL.vocab) -> tuple[Chameleon, Vocab]:
    """The model of 50M random weights, and a tokenizer of 8,192 codes for it."""
    names = [BEGIN, BEGIN_IMAGE, END_IMAGE, END_OF_LINE, END_OF_TURN]
    names += [image_code_name(code) for code in range(CODES)] + [size_name(units) for units in range(1, UNITS + 1)]
    names += [f"w{number}" for number in range(vocab_size - len(names))]
    words = {name: index for index, name in enumerate(names)}
    return Chameleon(SMALL, nnx.Rngs(0)), Vocab(Tokenizer(models.WordLevel(words, unk_token=BEGIN)))


def opened(vocab: Vocab, rows: int, cols: int, filled: int = 0) -> np.ndarray:
    """A prompt that ends inside an image of which ``filled`` rows stand."""
    words = np.arange(1, PROMPT) + vocab.id_of("w0")
    codes = np.random.default_rng(0).integers(0, CODES, (rows, cols))
    return np.concatenate([[vocab.id_of(BEGIN)], words, encode_grid(codes, vocab)[: 3 + filled * (cols + 1)]])


def peer(options) -> dict:
    model, vocab = small_model()
    side = options.side
    prompt, n = opened(vocab, side, side), side * (side + 1)
    cfg = replace(CHOICES, max_new_tokens=n, **settings(options))
    passes = {}

    def ours(name: str, cfg: SampleConfig, B: int) -> float:
        laid_out = lay_out([prompt] * B, jax.random.key(0), vocab, model.cfg.vocab)
        _, counted = answers(model, laid_out, cfg, vocab)
        passes[name] = float(counted.max())
        return float(B)

    off, default = replace(cfg, parallel="off"), SampleConfig()
    parallel = replace(cfg, parallel=default.parallel, window=default.window)
    turns = {
        "transformers": theirs(model, vocab, prompt, cfg, side),
        "off": lambda: ours("off", off, 1),
        default.parallel: lambda: ours(default.parallel, parallel, 1),
        "batch of 8": lambda: ours("batch of 8", off, 8),
    }
    before = bandwidth(options.threads)
    timings = take_turns(turns, options.rounds)
    speed = max(before, bandwidth(options.threads))
    result = {
        "benchmark": "peer",
        "tokens": n,
        "threads": options.threads,
        "gigabytes_per_second": round(speed / 1e9, 2),
    }
    for name, runs in timings.items():
        pairs = list(zip(runs, timings["transformers"], strict=True))
        ratios, cpu_ratios = ([b[i] * a[2] / (a[i] * b[2]) for a, b in pairs] for i in (0, 1))
        images = statistics.median(done / wall for wall, _, done in runs)
        result[name] = {
            "images_per_minute": round(60 * images, 3),
            "ratio": median(ratios),
            "cpu_ratio": median(cpu_ratios),
            "tokens_per_second": round(n * images, 1),
        }
        if name in passes:
            B = int(runs[0][2])
            milliseconds = 1e3 * statistics.median(wall for wall, _, _ in runs) / passes[name]
            share = 1e3 * bytes_of(model, 2 * B, len(prompt) + n / 2) / speed / milliseconds
            result[name] |= {
                "passes": passes[name],
                "ms_per_pass": round(milliseconds, 2),
                "share_of_bound": round(share, 3),
            }
    return result


def bytes_of(model: Chameleon, rows: int, filled: float) -> float:
    """What a pass must read inside an image: all weights but the embedding's table and the head's other columns, and the cache."""
    cfg = model.cfg
    weights = sum(weight.nbytes for weight in jax.tree.leaves(model.blocks)) + 4 * cfg.width * CODES
    return weights + 4 * 2 * cfg.layers * rows * cfg.kv_heads * cfg.head_dim * filled


def theirs(model: Chameleon, vocab: Vocab, prompt: np.ndarray, cfg: SampleConfig, side: int) -> Turn:
    """One image by transformers' generate with its own guidance: the unconditional forward follows the conditional one."""
    import torch
    import transformers

    class Rule(transformers.LogitsProcessor):
        """A code, or at the end of a line its token."""

        codes = torch.tensor(vocab.code_ids)

        def __call__(self, input_ids, scores):
            ruled = torch.full_like(scores, -torch.inf)
            allowed = self.codes if (input_ids.shape[1] - len(prompt) + 1) % (side + 1) else [vocab.newline]
            ruled[:, allowed] = scores[:, allowed]
            return ruled

    transformers.logging.set_verbosity_error()
    unused = dict(base_channels=32, channel_multiplier=[1], num_res_blocks=1)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, model.cfg, folder)
        twin = transformers.ChameleonForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, vq_config=unused
        )
    twin.eval()
    conditional, unconditional = (torch.tensor(ids, dtype=torch.long)[None] for ids in (prompt, prompt[-3:]))

    def once() -> float:
        torch.manual_seed(0)
        out = twin.generate(
            conditional,
            attention_mask=torch.ones_like(conditional),
            negative_prompt_ids=unconditional,
            negative_prompt_attention_mask=torch.ones_like(unconditional),
            guidance_scale=cfg.guidance,
            logits_processor=[Rule()],
            do_sample=True,
            top_k=cfg.image_top_k,
            max_new_tokens=cfg.max_new_tokens,
            min_new_tokens=cfg.max_new_tokens,
            pad_token_id=0,
        )
        if out.shape[1] != len(prompt) + cfg.max_new_tokens:
            raise SystemExit(f"transformers wrote {out.shape[1] - len(prompt)} tokens, not {cfg.max_new_tokens}")
        return 1.0

    return once


def length(options) -> dict:
    model, vocab = small_model()
    side, line = options.side, options.side + 1
    cfg = replace(CHOICES, parallel="off", max_new_tokens=line, **settings(options))
    slots = bucket(len(opened(vocab, side, side, side - 1)) + line + SPARE_SLOTS)

    def row(prompt: np.ndarray) -> float:
        """Milliseconds of a pass while one line is written; the cache has room for the whole image."""
        laid_out = lay_out([prompt], jax.random.key(0), vocab, model.cfg.vocab)
        program = decode.program_key(laid_out.request, cfg)._replace(slots=slots)
        ctx, state = jax.block_until_ready(decode.start(model, laid_out, cfg, vocab, program))
        begin = time.perf_counter()
        state = decode.decode(ctx, state, decode.NO_LIMIT, np.int32(1))
        return 1e3 * (jax.block_until_ready(state), time.perf_counter() - begin)[1] / int(state.passes.max())

    lines = {"first": opened(vocab, side, side), "last": opened(vocab, side, side, side - 1)}
    turns = {name: lambda prompt=prompt: row(prompt) for name, prompt in lines.items()}
    ms_per_pass = {name: median(ms for *_, ms in runs) for name, runs in take_turns(turns, options.rounds).items()}
    read = {name: bytes_of(model, 2, len(prompt) + line / 2) for name, prompt in lines.items()}
    growth, bound = ms_per_pass["last"] / ms_per_pass["first"], read["last"] / read["first"]
    rounded = {"growth": round(growth, 3), "growth_of_bound": round(bound, 3), "above_bound": round(growth / bound, 3)}
    return {"benchmark": "length", "tokens": side * line, "ms_per_pass": ms_per_pass} | rounded

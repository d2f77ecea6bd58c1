"""Training and decoding on an NVIDIA GPU beside transformers: ``python tests/bench/gpu.py train|decode`` prints one JSON line.

``train``: complete steps (forward, cross-entropy, backward, clipping, AdamW) of ``--layers`` layers of the 7B on random tokens in
bfloat16, with the whole blocks recomputed on both sides: tokens a second, and the share of the GPU's peak that the model's own
operations take (MFU; 6 per weight and token, attention as causal, nothing for recomputation). With the default of 8 layers
AdamW's state, 16 bytes a weight, fits into 80 GB beside what a step needs; a layer costs what it costs in the whole model.

``decode``: the 7B with random weights in bfloat16 paints a picture with guidance, one token a pass: milliseconds of a pass, and the
share of the memory's bandwidth that reading all weights and the filled cache takes. transformers runs the same steps with two rows
in a batch and its static cache.

The two take turns; figures are medians over the turns. Without a GPU, or without PyTorch for one, it ends and says so. ``--tiny``
runs all of it with a model of 2 small layers on any device, to see that it works; its figures mean nothing.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")  # the two sides share the memory
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimConfig, SampleConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.params import count
from lumina_jax.pods.compile import train_flops
from lumina_jax.sample.decode import NO_LIMIT, decode, start
from lumina_jax.sample.request import lay_out
from lumina_jax.sharding import global_batch, make_mesh
from lumina_jax.train.step import init_state, make_step
from lumina_jax.vocab import Vocab

PEAKS = {
    "H200": (989e12, 4.8e12),
    "H100 80GB HBM3": (989e12, 3.35e12),
    "H100 PCIe": (756e12, 2.0e12),
    "A100-SXM4-80GB": (312e12, 2.04e12),
}
"""Part of a GPU's name -> (bfloat16 operations a second without sparsity, bytes a second of memory), from NVIDIA's data sheets."""
TINY = ModelConfig(vocab=640, width=64, layers=2, heads=2, kv_heads=2, head_dim=32, mlp=96, qk_groups=2, dropout=0.0)
PROMPT = 32

Side = Callable[[], float]
"""Does its work once and returns how much of it there was."""


def peaks(tiny: bool) -> tuple[str, float, float]:
    """(name, operations a second, bytes a second) of the GPU; raises SystemExit without one that is known."""
    if tiny:
        return jax.devices()[0].device_kind, 1e12, 1e12
    if jax.default_backend() != "gpu":
        raise SystemExit(
            f"this benchmark needs an NVIDIA GPU, and JAX finds {jax.default_backend()}; install jax[cuda12]"
        )
    if not torch.cuda.is_available():
        raise SystemExit("JAX finds the GPU, but PyTorch does not; install a PyTorch for CUDA")
    name = jax.devices()[0].device_kind
    found = next((peak for part, peak in PEAKS.items() if part in name), None)
    if found is None:
        raise SystemExit(f"the peaks of a GPU named {name!r} are not known; add them to PEAKS from its data sheet")
    return name, *found


def seconds(sides: dict[str, Side], rounds: int) -> dict[str, tuple[float, float]]:
    """(median seconds, work) of a turn of each; a first round compiles and is not counted."""
    walls, work = {name: [] for name in sides}, {}
    for number in range(rounds + 1):
        for name, side in sides.items():
            begin = time.perf_counter()
            work[name] = side()
            if number:
                walls[name].append(time.perf_counter() - begin)
    return {name: (statistics.median(wall), work[name]) for name, wall in walls.items()}


def torch_model(cfg: ModelConfig, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """transformers' Chameleon of this size with random weights; its VQ encoder is the smallest it builds."""
    config = transformers.ChameleonConfig(
        vocab_size=cfg.vocab,
        hidden_size=cfg.width,
        intermediate_size=cfg.mlp,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads,
        attention_dropout=0.0,
        vocabulary_map={"<image>": 0},
        vq_config=dict(base_channels=32, channel_multiplier=[1], num_res_blocks=1),
        attn_implementation="sdpa",
    )
    with torch.device(device):
        return transformers.ChameleonForConditionalGeneration(config).to(dtype)


def ours_trains(cfg: Experiment, ids: np.ndarray, steps: int) -> tuple[Side, float]:
    """(a turn of ``steps`` steps of ours, which returns their tokens; the operations of a step)."""
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    state, step = init_state(cfg, mesh), make_step(cfg, mesh)
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    ones = np.ones_like(ids)
    batch = global_batch(Batch(ids, np.roll(ids, -1, 1), ones.astype(bool), positions, ones), mesh)

    def turn() -> float:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        return float(steps * ids.size)

    return turn, train_flops(cfg, count(state.model), *ids.shape)


def torch_trains(cfg: Experiment, ids: np.ndarray, steps: int, device: str) -> Side:
    """The same by transformers: weights in float32, products in bfloat16 (autocast), blocks recomputed, fused AdamW."""
    model = torch_model(cfg.model, device, torch.float32).train()
    model.gradient_checkpointing_enable()
    weights = [w for name, w in model.named_parameters() if "vqmodel" not in name]
    adam = torch.optim.AdamW(weights, lr=cfg.optim.lr, fused=device == "cuda")
    inputs = torch.tensor(ids, dtype=torch.long, device=device)

    def turn() -> float:
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16):
                loss = model(input_ids=inputs, labels=inputs, use_cache=False).loss
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, cfg.optim.clip)
            adam.step()
        loss.item()
        return float(steps * ids.size)

    return turn


def train(options, model: ModelConfig) -> dict:
    name, flops, _ = peaks(options.tiny)
    model = replace(model, layers=options.layers or (2 if options.tiny else 8))
    rows, length = (2, 64) if options.tiny else (options.rows, options.length)
    cfg = Experiment(
        model=model,
        data=DataConfig(batch=rows, buckets=(length,)),
        optim=OptimConfig(steps=10_000, warmup=0, z_loss=0.0),
        mesh=MeshConfig(fsdp=1, remat="block"),
    )
    ids = np.random.default_rng(0).integers(0, model.vocab, (rows, length), dtype=np.int32)
    ours, operations = ours_trains(cfg, ids, options.steps)
    sides = {"ours": ours}
    if not options.alone:
        sides["transformers"] = torch_trains(cfg, ids, options.steps, "cpu" if options.tiny else "cuda")
    result = {"benchmark": "train", "gpu": name, "layers": model.layers, "rows": rows, "length": length}
    for side, (wall, tokens) in seconds(sides, options.rounds).items():
        share = operations * options.steps / wall / flops
        result[side] = {"tokens_per_second": round(tokens / wall), "mfu": round(share, 4)}
    return result


def torch_decodes(model: ModelConfig, tokens: int, device: str) -> Side:
    """``tokens`` greedy steps by transformers with two rows; returns their number."""
    theirs = torch_model(model, device, torch.bfloat16).eval()
    ids = torch.randint(0, model.vocab, (2, PROMPT), device=device)

    @torch.no_grad()
    def turn() -> float:
        theirs.generate(
            input_ids=ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, cache_implementation="static"
        )
        return float(tokens)

    return turn


def decodes(options, model: ModelConfig) -> dict:
    from simulated_model import simulated_vocab

    name, _, bandwidth = peaks(options.tiny)
    vocab: Vocab = simulated_vocab(512 if options.tiny else 8192, 1)
    model = replace(model, layers=options.layers or model.layers)
    weights = jax.jit(lambda: jax.tree.map(lambda w: w.astype(jnp.bfloat16), Chameleon(model, nnx.Rngs(0))))()
    prompt = np.array([*[vocab.bos] * PROMPT, vocab.boi, *[vocab.size_id(16)] * 2], np.int32)
    tokens = 24 if options.tiny else 32 * 33
    cfg = SampleConfig(max_new_tokens=tokens, parallel="off")
    request = lay_out([prompt], jax.random.key(0), vocab, model.vocab)

    def ours() -> float:
        ctx, state = start(weights, request, cfg, vocab)
        return float(decode(ctx, state, NO_LIMIT, np.int32(1)).passes.max())

    sides = {"ours": ours}
    if not options.alone:
        sides["transformers"] = torch_decodes(model, tokens, "cpu" if options.tiny else "cuda")
    cache = 2 * 2 * 2 * model.layers * model.kv_heads * model.head_dim * (len(prompt) + tokens / 2)
    read = 2 * (count(weights.blocks) + model.width * len(vocab.code_ids)) + cache
    result = {"benchmark": "decode", "gpu": name, "layers": model.layers, "tokens": tokens}
    for side, (wall, passes) in seconds(sides, options.rounds).items():
        share = read * passes / wall / bandwidth
        result[side] = {"ms_per_pass": round(1e3 * wall / passes, 3), "share_of_bandwidth": round(share, 4)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "decode"))
    parser.add_argument("--layers", type=int, default=0, help="layers of the model (train: 8, decode: 32)")
    parser.add_argument("--rows", type=int, default=8, help="train: sequences in a batch (8)")
    parser.add_argument("--length", type=int, default=1280, help="train: tokens in a sequence (1280)")
    parser.add_argument("--steps", type=int, default=5, help="train: steps in a turn (5)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the two take turns (3)")
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument("--tiny", action="store_true", help="a small model on any device: does it run?")
    options = parser.parse_args()
    run = {"train": train, "decode": decodes}[options.what]
    print(json.dumps(run(options, TINY if options.tiny else ModelConfig())))


if __name__ == "__main__":
    main()

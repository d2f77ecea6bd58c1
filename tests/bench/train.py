"""Training throughput of the toy model on one core, beside PyTorch: ``python tests/bench/train.py`` prints one JSON line.

Both train the same decoder (RMSNorm, QK LayerNorm, rotary positions, SwiGLU, cross-entropy and z-loss, clipping, AdamW) on
the same random tokens in float32, in turns, so that what else the machine does strikes both. Figures are medians.
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

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from configs.toy_stage1 import experiment
from lumina_jax.batch import Batch
from lumina_jax.config import Experiment, MeshConfig, ModelConfig
from lumina_jax.model.params import count
from lumina_jax.sharding import global_batch, make_mesh
from lumina_jax.train.step import init_state, make_step

TOKENS = 56


class Block(nn.Module):
    """One pre-norm layer of the decoder."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        inner = cfg.heads * cfg.head_dim
        self.cfg = cfg
        self.attention_norm = nn.RMSNorm(cfg.width, cfg.eps)
        self.mlp_norm = nn.RMSNorm(cfg.width, cfg.eps)
        self.qkv = nn.Linear(cfg.width, 3 * inner, bias=False)
        self.q_norm, self.k_norm = nn.LayerNorm(cfg.head_dim), nn.LayerNorm(cfg.head_dim)
        self.out = nn.Linear(inner, cfg.width, bias=False)
        self.gate_up = nn.Linear(cfg.width, 2 * cfg.mlp, bias=False)
        self.down = nn.Linear(cfg.mlp, cfg.width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        B, T, _ = x.shape
        heads = self.qkv(self.attention_norm(x)).view(B, T, 3, self.cfg.heads, self.cfg.head_dim)
        query, key, value = (part.transpose(1, 2) for part in heads.unbind(2))
        query, key = rotate(self.q_norm(query), cos, sin), rotate(self.k_norm(key), cos, sin)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Decoder(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.embedding = nn.Embedding(cfg.vocab, cfg.width)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = nn.RMSNorm(cfg.width, cfg.eps)
        self.head = nn.Linear(cfg.width, cfg.vocab, bias=False)
        frequencies = cfg.rope_base ** (-torch.arange(0, cfg.head_dim, 2) / cfg.head_dim)
        angles = torch.arange(TOKENS)[:, None] * frequencies
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def tokens(cfg: Experiment) -> np.ndarray:
    return np.random.default_rng(0).integers(0, cfg.model.vocab, (cfg.data.batch, TOKENS + 1), dtype=np.int32)


def ours(cfg: Experiment) -> tuple[Callable[[], float], int]:
    """(one training step that returns its loss, the number of weights)."""
    mesh = make_mesh(cfg.mesh)
    state, step = init_state(cfg, mesh), make_step(cfg, mesh)
    ids = tokens(cfg)
    positions = np.tile(np.arange(TOKENS, dtype=np.int32), (cfg.data.batch, 1))
    learn, segments = np.ones(positions.shape, bool), np.ones_like(positions)
    batch = global_batch(Batch(ids[:, :-1], ids[:, 1:], learn, positions, segments), mesh)
    weights = count(state.model)

    def one() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
        return float(metrics.loss)

    return one, weights


def torch_s(cfg: Experiment) -> tuple[Callable[[], float], int]:
    """The same in PyTorch."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, optim = Decoder(cfg.model), cfg.optim
    weights = list(model.parameters())
    adam = torch.optim.AdamW(
        weights, lr=optim.lr, betas=(optim.b1, optim.b2), eps=optim.eps, weight_decay=optim.weight_decay, fused=True
    )
    ids = torch.tensor(tokens(cfg), dtype=torch.long)

    def one() -> float:
        logits = model(ids[:, :-1]).flatten(0, 1)
        xent = functional.cross_entropy(logits, ids[:, 1:].flatten())
        loss = xent + optim.z_loss * torch.logsumexp(logits, -1).square().mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, optim.clip)
        adam.step()
        return loss.item()

    return one, sum(weight.numel() for weight in weights)


def seconds(step: Callable[[], float], steps: int) -> float:
    """Median seconds of a step."""
    taken = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often the two take turns (5)")
    parser.add_argument("--steps", type=int, default=40, help="steps of each in a turn (40)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before either starts its threads
    mesh = MeshConfig(fsdp=1, compute="float32", remat="none", loss_chunk=experiment.mesh.loss_chunk, unroll=4)
    cfg = replace(experiment, mesh=mesh)
    (jax_step, weights), (torch_step, torch_weights) = ours(cfg), torch_s(cfg)
    for step in (jax_step, torch_step):
        seconds(step, 5)
    turns = [(seconds(jax_step, options.steps), seconds(torch_step, options.steps)) for _ in range(options.rounds)]
    ours_s, torch_s_ = (statistics.median(column) for column in zip(*turns, strict=True))
    size = cfg.data.batch * TOKENS
    result = {
        "benchmark": "toy training step, one core",
        "tokens_per_second": round(size / ours_s),
        "torch_tokens_per_second": round(size / torch_s_),
        "ratio": round(torch_s_ / ours_s, 3),
        "ratios": [round(theirs / mine, 3) for mine, theirs in turns],
        "milliseconds": round(1000 * ours_s, 2),
        "batch": [cfg.data.batch, TOKENS],
        "weights": [weights, torch_weights],
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

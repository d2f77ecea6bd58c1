"""Small checkpoints, written and read without the code under test."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Sizes:
    """The sizes of a random Chameleon; ``shards`` is its model parallelism, and with it the number of different QK-norm rows."""

    vocab: int = 96
    width: int = 64
    layers: int = 2
    heads: int = 8
    kv_heads: int = 4
    mlp: int = 176
    shards: int = 2
    swin: bool = False
    theta: float = 10000.0
    eps: float = 1e-5
    dtype: torch.dtype = torch.bfloat16

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


def write_meta(folder: Path, sizes: Sizes, seed: int = 0) -> Path:
    """Writes a random model in Meta's layout: consolidated files, params.json, consolidate_params.json. Returns ``folder``."""
    folder.mkdir(parents=True)
    rng, s, S = np.random.default_rng(seed), sizes, sizes.shards
    names = ["consolidated.pth"] if S == 1 else [f"consolidated.{i:02d}.pth" for i in range(S)]
    norms = {}
    for name in names:

        def draw(*shape, scale=0.2, mean=0.0):
            return torch.tensor(mean + scale * rng.standard_normal(shape), dtype=s.dtype)

        def norm(key):
            return norms.setdefault(key, draw(s.width, mean=1.0))

        state = {}
        for layer in range(s.layers):
            prefix = f"layers.{layer}."
            for w, rows in (("wq", s.heads), ("wk", s.kv_heads), ("wv", s.kv_heads)):
                state[f"{prefix}attention.{w}.weight"] = draw(rows // S * s.head_dim, s.width)
            state[f"{prefix}attention.wo.weight"] = draw(s.width, s.heads // S * s.head_dim)
            for which in "qk":
                state[f"{prefix}attention.{which}_normalization.weight"] = draw(s.head_dim, mean=1.0)
                state[f"{prefix}attention.{which}_normalization.bias"] = draw(s.head_dim)
            for w in ("w1", "w3"):
                state[f"{prefix}feed_forward.{w}.weight"] = draw(s.mlp // S, s.width)
            state[f"{prefix}feed_forward.w2.weight"] = draw(s.width, s.mlp // S)
            state[f"{prefix}attention_norm.weight"] = norm(f"a{layer}")
            state[f"{prefix}ffn_norm.weight"] = norm(f"f{layer}")
        state["tok_embeddings.weight"] = draw(s.vocab, s.width // S)
        state["norm.weight"] = norm("last")
        state["output.weight"] = draw(s.vocab // S, s.width)
        state["rope.freqs"] = 1.0 / (s.theta ** (torch.arange(0, s.head_dim, 2).float() / s.head_dim))
        torch.save(state, folder / name)
    model = dict(dim=s.width, n_layers=s.layers, n_heads=s.heads, n_kv_heads=s.kv_heads, vocab_size=s.vocab)
    model |= dict(multiple_of=16, norm_eps=s.eps, rope_theta=s.theta, qk_normalization=True, swin_norm=s.swin)
    (folder / "params.json").write_text(json.dumps({"model": model}))
    (folder / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": S}))
    return folder


def torch_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in the torch files of ``folder`` by name; in Meta's layout the file's name precedes the tensor's."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    for file in sorted(folder.glob("pytorch_model*.bin")):
        tensors |= torch.load(file, weights_only=True)
    for file in sorted(folder.glob("consolidated*.pth")):
        tensors |= {f"{file.name}:{name}": t for name, t in torch.load(file, weights_only=True).items()}
    return tensors


def differences(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """The names under which two sets of tensors differ in any bit."""
    names = sorted(a.keys() ^ b.keys())
    for name in sorted(a.keys() & b.keys()):
        same = a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        if not same or raw(a[name]) != raw(b[name]):
            names.append(name)
    return names


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes, without numpy, which has no bfloat16."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def rewrite(folder: Path, change) -> None:
    """Applies ``change`` (dict -> None) to the tensors of the only safetensors file in ``folder``."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})

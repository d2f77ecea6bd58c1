"""Chameleon's forward pass by two rules that share nothing with our model or our table of weights: Meta's and transformers'.

Meta's is numpy on Meta's own files, as chameleon/inference/transformer.py runs them: every shard keeps its own weights, in
their own order, and only activations cross between shards. The other is transformers itself.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.files import open_tensors
from convert.settings import read_json
from lumina_jax.errors import InputError, MissingFileError, MissingPackageError

QK_NORM_EPS = 1e-5
"""The originals fix it, whatever params.json says of norm_eps."""

UNUSED = ("model.vqmodel.", "rope.freqs", "loss.", "model.rotary_emb.", "rotary_emb.")
"""Beginnings of names in a Hugging Face file that no token passes through: the image encoder, tables that are computed."""

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Trace:
    """What one forward pass computed: ``layers`` f32[B T D], the embeddings and then what each layer gives, all before the
    final norm; ``logits`` f32[B T V], never masked."""

    layers: list[np.ndarray]
    logits: np.ndarray


def read_meta(folder: Path) -> tuple[list[Weights], dict]:
    """The first two arguments of :func:`meta` from a folder of Meta's, mapped."""
    params, consolidate = read_json(folder / "params.json"), folder / "consolidate_params.json"
    merged = {**params, **params.get("model", {}), **(read_json(consolidate) if consolidate.is_file() else {})}
    return [open_tensors(file) for file in sorted(folder.glob("consolidated*.pth"))], merged


def read_hugging_face(folder: Path) -> tuple[Weights, dict]:
    """The first two arguments of :func:`hugging_face` from a folder of Hugging Face's, mapped."""
    settings = read_json(folder / "config.json")
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if index.is_file():
            names = sorted(set(read_json(index)["weight_map"].values()))
        elif (folder / single).is_file():
            names = [single]
        else:
            continue
        return {name: array for file in names for name, array in open_tensors(folder / file).items()}, settings
    raise MissingFileError(f"{folder} holds neither model.safetensors nor pytorch_model.bin, nor an index of several")


def meta(shards: list[Weights], params: dict, ids: np.ndarray) -> Trace:
    """Token ids i32[B T] through Meta's files in float32: ``shards`` are consolidated*.pth by their own names, in order.

    ``params`` is params.json, its "model" part and consolidate_params.json merged; fields left out mean what they mean in
    Meta's ModelArgs. One weight at a time is held in float32. Where replicated norms differ, ``layers`` are the first shard's.
    Raises ValueError for another number of shards than ``params`` say, KeyError naming an absent weight.
    """
    expected = params.get("model_parallel_size", len(shards))
    if len(shards) != expected:
        raise InputError(f"{len(shards)} shards, but model_parallel_size is {expected}; pass every consolidated file")
    eps, turns = params.get("norm_eps", 1e-5), _turns(params, ids.shape[1])
    embeddings = np.concatenate([_f32(shard["tok_embeddings.weight"][ids]) for shard in shards], axis=-1)
    streams = [embeddings for _ in shards]
    layers = [embeddings]
    for layer in range(params["n_layers"]):
        attention = functools.partial(_attention, at=f"layers.{layer}.attention", params=params, turns=turns)
        feed_forward = functools.partial(_feed_forward, at=f"layers.{layer}.feed_forward")
        for sublayer, name in ((attention, "attention_norm"), (feed_forward, "ffn_norm")):
            norms = [shard[f"layers.{layer}.{name}.weight"] for shard in shards]
            streams = _add(sublayer, shards, streams, norms, eps, params.get("swin_norm", False))
        layers.append(streams[0])
    normed = [_rms_norm(x, shard["norm.weight"], eps) for shard, x in zip(shards, streams, strict=True)]
    parts = [x @ _f32(shard["output.weight"]).T for shard, x in zip(shards, normed, strict=True)]
    return Trace(layers, np.concatenate(parts, axis=-1))


def hugging_face(tensors: Weights, settings: dict, ids: np.ndarray) -> Trace:
    """Token ids i32[B T] through transformers' ChameleonForConditionalGeneration in float32 on the CPU.

    ``tensors`` and ``settings`` (config.json) may be Lumina-mGPT's or transformers' own: QK-norm rows per shard [G K] or per
    head [H K], rope_theta or rope_parameters. Weights of the image encoder are ignored. The whole model is held in float32.
    Raises ImportError without torch and transformers 5, RuntimeError listing missing, unknown and misshapen weights.
    """
    torch, transformers = libraries()
    unused = {"vq_config": None, "vocabulary_map": {}}  # both serve the image encoder, which never runs
    config = transformers.ChameleonConfig.from_dict({**settings, **unused})
    with torch.device("meta"):
        network = transformers.ChameleonForConditionalGeneration(config).eval()
    del network.model.vqmodel
    network.model.rotary_emb = type(network.model.rotary_emb)(config)  # its table is computed, not loaded
    heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
    names = [name for name in tensors if not name.startswith(UNUSED)]
    state = {name: torch.from_numpy(_for_transformers(name, tensors[name], heads)) for name in names}
    network.load_state_dict(state, assign=True)
    layers = []

    def keep(module, inputs, output) -> None:
        layers.append((output[0] if isinstance(output, tuple) else output).numpy().copy())

    for module in (network.model.embed_tokens, *network.model.layers):
        module.register_forward_hook(keep)
    with torch.no_grad():
        hidden = network.model(input_ids=torch.from_numpy(np.array(ids, np.int64)), use_cache=False).last_hidden_state
        return Trace(layers, network.lm_head(hidden).numpy())  # calling the whole network would mask the image logits


def _add(
    sublayer: Callable[[Weights, np.ndarray], np.ndarray],
    shards: list[Weights],
    streams: list[np.ndarray],
    norms: list[np.ndarray],
    eps: float,
    post_norm: bool,
) -> list[np.ndarray]:
    """The residual stream of each shard after ``sublayer``, whose parts are summed over the shards before a post-norm."""
    inputs = streams if post_norm else [_rms_norm(x, norm, eps) for x, norm in zip(streams, norms, strict=True)]
    whole = sum(sublayer(shard, x) for shard, x in zip(shards, inputs, strict=True))
    if post_norm:
        return [x + _rms_norm(whole, norm, eps) for x, norm in zip(streams, norms, strict=True)]
    return [x + whole for x in streams]


def _attention(shard: Weights, x: np.ndarray, at: str, params: dict, turns: np.ndarray) -> np.ndarray:
    """[B T D] -> this shard's part of [B T D], from its own heads."""
    B, T, _ = x.shape
    K = params["dim"] // params["n_heads"]
    q, k, v = ((x @ _f32(shard[f"{at}.{name}.weight"]).T).reshape(B, T, -1, K) for name in ("wq", "wk", "wv"))
    if params.get("qk_normalization", False):
        q = _layer_norm(q, shard, f"{at}.q_normalization")
        k = _layer_norm(k, shard, f"{at}.k_normalization")
    q, k = _rotate(q, turns), _rotate(k, turns)
    k, v = (np.repeat(part, q.shape[2] // part.shape[2], axis=2) for part in (k, v))
    scores = np.einsum("BTHK,BSHK->BHTS", q, k, optimize=True) / math.sqrt(K)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("BHTS,BSHK->BTHK", weights, v, optimize=True).reshape(B, T, -1)
    return mixed @ _f32(shard[f"{at}.wo.weight"]).T


def _feed_forward(shard: Weights, x: np.ndarray, at: str) -> np.ndarray:
    """[B T D] -> this shard's part of [B T D]: w2(silu(w1 x) * w3 x)."""
    gate = x @ _f32(shard[f"{at}.w1.weight"]).T
    gate *= np.exp(-np.logaddexp(0, -gate))
    return (gate * (x @ _f32(shard[f"{at}.w3.weight"]).T)) @ _f32(shard[f"{at}.w2.weight"]).T


def _turns(params: dict, T: int) -> np.ndarray:
    """c64[T 1 K/2]: the unit complex number that turns each pair of a head at each position."""
    K = params["dim"] // params["n_heads"]
    frequencies = 1 / params.get("rope_theta", 1e4) ** (np.arange(0, K, 2, dtype=np.float32) / K)
    angles = np.outer(np.arange(T, dtype=np.float32), frequencies)
    return (np.cos(angles) + 1j * np.sin(angles))[:, None]


def _rotate(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """RoPE of f32[B T H K] on adjacent pairs, each read as one complex number."""
    return (np.ascontiguousarray(x).view(np.complex64) * turns).view(np.float32)


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * _f32(weight)


def _layer_norm(x: np.ndarray, shard: Weights, name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + QK_NORM_EPS)
    return scaled * _f32(shard[f"{name}.weight"]) + _f32(shard[f"{name}.bias"])


def _f32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def _for_transformers(name: str, array: np.ndarray, heads: dict[str, int]) -> np.ndarray:
    """A writable float32 copy, in which QK-norm rows stored per shard are repeated for each of its heads."""
    copy, norm = np.array(array, np.float32), name.split(".")[-2]
    return np.repeat(copy, heads[norm] // len(copy), axis=0) if norm in heads else copy


def libraries():
    """torch and transformers; ImportError saying what to install where they are absent or too old."""
    try:
        import torch
        import transformers
    except ImportError:
        raise MissingPackageError(
            "running transformers' Chameleon needs torch (CPU is enough) and transformers: pip install torch transformers"
        ) from None
    if int(transformers.__version__.split(".")[0]) < 5:  # versions before ignore rope_parameters silently
        raise MissingPackageError(f"transformers {transformers.__version__} is too old: pip install 'transformers>=5'")
    return torch, transformers

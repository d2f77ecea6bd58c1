"""Chameleon's forward pass in two independent implementations, Meta's and transformers', to verify lumina_jax against.

Neither uses lumina_jax's model or the conversion table. Meta's is numpy on Meta's own files, as chameleon/inference/transformer.py
runs them: every shard keeps its own weights, in their own order, and only activations cross between shards.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from convert.settings import NOT_WEIGHTS, VQ_PREFIX, meta_settings, read_json
from convert.tensor_files import open_tensors, weight_files
from lumina_jax.errors import InputError, MissingPackageError
from lumina_jax.extras import install
from lumina_jax.places import Place

QK_NORM_EPS = 1e-5
"""A constant in the originals, independent of norm_eps in params.json."""

Weights = Mapping[str, np.ndarray]
Streams = list[np.ndarray]
"""f32[B T D] of each shard."""
Sublayer = Callable[[Weights, np.ndarray], np.ndarray]


def do_nothing() -> None:
    """Where nobody wants to know of progress."""


@dataclass(frozen=True)
class ForwardPass:
    """The activations of one forward pass. ``layers`` f32[B T D] are the embeddings and the output of each layer, before the
    final norm; ``logits`` f32[B T V] are never masked."""

    layers: list[np.ndarray]
    logits: np.ndarray


def read_meta(folder: Place) -> tuple[list[Weights], dict]:
    """The first two arguments of :func:`meta_forward` from a folder of Meta's; weights are mapped."""
    return [open_tensors(file) for file in sorted(folder.glob("consolidated*.pth"))], meta_settings(folder)


def read_hugging_face(folder: Place) -> tuple[Weights, dict]:
    """The first two arguments of :func:`transformers_forward` from a Hugging Face folder; weights are mapped."""
    files = sorted(set(weight_files(folder).values()))
    tensors = {name: array for file in files for name, array in open_tensors(file).items()}
    return tensors, read_json(folder / "config.json")


def meta_forward(
    shards: list[Weights], params: dict, ids: np.ndarray, advance: Callable[[], None] = do_nothing
) -> ForwardPass:
    """Token ids i32[B T] through Meta's files in float32: ``shards`` are consolidated*.pth by their own names, in order.

    ``params`` is what :func:`meta_settings` gives; absent fields have the defaults of Meta's ModelArgs. One weight at a time
    is converted to float32; ``advance`` is called behind each layer. Where replicated norms differ, ``layers`` are the first
    shard's. Raises InputError for another number of shards than model_parallel_size, KeyError naming an absent weight.
    """
    expected = params.get("model_parallel_size", len(shards))
    if len(shards) != expected:
        raise InputError(f"{len(shards)} shards, but model_parallel_size is {expected}; pass every consolidated file")
    rotations = _rotations(params, ids.shape[1])
    embeddings = np.concatenate([_f32(shard["tok_embeddings.weight"][ids]) for shard in shards], axis=-1)
    streams, layers = [embeddings] * len(shards), [embeddings]
    for layer in range(params["n_layers"]):
        prefix = f"layers.{layer}"
        attention = functools.partial(_attention, prefix=f"{prefix}.attention", params=params, rotations=rotations)
        feed_forward = functools.partial(_feed_forward, prefix=f"{prefix}.feed_forward")
        streams = _add(attention, shards, streams, f"{prefix}.attention_norm", params)
        streams = _add(feed_forward, shards, streams, f"{prefix}.ffn_norm", params)
        layers.append(streams[0])
        advance()
    normed = _rms_norms(shards, streams, "norm", params)
    logits = [x @ _f32(shard["output.weight"]).T for shard, x in zip(shards, normed, strict=True)]
    return ForwardPass(layers, np.concatenate(logits, axis=-1))


def transformers_forward(
    tensors: Weights, settings: dict, ids: np.ndarray, advance: Callable[[], None] = do_nothing
) -> ForwardPass:
    """Token ids i32[B T] through transformers' ChameleonForConditionalGeneration in float32 on the CPU.

    ``tensors`` and ``settings`` (config.json) may be Lumina-mGPT's or transformers' own: QK-norm rows per shard [G K] or per
    head [H K], rope_theta or rope_parameters. Weights of the image encoder are ignored. A module gets its weights when it runs and
    gives them back behind it, so that one layer at a time is in memory; ``advance`` is called behind each. Raises
    MissingPackageError without torch and transformers 5, InputError for a config that transformers refuses, RuntimeError listing
    missing, unknown and misshapen weights.
    """
    torch, transformers = need_transformers()
    overrides = {"vq_config": None, "vocabulary_map": {}}  # both serve the image encoder, which never runs
    try:
        config = transformers.ChameleonConfig.from_dict({**settings, **overrides})
    except Exception as error:  # transformers validates the fields with errors of its own
        why = " ".join(str(error).split())
        raise InputError(f"transformers refuses config.json ({why}); mend it, or compare with --by weights") from error
    with torch.device("meta"):
        network = transformers.ChameleonForConditionalGeneration(config).eval()
    del network.model.vqmodel
    network.model.rotary_emb = type(network.model.rotary_emb)(config)  # its table is computed, not loaded
    heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
    names = [name for name in tensors if not name.startswith((VQ_PREFIX, *NOT_WEIGHTS))]
    with torch.device("meta"):
        shapes = {name: torch.empty((_rows(name, tensors[name], heads), *tensors[name].shape[1:])) for name in names}
    network.load_state_dict(shapes, assign=True)
    layers = []

    def fill(module, inputs) -> None:
        prefix = prefixes[module]
        stored = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        weights = {name: _repeated(tensors[full], _rows(full, tensors[full], heads)) for name, full in stored.items()}
        module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, assign=True)

    def keep(module, inputs, output) -> None:
        module.to("meta")
        layers.append((output[0] if isinstance(output, tuple) else output).numpy().copy())
        if module is not network.model.embed_tokens:
            advance()

    modules = network.model.embed_tokens, *network.model.layers, network.model.norm, network.lm_head
    prefixes = {module: f"{name}." for name, module in network.named_modules() if module in modules}
    for module in modules:
        module.register_forward_pre_hook(fill)
    for module in modules[:-2]:
        module.register_forward_hook(keep)
    with torch.no_grad():
        hidden = network.model(input_ids=torch.from_numpy(np.array(ids, np.int64)), use_cache=False).last_hidden_state
        logits = network.lm_head(hidden).numpy()  # calling the network itself would mask the image logits
    return ForwardPass(layers, logits)


def _add(sublayer: Sublayer, shards: list[Weights], streams: Streams, norm: str, params: dict) -> Streams:
    """The residual stream of each shard after ``sublayer``, whose outputs are summed over the shards before a post-norm."""
    post_norm = params.get("swin_norm", False)
    inputs = streams if post_norm else _rms_norms(shards, streams, norm, params)
    outputs = [sum(map(sublayer, shards, inputs))] * len(shards)
    outputs = _rms_norms(shards, outputs, norm, params) if post_norm else outputs
    return [x + output for x, output in zip(streams, outputs, strict=True)]


def _attention(shard: Weights, x: np.ndarray, prefix: str, params: dict, rotations: np.ndarray) -> np.ndarray:
    """[B T D] -> this shard's summand of [B T D], from its own heads."""
    B, T, _ = x.shape
    K = params["dim"] // params["n_heads"]
    q, k, v = ((x @ _f32(shard[f"{prefix}.{name}.weight"]).T).reshape(B, T, -1, K) for name in ("wq", "wk", "wv"))
    if params.get("qk_normalization", False):
        q = _layer_norm(q, shard, f"{prefix}.q_normalization")
        k = _layer_norm(k, shard, f"{prefix}.k_normalization")
    q, k = _rotate(q, rotations), _rotate(k, rotations)
    k, v = (np.repeat(heads, q.shape[2] // heads.shape[2], axis=2) for heads in (k, v))
    scores = np.einsum("BTHK,BSHK->BHTS", q, k, optimize=True) / math.sqrt(K)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("BHTS,BSHK->BTHK", weights, v, optimize=True).reshape(B, T, -1)
    return mixed @ _f32(shard[f"{prefix}.wo.weight"]).T


def _feed_forward(shard: Weights, x: np.ndarray, prefix: str) -> np.ndarray:
    """[B T D] -> this shard's summand of [B T D]: w2(silu(w1 x) * w3 x)."""
    gate = x @ _f32(shard[f"{prefix}.w1.weight"]).T
    gate *= np.exp(-np.logaddexp(0, -gate))
    return (gate * (x @ _f32(shard[f"{prefix}.w3.weight"]).T)) @ _f32(shard[f"{prefix}.w2.weight"]).T


def _rotations(params: dict, T: int) -> np.ndarray:
    """c64[T 1 K/2]: the unit complex number that rotates each pair of a head at each position."""
    K = params["dim"] // params["n_heads"]
    frequencies = 1 / params.get("rope_theta", 1e4) ** (np.arange(0, K, 2, dtype=np.float32) / K)
    angles = np.outer(np.arange(T, dtype=np.float32), frequencies)
    return (np.cos(angles) + 1j * np.sin(angles))[:, None]


def _rotate(x: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """RoPE of f32[B T H K] on adjacent pairs, each read as one complex number."""
    return (np.ascontiguousarray(x).view(np.complex64) * rotations).view(np.float32)


def _rms_norms(shards: list[Weights], streams: Streams, name: str, params: dict) -> Streams:
    scales = [np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + params.get("norm_eps", 1e-5)) for x in streams]
    return [x / rms * _f32(shard[f"{name}.weight"]) for shard, x, rms in zip(shards, streams, scales, strict=True)]


def _layer_norm(x: np.ndarray, shard: Weights, name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + QK_NORM_EPS)
    return scaled * _f32(shard[f"{name}.weight"]) + _f32(shard[f"{name}.bias"])


def _f32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def _rows(name: str, array: np.ndarray, heads: dict[str, int]) -> int:
    """How many rows transformers expects of a tensor: of QK-norm, stored per shard or per head, one for each head."""
    return heads.get(name.split(".")[-2], len(array))


def _repeated(array: np.ndarray, rows: int) -> np.ndarray:
    """A writable float32 copy with ``rows`` rows, each repeated equally often."""
    copy = np.array(array, np.float32)
    return copy if len(copy) == rows else np.repeat(copy, rows // len(copy), axis=0)


def need_transformers():
    """The modules torch and transformers. Raises MissingPackageError where they are absent or too old."""
    try:
        import torch
        import transformers
    except ImportError:
        cure = f"needs torch (CPU is enough) and transformers: {install('torch')}"
        raise MissingPackageError(f"running transformers' Chameleon {cure}") from None
    if int(transformers.__version__.split(".")[0]) < 5:  # older versions ignore rope_parameters silently
        raise MissingPackageError(f"transformers {transformers.__version__} is too old; {install('torch')}")
    return torch, transformers

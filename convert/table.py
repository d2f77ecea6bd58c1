"""One row per weight, torch's name and layout on the left, ours on the right; walked left to right to import.

Layouts are einops-like: ``"(H K) D"`` is a matrix whose rows are heads times head size.
"""

import math
import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One weight in both worlds; ``{L}`` in ``torch_name`` is the layer, stacked first on our side."""

    torch_name: str
    torch_layout: str
    path: str
    letters: str

    @property
    def per_layer(self) -> bool:
        return "{L}" in self.torch_name


HUGGING_FACE = (
    Row("model.embed_tokens.weight", "V D", "embedding", "V D"),
    Row("model.layers.{L}.input_layernorm.weight", "D", "blocks/attention_norm/scale", "D"),
    Row("model.layers.{L}.self_attn.q_proj.weight", "(H K) D", "blocks/attention/wq", "D H K"),
    Row("model.layers.{L}.self_attn.k_proj.weight", "(N K) D", "blocks/attention/wk", "D N K"),
    Row("model.layers.{L}.self_attn.v_proj.weight", "(N K) D", "blocks/attention/wv", "D N K"),
    Row("model.layers.{L}.self_attn.o_proj.weight", "D (H K)", "blocks/attention/wo", "H K D"),
    Row("model.layers.{L}.self_attn.q_norm.weight", "G K", "blocks/attention/q_norm/scale", "G K"),
    Row("model.layers.{L}.self_attn.q_norm.bias", "G K", "blocks/attention/q_norm/bias", "G K"),
    Row("model.layers.{L}.self_attn.k_norm.weight", "G K", "blocks/attention/k_norm/scale", "G K"),
    Row("model.layers.{L}.self_attn.k_norm.bias", "G K", "blocks/attention/k_norm/bias", "G K"),
    Row("model.layers.{L}.post_attention_layernorm.weight", "D", "blocks/mlp_norm/scale", "D"),
    Row("model.layers.{L}.mlp.gate_proj.weight", "F D", "blocks/mlp/gate", "D F"),
    Row("model.layers.{L}.mlp.up_proj.weight", "F D", "blocks/mlp/up", "D F"),
    Row("model.layers.{L}.mlp.down_proj.weight", "D F", "blocks/mlp/down", "F D"),
    Row("model.norm.weight", "D", "norm/scale", "D"),
    Row("lm_head.weight", "V D", "head", "D V"),
)


def rearrange(array: np.ndarray, source: str, target: str, sizes: dict[str, int]) -> np.ndarray:
    """``array`` laid out as ``source`` -> the same numbers laid out as ``target``; ``sizes`` gives every letter's size."""
    shape = tuple(math.prod(sizes[letter] for letter in group) for group in _groups(source))
    if array.shape != shape:
        raise ValueError(f"shape {array.shape} is not {source} = {shape}")
    flat = [letter for group in _groups(source) for letter in group]
    wanted = [letter for group in _groups(target) for letter in group]
    moved = array.reshape([sizes[letter] for letter in flat]).transpose([flat.index(letter) for letter in wanted])
    return moved.reshape([math.prod(sizes[letter] for letter in group) for group in _groups(target)])


def _groups(layout: str) -> list[list[str]]:
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", layout)]

"""The conversion table: one row per weight of the decoder, with its name and axes in each checkpoint layout.

It is read in one direction to import and in the other to export. Axes are written as in einops: ``"(H p k) D"`` is a matrix whose
rows are heads times head size. The head size K is written as its two factors, p (the two halves that RoPE rotates against each
other) and k (the pairs): Meta stores the two members of a pair side by side, (k p), while Hugging Face and lumina_jax store
halves, (p k). RoPE's permutation is therefore a change of axes like any other.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lumina_jax.config import ModelConfig

Index = Mapping[str, slice]
"""A part of a weight: a slice for each letter that is sliced, in units of that letter. Letters left out are complete."""


@dataclass(frozen=True)
class WeightRow:
    """One weight. ``path`` and ``axes`` are those of lumina_jax; an empty name means that the layout has no such weight.

    ``{L}`` in a torch name is the layer; lumina_jax stacks all layers along a first axis that ``axes`` leave out.
    ``meta_split`` is the letter along which Meta divides the weight among its model-parallel files; if it is empty, every file
    holds the complete weight.
    """

    path: str
    axes: str
    hf_name: str
    hf_axes: str
    meta_name: str = ""
    meta_axes: str = ""
    meta_split: str = ""

    @property
    def per_layer(self) -> bool:
        return "{L}" in self.hf_name


def _layer(path: str, axes: str, hf_name: str, hf_axes: str, meta_name: str, *meta: str) -> WeightRow:
    hf_name, meta_name = f"model.layers.{{L}}.{hf_name}.weight", f"layers.{{L}}.{meta_name}.weight"
    return WeightRow(f"blocks/{path}", axes, hf_name, hf_axes, meta_name, *meta)


def _qk_norm(path: str, heads: str) -> tuple[WeightRow, ...]:
    """Scale and bias of a QK-norm, with one row per group; a file of Meta's holds the row of its own group only."""
    rows = []
    for name, torch_name in (("scale", "weight"), ("bias", "bias")):
        hf_name = f"model.layers.{{L}}.self_attn.{heads}_norm.{torch_name}"
        meta_name = f"layers.{{L}}.attention.{heads}_normalization.{torch_name}"
        rows.append(WeightRow(f"{path}/{name}", "G (p k)", hf_name, "G (p k)", meta_name, "(G k p)", "G"))
    return tuple(rows)


ROWS = (
    WeightRow("embedding", "V D", "model.embed_tokens.weight", "V D", "tok_embeddings.weight", "V D", "D"),
    _layer("attention_norm/scale", "D", "input_layernorm", "D", "attention_norm", "D"),
    _layer("attention/wq", "D H (p k)", "self_attn.q_proj", "(H p k) D", "attention.wq", "(H k p) D", "H"),
    _layer("attention/wk", "D N (p k)", "self_attn.k_proj", "(N p k) D", "attention.wk", "(N k p) D", "N"),
    _layer("attention/wv", "D N (p k)", "self_attn.v_proj", "(N p k) D", "attention.wv", "(N p k) D", "N"),
    _layer("attention/wo", "H (p k) D", "self_attn.o_proj", "D (H p k)", "attention.wo", "D (H p k)", "H"),
    *_qk_norm("blocks/attention/q_norm", "q"),
    *_qk_norm("blocks/attention/k_norm", "k"),
    _layer("mlp_norm/scale", "D", "post_attention_layernorm", "D", "ffn_norm", "D"),
    _layer("mlp/gate", "D F", "mlp.gate_proj", "F D", "feed_forward.w1", "F D", "F"),
    _layer("mlp/up", "D F", "mlp.up_proj", "F D", "feed_forward.w3", "F D", "F"),
    _layer("mlp/down", "F D", "mlp.down_proj", "D F", "feed_forward.w2", "D F", "F"),
    WeightRow("norm/scale", "D", "model.norm.weight", "D", "norm.weight", "D"),
    WeightRow("head", "D V", "lm_head.weight", "V D", "output.weight", "V D", "V"),
)


def sizes_of(cfg: ModelConfig, row: WeightRow) -> dict[str, int]:
    """The size of every letter in ``row.axes``; G is the number of QK-norm rows that lumina_jax stores for this weight."""
    G = min(cfg.qk_groups, cfg.kv_heads) if "k_norm" in row.path else cfg.qk_groups
    sizes = dict(V=cfg.vocab, D=cfg.width, H=cfg.heads, N=cfg.kv_heads, p=2, k=cfg.head_dim // 2, F=cfg.mlp, G=G)
    return {letter: sizes[letter] for group in axis_groups(row.axes) for letter in group}


def is_qk_norm(row: WeightRow) -> bool:
    """Whether the row is a QK-norm, of which the layouts store different numbers of rows."""
    return row.meta_split == "G"


def axis_groups(axes: str) -> list[list[str]]:
    """``"(H p k) D"`` -> [["H", "p", "k"], ["D"]]: the letters of each axis."""
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", axes)]


def shape_of(axes: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an array with these ``axes``."""
    return tuple(math.prod(sizes[letter] for letter in group) for group in axis_groups(axes))


def cut_sizes(sizes: Mapping[str, int], index: Index) -> dict[str, int]:
    """The size of every letter after slicing by ``index``."""
    return {letter: len(range(size)[index.get(letter, slice(None))]) for letter, size in sizes.items()}


def rearrange(array: np.ndarray, source: str, target: str, sizes: Mapping[str, int], index: Index) -> np.ndarray:
    """The part ``index`` of ``array``, from ``source`` axes to ``target`` axes; a view where the strides allow it.

    Raises ValueError when the shape of ``array`` is not the one that ``sizes`` give.
    """
    shape, slices, letters = shape_of(source, sizes), [], []
    if array.shape != shape:
        raise ValueError(f"an array of shape {list(array.shape)}, but {source} means {list(shape)}")
    for first, *rest in axis_groups(source):  # a slice of H in (H p k) is a range of rows
        selected, step = range(sizes[first])[index.get(first, slice(None))], math.prod(sizes[letter] for letter in rest)
        slices.append(slice(selected.start * step, selected.stop * step))
        letters += [first, *rest]
    sizes = cut_sizes(sizes, index)
    order = [letters.index(letter) for group in axis_groups(target) for letter in group]
    split = array[tuple(slices)].reshape([sizes[letter] for letter in letters])
    return split.transpose(order).reshape(shape_of(target, sizes))

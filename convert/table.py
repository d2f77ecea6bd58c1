"""One row per weight: its name and layout in each world. Walked one way to import, the other way to export.

Layouts are einops-like: ``"(H p k) D"`` is a matrix whose rows are heads times head size. The head size K is written as its
two factors, p (the two halves RoPE rotates against each other) and k (the pairs), because Meta keeps a pair's members side by
side, (k p), where Hugging Face and we keep halves, (p k): the permutation of RoPE is then nothing but another layout.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lumina_jax.config import ModelConfig
from lumina_jax.errors import InputError

Index = Mapping[str, slice]
"""The part of a weight that is wanted: a slice for each letter that is cut, in whole numbers of that letter."""


@dataclass(frozen=True)
class Row:
    """One weight. ``{L}`` in a torch name is the layer, stacked first on our side; an empty name: that world has none.

    ``split`` is the letter along which Meta cuts the weight over its model-parallel files; empty: every file holds it whole.
    """

    path: str
    ours: str
    hf_name: str
    hf: str
    meta_name: str = ""
    meta: str = ""
    split: str = ""

    @property
    def per_layer(self) -> bool:
        return "{L}" in self.hf_name

    def letters(self) -> list[str]:
        """The single letters of our layout, in order."""
        return [letter for group in groups(self.ours) for letter in group]


def _layer(path: str, ours: str, hf_name: str, hf: str, meta_name: str, meta: str, split: str = "") -> Row:
    names = f"model.layers.{{L}}.{hf_name}", f"layers.{{L}}.{meta_name}"
    return Row(f"blocks/{path}", ours, f"{names[0]}.weight", hf, f"{names[1]}.weight", meta, split)


def _norm(path: str, heads: str) -> tuple[Row, ...]:
    """Scale and bias of a QK-norm. One row each per group; a Meta file holds its own group's row alone."""
    rows = []
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        hf_name = f"model.layers.{{L}}.self_attn.{heads}_norm.{theirs}"
        meta_name = f"layers.{{L}}.attention.{heads}_normalization.{theirs}"
        rows.append(Row(f"{path}/{ours}", "G (p k)", hf_name, "G (p k)", meta_name, "(G k p)", "G"))
    return tuple(rows)


ROWS = (
    Row("embedding", "V D", "model.embed_tokens.weight", "V D", "tok_embeddings.weight", "V D", "D"),
    _layer("attention_norm/scale", "D", "input_layernorm", "D", "attention_norm", "D"),
    _layer("attention/wq", "D H (p k)", "self_attn.q_proj", "(H p k) D", "attention.wq", "(H k p) D", "H"),
    _layer("attention/wk", "D N (p k)", "self_attn.k_proj", "(N p k) D", "attention.wk", "(N k p) D", "N"),
    _layer("attention/wv", "D N (p k)", "self_attn.v_proj", "(N p k) D", "attention.wv", "(N p k) D", "N"),
    _layer("attention/wo", "H (p k) D", "self_attn.o_proj", "D (H p k)", "attention.wo", "D (H p k)", "H"),
    *_norm("blocks/attention/q_norm", "q"),
    *_norm("blocks/attention/k_norm", "k"),
    _layer("mlp_norm/scale", "D", "post_attention_layernorm", "D", "ffn_norm", "D"),
    _layer("mlp/gate", "D F", "mlp.gate_proj", "F D", "feed_forward.w1", "F D", "F"),
    _layer("mlp/up", "D F", "mlp.up_proj", "F D", "feed_forward.w3", "F D", "F"),
    _layer("mlp/down", "F D", "mlp.down_proj", "D F", "feed_forward.w2", "D F", "F"),
    Row("norm/scale", "D", "model.norm.weight", "D", "norm.weight", "D"),
    Row("head", "D V", "lm_head.weight", "V D", "output.weight", "V D", "V"),
)


def sizes_of(cfg: ModelConfig, row: Row) -> dict[str, int]:
    """The size of every letter in ``row``; G is the number of QK-norm rows that this weight has on our side."""
    G = min(cfg.qk_groups, cfg.kv_heads) if "k_norm" in row.path else cfg.qk_groups
    sizes = dict(V=cfg.vocab, D=cfg.width, H=cfg.heads, N=cfg.kv_heads, p=2, k=cfg.head_dim // 2, F=cfg.mlp, G=G)
    return {letter: sizes[letter] for letter in row.letters()}


def is_qk_norm(row: Row) -> bool:
    """Whether layouts differ in how many rows of this weight they store."""
    return row.split == "G"


def groups(layout: str) -> list[list[str]]:
    """``"(H p k) D"`` -> [["H", "p", "k"], ["D"]]."""
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", layout)]


def shape_of(layout: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an array laid out as ``layout``."""
    return tuple(math.prod(sizes[letter] for letter in group) for group in groups(layout))


def cut(sizes: Mapping[str, int], index: Index) -> dict[str, int]:
    """The sizes of the part that ``index`` names."""
    return {letter: len(range(size)[index.get(letter, slice(None))]) for letter, size in sizes.items()}


def part(array: np.ndarray, layout: str, sizes: Mapping[str, int], index: Index) -> np.ndarray:
    """The part of ``array`` that ``index`` names, as a view: a slice of H in ``(H p k)`` is a range of rows."""
    where = []
    for first, *rest in groups(layout):
        whole = range(sizes[first])[index.get(first, slice(None))]
        step = math.prod(sizes[letter] for letter in rest)
        where.append(slice(whole.start * step, whole.stop * step))
    return array[tuple(where)]


def rearrange(array: np.ndarray, source: str, target: str, sizes: Mapping[str, int]) -> np.ndarray:
    """``array`` laid out as ``source`` -> the same numbers laid out as ``target``, a view where strides allow it.

    Raises ValueError when its shape is not what ``sizes`` say.
    """
    shape = shape_of(source, sizes)
    if array.shape != shape:
        raise InputError(f"shape {list(array.shape)} where {source} says {list(shape)}")
    flat = [letter for group in groups(source) for letter in group]
    wanted = [letter for group in groups(target) for letter in group]
    moved = array.reshape([sizes[letter] for letter in flat]).transpose([flat.index(letter) for letter in wanted])
    return moved.reshape(shape_of(target, sizes))

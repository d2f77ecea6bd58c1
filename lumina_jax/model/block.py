"""One layer of the decoder: attention and SwiGLU with their weights, norms and residuals (original: modeling_chameleon.py)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lumina_jax.config import ModelConfig
from lumina_jax.model.backend import backend
from lumina_jax.model.params import GROUP_LETTER, Grouped, Scaled, weight
from lumina_jax.model.parts import Angles, QKNorm, RMSNorm, dropout, rotate
from lumina_jax.model.quant import Quantized, quantized_product
from lumina_jax.sharding import constrain

REMAT = {
    "block": (),
    "qkv": ("query", "key", "value", "mixed"),
    "qkv_out": ("query", "key", "value", "mixed", "attended"),
    "qkv_out_gate": ("query", "key", "value", "mixed", "attended", "gate"),
    "matmuls": ("query", "key", "value", "mixed", "attended", "gate", "up", "fed"),
}
"""The arrays of a block that each ``mesh.remat`` keeps for the backward pass besides its input, by their checkpoint_name; the
backward pass recomputes the others.

With heads H and key/value heads N of size K, width D and MLP width F, the numbers kept for each token and layer, and their bytes
for the 7B in bfloat16: "block" D (8 KiB); "qkv" 2HK + 2NK more (40 KiB): no projection twice, nor the sum over values (softmax
weights, T² of them, are recomputed by every form of attention); "qkv_out" D more (48 KiB): no output matrix twice;
"qkv_out_gate" F more (69.5 KiB); "matmuls" F more and, where norms stand behind, D (91 KiB): no matrix twice. "matmuls" leaves
norms, rotations, elementwise products and dropout masks, which are cheaper to compute than to keep. "none" keeps them as well.
"""

Mix = Callable[["Attention", jax.Array], tuple[jax.Array, object]]
"""(attention, its input [B T D]) -> (weighted sums of values [B T H K] or [B T HK], a second result such as new keys, values)."""


def product(letters: str, x: jax.Array, w: jax.Array | Scaled | Grouped | Quantized) -> jax.Array:
    """``jnp.einsum(letters, x, w)`` of activations and a weight whose first axes are the last of x.

    With an int8 weight the sum is over its codes, and its scale follows. With a Quantized one the sums are over codes of both. An
    int4 weight becomes numbers of the dtype of x.
    """
    if isinstance(w, Quantized):
        return quantized_product(letters, x, w)
    if isinstance(w, Grouped):
        return _grouped_product(letters, x, w)
    if not isinstance(w, Scaled):
        return backend().einsum(letters, x, w)
    inputs, weights, outputs = letters.replace("->", ",").split(",")
    channels = "".join(letter for letter in weights if letter not in inputs)
    summed = backend().einsum(letters, x, w.codes.astype(x.dtype))
    return jnp.einsum(f"{outputs},{channels}->{outputs}", summed, w.scale).astype(x.dtype)


def merged_product(letters: str, x: jax.Array, w: jax.Array | Scaled | Quantized) -> jax.Array:
    """:func:`product` whose last two axes, heads and their size, are one: [B T D], [D H K] -> [B T HK].

    The matrix of an array has one such axis as well. Left apart, XLA multiplies head by head, which fills half of a matrix unit
    that is 256 wide: 0.46 of the peak of v6e, against 0.83.
    """
    if isinstance(w, jax.Array | Quantized):
        return product("BTD,DF->BTF", x, w.reshape(w.shape[0], -1))
    apart = product(letters, x, w)
    return apart.reshape(*apart.shape[:-2], -1)


def _grouped_product(letters: str, x: jax.Array, w: Grouped) -> jax.Array:
    """:func:`product` with an int4 weight, whose groups divide the last axis of x."""
    inputs, weights, outputs = letters.replace("->", ",").split(",")
    split = weights.replace(inputs[-1], inputs[-1] + GROUP_LETTER)
    groups, size = w.codes.shape[split.index(GROUP_LETTER) - 1 :][:2]
    x = x.reshape(*x.shape[:-1], groups, size)
    return backend().einsum(f"{inputs}{GROUP_LETTER},{split}->{outputs}", x, w.matrix(x.dtype))


class Attention(nnx.Module):
    """The matrices and norms of grouped-query attention: H query heads share N key/value heads."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        D, H, N, K = cfg.width, cfg.heads, cfg.kv_heads, cfg.head_dim
        self.wq = weight(rngs, D=D, H=H, K=K)
        self.wk = weight(rngs, D=D, N=N, K=K)
        self.wv = weight(rngs, D=D, N=N, K=K)
        self.wo = weight(rngs, fan_in="HK", H=H, K=K, D=D)
        self.q_norm = QKNorm(cfg.qk_groups, K)
        self.k_norm = QKNorm(min(cfg.qk_groups, N), K)

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B T D] -> query [B H T K], key and value [B N T K], neither normed nor rotated."""
        query = product("BTD,DHK->BHTK", x, self.wq[...])
        key = product("BTD,DNK->BNTK", x, self.wk[...])
        value = product("BTD,DNK->BNTK", x, self.wv[...])
        return checkpoint_name(query, "query"), checkpoint_name(key, "key"), checkpoint_name(value, "value")

    def columns(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B T D] -> query [B T HK], key and value [B T NK]: :meth:`heads` side by side, for kernels that read them so."""
        query = merged_product("BTD,DHK->BTHK", x, self.wq[...])
        key = merged_product("BTD,DNK->BTNK", x, self.wk[...])
        value = merged_product("BTD,DNK->BTNK", x, self.wv[...])
        return checkpoint_name(query, "query"), checkpoint_name(key, "key"), checkpoint_name(value, "value")

    def project(self, x: jax.Array, angles: Angles) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B T D] -> query [B T H K], key and value [B N T K], query and key normed and rotated."""
        query, key, value = self.heads(x)
        query, key = query.swapaxes(1, 2), key.swapaxes(1, 2)
        return rotate(self.q_norm(query), *angles), rotate(self.k_norm(key), *angles).swapaxes(1, 2), value

    def output(self, mixed: jax.Array) -> jax.Array:
        """[B T H K], or heads side by side [B T HK], -> [B T D]."""
        wo = self.wo[...]
        if mixed.ndim == 4:
            return product("BTHK,HKD->BTD", mixed, wo)
        if isinstance(wo, jax.Array | Quantized):
            return product("BTF,FD->BTD", mixed, wo.reshape(-1, wo.shape[-1]))
        return product("BTHK,HKD->BTD", mixed.reshape(*mixed.shape[:2], -1, self.q_norm.scale.shape[-1]), wo)


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, D: int, F: int, rngs: nnx.Rngs):
        self.gate = weight(rngs, D=D, F=F)
        self.up = weight(rngs, D=D, F=F)
        self.down = weight(rngs, F=F, D=D)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B T D] -> [B T D]."""
        gate = checkpoint_name(product("BTD,DF->BTF", x, self.gate[...]), "gate")
        up = checkpoint_name(product("BTD,DF->BTF", x, self.up[...]), "up")
        return product("BTF,FD->BTD", backend().swiglu(gate, up), self.down[...])


class Block(nnx.Module):
    """One layer. Pre-norm (7B): x + f(norm(x)); post-norm (34B, Swin): x + norm(f(x))."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.attention = Attention(cfg, rngs)
        self.mlp = MLP(cfg.width, cfg.mlp, rngs)
        self.attention_norm = RMSNorm(cfg.width, cfg.eps)
        self.mlp_norm = RMSNorm(cfg.width, cfg.eps)
        self.cfg = cfg

    def __call__(
        self, x: jax.Array, mix: Mix, key: jax.Array | None = None, rng: str = "global"
    ) -> tuple[jax.Array, object]:
        """x [B T D] -> ([B T D], the second result of ``mix``). ``key`` and ``rng`` are those of parts.dropout."""
        keys = (None, None) if key is None else jax.random.split(key)
        mixed, aux = mix(self.attention, self._normed(x, self.attention_norm))
        x = self._add(x, self.attention.output(mixed), self.attention_norm, "attended", keys[0], rng)
        fed = self.mlp(self._normed(x, self.mlp_norm))
        return self._add(x, fed, self.mlp_norm, "fed", keys[1], rng), aux

    def _normed(self, x: jax.Array, norm: RMSNorm) -> jax.Array:
        return x if self.cfg.post_norm else norm(x)

    def _add(self, x: jax.Array, change: jax.Array, norm: RMSNorm, name: str, key, rng: str) -> jax.Array:
        change = checkpoint_name(change, name)
        change = norm(change) if self.cfg.post_norm else change
        return constrain(x + dropout(change, self.cfg.dropout, key, rng), "BTD")

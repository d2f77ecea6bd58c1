"""The Chameleon decoder: embedding, a scan over blocks, final norm, untied head (paper section 3.1)."""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from lumina_jax.config import ModelConfig
from lumina_jax.model import cudnn
from lumina_jax.model.attention import KVCache, Order, Reaches, causal_mask, quantize_slots
from lumina_jax.model.backend import backend
from lumina_jax.model.block import REMAT, Attention, Block
from lumina_jax.model.params import weight
from lumina_jax.model.parts import Angles, RMSNorm
from lumina_jax.model.quant import for_quantized_compute
from lumina_jax.model.splash import LANES, splash_attend
from lumina_jax.sharding import STORE, all_gather, axis_size, for_compute, per_device, psum

CachedLayers = Callable[[jax.Array, Angles, KVCache, Reaches, Order], tuple[jax.Array, KVCache]]
"""All layers over a cache: (x [B T D], angles, cache, reaches, order) -> (x behind the last layer, the cache with the new keys and
values; its length is still the old one)."""


class Chameleon(nnx.Module):
    """``Chameleon(cfg, rngs)``: weights are drawn here and never change; methods are pure functions of them.

    Matrices and activations have the dtype of the weights: cast the whole tree to compute in another.
    """

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.embedding = weight(rngs, fan_in="D", V=cfg.vocab, D=cfg.width)
        layer_keys = jax.random.split(rngs.params(), cfg.layers)
        self.blocks = jax.vmap(lambda key: Block(cfg, nnx.Rngs(key)))(layer_keys)
        self.norm = RMSNorm(cfg.width, cfg.eps)
        self.head = weight(rngs, D=cfg.width, V=cfg.vocab)

    def __call__(
        self,
        inputs: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        key: jax.Array | None = None,
        remat: str = "none",
        unroll: int = 1,
        attention: str = "auto",
        dropout_rng: str = "global",
        quant: str = "none",
        quant_skip: tuple[int, ...] = (),
    ) -> jax.Array:
        """Token ids i32[B T] -> hidden states [B T D] after the final norm.

        ``positions`` i32[B T] default to 0..T-1, ``segments`` i32[B T] to one segment a row. A ``key`` switches residual
        dropout on, and the stochastic rounding of quantized gradients. The other arguments are those of MeshConfig.
        """
        positions = jnp.arange(inputs.shape[1])[None] if positions is None else positions
        x = self._embed(inputs)
        mix = self._mix(x, positions, segments, attention)

        def run(x: jax.Array, layer: tuple[Block, jax.Array | None, jax.Array | None], quant: str):
            block, key, rounding_key = layer
            block = for_compute(block) if quant == "none" else for_quantized_compute(block, quant, rounding_key)
            return block(x, mix, key, dropout_rng)

        count = self.cfg.layers
        keys = None if key is None or self.cfg.dropout == 0 else jax.random.split(key, count)
        rounding_keys = None if key is None or quant == "none" else jax.random.split(jax.random.fold_in(key, 1), count)
        for first, end, kind in _spans(count, quant, quant_skip):
            part = functools.partial(run, quant=kind)
            if remat != "none":
                policy = jax.checkpoint_policies.save_only_these_names(*REMAT[remat])
                part = jax.checkpoint(part, policy=policy, prevent_cse=unroll > 1)
            layers = jax.tree.map(operator.itemgetter(slice(first, end)), (self.blocks, keys, rounding_keys))
            x, _ = jax.lax.scan(part, x, layers, unroll=unroll)
        return self.norm(x)

    def layers(self, inputs: jax.Array) -> jax.Array:
        """Token ids i32[B T] -> [L+1 B T D]: the embeddings, then the output of each layer; the final norm is applied to none."""
        x = self._embed(inputs)
        mix = self._mix(x, jnp.arange(inputs.shape[1])[None], None, "plain")

        def run(x: jax.Array, block: Block):
            x, _ = for_compute(block)(x, mix)
            return x, x

        _, outputs = jax.lax.scan(run, x, self.blocks)
        return jnp.concatenate([x[None], outputs])

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B T D] -> f32[B T V], never masked."""
        return jnp.einsum("BTD,DV->BTV", hidden, self.head[...], preferred_element_type=jnp.float32)

    def empty_cache(self, rows: int, slots: int, int8: bool = False) -> KVCache:
        """A cache for ``rows`` sequences of up to ``slots`` tokens, in the dtype of the weights or in int8."""
        cfg = self.cfg
        shape = (cfg.layers, rows, cfg.kv_heads, slots, cfg.head_dim)
        zeros = functools.partial(jnp.zeros, shape, self.head.dtype)
        keys, values = map(quantize_slots, (zeros(), zeros())) if int8 else (zeros(), zeros())
        return KVCache(keys, values, jnp.zeros((), jnp.int32), jnp.zeros(rows, jnp.int32))

    def cached(
        self,
        ids: jax.Array,
        cache: KVCache,
        reaches: Reaches = None,
        layers: CachedLayers | None = None,
        order: Order | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Token ids i32[B T] that follow the tokens in ``cache`` -> (hidden [B T D], the cache with them in it).

        A row's tokens take its slots ``length`` to ``length + T - 1``, which must not reach past the last slot. ``reaches`` are
        candidate cache lengths, descending: attention uses the smallest that covers the filled slots, and the first must cover
        them; the default is all slots. ``layers`` is from :meth:`unstack`; the default is a scan over a stacked cache.
        ``order``: which tokens stand before each; by default all that it follows.
        """
        T = ids.shape[1]
        order = order or Order.of_chain(T)
        slots = jnp.broadcast_to(cache.length, len(ids))[:, None] + order.depth
        positions = jnp.maximum(slots - cache.visible_from[:, None], 0)
        angles = backend().rotary(positions, self.cfg.head_dim, self.cfg.rope_base, self.head.dtype)
        x, cache = (layers or self.scan_cached)(self._embed(ids), angles, cache, reaches, order)
        return self.norm(x), cache._replace(length=cache.length + T)

    def unstack(self, cache: KVCache) -> tuple[CachedLayers, KVCache]:
        """(layers, cache) for a loop that calls :meth:`cached` with them, in the form that this backend decodes fastest.

        Call it before the loop, and KVCache.stack on the cache behind it. Unstacked layers ignore ``reaches`` and use all slots.
        """
        run_unstacked = backend().run_unstacked
        if run_unstacked is None:
            return self.scan_cached, cache
        blocks = [jax.tree.map(operator.itemgetter(layer), self.blocks) for layer in range(self.cfg.layers)]
        return functools.partial(run_unstacked, blocks), cache.unstack()

    def scan_cached(
        self, x: jax.Array, angles: Angles, cache: KVCache, reaches: Reaches, order: Order
    ) -> tuple[jax.Array, KVCache]:
        """:data:`CachedLayers` as a scan. It only reads the cache; the new keys and values are written when it is done."""
        reaches = backend().reaches(x.shape[1], cache, reaches)
        reaches = (jax.tree.leaves(cache.keys)[0].shape[3],) if reaches is None else reaches
        branch = sum((jnp.max(cache.length) <= reach).astype(jnp.int32) for reach in reaches[1:])
        branches = [functools.partial(backend().attend_past, order=order, reach=reach) for reach in reaches]

        def run(x: jax.Array, layer: tuple[Block, jax.Array]):
            block, index = layer

            def mix(attention: Attention, x: jax.Array):
                query, key, value = attention.project(x, angles)
                new = cache.stored(key, value)
                return jax.lax.switch(branch, branches, query, cache, new, index), new

            return block(x, mix)

        x, (keys, values) = jax.lax.scan(run, x, (self.blocks, jnp.arange(self.cfg.layers)))
        write = functools.partial(backend().write_slots, start=cache.length)
        keys, values = jax.tree.map(write, (cache.keys, cache.values), (keys, values))
        return x, cache._replace(keys=keys, values=values)

    def _mix(self, x: jax.Array, positions: jax.Array, segments: jax.Array | None, attention: str):
        """The ``mix`` of Block for whole sequences x [B T D]: causal attention within segments. Its second result is None."""
        angles = backend().rotary(positions, self.cfg.head_dim, self.cfg.rope_base, x.dtype)
        if attention == "auto":
            attention = self._kernel(x.dtype)
        if attention == "splash":
            return lambda attention, x: (splash_attend(attention, x, angles, segments), None)
        if attention == "cudnn":
            return self._mix_by_cudnn(x, angles, segments)
        mask = causal_mask(x.shape[1], segments)

        def mix(attention: Attention, x: jax.Array):
            return checkpoint_name(backend().attend_causal(*attention.project(x, angles), mask), "mixed"), None

        return mix

    def _kernel(self, dtype: jnp.dtype) -> str:
        """The backend's attention kernel, or "plain" where it does not take heads of this size and ``dtype``."""
        kernel, K = backend().attention_kernel, self.cfg.head_dim
        fits = {"splash": K % LANES == 0, "cudnn": cudnn.supports(K, dtype), "plain": True}
        return kernel if fits[kernel] else "plain"

    def _mix_by_cudnn(self, x: jax.Array, angles: Angles, segments: jax.Array | None):
        """:meth:`_mix` by cuDNN. Raises InputError where that cannot run."""
        cudnn.check_support(self.cfg.head_dim, x.dtype)
        bias = cudnn.segment_bias(segments, x.dtype)

        def mix(attention: Attention, x: jax.Array):
            return checkpoint_name(cudnn.attend(*attention.project(x, angles), segments, bias), "mixed"), None

        return mix

    def _embed(self, ids: jax.Array) -> jax.Array:
        stored = P(*(STORE.get(letter) for letter in "VD"))
        return per_device(_look_up, ("BT", stored), "BTD")(ids, self.embedding[...])


def _spans(layers: int, quant: str, skip: tuple[int, ...]) -> list[tuple[int, int, str]]:
    """(first layer, end, its form of products) of each run of layers that are computed alike."""
    before, behind = skip if quant != "none" and skip else (0, 0)
    spans = ((0, before, "none"), (before, layers - behind, quant), (layers - behind, layers, "none"))
    return [span for span in spans if span[0] < span[1]]


def _look_up(ids: jax.Array, table: jax.Array) -> jax.Array:
    """One device's rows i32[B T] of ids, and its part of the table [V D] -> [B T D].

    The table is gathered over D; over the parts of V the rows are summed, all but one of them zero.
    """
    table = all_gather(table, "fsdp", 1)
    if axis_size("tensor") == 1:
        return table[ids]
    row = ids - table.shape[0] * jax.lax.axis_index("tensor")
    inside = (row >= 0) & (row < table.shape[0])
    return psum(jnp.where(inside[..., None], table[row], 0), "tensor")

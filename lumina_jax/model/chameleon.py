"""The Chameleon decoder: embedding, a scan over blocks, final norm, untied head (paper section 2.1)."""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from lumina_jax.config import REMAT, ModelConfig
from lumina_jax.model.attention import Attention, KVCache, attend_causal, attend_past, causal_mask, fill
from lumina_jax.model.params import weight
from lumina_jax.model.parts import MLP, RMSNorm, dropout, rotary
from lumina_jax.model.splash import LANES, splash_attend
from lumina_jax.sharding import STORE, constrain, for_compute, joined, per_device, platform, size_of, total


class Block(nnx.Module):
    """One layer. Pre-norm (7B): x + f(norm(x)); post-norm (34B, Swin): x + norm(f(x))."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.attention = Attention(cfg, rngs)
        self.mlp = MLP(cfg.width, cfg.mlp, rngs)
        self.attention_norm = RMSNorm(cfg.width, cfg.eps)
        self.mlp_norm = RMSNorm(cfg.width, cfg.eps)
        self.cfg = cfg

    def __call__(self, x: jax.Array, attention, key: jax.Array | None, rng: str = "global") -> jax.Array:
        """[B T D] -> [B T D]; ``attention`` maps the (normed) input to what this layer's attention gives."""
        keys = (None, None) if key is None else jax.random.split(key)
        x = self._add(x, attention, self.attention_norm, "attended", keys[0], rng)
        return self._add(x, self.mlp, self.mlp_norm, "fed", keys[1], rng)

    def _add(self, x, sublayer, norm, name, key, rng):
        post_norm = self.cfg.post_norm
        change = checkpoint_name(sublayer(x if post_norm else norm(x)), name)
        change = norm(change) if post_norm else change
        return constrain(x + dropout(change, self.cfg.dropout, key, rng), "BTD")


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
    ) -> jax.Array:
        """Token ids i32[B T] -> hidden states [B T D] after the final norm.

        ``positions`` i32[B T] default to 0..T-1, ``segments`` i32[B T] to one segment a row. A ``key`` switches residual
        dropout on. ``remat``, ``unroll``, ``attention`` and ``dropout_rng`` are those of MeshConfig.
        """
        positions = jnp.arange(inputs.shape[1])[None] if positions is None else positions
        x = self._embed(inputs)
        step = self._step(x, positions, segments, attention, dropout_rng)

        def run(x, layer):
            return step(x, layer), None

        if remat != "none":
            policy = jax.checkpoint_policies.save_only_these_names(*REMAT[remat])
            run = jax.checkpoint(run, policy=policy, prevent_cse=unroll > 1)
        keys = None if key is None or self.cfg.dropout == 0 else jax.random.split(key, self.cfg.layers)
        x, _ = jax.lax.scan(run, x, (self.blocks, keys), unroll=unroll)
        return self.norm(x)

    def layers(self, inputs: jax.Array) -> jax.Array:
        """Token ids i32[B T] -> [L+1 B T D]: the embeddings, then what each layer gives; none went through the final norm."""
        x = self._embed(inputs)
        step = self._step(x, jnp.arange(inputs.shape[1])[None], None, "plain", "global")

        def run(x, layer):
            x = step(x, layer)
            return x, x

        _, given = jax.lax.scan(run, x, (self.blocks, None))
        return jnp.concatenate([x[None], given])

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [B T D] -> f32[B T V], never masked."""
        return jnp.einsum("BTD,DV->BTV", hidden, self.head[...], preferred_element_type=jnp.float32)

    def empty_cache(self, rows: int, slots: int) -> KVCache:
        """A cache for ``rows`` sequences of up to ``slots`` tokens, in the dtype of the weights."""
        cfg = self.cfg
        shape = (cfg.layers, rows, cfg.kv_heads, slots, cfg.head_dim)
        zeros = functools.partial(jnp.zeros, shape, self.head.dtype)
        return KVCache(zeros(), zeros(), jnp.zeros((), jnp.int32), jnp.zeros(rows, jnp.int32))

    def apart(self) -> list[Block]:
        """The blocks one by one, each with weights of its own."""
        layers = range(self.cfg.layers)
        return [jax.tree.map(operator.itemgetter(layer), self.blocks) for layer in layers]

    def cached(
        self,
        ids: jax.Array,
        cache: KVCache,
        reaches: Sequence[int] | None = None,
        layers: Sequence[Block] | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Token ids i32[B T] that follow what ``cache`` holds -> (hidden [B T D], the cache with them in it).

        A row's tokens take its slots ``length`` to ``length + T - 1``. Where those reach past the last slot the result is
        undefined. ``reaches`` are numbers of slots, falling: attention reads the least that hold what is filled, which the first
        must; without it, all slots. ``layers`` are what :meth:`apart` gave, for a cache that is apart, too: CPUs copy
        what a scan cuts out for a layer, its weights and its part of the cache, before they use it.
        """
        T = ids.shape[1]
        slots = jnp.broadcast_to(cache.length, len(ids))[:, None] + jnp.arange(T)
        positions = jnp.maximum(slots - cache.visible_from[:, None], 0)
        angles = rotary(positions, self.cfg.head_dim, self.cfg.rope_base, self.head.dtype)
        x, keys, values = (self._scanned if layers is None else functools.partial(self._one_by_one, layers))(
            self._embed(ids), angles, cache, reaches
        )
        return self.norm(x), cache._replace(keys=keys, values=values, length=cache.length + T)

    def _scanned(self, x: jax.Array, angles, cache: KVCache, reaches: Sequence[int] | None):
        """(hidden [B T D], keys and values with the new ones in them)."""
        reaches = (cache.keys.shape[3],) if reaches is None else reaches
        spare = sum((jnp.max(cache.length) <= reach).astype(jnp.int32) for reach in reaches[1:])

        def run(x, layer):
            block, index = layer
            own = None

            def attention(x):
                nonlocal own
                query, *own = block.attention.project(x, angles)
                looks = [functools.partial(attend_past, reach=reach) for reach in reaches]
                return block.attention.output(jax.lax.switch(spare, looks, query, cache, own, index))

            return block(x, attention, None), own

        x, own = jax.lax.scan(run, x, (self.blocks, jnp.arange(self.cfg.layers)))
        return x, *(fill(part, new, cache.length) for part, new in zip(cache[:2], own, strict=True))

    def _one_by_one(self, layers: Sequence[Block], x: jax.Array, angles, cache: KVCache, _):
        """The same for a cache and blocks that are apart; attends to all slots."""
        new = []
        for block, *past in zip(layers, cache.keys, cache.values, strict=True):
            mine = cache._replace(keys=past[0], values=past[1])

            def attention(x, block=block, mine=mine):
                query, *own = block.attention.project(x, angles)
                new.append(own)
                return block.attention.output(attend_past(query, mine, own, None, mine.keys.shape[2]))

            x = block(x, attention, None)
        # Nothing is added to the length, but XLA cannot know: it copies a cache that could be written before it was read.
        length = cache.length + (x[:, 0, 0] * 0 != 0)
        return x, *(
            tuple(fill(part[None], own[None], length)[0] for part, own in zip(parts, owns, strict=True))
            for parts, owns in zip(cache[:2], zip(*new, strict=True), strict=True)
        )

    def _step(self, x: jax.Array, positions: jax.Array, segments: jax.Array | None, attention: str, rng: str):
        """What one layer does to whole sequences like ``x``: a function (x, (block, key of its dropout)) -> x."""
        angles = rotary(positions, self.cfg.head_dim, self.cfg.rope_base, x.dtype)
        if attention == "auto":
            attention = "splash" if platform() == "tpu" and self.cfg.head_dim % LANES == 0 else "plain"
        if attention == "splash":
            mix = functools.partial(splash_attend, angles=angles, segments=segments)
        else:
            mask = causal_mask(x.shape[1], segments)

            def mix(attention, x):
                return attend_causal(*attention.project(x, angles), mask)

        def step(x, layer):
            block, key = layer
            block = for_compute(block)
            return block(x, lambda x: block.attention.output(mix(block.attention, x)), key, rng)

        return step

    def _embed(self, ids: jax.Array) -> jax.Array:
        stored = P(*(STORE.get(letter) for letter in "VD"))
        return per_device(_look_up, ("BT", stored), "BTD")(ids, self.embedding[...])


def _look_up(ids: jax.Array, table: jax.Array) -> jax.Array:
    """One device's rows of ids, in its part of the table: gathered over D, a sum over the parts of V."""
    table = joined(table, "fsdp", 1)
    if size_of("tensor") == 1:
        return table[ids]
    own = ids - table.shape[0] * jax.lax.axis_index("tensor")
    found = (own >= 0) & (own < table.shape[0])
    return total(jnp.where(found[..., None], table[own], 0), "tensor")

"""The programs of :func:`lumina_jax.sample.generate` for a mesh whose devices may be absent, lowered but not compiled."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding

from lumina_jax.config import SampleConfig
from lumina_jax.model.attention import KVCache
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sample.decode import NO_LIMIT, decode, head_letters, prefill, program_key
from lumina_jax.sample.guidance import DynamicConfig
from lumina_jax.sample.request import lay_out
from lumina_jax.sample.state import Context, State
from lumina_jax.sharding import COMPUTE, ROWS, spec
from lumina_jax.vocab import Vocab


class LoweredSampler(NamedTuple):
    """The two programs of :func:`generate`, ready to be compiled, and the bytes of the cache on all devices."""

    prefill: jax.stages.Lowered
    decode: jax.stages.Lowered
    cache: int


def lower(
    model: Chameleon, prompts: Sequence[np.ndarray], cfg: SampleConfig, vocab: Vocab, mesh: Mesh
) -> LoweredSampler:
    """The programs that :func:`generate` would run on ``mesh``; the prompts split evenly over its rows.

    ``model`` may hold shapes (jax.ShapeDtypeStruct), and the mesh absent devices: nothing is computed. The compiler chooses the
    memory layout of weights and cache; in any other layout the loop would begin with a copy of them.
    """

    def free(leaf):
        return Format(Layout.AUTO, leaf.sharding)

    groups = math.prod(mesh.shape[axis] for axis in ROWS)
    request, copies, _ = lay_out(prompts, jax.random.key(0), vocab, model.cfg.vocab, groups=groups)
    with jax.set_mesh(mesh):
        program = program_key(request, cfg)
        first = prefill.lower(model, request, copies=copies, vocab=vocab, program=program)
        state, head = _placed(*first.out_info, mesh)
        ctx = Context(model, head, request, DynamicConfig.of(cfg), vocab, program)
        free_ctx = replace(ctx, model=jax.tree.map(free, model), head=free(head), request=None, config=None)
        free_state = jax.tree.map(free, state)
        second = jax.jit(
            decode.__wrapped__,
            in_shardings=(free_ctx, free_state, None, None),
            out_shardings=free_state,
            donate_argnums=1,
        ).lower(ctx, state, NO_LIMIT, np.int32(len(request.ids)))
    return LoweredSampler(first, second, sum(x.size * x.dtype.itemsize for x in (state.cache.keys, state.cache.values)))


def _placed(state: State, head: jax.Array, mesh: Mesh) -> tuple[State, jax.Array]:
    """The shapes of what :func:`prefill` returns, placed on a mesh: rows and heads split, the rest whole."""

    def place(leaf, letters):
        sharding = NamedSharding(mesh, spec(letters, leaf.shape, COMPUTE, mesh))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    rows = jax.tree.map(lambda leaf: place(leaf, "BTE"[: leaf.ndim]), state._replace(cache=None))
    cache = KVCache(*(place(leaf, "LBNSK" if leaf.ndim == 5 else "B") for leaf in state.cache))
    return rows._replace(cache=cache), place(head, head_letters(head, mesh.shape["tensor"]))

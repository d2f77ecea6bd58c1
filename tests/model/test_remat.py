"""Every ``mesh.remat`` keeps for the backward pass what its row of REMAT lists, whatever form attention has."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.extend.core import Jaxpr

from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.model import backend as backends
from lumina_jax.model.block import REMAT
from lumina_jax.model.chameleon import Chameleon

B, T, D, H, N, K, F = 2, 128, 24, 4, 2, 16, 40
CFG = ModelConfig(vocab=61, width=D, layers=3, heads=H, kv_heads=N, head_dim=K, mlp=F, qk_groups=2, dropout=0.0)
SHAPES = {
    "query": (B, H, T, K),
    "key": (B, N, T, K),
    "value": (B, N, T, K),
    "mixed": (B, T, H, K),
    "attended": (B, T, D),
    "gate": (B, T, F),
    "up": (B, T, F),
    "fed": (B, T, D),
}
SIDE_BY_SIDE = {name: (B, T, heads * K) for name, heads in (("query", H), ("key", N), ("value", N), ("mixed", H))}
FORMS = {
    "plain": ("gpu", "plain", SHAPES),
    "splash": ("cpu", "splash", {**SHAPES, **SIDE_BY_SIDE, "mixed, the normaliser": (B, H, T)}),
    "cpu": ("cpu", "plain", {**SHAPES, "value, of the last block": (B, N, T, K)}),
}
"""A platform, ``mesh.attention``, and the arrays that this form of attention keeps under each name."""


@pytest.fixture(params=FORMS)
def form(request, monkeypatch) -> tuple[str, dict[str, tuple[int, ...]]]:
    platform, attention, shapes = FORMS[request.param]
    monkeypatch.setattr(backends, "platform", lambda: platform)
    return attention, shapes


def gradient(remat: str, attention: str, post_norm: bool) -> Jaxpr:
    """The program of a gradient through the whole model."""
    model, ids = Chameleon(replace(CFG, post_norm=post_norm), nnx.Rngs(0)), jnp.zeros((B, T), jnp.int32)
    loss = jax.grad(lambda model: jnp.sum(model(ids, remat=remat, attention=attention) ** 2))
    return jax.make_jaxpr(loss)(model).jaxpr


def equations(jaxpr: Jaxpr):
    """All equations of a jaxpr and of those within."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from equations(getattr(inner, "jaxpr", inner))


def kept(jaxpr: Jaxpr) -> list[tuple[int, ...]]:
    """Shapes that each layer leaves to the backward pass: outputs of the forward scan that are stacked over layers."""
    scan = next(e for e in equations(jaxpr) if e.primitive.name == "scan" and e.params["length"] == CFG.layers)
    return sorted(var.aval.shape[1:] for var in scan.outvars[scan.params["num_carry"] :])


@pytest.mark.smoke
def test_the_config_allows_the_same_names():
    for remat in ("none", *REMAT):
        assert MeshConfig(remat=remat).remat == remat
    with pytest.raises(InputError) as error:
        MeshConfig(remat="unknown")
    assert str(error.value).count("'") == 2 * len(("unknown", "none", *REMAT))


@pytest.mark.smoke
def test_a_block_has_all_names_that_the_table_lists(form):
    names = {e.params["name"] for e in equations(gradient("none", form[0], False)) if e.primitive.name == "name"}
    assert names == {name for row in REMAT.values() for name in row} == set(SHAPES)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("remat", REMAT)
def test_a_layer_keeps_its_input_and_what_the_table_lists(remat, post_norm, form):
    """And nothing else. Without a norm behind the MLP no gradient reads its output, which is then not kept."""
    attention, shapes = form
    names = set(REMAT[remat]) - (set() if post_norm else {"fed"})
    expected = [(B, T, D)] + [shape for name, shape in shapes.items() if name.split(",")[0] in names]
    assert kept(gradient(remat, attention, post_norm)) == sorted(expected)

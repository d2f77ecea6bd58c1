"""Every ``mesh.remat`` keeps for the backward pass what its row of REMAT says, whatever form attention has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.ad_checkpoint import saved_residuals  # what jax.ad_checkpoint.print_saved_residuals prints

from lumina_jax.config import MeshConfig, ModelConfig
from lumina_jax.errors import InputError
from lumina_jax.model import backend as backends
from lumina_jax.model.block import REMAT
from lumina_jax.model.chameleon import Chameleon

B, T = 2, 128
CFG = ModelConfig(vocab=61, width=24, layers=1, heads=4, kv_heads=2, head_dim=16, mlp=40, qk_groups=2, dropout=0.0)
FORMS = {"cpu": ("cpu", "plain"), "plain": ("gpu", "plain"), "splash": ("cpu", "splash")}
"""The platform and ``mesh.attention`` of every form of attention within whole sequences."""
SIZES = {
    "query": B * T * CFG.heads * CFG.head_dim,
    "key": B * T * CFG.kv_heads * CFG.head_dim,
    "value": B * T * CFG.kv_heads * CFG.head_dim,
    "mixed": B * T * CFG.heads * CFG.head_dim,
    "attended": B * T * CFG.width,
    "gate": B * T * CFG.mlp,
    "up": B * T * CFG.mlp,
    "fed": B * T * CFG.width,
}


def equations(jaxpr):
    """All equations of a jaxpr and of those within."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from equations(getattr(inner, "jaxpr", inner))


def loss_of(remat: str, attention: str, post_norm: bool):
    """(a number made of hidden states by the model, the model)."""
    cfg = ModelConfig(**{**CFG.__dict__, "post_norm": post_norm})
    ids = jnp.asarray(np.random.default_rng(0).integers(0, cfg.vocab, (B, T)))
    return lambda model: jnp.sum(model(ids, remat=remat, attention=attention) ** 2), Chameleon(cfg, nnx.Rngs(0))


@pytest.fixture(params=FORMS)
def attention(request, monkeypatch) -> str:
    platform, attention = FORMS[request.param]
    monkeypatch.setattr(backends, "platform", lambda: platform)
    return attention


@pytest.mark.smoke
def test_the_config_knows_the_same_names():
    for remat in ("none", *REMAT):
        assert MeshConfig(remat=remat).remat == remat
    with pytest.raises(InputError) as error:
        MeshConfig(remat="unknown")
    assert str(error.value).count("'") == 2 * (2 + len(REMAT))


@pytest.mark.smoke
def test_a_block_has_every_name_that_the_table_lists(attention):
    loss, model = loss_of("none", attention, False)
    jaxpr = jax.make_jaxpr(jax.grad(loss))(model)
    names = {eqn.params["name"] for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == "name"}
    assert names == {name for kept in REMAT.values() for name in kept} == set(SIZES)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("remat", REMAT)
def test_what_the_table_lists_is_kept_and_nothing_else(remat, post_norm, attention):
    """Besides its input a layer keeps arrays of exactly these sizes: outputs of the scan over layers, one layer long.

    What no later gradient reads is not kept although it is listed: a change that is added as it is, without a norm behind it.
    """
    loss, model = loss_of(remat, attention, post_norm)
    unread = () if post_norm else ("attended", "fed")
    expected = sorted([B * T * CFG.width] + [SIZES[name] for name in REMAT[remat] if name not in unread])
    stacked = [aval for aval, _ in saved_residuals(loss, model) if aval.ndim > 2 and aval.shape[1] == B]
    kept = sorted(aval.size for aval in stacked)
    assert kept == expected

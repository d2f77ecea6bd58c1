"""A train step gives the same result on every mesh, with microbatches, padding, kernels or recomputation."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from train_parts import MODEL, OPTIM, batch, experiment, host_state

from lumina_jax.batch import Batch
from lumina_jax.config import Experiment, MeshConfig, WatchConfig
from lumina_jax.sharding import global_batch, make_mesh
from lumina_jax.train.step import (
    Metrics,
    Step,
    TrainState,
    init_state,
    jitted_step,
    make_step,
    state_shapes,
    state_shardings,
    steps,
)

ONE = (1, 1, 1)
STEPS = 3


def variant(mesh, post_norm: bool = True, dropout: float = 0.0, accumulate: int = 1, **how) -> Experiment:
    model, optim = replace(MODEL, post_norm=post_norm, dropout=dropout), replace(OPTIM, accumulate=accumulate)
    cfg = experiment(mesh, model=model, optim=optim)
    return replace(cfg, mesh=replace(cfg.mesh, **how))


def mesh_of(cfg: Experiment) -> Mesh:
    return make_mesh(cfg.mesh, jax.devices()[: cfg.mesh.replica * cfg.mesh.fsdp * cfg.mesh.tensor])


@functools.cache
def step_of(cfg: Experiment) -> Step:
    return make_step(cfg, mesh_of(cfg))


def placed_state(cfg: Experiment) -> TrainState:
    return jax.device_put(host_state(cfg), state_shardings(cfg, mesh_of(cfg)))


def run(cfg: Experiment, rows: list[Batch] | None = None) -> tuple[dict[str, np.ndarray], TrainState]:
    """A few steps on ``cfg.mesh``: the metrics of all steps by name, and the state after the last."""
    mesh, state = mesh_of(cfg), placed_state(cfg)
    batches = [global_batch(local, mesh) for local in rows or [batch(cfg, step) for step in range(STEPS)]]
    *_, (_, last, _) = results = list(steps(state, batches, step_of(cfg), 0))
    names = [name for name in Metrics._fields if name != "norms"]
    return {name: np.asarray([getattr(metrics, name) for *_, metrics in results]) for name in names}, last


@functools.cache
def on_one_device(post_norm: bool = True, dropout: float = 0.0):
    return run(variant(ONE, post_norm, dropout))


def assert_same(ours, theirs) -> None:
    (metrics, state), (other_metrics, other) = ours, theirs
    for name in metrics:
        np.testing.assert_allclose(metrics[name], other_metrics[name], rtol=2e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(state.model), jax.tree.leaves(other.model), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "post_norm", "dropout", "accumulate", "zero1"),
    [
        ((8, 1, 1), False, 0.1, 1, True),
        ((1, 8, 1), True, 0.0, 1, True),
        ((1, 1, 8), True, 0.0, 1, True),
        ((4, 2, 1), False, 0.1, 1, False),
        ((2, 4, 1), True, 0.0, 1, True),
        ((1, 4, 2), False, 0.1, 1, True),
        ((1, 2, 4), False, 0.1, 1, True),
        ((2, 1, 4), True, 0.0, 1, False),
        ((2, 2, 2), True, 0.0, 2, True),
    ],
)
def test_eight_devices_equal_one(mesh, post_norm, dropout, accumulate, zero1, compiled_anew, capfd):
    """Rows, weights, heads, or all of them split over devices; also with microbatches."""
    ours = run(variant(mesh, post_norm, dropout, accumulate, zero1=zero1))
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    assert_same(ours, on_one_device(post_norm, dropout))


def test_muon_on_eight_devices_equals_one():
    def run_muon(mesh):
        cfg = variant(mesh)
        return run(replace(cfg, optim=replace(cfg.optim, muon_lr=0.02)))

    ours, theirs = run_muon((2, 2, 2)), run_muon(ONE)
    assert_same(ours, theirs)
    assert abs(ours[0]["loss"][-1] - on_one_device()[0]["loss"][-1]) > 1e-3, "AdamW gives the same loss"


def test_local_dropout_masks_depend_on_the_rows_of_a_device_only():
    """Four devices that split the heads of the same rows drop as one device does; the global generator drops differently."""
    split, unsplit = (run(variant(mesh, False, 0.1, dropout_rng="local")) for mesh in ((1, 2, 4), (1, 2, 1)))
    assert_same(split, unsplit)
    assert not np.allclose(unsplit[0]["loss"], on_one_device(False, 0.1)[0]["loss"], rtol=1e-4)


def test_a_step_with_the_kernels_equals_a_plain_one():
    """Interpreted splash attention with rows and heads on eight devices, and a remat that keeps its results."""
    cfg = variant((2, 2, 2), False, attention="splash", remat="matmuls")
    assert_same(run(cfg, [batch(cfg, 0)]), run(variant(ONE, False), [batch(cfg, 0)]))


@pytest.mark.parametrize("remat", ["none", "matmuls"])
def test_remat_does_not_change_the_result(remat):
    assert_same(run(variant(ONE, remat=remat)), on_one_device())


def test_layers_read_weights_that_are_already_cast():
    """No float32 weight enters the loop over layers, so that gathering moves half the bytes."""
    cfg = variant((2, 2, 2), compute="bfloat16", remat="block")
    mesh = mesh_of(cfg)
    with jax.set_mesh(mesh):
        program = jitted_step(cfg, mesh).trace(state_shapes(cfg, mesh), batch(cfg, 0)).jaxpr
    loops = [eqn for eqn in _equations(program.jaxpr) if eqn.primitive.name == "scan" and eqn.params["length"] == 2]
    layers = [eqn for eqn in loops if any(var.aval.shape == (2, 16, 16) for var in eqn.invars)]
    assert len(layers) == 2  # forward and backward
    for eqn in layers:
        assert {var.aval.dtype.name for var in eqn.invars if var.aval.shape == (2, 16, 16)} == {"bfloat16"}


def _equations(jaxpr):
    """All equations of a jaxpr and of those within."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from _equations(getattr(inner, "jaxpr", inner))


def test_the_compiler_reports_an_involuntary_copy(compiled_anew, capfd):
    """The warning whose absence is a law above does appear on stderr: for a lookup in a table that is split by columns."""
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))

    def lookup(table, ids):
        table = jax.lax.with_sharding_constraint(table, NamedSharding(mesh, P("fsdp", "tensor")))
        return jax.lax.with_sharding_constraint(table[ids], NamedSharding(mesh, P(("fsdp", "tensor"), None, None)))

    jax.jit(jax.grad(lambda table, ids: lookup(table, ids).sum() ** 2))(jnp.ones((8, 8)), jnp.zeros((8, 4), int))
    assert "Involuntary full rematerialization" in capfd.readouterr().err


@pytest.mark.parametrize(("zero1", "width"), [(True, ("fsdp", "replica")), (False, "fsdp")])
def test_weights_and_moments_are_split_as_the_table_says(zero1, width):
    cfg = variant((2, 2, 2), zero1=zero1)
    state = state_shapes(cfg, mesh_of(cfg))
    for model in (state.model, state.opt[1][0].mu, state.opt[1][0].nu):
        assert model.blocks.mlp.up.sharding.spec == P(None, width, "tensor")
        assert model.blocks.attention.wo.sharding.spec == P(None, "tensor", None, width)
        assert model.embedding.sharding.spec == P("tensor", width)


def test_accumulated_microbatches_equal_the_batch():
    """Even if they have different numbers of learned tokens: sums are added up, not means."""
    cfg = variant(ONE)
    rows = [batch(cfg, step) for step in range(STEPS)]
    rows[1] = rows[1]._replace(learn=rows[1].learn & (np.arange(8)[:, None] % 2 == 0))
    at_once = run(cfg, rows)
    assert 0 < at_once[0]["tokens"][1] < at_once[0]["tokens"][0] / 1.5
    assert_same(run(variant(ONE, accumulate=2), rows), at_once)


@pytest.mark.smoke
def test_padding_does_not_change_the_result():
    cfg = variant(ONE)
    rows = [batch(cfg, step) for step in range(STEPS)]
    noise = [
        row._replace(inputs=np.where(row.segments, row.inputs, 7), targets=row.targets * row.learn) for row in rows
    ]
    assert_same(run(cfg, noise), on_one_device())


def test_dropout_changes_from_step_to_step_and_with_the_seed():
    cfg = variant(ONE, post_norm=False, dropout=0.1)
    rows = global_batch(batch(cfg, 0), mesh_of(cfg))

    def loss(**changes) -> float:
        state = placed_state(cfg)
        changed = {name: jax.device_put(value, getattr(state, name).sharding) for name, value in changes.items()}
        return float(step_of(cfg)(state._replace(**changed), rows)[1].loss)

    assert loss() == loss()
    assert len({loss(), loss(step=np.int32(1)), loss(key=jax.random.key(1))}) == 3


def test_without_learned_tokens_weights_only_decay():
    cfg = variant(ONE)
    empty = batch(cfg, 0)._replace(learn=np.zeros((8, 12), bool))
    metrics, state = run(cfg, [empty])
    assert metrics["loss"] == metrics["grad_norm"] == metrics["tokens"] == 0
    factor = 1 - metrics["lr"][0] * OPTIM.weight_decay
    for after, before in zip(jax.tree.leaves(state.model), jax.tree.leaves(host_state(cfg).model), strict=True):
        np.testing.assert_allclose(after, factor * before, rtol=1e-6)


def test_norms_of_groups_make_up_the_gradient_norm_and_change_no_weight():
    cfg = variant((2, 2, 2))
    rows = global_batch(batch(cfg, 0), mesh_of(cfg))
    state, metrics = step_of(replace(cfg, watch=WatchConfig(norms=2)))(placed_state(cfg), rows)
    squares = {"grad_norm": 0.0, "weight_norm": 0.0}
    for name, norm in metrics.norms.items():
        squares[name.partition("/")[0]] += float(norm) ** 2
    assert squares["grad_norm"] == pytest.approx(float(metrics.grad_norm) ** 2, rel=1e-4)
    assert squares["weight_norm"] == pytest.approx(float(optax.tree.norm(state.model)) ** 2, rel=1e-4)
    plain, _ = step_of(cfg)(placed_state(cfg), rows)
    for a, b in zip(jax.tree.leaves(state.model), jax.tree.leaves(plain.model), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_seed_makes_the_same_state_on_every_mesh_with_its_shardings():
    cfg, split = variant(ONE), variant((1, 4, 2))
    single, other = init_state(cfg, mesh_of(cfg)), init_state(split, mesh_of(split))
    for a, b in zip(jax.tree.leaves(single.model), jax.tree.leaves(other.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert single.step == 0 and not any(jnp.any(moment) for moment in jax.tree.leaves(single.opt))
    for real, abstract in zip(
        jax.tree.leaves(other), jax.tree.leaves(state_shapes(split, mesh_of(split))), strict=True
    ):
        assert real.sharding == abstract.sharding and (real.shape, real.dtype) == (abstract.shape, abstract.dtype)
    assert other.model.blocks.mlp.up[...].addressable_shards[0].data.shape == (2, 4, 8)

"""A run goes on otherwise where the user says so, and keeps what it has learned."""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from train_parts import OPTIM, assert_equal, batches, experiment, host_state

from lumina_jax.config import Experiment, ResumeConfig, override
from lumina_jax.errors import InputError
from lumina_jax.history import batch_number, batch_span, changed_now, from_json, to_json
from lumina_jax.sharding import make_mesh
from lumina_jax.train.carry import carried, stored_shapes
from lumina_jax.train.continuing import continuation
from lumina_jax.train.loop import train
from lumina_jax.train.metrics import read_metrics
from lumina_jax.train.optim import optimizer, schedule
from lumina_jax.train.run_log import read_history
from lumina_jax.train.step import TrainState, state_shapes, state_shardings

CFG = experiment()


def change(allow: str = "", *assignments: str, saved: Experiment = CFG, done: int = 4, folders=(("a",), ("a",))):
    cfg = override(replace(saved, resume=ResumeConfig(allow=tuple(filter(None, allow.split(","))))), assignments)
    return continuation(saved, cfg, done, *folders, "runs/1")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("assignment", "there", "here"),
    [
        ("optim.lr=0.005", "0.01", "0.005"),
        ("optim.b2=0.99", "0.95", "0.99"),
        ("optim.muon_lr=0.02", "0.0", "0.02"),
        ("optim.accumulate=2", "1", "2"),
        ("data.batch=16", "8", "16"),
        ("data.packing=false", "True", "False"),
        ("mesh.quant=int8", "none", "int8"),
        ("model.dropout=0", "0.1", "0.0"),
    ],
)
def test_another_value_is_refused_naming_both_and_the_cure_and_allowed_by_name(assignment, there, here):
    name = assignment.partition("=")[0]
    with pytest.raises(InputError) as refused:
        change("", assignment)
    message = (
        f"runs/1 holds a run with another {name} ({there} there, {here} here); give the values there to go on with it, "
    )
    assert str(refused.value).startswith(
        f"{message}resume.allow={name} to go on with the new, or give this run its own out"
    )
    for allow in [name] if name.startswith("model") else [name, name.partition(".")[0], f"data,{name}"]:
        made = change(allow, assignment)
        assert list(made.before) == [name] and made.step == 4 and made.after[name] != made.before[name]
        assert "@" in made.who and made.when.endswith("Z")


@pytest.mark.smoke
def test_what_no_run_can_change_is_refused_whatever_is_allowed():
    with pytest.raises(
        InputError, match=r"another seed \(0 there, 1 here\); give the values there to go on with it, or give"
    ):
        change("optim", "seed=1")
    for name in ("seed", "model", "model.width"):
        with pytest.raises(InputError, match=rf"resume\.allow={name}: no run can change it.*optim\.lr"):
            change(name)
    with pytest.raises(InputError, match=r"resume\.allow=out: it does not change what a run computes"):
        change("out")


@pytest.mark.smoke
@pytest.mark.parametrize(
    "assignment", ["data.cache=cache", "data.cache_gb=2", "data.threads=5", "data.verify_mb=0", "out=x"]
)
def test_how_files_are_read_may_always_be_another(assignment):
    assert change("", assignment) is None


@pytest.mark.smoke
def test_other_token_folders_are_refused_by_content_not_by_path():
    assert change("", "data.path=moved") is None
    assert change("", "data.path=moved", folders=((), ("a",))) is None
    with pytest.raises(InputError, match=r"another data\.path \(.* there, b here\).*resume\.allow=data\.path"):
        change("", "data.path=b", folders=(("a",), ("b",)))
    made = change("data.path", "data.path=b", folders=(("a",), ("b",)))
    assert made.folders == ("a",) and made.after == {"data.path": "b"}


@pytest.mark.smoke
def test_more_steps_need_leave_only_where_the_schedule_depends_on_them():
    with pytest.raises(
        InputError, match=r"optim\.steps=7; in one of 9 the learning rate of step 4.*resume\.allow=optim\.steps"
    ):
        change("", "optim.steps=9", done=7)
    assert change("optim.steps", "optim.steps=9", done=7).after == {"optim.steps": 9}
    constant = replace(CFG, optim=replace(OPTIM, min_lr=OPTIM.lr))
    assert change("", "optim.steps=9", saved=constant, done=7).before == {"optim.steps": 7}
    with pytest.raises(InputError, match=r"a run of 7 steps, more than optim\.steps=6"):
        change("optim", "optim.steps=6", done=7)


@pytest.mark.smoke
def test_stages_of_data_and_numbers_of_batches_follow_from_the_history():
    first = changed_now(
        4, "resumed", before={"data.batch": 8, "optim.lr": 1.0}, after={"data.batch": 16, "optim.lr": 2.0}
    )
    skip = changed_now(6, "a spike", skipped=3)
    moved = changed_now(9, "resumed", before={"data.path": "a"}, after={"data.path": "b"}, folders=("A",))
    history = from_json(to_json([first, skip, moved]))
    assert history == (first, skip, moved)
    assert [batch_number(step, history[:2]) for step in (0, 4, 5, 6, 7)] == [0, 4, 5, 9, 10]
    now = replace(CFG.data, batch=16, path="b")
    span = batch_span(10, 20, now, ("B",), history)
    assert (span.start, span.stop) == (13, 23)
    assert [(stage.first, stage.cfg.batch, stage.cfg.path, stage.folders) for stage in span.stages] == [
        (0, 8, "a", ("A",)),
        (4, 16, "a", ("A",)),
        (12, 16, "b", ("B",)),
    ]


def test_a_run_goes_on_with_another_rate_and_other_data_and_its_history_says_so(tmp_path):
    cfg = replace(CFG, out=str(tmp_path), optim=replace(OPTIM, steps=4))
    train(cfg, batches(cfg), show=False)
    changed = replace(
        cfg,
        optim=replace(OPTIM, lr=5e-3, steps=7),
        data=replace(cfg.data, drop_context=0.0),
        resume=ResumeConfig(allow=("optim.lr", "optim.steps", "data.drop_context")),
    )
    spans = []

    def rows(span):
        spans.append(span)
        return batches(cfg)(span)

    with pytest.raises(InputError, match=r"another optim\.lr \(0\.01 there, 0\.005 here\), data\.drop_context"):
        train(replace(changed, resume=ResumeConfig()), rows, show=False)
    train(changed, rows, show=False)
    (span,) = spans
    assert [(stage.first, stage.cfg.drop_context) for stage in span.stages] == [(0, 0.1), (4, 0.0)]
    rates = [line["lr"] for line in read_metrics(tmp_path)]
    for step, rate in enumerate(rates):
        assert rate == pytest.approx(float(schedule((cfg if step < 4 else changed).optim)(step)))
    (line,) = (line for line in read_history(str(tmp_path)) if line["event"] == "changed")
    assert line["step"] == 4 and line["after"] == {"optim.lr": 5e-3, "data.drop_context": 0.0, "optim.steps": 7}
    assert line["before"]["optim.lr"] == 1e-2 and line["who"].endswith(os.uname().nodename)
    # The checkpoint of the changed run has the new values: they need no leave any more.
    assert train(replace(changed, resume=ResumeConfig()), rows, show=False).step == 7


def mesh_of(cfg: Experiment) -> Mesh:
    """The mesh of ``cfg`` over two devices."""
    return make_mesh(cfg.mesh, jax.devices()[:2])


def random_state(cfg: Experiment) -> TrainState:
    """A state on the mesh whose moments are random, after five updates."""
    rng, state = np.random.default_rng(1), host_state(cfg)

    def fill(path, x):
        if x.ndim == 0:
            return np.full(x.shape, 5, x.dtype)
        return rng.random(x.shape).astype(x.dtype)

    state = state._replace(opt=jax.tree_util.tree_map_with_path(fill, state.opt))
    return jax.device_put(state, state_shardings(cfg, mesh_of(cfg)))


def moments(state: TrainState) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The first and second moments by weight."""
    found = ({}, {})
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for kind, arrays in zip(("/mu/", "/nu/"), found, strict=True):
            if kind in name:
                arrays[name.partition(kind)[2]] = np.asarray(leaf)
    return found


def test_moments_are_carried_from_adam_to_muon_and_back():
    adam = experiment((1, 2, 1))
    muon = replace(adam, optim=replace(adam.optim, muon_lr=0.02))
    mesh, state = mesh_of(adam), random_state(adam)
    shapes = state_shapes(muon, mesh)
    assert jax.tree.structure(stored_shapes(adam.optim, muon, shapes)) == jax.tree.structure(state_shapes(adam, mesh))
    with_muon = carried(adam.optim, muon, state)
    assert jax.tree.structure(with_muon) == jax.tree.structure(shapes)
    assert [x.sharding for x in jax.tree.leaves(with_muon)] == [s.sharding for s in jax.tree.leaves(shapes)]
    (mu, nu), (muon_mu, muon_nu) = moments(state), moments(with_muon)
    assert_equal(muon_mu, mu)
    assert 0 < len(muon_nu) < len(nu) and all(np.array_equal(muon_nu[name], nu[name]) for name in muon_nu)
    counts = {int(x) for x in jax.tree.leaves(with_muon.opt) if jnp.ndim(x) == 0}
    assert counts == {5}
    back = carried(muon.optim, adam, with_muon)
    back_mu, back_nu = moments(back)
    assert_equal(back_mu, mu)
    for name in nu:
        expected = nu[name] if name in muon_nu else mu[name] ** 2
        np.testing.assert_allclose(back_nu[name], expected, rtol=1e-6)


def test_other_settings_of_one_optimizer_keep_its_state_as_it_is():
    cfg = experiment((1, 2, 1))
    state = random_state(cfg)
    other = replace(cfg, optim=replace(OPTIM, b1=0.5, b2=0.9, eps=1.0, weight_decay=0.0, clip=9.0, decay="linear"))
    assert carried(cfg.optim, other, state) is state
    shapes = jax.eval_shape(optimizer(other.optim).init, state.model)
    assert jax.tree.structure(shapes) == jax.tree.structure(state.opt) and optax.EmptyState() in state.opt

"""A run that was stopped, in whatever way, ends as one that was not."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from train_parts import OPTIM, assert_equal, batches, experiment, worker

import lumina_jax.train.loop as loop
from lumina_jax.config import Experiment
from lumina_jax.sharding import make_mesh
from lumina_jax.train.checkpoint import newest
from lumina_jax.train.loop import begin, train
from lumina_jax.train.metrics import FILE, read_metrics
from lumina_jax.train.step import TrainState, make_step

pytestmark = pytest.mark.usefixtures("compiled")


class Stopped(Exception):
    """Thrown into a run by its own data."""


def stop():
    raise Stopped


def finish(cfg: Experiment, at=None) -> TrainState:
    return train(cfg, batches(cfg, at=at), show=False)


def lines(cfg: Experiment) -> bytes:
    return (Path(cfg.out) / FILE).read_bytes()


@pytest.fixture(scope="module")
def whole(compiled, tmp_path_factory) -> tuple[Experiment, TrainState]:
    """A run of seven steps that nothing stopped."""
    cfg = replace(experiment(), out=str(tmp_path_factory.mktemp("whole")))
    return cfg, finish(cfg)


@pytest.fixture
def here(whole, tmp_path) -> Experiment:
    """The same experiment in a folder of its own."""
    return replace(whole[0], out=str(tmp_path / "run"))


def assert_ends_as(whole, cfg: Experiment) -> None:
    assert_equal(finish(cfg), whole[1])
    assert lines(cfg) == lines(whole[0])


def test_metrics_hold_every_step_once(whole):
    cfg, state = whole
    assert [line["step"] for line in read_metrics(cfg.out)] == [1, 2, 3, 4, 5, 6, 7]
    assert state.step == 7 and newest(cfg.out).name == "7"
    assert sorted(path.name for path in newest(cfg.out).parent.iterdir()) == ["6", "7"]  # cfg.keep of them


def test_an_exception_in_the_middle_costs_nothing(whole, here):
    with pytest.raises(Stopped):
        finish(here, {5: stop})
    assert newest(here.out).name == "4"
    with (Path(here.out) / FILE).open("a") as file:
        file.write(json.dumps({"step": 5, "loss": 0.0}) + '\n{"step": 6, "lo')  # as a kill in mid-line leaves it
    assert_ends_as(whole, here)


def test_kill_9_costs_nothing(whole, here, compiled):
    process = worker(compiled, out=here.out, mesh=[2, 2, 2], devices=8, kill_at=5)
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert newest(here.out).name in ("2", "4")
    assert_ends_as(whole, here)


def test_sigterm_saves_and_exits_143(whole, here):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        finish(here, {3: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert int(newest(here.out).name) in (3, 4)
    assert [line["step"] for line in read_metrics(here.out)][-1] == int(newest(here.out).name)
    assert_ends_as(whole, here)


def test_a_run_goes_on_on_another_mesh(whole, here):
    with pytest.raises(Stopped):
        finish(here, {5: stop})
    finish(replace(here, mesh=replace(here.mesh, replica=1, fsdp=8, tensor=1)))
    for ours, theirs in zip(read_metrics(here.out), read_metrics(whole[0].out), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)


def test_a_finished_run_is_only_read(whole):
    cfg, state = whole

    def none(start):
        raise AssertionError("a finished run needs no data")

    assert_equal(train(cfg, none, show=False), state)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(optim=replace(OPTIM, lr=5e-3)), r"optim\.lr \(0\.01 there, 0\.005 here\)"),
        (dict(seed=1), "seed"),
    ],
)
def test_another_experiment_is_refused_by_name(whole, change, named):
    with pytest.raises(ValueError, match=named):
        finish(replace(whole[0], **change))


def test_half_written_checkpoints_do_not_count(whole, here):
    shutil.copytree(whole[0].out, here.out)
    folder = newest(here.out).parent
    (folder / "7" / "commit_success.txt").unlink()
    (folder / "9").mkdir()
    assert newest(here.out).name == "6"
    assert_ends_as(whole, here)
    assert sorted(path.name for path in folder.iterdir()) == ["6", "7", "7.unfinished", "9.unfinished"]


@pytest.mark.parametrize("poisoned", ["weights", "gradient"])
def test_not_a_number_is_named_and_never_saved(here, monkeypatch, poisoned):
    def make(cfg, mesh):
        step, done = make_step(cfg, mesh), []

        def run(state, rows):
            done.append(rows)
            if len(done) == 4 and poisoned == "weights":
                state = state._replace(model=jax.tree.map(lambda w: w * np.nan, state.model))
            state, metrics = step(state, rows)
            if len(done) == 4 and poisoned == "gradient":
                metrics = metrics._replace(grad_norm=metrics.grad_norm * np.nan)
            return state, metrics

        return run

    monkeypatch.setattr(loop, "make_step", make)
    with pytest.raises(FloatingPointError, match=r"tiny: .*step 4 .*optim\.lr"):
        finish(here)
    assert newest(here.out).name == "2" and [line["step"] for line in read_metrics(here.out)] == [1, 2, 3]


def test_batches_that_end_early_are_an_error(here):
    def three(start):
        for _, rows in zip(range(3), batches(here)(start), strict=False):
            yield rows

    with pytest.raises(ValueError, match=r"ended after step 3, but optim\.steps is 7"):
        train(here, three, show=False)


def test_weights_alone_start_the_next_stage(whole, here):
    cfg, state = whole
    stage = replace(here, start=cfg.out, data=replace(cfg.data, size=768), optim=replace(OPTIM, lr=5e-3))
    mesh = make_mesh(stage.mesh)
    begun = begin(stage, mesh)
    assert_equal(begun.model, state.model)
    assert begun.step == 0 and not any(np.any(moment) for moment in jax.tree.leaves(begun.opt))
    assert jax.tree.map(lambda w: w.sharding, jax.tree.leaves(begun.model)) == [
        w.sharding for w in jax.tree.leaves(state.model)
    ]
    named = begin(replace(stage, start=str(newest(cfg.out))), mesh)
    assert_equal(named.model, state.model)


def test_a_start_that_is_not_there_is_named(here, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        finish(replace(here, start=str(tmp_path / "nowhere")))


def test_rows_that_do_not_split_are_refused_before_anything_is_built(here):
    with pytest.raises(ValueError, match=r"batch of 6 rows.*4 devices.*data\.batch"):
        finish(replace(here, data=replace(here.data, batch=6)))
    assert not Path(here.out).exists()

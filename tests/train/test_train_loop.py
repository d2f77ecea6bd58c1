"""A run that was interrupted, in whatever way, ends in the same state and metrics as one that was not."""

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
from lumina_jax.errors import ExistingFileError, InputError
from lumina_jax.sharding import make_mesh
from lumina_jax.storage import held
from lumina_jax.train.checkpoint import newest
from lumina_jax.train.loop import initial_state, train
from lumina_jax.train.metrics import FILE, read_metrics
from lumina_jax.train.step import TrainState, make_step


class StopError(Exception):
    """Raised by the batches of a run."""


def stop():
    raise StopError


def finish(cfg: Experiment, actions=None) -> TrainState:
    return train(cfg, batches(cfg, actions=actions), show=False)


def metrics_bytes(cfg: Experiment) -> bytes:
    return (Path(cfg.out) / FILE).read_bytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[Experiment, TrainState]:
    """The experiment and last state of an uninterrupted run of seven steps."""
    cfg = replace(experiment(), out=str(tmp_path_factory.mktemp("reference")))
    return cfg, finish(cfg)


@pytest.fixture
def cfg(reference, tmp_path) -> Experiment:
    """The experiment of ``reference`` with another folder."""
    return replace(reference[0], out=str(tmp_path / "run"))


def assert_ends_as(reference, cfg: Experiment) -> None:
    assert_equal(finish(cfg), reference[1])
    assert metrics_bytes(cfg) == metrics_bytes(reference[0])


def test_metrics_jsonl_has_every_step_once(reference):
    cfg, state = reference
    assert [line["step"] for line in read_metrics(cfg.out)] == [1, 2, 3, 4, 5, 6, 7]
    assert state.step == 7 and newest(cfg.out).name == "7"
    assert sorted(path.name for path in newest(cfg.out).parent.iterdir()) == ["6", "7"]  # cfg.keep of them


def test_a_run_after_an_exception_ends_the_same(reference, cfg):
    with pytest.raises(StopError):
        finish(cfg, {5: stop})
    assert newest(cfg.out).name == "4"
    with (Path(cfg.out) / FILE).open("a") as file:
        file.write(json.dumps({"step": 5, "loss": 0.0}) + '\n{"step": 6, "lo')  # as a kill inside a line leaves it
    assert_ends_as(reference, cfg)


def test_a_run_after_kill_9_ends_the_same(reference, cfg):
    process = worker(out=cfg.out, mesh=[2, 2, 2], devices=8, kill_at=5)
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert newest(cfg.out).name in ("2", "4")
    assert_ends_as(reference, cfg)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_saves_and_exits_with_its_code_and_a_line_on_how_to_go_on(number, name, reference, cfg, capsys):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        finish(cfg, {3: lambda: os.kill(os.getpid(), number)})
    assert stopped.value.code == 128 + number and signal.getsignal(number) == before
    line = f"tiny: stopped by {name}; step {newest(cfg.out).name} is saved in {cfg.out}, the same command goes on from there\n"
    assert capsys.readouterr().err.endswith(line)
    assert int(newest(cfg.out).name) in (3, 4)
    assert [line["step"] for line in read_metrics(cfg.out)][-1] == int(newest(cfg.out).name)
    assert_ends_as(reference, cfg)


def test_a_second_ctrl_c_leaves_at_once(cfg):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        finish(cfg, {2: interrupt})
    assert not list(Path(cfg.out).glob("checkpoints/3"))


def test_a_run_continues_on_another_mesh(reference, cfg):
    with pytest.raises(StopError):
        finish(cfg, {5: stop})
    finish(replace(cfg, mesh=replace(cfg.mesh, replica=1, fsdp=8, tensor=1)))
    for line, expected in zip(read_metrics(cfg.out), read_metrics(reference[0].out), strict=True):
        assert line == pytest.approx(expected, rel=2e-5)


def test_a_finished_run_is_restored_without_reading_data(reference):
    cfg, state = reference

    def no_batches(span):
        raise AssertionError("a finished run needs no data")

    assert_equal(train(cfg, no_batches, show=False), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(optim=replace(OPTIM, lr=5e-3)), r"optim\.lr \(0\.01 there, 0\.005 here\)"),
        (dict(seed=1), "seed"),
    ],
)
def test_another_experiment_is_refused_naming_the_field(reference, change, message):
    with pytest.raises(ValueError, match=message):
        finish(replace(reference[0], **change))


CONSTANT = dict(lr=1e-2, min_lr=1e-2)
PLATEAU = dict(hold=0.9)


@pytest.mark.parametrize(("change", "first"), [(CONSTANT, 3), (CONSTANT, 5), (PLATEAU, 4)])
def test_a_run_that_is_given_more_steps_ends_as_one_that_had_them_from_the_start(cfg, change, first, tmp_path):
    long = replace(cfg, optim=replace(OPTIM, **change), out=str(tmp_path / "long"))
    expected = finish(long)
    cfg = replace(cfg, optim=replace(long.optim, steps=first))
    assert finish(cfg).step == first
    assert_ends_as((long, expected), replace(cfg, optim=long.optim))


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (
            replace(OPTIM, steps=9),
            r"holds 7 steps of a run of optim\.steps=7; in one of 9 the learning rate of step 4 is another",
        ),
        (replace(OPTIM, steps=6), r"holds a run of 7 steps, more than optim\.steps=6"),
        (
            replace(OPTIM, loss_weight="tokens"),
            r"another optim\.loss_weight \(rows there, tokens here\); give the values there to go on with it, resume\.allow=optim",
        ),
    ],
)
def test_settings_that_change_what_was_done_are_refused(reference, optim, message):
    with pytest.raises(ValueError, match=message):
        finish(replace(reference[0], optim=optim))


def test_unfinished_checkpoints_are_set_aside(reference, cfg):
    shutil.copytree(reference[0].out, cfg.out)
    folder = newest(cfg.out).parent
    (folder / "7" / "commit_success.txt").unlink()
    (folder / "9").mkdir()
    assert newest(cfg.out).name == "6"
    assert_ends_as(reference, cfg)
    assert sorted(path.name for path in folder.iterdir()) == ["6", "7", "7.unfinished", "9.unfinished"]


@pytest.mark.parametrize("poisoned", ["weights", "gradient"])
def test_nan_is_reported_with_its_step_and_never_saved(cfg, monkeypatch, poisoned):
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
        finish(cfg)
    assert newest(cfg.out).name == "2" and [line["step"] for line in read_metrics(cfg.out)] == [1, 2, 3]


def test_batches_that_end_early_are_an_error(cfg):
    def three_batches(span):
        for _, rows in zip(range(3), batches(cfg)(span), strict=False):
            yield rows

    with pytest.raises(ValueError, match=r"ended after step 3, but optim\.steps is 7"):
        train(cfg, three_batches, show=False)


def test_the_next_stage_starts_from_the_weights_alone(reference, cfg):
    finished, state = reference
    stage = replace(cfg, start=finished.out, data=replace(finished.data, size=768), optim=replace(OPTIM, lr=5e-3))
    mesh = make_mesh(stage.mesh)
    started = initial_state(stage, mesh)
    assert_equal(started.model, state.model)
    assert started.step == 0 and not any(np.any(moment) for moment in jax.tree.leaves(started.opt))
    assert jax.tree.map(lambda w: w.sharding, jax.tree.leaves(started.model)) == [
        w.sharding for w in jax.tree.leaves(state.model)
    ]
    from_checkpoint = initial_state(replace(stage, start=str(newest(finished.out))), mesh)
    assert_equal(from_checkpoint.model, state.model)


def test_a_missing_start_folder_is_named(cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        finish(replace(cfg, start=str(tmp_path / "nowhere")))


def test_a_batch_that_the_mesh_does_not_divide_is_refused_before_anything_is_built(cfg):
    with pytest.raises(ValueError, match=r"batch of 6 rows.*4 devices.*data\.batch"):
        finish(replace(cfg, data=replace(cfg.data, batch=6)))
    assert not Path(cfg.out).exists()


@pytest.mark.parametrize(
    "line", ["mine", '{"epoch": 1}', "[1]", "7", '{"step": "1", "loss": 2}', '{"step": 1', "\ufffd"]
)
def test_metrics_of_another_origin_are_refused_and_stay(line, tmp_path):
    (tmp_path / FILE).write_text(f"{line}\n")
    with pytest.raises(InputError, match=r"did not write: .* give another out"):
        read_metrics(tmp_path)
    assert (tmp_path / FILE).read_text() == f"{line}\n"


def test_two_runs_at_once_do_not_share_a_folder(tmp_path):
    cfg = replace(experiment(), out=str(tmp_path))
    with held(tmp_path, "training"), pytest.raises(ExistingFileError, match="another process is training there"):
        train(cfg, batches, show=False)
    assert not any(tmp_path.iterdir())
    with held(tmp_path, "training"):
        pass

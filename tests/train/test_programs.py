"""One program for each shape of batch, compiled when it first comes or all of them ahead, and never twice."""

from dataclasses import replace

import pytest
from train_parts import OPTIM, assert_equal, batch, experiment

import lumina_jax.train.loop as loop
from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig, Experiment
from lumina_jax.sharding import global_batch, make_mesh
from lumina_jax.train.loop import train
from lumina_jax.train.programs import batch_shapes

pytestmark = pytest.mark.usefixtures("compiled")
LENGTHS = (6, 12)
ORDER = (12, 6, 6, 12)


@pytest.fixture
def cfg(tmp_path) -> Experiment:
    data = DataConfig(batch=8, buckets=LENGTHS)
    return replace(experiment(), out=str(tmp_path), data=data, optim=replace(OPTIM, steps=len(ORDER)))


def local(cfg: Experiment, start: int):
    """Batches of the lengths of ORDER, as many tokens in each."""
    for step in range(start, cfg.optim.steps):
        whole = batch(cfg, step)
        yield Batch(*(part.reshape(-1, ORDER[step]) for part in whole))


def test_each_shape_is_compiled_once_and_told(cfg, capsys):
    train(cfg, lambda start: local(cfg, start))
    told = [line for line in capsys.readouterr().out.splitlines() if "compiled" in line]
    assert len(told) == 2
    assert (
        told[0].startswith("tiny: compiled the step for 8 rows of 12 tokens in ")
        and "program 1 of at most 2" in told[0]
    )
    assert (
        told[1].startswith("tiny: compiled the step for 16 rows of 6 tokens in ")
        and "program 2 of at most 2" in told[1]
    )


def test_compiled_ahead_no_step_compiles_and_all_is_the_same(cfg, tmp_path, capsys, monkeypatch):
    plain = train(cfg, lambda start: local(cfg, start), show=False)

    def unused(cfg, mesh):
        def run(state, rows):
            raise AssertionError(f"a batch of {rows.inputs.shape} was not compiled ahead")

        return run

    monkeypatch.setattr(loop, "make_step", unused)
    ahead = replace(cfg, out=str(tmp_path / "ahead"), compile_ahead=True)
    assert_equal(train(ahead, lambda start: local(cfg, start)), plain)
    told = [line for line in capsys.readouterr().out.splitlines() if "compiled" in line]
    assert [" ".join(line.split()[5:9]) for line in told] == ["16 rows of 6", "8 rows of 12"]
    assert all("ahead" in line for line in told)


def test_shapes_ahead_are_those_of_the_batches(cfg):
    mesh = make_mesh(cfg.mesh)
    whole = global_batch(batch(cfg, 0), mesh)
    shapes = batch_shapes(whole.inputs.shape, mesh)
    for part, shape in zip(whole, shapes, strict=True):
        assert (part.shape, part.dtype, part.sharding) == (shape.shape, shape.dtype, shape.sharding)


def test_rows_of_a_bucket_that_do_not_split_are_refused_at_start(cfg):
    wrong = replace(cfg, data=replace(cfg.data, buckets=(8, 12), row_multiple=2))  # 12 rows of 8
    train_on = replace(wrong, mesh=replace(wrong.mesh, replica=8, fsdp=1, tensor=1))
    with pytest.raises(ValueError, match=r"batch of 12 rows.*8 devices"):
        train(train_on, lambda start: local(cfg, start), show=False)


def test_the_wait_for_data_goes_where_speeds_go(cfg, capsys):
    """Not into metrics.jsonl, which is the same in every run."""
    train(cfg, lambda start: local(cfg, start))
    assert "waiting for data" in capsys.readouterr().out
    assert "wait" not in (loop.Path(cfg.out) / "metrics.jsonl").read_text()

"""The step is compiled once for each shape of batch: when its first batch comes, or all of them ahead."""

from dataclasses import replace
from pathlib import Path

import pytest
from train_parts import OPTIM, assert_equal, batch, experiment

import lumina_jax.train.loop as loop
from lumina_jax.batch import Batch
from lumina_jax.config import DataConfig, Experiment
from lumina_jax.sharding import global_batch, make_mesh
from lumina_jax.train.compiled_steps import batch_shapes
from lumina_jax.train.loop import train

LENGTHS = (6, 12)
ORDER = (12, 6, 6, 12)


@pytest.fixture
def cfg(tmp_path) -> Experiment:
    data = DataConfig(batch=8, buckets=LENGTHS)
    return replace(experiment(), out=str(tmp_path), data=data, optim=replace(OPTIM, steps=len(ORDER)))


def host_batches(cfg: Experiment, start: int):
    """Batches whose rows have the lengths of ORDER, with the same number of tokens in each."""
    for step in range(start, cfg.optim.steps):
        yield Batch(*(array.reshape(-1, ORDER[step]) for array in batch(cfg, step)))


def test_each_shape_is_compiled_once_and_printed(cfg, capsys):
    train(cfg, lambda span: host_batches(cfg, span.start))
    lines = [line for line in capsys.readouterr().out.splitlines() if "compiled" in line]
    assert len(lines) == 2
    assert (
        lines[0].startswith("tiny: compiled the step for 8 rows of 12 tokens in ")
        and "program 1 of at most 2" in lines[0]
    )
    assert (
        lines[1].startswith("tiny: compiled the step for 16 rows of 6 tokens in ")
        and "program 2 of at most 2" in lines[1]
    )


def test_after_compiling_ahead_no_step_compiles_and_the_state_is_the_same(cfg, tmp_path, capsys, monkeypatch):
    expected = train(cfg, lambda span: host_batches(cfg, span.start), show=False)

    def refusing_step(cfg, mesh):
        def run(state, rows):
            raise AssertionError(f"a batch of {rows.inputs.shape} was not compiled ahead")

        return run

    monkeypatch.setattr(loop, "make_step", refusing_step)
    ahead = replace(cfg, out=str(tmp_path / "ahead"), compile_ahead=True)
    assert_equal(train(ahead, lambda span: host_batches(cfg, span.start)), expected)
    lines = [line for line in capsys.readouterr().out.splitlines() if "compiled" in line]
    assert [" ".join(line.split()[5:9]) for line in lines] == ["16 rows of 6", "8 rows of 12"]
    assert all("ahead" in line for line in lines)


def test_batch_shapes_are_those_of_global_batches(cfg):
    mesh = make_mesh(cfg.mesh)
    placed = global_batch(batch(cfg, 0), mesh)
    shapes = batch_shapes(placed.inputs.shape, mesh)
    for array, shape in zip(placed, shapes, strict=True):
        assert (array.shape, array.dtype, array.sharding) == (shape.shape, shape.dtype, shape.sharding)


def test_a_bucket_whose_rows_the_mesh_does_not_divide_is_refused_at_start(cfg):
    wrong = replace(cfg, data=replace(cfg.data, buckets=(8, 12), row_multiple=2))  # 12 rows of 8
    train_on = replace(wrong, mesh=replace(wrong.mesh, replica=8, fsdp=1, tensor=1))
    with pytest.raises(ValueError, match=r"batch of 12 rows.*8 devices"):
        train(train_on, lambda span: host_batches(cfg, span.start), show=False)


def test_the_wait_for_data_is_printed_and_not_in_metrics_jsonl(cfg, capsys):
    """metrics.jsonl is the same in every run; speeds and waits are not."""
    train(cfg, lambda span: host_batches(cfg, span.start))
    assert "waiting for data" in capsys.readouterr().out
    assert "wait" not in Path(cfg.out, "metrics.jsonl").read_text()

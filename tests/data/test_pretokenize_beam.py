"""A Beam pipeline writes the same bytes as pretokenize; skipped where apache-beam is not installed."""

from pathlib import Path

import pytest
from data_parts import SIZES, NoiseSource, tiny_vocab, tiny_vq

pytest.importorskip("apache_beam", reason="the extra of lumina_jax/data/PRETOKENIZE.md is not installed")

from lumina_jax.data.beam import pretokenize_with_beam
from lumina_jax.data.pretokenize import pretokenize_stages
from lumina_jax.data.shard_maker import PretokenizeStage

SEED, SHARD, BATCH = 5, 8, 4
OPTIONS = ["--runner=DirectRunner"]


def open_inputs():
    return NoiseSource(bad=(3, 17)), tiny_vq(), tiny_vocab()


def stages(out: Path) -> list[PretokenizeStage]:
    return [PretokenizeStage(str(out / "small"), SIZES, 400), PretokenizeStage(str(out / "large"), [(32, 32)], 400)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_beam_writes_the_same_bytes_and_continues_unfinished_folders(tmp_path):
    manifests = pretokenize_stages(*open_inputs(), stages(tmp_path / "whole"), SEED, SHARD, BATCH, progress=False)
    unfinished = tmp_path / "begun"
    pretokenize_stages(
        *open_inputs(), stages(unfinished), SEED, SHARD, BATCH, progress=False, shard_slice=slice(0, None, 3)
    )
    kept = {name: (unfinished / name).stat().st_mtime_ns for name in contents(unfinished)}
    for out in (tmp_path / "anew", unfinished, unfinished):
        assert pretokenize_with_beam(open_inputs, stages(out), SEED, OPTIONS, SHARD, BATCH) == manifests
        assert contents(out) == contents(tmp_path / "whole")
    assert {name: (unfinished / name).stat().st_mtime_ns for name in kept} == kept


def test_a_worker_with_other_files_stops_the_pipeline(tmp_path):
    opened = []

    def other_each_time():
        opened.append(NoiseSource(50 + len(opened)))
        return opened[-1], tiny_vq(), tiny_vocab()

    with pytest.raises(Exception, match="this worker has records=51 instead of 50"):
        pretokenize_with_beam(other_each_time, stages(tmp_path), SEED, OPTIONS, SHARD, BATCH)

"""The table of pod configs, the figures that compiling them gave, and the tables of these."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import run
from configs.pods import TABLE, TOPOLOGIES, experiments
from lumina_jax.pods.topology import parse
from tests.bench import read_hlo, tpu_compile

STORED = Path(__file__).parent / "layers.hlo.gz"


def test_a_pod_config_is_its_stage_with_another_batch_and_mesh():
    for (stage, slice_name, *_), (name, cfg) in zip(TABLE, experiments.items(), strict=True):
        assert name == cfg.name == f"{stage.name}_{slice_name}"
        assert replace(cfg, name=stage.name, mesh=stage.mesh, data=replace(cfg.data, batch=stage.data.batch)) == stage


def test_a_pod_config_fills_its_slice_and_every_device_has_whole_rows():
    for (_, slice_name, *_), cfg in zip(TABLE, experiments.values(), strict=True):
        mesh, topology = cfg.mesh, parse(TOPOLOGIES[slice_name])
        assert topology.cloud.replace("litepod", "e").replace("-", "_") == slice_name
        assert mesh.replica * mesh.fsdp * mesh.tensor == topology.device_count
        assert cfg.data.batch % (mesh.replica * mesh.fsdp) == 0


def test_figures_are_those_of_a_case_s_own_rows():
    rows = tpu_compile.read_rows()
    assert tuple(rows) == tuple(case for case in tpu_compile.CASES if case in rows)
    for case, row in rows.items():
        if case.program == "train":
            data = run.load_experiment(f"{run.REPOSITORY}/{case.config}", case.changes.split()).data
            assert (row["rows"], row["length"]) == (data.batch, max(data.buckets))


def test_stages_of_one_program_are_known_by_it():
    """At 256 chips all stages of a model have the same longest rows; on other slices, or with other batches, they do not."""
    cases = {case.config.rpartition(":")[2]: case for case in tpu_compile.CASES if not case.changes}
    first = cases["lumina_7b_512_v5e_256"]
    same = {name for name, case in cases.items() if tpu_compile.same_program(first, case)}
    assert same == {f"lumina_7b_{stage}_v5e_256" for stage in ("512", "768", "1024", "omni")}
    assert not tpu_compile.same_program(cases["lumina_7b_512_v5p_128"], cases["lumina_7b_768_v5p_128"])


def test_a_saved_row_replaces_the_one_of_its_case(tmp_path, monkeypatch):
    before = tpu_compile.COMPILED.read_text()
    monkeypatch.setattr(tpu_compile, "COMPILED", tmp_path / "compiled.json")
    tpu_compile.COMPILED.write_text(before)
    case, row = [*tpu_compile.read_rows().items()][-3]
    tpu_compile.save_row(case, row | {"pass_s": 9.0})
    assert tpu_compile.read_rows()[case]["pass_s"] == 9.0
    tpu_compile.save_row(case, row)
    assert tpu_compile.COMPILED.read_text() == before


def test_what_is_worse_by_more_than_a_hundredth_is_found():
    old = {"config": "a", "step_s": 1.0, "hbm_gib": 20.0, "mfu": 0.8, "compile_s": 100, "waited_collectives_s": 0.0}
    assert tpu_compile.worse(old | {"step_s": 1.009, "hbm_gib": 19.0, "mfu": 0.793, "compile_s": 900}, old) == []
    found = tpu_compile.worse(old | {"step_s": 1.02, "mfu": 0.79, "waited_collectives_s": 0.1}, old)
    assert found == [
        "mfu 0.8 -> 0.79 (-1.2%)",
        "step_s 1.0 -> 1.02 (+2.0%)",
        "waited_collectives_s 0.0 -> 0.1 (+10.0%)",
    ]
    assert tpu_compile.worse({"products_s": 2.0}, old) == []


def test_rows_printed_before_are_compared_with_the_recorded_ones(tmp_path, monkeypatch, capsys):
    case, row = next((case, row) for case, row in tpu_compile.read_rows().items() if case.program == "train")
    changes = {"same": {}, "worse": {"step_s": 2 * row["step_s"]}}
    for name, change in changes.items():
        (tmp_path / name).write_text("a warning\n" + json.dumps(row | change) + "\n")
        monkeypatch.setattr(sys, "argv", ["tpu_compile.py", "--compare", "--from", f"{tmp_path}/{name}"])
        with pytest.raises(SystemExit) as end:
            tpu_compile.main()
        assert end.value.code == (name == "worse")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{case.name}: nothing is worse"
    assert lines[1].startswith(f"{case.name}: step_s {row['step_s']} -> {2 * row['step_s']} (+100.0%)")
    strange = asdict(case) | {"config": "configs/other.py"}
    assert tpu_compile.compare([strange]) == 0
    assert capsys.readouterr().out == f"{tpu_compile.CompileCase(**strange).name}: not in compiled.json\n"


def test_a_saved_program_is_read_again_with_the_places_beside_it(tmp_path, monkeypatch, capsys):
    def figures(*words: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["read_hlo.py", str(program), "--topology", "v5e:2x2", *words])
        read_hlo.main()
        return json.loads(capsys.readouterr().out)

    program = tmp_path / "layers.hlo.gz"
    program.write_bytes(STORED.read_bytes())
    plain = figures("--flops", "1e10")
    assert plain["step_s"] == pytest.approx(
        sum(plain[name] for name in ("products_s", "traffic_s", "kernels_s", "waited_collectives_s")), abs=2e-5
    )
    assert plain["mfu"] == pytest.approx(1e10 / 197e12 / plain["step_s"], rel=1e-2)
    assert plain["transfers"]["blocking all-gather/4"]["links"] == 2
    assert plain["transfers"]["asynchronous collective-permute"]["links"] == 1
    # In a ring of the four chips a permute to the next one goes one hop; in the order of their ids some go two, over other's links.
    ring = [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]]
    (tmp_path / "layers.places.json").write_text(json.dumps(ring))
    beside = figures()
    assert "mfu" not in beside
    assert beside["waited_collectives_s"] < plain["waited_collectives_s"]


@pytest.mark.smoke
def test_a_row_says_the_window_and_the_pictures_that_share_a_model():
    """Of two cases that differ in these only, names and cells differ."""
    small, large, wide = (
        next(case for case in tpu_compile.CASES if words in case.name)
        for words in ("768.py decode x 8 on tpu7x", "1024.py decode x 32 on tpu7x", "window=64")
    )
    figures = {"hbm_gib": 9.0, "temporaries_mib": 5, "pass_s": 0.01, "bound_s": 0.01, "all_reduces": 65}
    cells = [tpu_compile._decode_cells(asdict(case) | figures)[0] for case in (small, large, wide)]
    assert cells[0] == "four tpu7x chips, 8 pictures"
    assert cells[1] == "four tpu7x chips, 1024 px, 32 pictures"
    assert cells[2] == "one v5p chip, a window of 64 drafts"
    assert len({case.name for case in tpu_compile.CASES}) == len(tpu_compile.CASES)

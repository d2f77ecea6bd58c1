"""The table of pod configs, the figures that compiling them gave, and the README's tables of these."""

from dataclasses import replace

import run
from configs.pods import TABLE, TOPOLOGIES, experiments
from lumina_jax.pods.topology import parse
from tests.bench import tpu_compile


def test_a_pod_config_is_its_stage_with_another_batch_and_mesh():
    for (stage, slice_name, *_), (name, cfg) in zip(TABLE, experiments.items(), strict=True):
        assert name == cfg.name == f"{stage.name}_{slice_name}"
        assert replace(cfg, name=stage.name, mesh=stage.mesh, data=replace(cfg.data, batch=stage.data.batch)) == stage


def test_a_pod_config_fills_its_slice_and_every_chip_has_whole_rows():
    for (_, slice_name, *_), cfg in zip(TABLE, experiments.values(), strict=True):
        mesh, topology = cfg.mesh, parse(TOPOLOGIES[slice_name])
        assert topology.cloud.replace("litepod", "e").replace("-", "_") == slice_name
        assert mesh.replica * mesh.fsdp * mesh.tensor == topology.chips
        assert cfg.data.batch % (mesh.replica * mesh.fsdp) == 0


def test_figures_are_those_of_a_case_s_own_rows():
    rows = tpu_compile.read_rows()
    assert tuple(rows) == tuple(case for case in tpu_compile.CASES if case in rows)
    for name, cfg in experiments.items():
        for row in (row for case, row in rows.items() if case.config == f"configs/pods.py:{name}"):
            assert (row["rows"], row["length"]) == (cfg.data.batch, max(cfg.data.buckets))


def test_stages_of_one_program_are_known_by_it():
    """At 256 chips all stages of a model have the same longest rows; on other slices, or with other batches, they do not."""
    cases = {case.config.rpartition(":")[2]: case for case in tpu_compile.CASES}
    first = cases["lumina_7b_512_v5e_256"]
    same = {name for name, case in cases.items() if tpu_compile.same_program(first, case)}
    assert same == {f"lumina_7b_{stage}_v5e_256" for stage in ("512", "768", "1024", "omni")}
    assert not tpu_compile.same_program(cases["lumina_7b_512_v5p_128"], cases["lumina_7b_768_v5p_128"])


def test_the_readme_has_the_tables_that_the_figures_give():
    text = (run.REPOSITORY / "README.md").read_text()
    for table in tpu_compile.tables():
        assert f"\n\n{table}\n" in text, (
            f"the README does not hold what tests/bench/tpu_compile.py --tables prints:\n{table}"
        )


def test_a_saved_row_replaces_the_one_of_its_case(tmp_path, monkeypatch):
    before = tpu_compile.COMPILED.read_text()
    monkeypatch.setattr(tpu_compile, "COMPILED", tmp_path / "compiled.json")
    tpu_compile.COMPILED.write_text(before)
    case = tpu_compile.CASES[-3]
    row = tpu_compile.read_rows()[case]
    tpu_compile.save_row(case, row | {"pass_s": 9.0})
    assert tpu_compile.read_rows()[case]["pass_s"] == 9.0
    tpu_compile.save_row(case, row)
    assert tpu_compile.COMPILED.read_text() == before

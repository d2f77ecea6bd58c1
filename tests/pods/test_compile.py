"""Programs of a tiny model, compiled for chips that are not here; what is said about them, and what a plan tries."""

import gzip
import json
import math
from dataclasses import replace

import pytest

from lumina_jax.config import DataConfig, Experiment, MeshConfig, ModelConfig, OptimConfig, VQConfig
from lumina_jax.pods import plan, report
from lumina_jax.pods.chips import GIB
from lumina_jax.pods.compile import PROGRAMS, Build, Outcome, Work, check_programs, outcomes, train_flops, wanted
from lumina_jax.pods.executable import Costs, Entry, Memory
from lumina_jax.pods.topology import parse

TINY = Experiment(
    name="tiny",
    model=ModelConfig(vocab=512, width=256, layers=2, heads=2, kv_heads=2, head_dim=128, mlp=256),
    vq=VQConfig(codes=64),
    data=DataConfig(buckets=(256,), batch=8),
    mesh=MeshConfig(loss_chunk=128),
)
V5E = parse("v5e:2x2")


@pytest.fixture(scope="module")
def compiled(tpu_compiler) -> dict[str, Outcome]:
    return {outcome.what: outcome for outcome in outcomes(TINY, V5E)}


def test_all_programs_compile_and_fit(compiled):
    assert tuple(compiled) == PROGRAMS
    for outcome in compiled.values():
        assert outcome.costs.serial > 0
        assert outcome.spare > 0
        assert "Fits, with 15.7 GiB of 15.75 GiB to spare" in report.verdict(outcome)


def test_memory_and_work_are_those_of_one_chip(compiled):
    train, decode = compiled["train"], compiled["decode"]
    m = TINY.model
    matrices = 4 * m.width * m.heads * m.head_dim + 3 * m.width * m.mlp
    weights = 2 * m.vocab * m.width + m.layers * matrices
    assert train.mesh == {"replica": 1, "fsdp": 4, "tensor": 1}
    assert train.work.weights == pytest.approx(weights * 4 / 4, rel=0.01)
    assert train.work.optimizer == pytest.approx(2 * train.work.weights, rel=0.01)
    assert train.build.memory.arguments >= train.work.weights + train.work.optimizer
    # Two heads: two chips share a model, and each pair has a prompt of two rows.
    assert decode.mesh == {"replica": 2, "fsdp": 1, "tensor": 2}
    assert decode.work.weights == pytest.approx(weights * 2 / 2, rel=0.01)
    assert (decode.work.rows, decode.work.length) == (4, 1)


def test_weights_travel_in_training_and_not_in_decoding(compiled):
    moved = {what: outcome.costs.bytes("sync", "async") for what, outcome in compiled.items()}
    assert moved["train"] > 2 * compiled["train"].work.weights / 4
    assert moved["decode"] < compiled["decode"].work.weights / 10


def test_what_is_saved_can_be_read_again(compiled, tmp_path):
    paths = report.save(compiled["train"], tmp_path)
    assert [path.name for path in paths] == [f"tiny.v5e-2x2.train{end}" for end in (".txt", ".json", ".hlo.gz")]
    said = paths[0].read_text()
    assert all(words in said for words in ("optimizer state", "matrix products", "MFU at most", "Fits, with"))
    found = json.loads(paths[1].read_text())
    assert found["fits"]
    assert found["tokens"] == 8 * 256
    assert found["seconds"]["serial"] >= found["seconds"]["mxu"] > 0
    assert gzip.decompress(paths[2].read_bytes()).startswith(b"HloModule")


def test_a_program_too_large_is_a_result(tpu_compiler):
    big = replace(TINY, model=replace(TINY.model, vocab=2**24, layers=1))
    (outcome,) = outcomes(big, V5E, ("train",))
    assert outcome.costs is None
    assert outcome.spare < 0
    assert report.verdict(outcome).startswith(f"Does not fit, by {-outcome.spare / GIB:.1f} GiB: weights and optimizer")
    assert "the compiler asked for" in report.text(outcome)
    assert not report.record(outcome)["fits"]


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.", 17.5 * GIB),
        ("total memory required for HLO temporaries (256.00G) exceeds available HBM (30.75G).", 256 * GIB),
        ("Used 512.0M of 15.75G hbm", 0.5 * GIB),
        ("RESOURCE_EXHAUSTED: something else", math.inf),
    ],
)
def test_the_compilers_figure_is_found(message, size):
    assert wanted(message) == size


def test_programs_are_named():
    assert check_programs("train,decode") == ("train", "decode")
    with pytest.raises(ValueError, match="'trian'; they are train, prefill, decode"):
        check_programs("train,trian")


def test_model_flops_of_the_7b_model():
    # 6.745e9 weights without the embedding; 13 rows of 1280.
    weights = 6_745_000_000 + 65536 * 4096
    flops = train_flops(Experiment(), weights, 13, 1280)
    assert flops == pytest.approx(6 * 6.745e9 * 16640 + 6 * 32 * 4096 * 1280**2 * 13)


def pretended(cfg: Experiment, gib: float, seconds: float) -> Outcome:
    """An outcome as if ``cfg`` took so much memory and time."""
    topology = parse("v5p:4x4x4")
    size = plan.shape(cfg, topology)
    fits = gib * GIB <= topology.chip.hbm
    costs = Costs((Entry("mxu", "product", 1, seconds),)) if fits else None
    build = Build(60.0, "", Memory(0, 0, 0, gib * GIB) if fits else None, gib * GIB)
    mesh = dict(zip(("replica", "fsdp", "tensor"), size, strict=True))
    return Outcome("train", cfg, topology, mesh, Work(cfg.data.batch, 1280, 1e14), build, costs)


@pytest.mark.smoke
@pytest.mark.parametrize("start", plan.REMATS)
def test_a_plan_finds_the_most_that_fits_and_then_tries_meshes(start):
    cfg = replace(Experiment(), data=DataConfig(batch=832), mesh=MeshConfig(remat=start))
    topology = parse("v5p:4x4x4")

    def attempt(way: Experiment) -> Outcome:
        kept = plan.REMATS.index(way.mesh.remat)
        return pretended(way, 25 * kept, 2 - 0.1 * kept + 0.001 * plan.shape(way, topology)[1])

    found = list(plan.search(cfg, topology, attempt))
    assert found[0].experiment == cfg
    assert len(found) <= 6
    assert len({o.experiment for o in found}) == len(found)
    # 3 x 25 of 95.7 GiB is the most that fits, and weights over 16 chips are faster here.
    assert plan.best(found) is found[-1]
    words = f"mesh.replica=4 mesh.fsdp=16 mesh.tensor=1 mesh.remat={plan.REMATS[3]}"
    assert plan.advice(found).startswith(f"Recommended: {words} optim.accumulate=1 (20.7 GiB to spare)")
    assert words.split("=")[-1] in report.plain(plan.table(found))


def test_a_plan_works_on_fewer_rows_where_keeping_least_is_too_much():
    cfg = replace(Experiment(), data=DataConfig(batch=832 * 2), mesh=MeshConfig(remat="none"))
    topology = parse("v5p:4x4x4")
    found = list(plan.search(cfg, topology, lambda way: pretended(way, 150 / way.optim.accumulate, 2.0)))
    assert plan.best(found).experiment.optim == OptimConfig(accumulate=2)
    assert "does not fit" in report.plain(plan.table(found))
    nothing = [pretended(cfg, 150, 2.0)]
    assert plan.best(nothing) is None
    assert "take a larger slice" in plan.advice(nothing)
    assert report.verdict(nothing[0]).startswith("Does not fit, by 54.3 GiB: recompute more")


def test_every_way_trains_alike_and_divides():
    topology = parse("v5e:16x16", slices=2)
    cfg = replace(Experiment(), data=DataConfig(batch=2048), optim=OptimConfig(accumulate=2))
    ways = [*plan.ways(cfg, topology), *plan.other_meshes(cfg, topology)]
    assert cfg in ways
    assert len(ways) > 6
    for way in ways:
        replica, fsdp, tensor = plan.shape(way, topology)
        assert replica * fsdp * tensor == topology.chips
        assert way.data.batch == cfg.data.batch
        assert way.data.batch % (way.optim.accumulate * replica * fsdp) == 0
    assert all(plan.shape(way, topology)[0] % 2 == 0 for way in plan.other_meshes(cfg, topology))

"""Compiling the programs of a tiny model without TPUs: what the reports say, and which variants a plan tries."""

import gzip
import hashlib
import json
import math
import re
from dataclasses import replace

import pytest

from lumina_jax.config import DataConfig, Experiment, MeshConfig, OptimConfig
from lumina_jax.errors import InputError, StorageError
from lumina_jax.pods import hlo, plan, report
from lumina_jax.pods.chips import GIB
from lumina_jax.pods.compile import (
    PROGRAMS,
    Compilation,
    Outcome,
    Workload,
    check_programs,
    compile_programs,
    requested_bytes,
    train_flops,
)
from lumina_jax.pods.costs import Costs, HbmUsage, InstructionCost
from lumina_jax.pods.executable import program_costs
from lumina_jax.pods.links import Place
from lumina_jax.pods.topology import parse
from lumina_jax.sharding import make_mesh
from lumina_jax.train.compiled_steps import CompiledSteps
from lumina_jax.train.step import make_step
from tests.pods.tiny_experiment import TINY

V5E = parse("v5e:2x2")


def test_pictures_that_share_a_model_multiply_rows_and_cache(tpu_compiler):
    one, three = (next(iter(compile_programs(TINY, V5E, ("decode",), pictures=n))).work for n in (1, 3))
    assert (three.rows, three.weights) == (3 * one.rows, one.weights)
    assert three.cache == 3 * one.cache


@pytest.fixture(scope="module")
def compiled(tpu_compiler) -> dict[str, Outcome]:
    return {outcome.program: outcome for outcome in compile_programs(TINY, V5E)}


def test_all_programs_compile_and_fit(compiled):
    assert tuple(compiled) == PROGRAMS
    for outcome in compiled.values():
        assert outcome.costs.serial > 0
        assert outcome.free_hbm > 0
        assert "Fits, with 15.7 GiB of 15.75 GiB to spare" in report.verdict(outcome)


def program_hash(text: str) -> str:
    """The SHA-256 of a compiled program, without the lines of Python that it was traced from."""
    program = text[text.index("\n\n%") :]
    return hashlib.sha256(re.sub(r", metadata=\{[^}]*\}", "", program).encode()).hexdigest()


def test_train_runs_the_program_that_is_compiled_without_a_pod(compiled):
    mesh = make_mesh(TINY.mesh, V5E.devices())
    trained = CompiledSteps(TINY, mesh, make_step(TINY, mesh), print).compile((8, 256))
    assert program_hash(trained.as_text()) == program_hash(compiled["train"].compilation.text)


def test_memory_and_work_are_those_of_one_chip(compiled):
    train, decode = compiled["train"], compiled["decode"]
    m = TINY.model
    matrices = 4 * m.width * m.heads * m.head_dim + 3 * m.width * m.mlp
    weights = 2 * m.vocab * m.width + m.layers * matrices
    assert train.mesh == {"replica": 1, "fsdp": 4, "tensor": 1}
    assert train.work.weights == pytest.approx(weights * 4 / 4, rel=0.01)
    assert train.work.optimizer == pytest.approx(2 * train.work.weights, rel=0.01)
    assert train.compilation.hbm.arguments >= train.work.weights + train.work.optimizer
    # The model has two heads, so two chips share it; each pair samples one prompt, with guidance two rows.
    assert decode.mesh == {"replica": 2, "fsdp": 1, "tensor": 2}
    assert decode.work.weights == pytest.approx(weights * 2 / 2, rel=0.01)
    assert (decode.work.rows, decode.work.length) == (4, 1)


@pytest.mark.parametrize(
    ("kind", "slice_name", "codes"), [("int8", "v5e:2x2", "s8"), ("fp8", "tpu7x:2x2x1", "f8e4m3fn")]
)
def test_a_quantized_step_multiplies_and_gathers_codes(tpu_compiler, kind, slice_name, codes):
    """Seven matrices: each has a product forward and two backward, and is gathered for both."""
    cfg = replace(TINY, mesh=replace(TINY.mesh, quant=kind, remat="matmuls"), data=replace(TINY.data, batch=16))
    (outcome,) = compile_programs(cfg, parse(slice_name), ("train",))
    program = hlo.parse(outcome.compilation.text)
    instructions = [(i, computation) for computation in program.values() for i in computation.values()]
    products = [i for i, within in instructions if i.op in hlo.MATMULS and program.product_dtype(i, within) == codes]
    assert len(products) == 3 * 7
    gathered = {array.dtype for i, _ in instructions if i.op.startswith("all-gather") for array in i.arrays}
    assert codes in gathered


def test_ironwood_has_two_devices_a_chip_and_figures_of_one(tpu_compiler):
    """Kernels, training and sampling compile for it; a mesh, rows and figures are those of devices."""
    four = parse("tpu7x:2x2x1")
    outcomes = {outcome.program: outcome for outcome in compile_programs(TINY, four)}
    train, decode = outcomes["train"], outcomes["decode"]
    assert train.mesh == {"replica": 1, "fsdp": 8, "tensor": 1}
    kernels = " ".join(train.costs.calls("kernels"))
    assert all(name in kernels for name in ("flash_fwd", "flash_bwd", "norm_rotate", "norm_rotate_bwd"))
    # The model has two heads, so two devices share it, and each of four pairs samples one prompt.
    assert decode.mesh == {"replica": 4, "fsdp": 1, "tensor": 2}
    table = report.text(train)
    assert "on tpu7x:2x2x1 (4 chips, 8 devices, tpu7x-8)" in table
    assert "one device" in table and "one chip" not in table
    assert "to spare" in table and "of 94.74 GiB" in table


def test_weights_are_communicated_in_training_but_not_in_decoding(compiled):
    wire_bytes = {program: outcome.costs.bytes("sync", "async") for program, outcome in compiled.items()}
    assert wire_bytes["train"] > 2 * compiled["train"].work.weights / 4
    assert wire_bytes["decode"] < compiled["decode"].work.weights / 10


def test_saved_files_hold_table_record_and_program(compiled, tmp_path):
    paths = report.save(compiled["train"], tmp_path)
    assert [path.name for path in paths] == [
        f"tiny.v5e-2x2.train{suffix}" for suffix in (".txt", ".json", ".hlo.gz", ".places.json")
    ]
    table = paths[0].read_text()
    assert all(words in table for words in ("optimizer state", "matrix products", "MFU at most", "Fits, with"))
    record = json.loads(paths[1].read_text())
    assert record["fits"]
    assert record["tokens"] == 8 * 256
    assert record["seconds"]["serial"] >= record["seconds"]["mxu"] > 0
    program = hlo.parse(gzip.decompress(paths[2].read_bytes()).decode())
    order = [Place(*place) for place in json.loads(paths[3].read_text())]
    assert order == [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0, 0), (0, 1, 0, 0)]  # a ring of the four
    assert program_costs(program, V5E, order=order) == compiled["train"].costs
    gathers = record["collectives"]["sync"]["all-gather/4"]
    assert gathers["seconds"] == gathers["waited"] == pytest.approx(gathers["gb"] * 1e9 / (V5E.chip.ici / 2), rel=1e-3)
    assert gathers["links"] == 2


@pytest.mark.smoke
def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"--out .*file/results: Not a directory; name a folder"):
        report.output_folder(f"{tmp_path}/file/results")


def test_a_plan_of_no_tries_is_refused():
    with pytest.raises(InputError, match="--tries 0; it must be at least 1"):
        plan.run(TINY, V5E, 0, None)


def test_a_program_that_does_not_fit_is_a_result(tpu_compiler):
    big = replace(TINY, model=replace(TINY.model, vocab=2**24, layers=1))
    (outcome,) = compile_programs(big, V5E, ("train",))
    assert outcome.costs is None
    assert outcome.free_hbm < 0
    assert report.verdict(outcome).startswith(
        f"Does not fit, by {-outcome.free_hbm / GIB:.1f} GiB: weights and optimizer"
    )
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
def test_the_requested_memory_is_read_from_the_compilers_message(message, size):
    assert requested_bytes(message) == size


def test_an_unknown_program_is_refused():
    assert check_programs("train,decode") == ("train", "decode")
    with pytest.raises(ValueError, match="'trian'; the programs are train, prefill, decode"):
        check_programs("train,trian")


def test_model_flops_of_the_7b_model():
    # 6.745e9 weights without the embedding; 13 rows of 1280.
    weights = 6_745_000_000 + 65536 * 4096
    flops = train_flops(Experiment(), weights, 13, 1280)
    assert flops == pytest.approx(6 * 6.745e9 * 16640 + 6 * 32 * 4096 * 1280**2 * 13)


def fake_outcome(cfg: Experiment, gib: float, seconds: float) -> Outcome:
    """An outcome as if the train step of ``cfg`` took ``gib`` of HBM and ``seconds``."""
    topology = parse("v5p:4x4x4")
    sizes = plan.mesh_shape(cfg, topology)
    fits = gib * GIB <= topology.chip.hbm
    costs = Costs((InstructionCost("mxu", "product", 1, seconds),)) if fits else None
    compilation = Compilation(60.0, "", HbmUsage(0, 0, 0, gib * GIB) if fits else None, gib * GIB)
    mesh = dict(zip(("replica", "fsdp", "tensor"), sizes, strict=True))
    return Outcome("train", cfg, topology, mesh, Workload(cfg.data.batch, 1280, 1e14), compilation, costs)


@pytest.mark.smoke
@pytest.mark.parametrize("start", plan.REMATS)
def test_a_plan_finds_the_largest_remat_that_fits_and_then_tries_meshes(start):
    cfg = replace(Experiment(), data=DataConfig(batch=832), mesh=MeshConfig(remat=start))
    topology = parse("v5p:4x4x4")

    def compile_variant(variant: Experiment) -> Outcome:
        level = plan.REMATS.index(variant.mesh.remat)
        return fake_outcome(variant, 25 * level, 2 - 0.1 * level + 0.001 * plan.mesh_shape(variant, topology)[1])

    outcomes = list(plan.search(cfg, topology, compile_variant))
    assert outcomes[0].experiment == cfg
    assert len(outcomes) <= 6
    assert len({o.experiment for o in outcomes}) == len(outcomes)
    # Of the multiples of 25 GiB, 75 is the largest that fits into 95.7 GiB; a smaller fsdp is faster here.
    assert plan.best(outcomes) is outcomes[-1]
    changes = f"mesh.replica=4 mesh.fsdp=16 mesh.tensor=1 mesh.remat={plan.REMATS[3]}"
    expected = f"Recommended: {changes} optim.accumulate=1 (20.7 GiB to spare)"
    assert plan.recommendation(outcomes).startswith(expected)
    assert plan.REMATS[3] in report.plain(plan.plan_table(outcomes))


def test_a_plan_accumulates_gradients_when_the_smallest_remat_does_not_fit():
    cfg = replace(Experiment(), data=DataConfig(batch=832 * 2), mesh=MeshConfig(remat="none"))
    topology = parse("v5p:4x4x4")
    outcomes = list(
        plan.search(cfg, topology, lambda variant: fake_outcome(variant, 150 / variant.optim.accumulate, 2.0))
    )
    assert plan.best(outcomes).experiment.optim == OptimConfig(accumulate=2)
    assert "does not fit" in report.plain(plan.plan_table(outcomes))
    too_large = [fake_outcome(cfg, 150, 2.0)]
    assert plan.best(too_large) is None
    assert "take a larger slice" in plan.recommendation(too_large)
    assert report.verdict(too_large[0]).startswith("Does not fit, by 54.3 GiB: recompute more")


def test_every_variant_keeps_the_global_batch_and_divides_over_the_chips():
    topology = parse("v5e:16x16", slices=2)
    cfg = replace(Experiment(), data=DataConfig(batch=2048), optim=OptimConfig(accumulate=2))
    meshes = plan.other_meshes(cfg, topology)
    variants = [*plan.by_memory(cfg, topology), *meshes]
    assert cfg in variants
    assert len(variants) > 6
    for variant in variants:
        replica, fsdp, tensor = plan.mesh_shape(variant, topology)
        assert replica * fsdp * tensor == topology.chips
        assert variant.data.batch == cfg.data.batch
        assert variant.data.batch % (variant.optim.accumulate * replica * fsdp) == 0
    assert all(plan.mesh_shape(variant, topology)[0] % topology.slices == 0 for variant in meshes)

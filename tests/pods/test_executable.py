"""Costs read off compiled programs: small hand-written ones, and a stored one with the figures of an independent reader."""

import gzip
from pathlib import Path

import pytest

from lumina_jax.pods import hlo, kernels
from lumina_jax.pods.chips import CHIPS
from lumina_jax.pods.executable import iteration_costs, program_costs
from lumina_jax.pods.rotation import ROTATION_BUNDLES, SAME_UNITS, rotation_seconds
from lumina_jax.pods.topology import parse

V5E = CHIPS["v5e"]
EIGHT, FOUR = parse("v5e:2x4"), parse("v5e:2x2")
LINK = V5E.ici / 4
STORED = Path(__file__).parent / "layers.hlo.gz"
"""A scan over three layers of projection, splash attention and output, with its gradient, on four v5e chips."""

LOOP = """
HloModule loop

%product (p0: bf16[128,256], p1: bf16[256,512]) -> bf16[128,512] {
  %p0 = bf16[128,256]{1,0:T(8,128)} parameter(0)
  %p1 = bf16[256,512]{1,0:T(8,128)} parameter(1)
  ROOT %convolution.1 = bf16[128,512]{1,0:T(8,128)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%body (arg: (s32[], bf16[128,256])) -> (s32[], bf16[128,256]) {
  %arg = (s32[], bf16[128,256]{1,0}) parameter(0)
  %x = bf16[128,256]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %w = bf16[64,512]{1,0:T(8,128)} constant({...})
  %gather = bf16[256,512]{1,0:T(8,128)} all-gather(%w), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  %fusion.1 = bf16[128,512]{1,0:T(8,128)} fusion(%x, %gather), kind=kOutput, calls=%product, \
backend_config={"window_config":{"estimated_cycles":"3000"}}
  %half = bf16[128,256]{1,0:T(8,128)} slice(%fusion.1), slice={[0:128], [0:256]}
  %n = s32[] get-tuple-element(%arg), index=0
  ROOT %tuple = (s32[], bf16[128,256]{1,0}) tuple(%n, %half)
}

%condition (arg.1: (s32[], bf16[128,256])) -> pred[] {
  %arg.1 = (s32[], bf16[128,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg.1), index=0
  %bound = s32[] constant(BOUND)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (x.1: (s32[], bf16[128,256])) -> (s32[], bf16[128,256]) {
  %x.1 = (s32[], bf16[128,256]{1,0}) parameter(0)
  ROOT %while.1 = (s32[], bf16[128,256]{1,0}) while(%x.1), condition=%condition, body=%body
}
"""

SLICED = """
%cut (p: bf16[32,1024,128], i: s32[]) -> bf16[1024,128] {
  %p = bf16[32,1024,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = bf16[1,1024,128]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,1024,128}
  ROOT %flat = bf16[1024,128]{1,0} bitcast(%layer)
}

ENTRY %main (stack: bf16[32,1024,128], n: s32[]) -> bf16[1024,128] {
  %stack = bf16[32,1024,128]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  ROOT %fusion = bf16[1024,128]{1,0SPACE} fusion(%stack, %n), kind=kLoop, calls=%cut
}
"""


@pytest.mark.smoke
def test_a_loop_body_counts_once_per_trip():
    once, repeated = (program_costs(hlo.parse(LOOP.replace("BOUND", bound)), EIGHT) for bound in ("1", "32"))
    assert once.seconds("mxu") == pytest.approx(3000 / V5E.clock)
    assert once.efficiency == pytest.approx(2 * 128 * 256 * 512 / V5E.flops / (3000 / V5E.clock))
    assert once.calls("sync") == {"all-gather/4": (1, 256 * 512 * 2 * 3 / 4)}
    # Each group of four is a square on open axes, one link on each.
    assert once.seconds("sync") == pytest.approx(256 * 512 * 2 * 3 / 4 / (2 * LINK))
    for category in ("mxu", "memory", "sync"):
        assert repeated.seconds(category) == pytest.approx(32 * once.seconds(category))
    assert repeated.serial == pytest.approx(repeated.seconds("mxu", "memory", "sync"))


def test_a_loop_whose_trip_count_depends_on_data_is_costed_per_iteration():
    program = hlo.parse(
        LOOP.replace("%bound = s32[] constant(BOUND)", "%bound = s32[] get-tuple-element(%arg.1), index=0")
    )
    assert program.trip_count(program["main"]["while.1"]) is None
    assert program_costs(program, EIGHT, unbounded_trips=0).instructions == ()
    assert iteration_costs(program, EIGHT).seconds("mxu") == program_costs(program, EIGHT).seconds("mxu")
    with pytest.raises(ValueError, match="no decoding loop"):
        iteration_costs(hlo.parse(LOOP.replace("BOUND", "32")), EIGHT)


def test_of_nested_loops_with_unknown_trip_counts_the_outermost_is_costed():
    inner = """
%inner (a: (s32[], bf16[128,256])) -> (s32[], bf16[128,256]) {
  ROOT %a = (s32[], bf16[128,256]{1,0}) parameter(0)
}

%open (b: (s32[], bf16[128,256])) -> pred[] {
  ROOT %b = pred[] parameter(0)
}
"""
    text = LOOP.replace("HloModule loop", "HloModule loop" + inner).replace("constant(BOUND)", "iota()")
    text = text.replace(
        "  %half =", "  %while.2 = (s32[], bf16[128,256]{1,0}) while(%arg), condition=%open, body=%inner\n  %half ="
    )
    assert iteration_costs(hlo.parse(text), EIGHT).seconds("mxu") == pytest.approx(3000 / V5E.clock)


def test_a_slice_of_a_reinterpreted_array_reads_only_what_it_cuts_out():
    view = (
        "%retiled = bf16[32,1024,128]{2,1,0:T(8,128)} fusion(%p), kind=kLoop, "
        "output_to_operand_aliasing={{}: (0, {})}, calls=%same\n  %i ="
    )
    text = SLICED.replace("SPACE", "").replace("%i =", view, 1).replace("dynamic-slice(%p", "dynamic-slice(%retiled")
    assert program_costs(hlo.parse(text), EIGHT) == program_costs(hlo.parse(SLICED.replace("SPACE", "")), EIGHT)


@pytest.mark.parametrize(("space", "written"), [("", 1024 * 128 * 2), (":T(8,128)S(1)", 0)])
def test_a_slice_reads_only_what_it_cuts_out_and_on_chip_memory_is_free(space, written):
    index_bytes = 4
    costs = program_costs(hlo.parse(SLICED.replace("SPACE", space)), EIGHT)
    assert costs.bytes("memory") == 1024 * 128 * 2 + written + index_bytes


def test_a_stored_program_has_the_figures_of_the_reference_reader():
    costs = program_costs(hlo.parse(gzip.decompress(STORED.read_bytes()).decode()), FOUR)
    figures = [*(costs.seconds(name) for name in ("mxu", "memory")), costs.bytes("memory") / 1e9]
    assert figures == pytest.approx([3.831576e-3, 2.613042564e-4, 0.214008186])
    # Gathers over the square of open axes have two of the four links, permutes to a neighbour one.
    assert costs.seconds("sync") == pytest.approx(2 * 2.097152e-4)
    assert costs.seconds("async") == pytest.approx(4 * 2.796202667e-4)
    assert costs.waited("sync") == pytest.approx(costs.seconds("sync"))
    calls = {name: times for name, (times, _) in costs.calls("kernels").items()}
    assert calls == {"splash_mha_fwd_segmented_residuals": 6, "splash_mha_dkv_segmented_no_residuals": 3}


def test_block_sizes_and_grid_steps_of_splash_calls_are_read():
    program = hlo.parse(gzip.decompress(STORED.read_bytes()).decode())
    calls = [i for c in program.values() for i in c.values() if i.op == "custom-call" and kernels.TARGET in i.text]
    splash = {kernels.splash_kernel(call) for call in calls}
    # 4 rows x 16 heads x the 10 blocks of a causal triangle of 1024 / 256.
    assert splash == {kernels.SplashKernel(pass_, 256, 256, 128, 640) for pass_ in ("fwd", "fused")}


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_no_kernel_is_priced_below_the_cycles_of_its_matrix_products(chip):
    for pass_ in kernels.MATMULS:
        for block in (128, 256, 512, 640, 700, 768, 1280, 2048):
            kernel = kernels.SplashKernel(pass_, block, block, 128, 1)
            assert kernel.bundles(chip) > kernels.mxu_cycles(pass_, block, block, 128, chip)


def test_a_measured_block_size_costs_its_measured_bundles():
    assert kernels.SplashKernel("fwd", 640, 640, 128, 1).bundles(CHIPS["v5p"]) == pytest.approx(3364)
    # 7B, 13 rows of 1280: a step calls the forward kernel twice a layer and the backward kernel once, on a v5p chip.
    steps = 3 * 32 * 13
    fwd, bwd = (kernels.SplashKernel(pass_, 640, 640, 128, steps).seconds(CHIPS["v5p"]) for pass_ in ("fwd", "fused"))
    assert 64 * fwd + 32 * bwd == pytest.approx(steps * 32 * (2 * 3364 + 4596) / 2 / 1.75e9)


def test_a_rotation_kernel_takes_the_time_of_its_loops_or_of_its_bytes():
    """Two rows of eight heads and 1,024 tokens: sixteen trips of the loop."""
    array = "bf16[2,8,1024,128]{3,2,1,0}"
    text = (
        f"ENTRY %main (x: {array}) -> {array} {{\n  %x = {array} parameter(0)\n"
        f'  ROOT %norm_rotate.3 = {array} custom-call(%x), custom_call_target="tpu_custom_call"\n}}'
    )
    program = hlo.parse(text)
    call, entry = program["main"]["norm_rotate.3"], program["main"]
    for chip in CHIPS.values():
        bundles = ROTATION_BUNDLES[SAME_UNITS.get(chip.name, chip.name)]["norm_rotate"]
        assert rotation_seconds(call, chip) == pytest.approx(16 * bundles / chip.cores / chip.clock)
        moved = 2 * call.bytes / chip.bandwidth
        assert kernels.kernel_seconds(call, entry, chip) == max(moved, rotation_seconds(call, chip))
    other = hlo.parse(text.replace("norm_rotate", "other"))["main"]
    assert rotation_seconds(other["other.3"], V5E) is None
    assert kernels.kernel_seconds(other["other.3"], other, V5E) == 2 * call.bytes / V5E.bandwidth

"""Blocking and asynchronous collectives in all the forms in which libtpu writes them, in small hand-written programs."""

import pytest

from lumina_jax.pods import hlo
from lumina_jax.pods.costs import Costs
from lumina_jax.pods.executable import program_costs
from lumina_jax.pods.topology import parse

FOUR = parse("v5e:2x2")
LINK = FOUR.chip.ici / 4
GATHER = "all-gather({}), channel_id=3, replica_groups={{{{0,1}},{{2,3}}}}, dimensions={{0}}"
REMOTE = 256 * 512 * 2 / 2
"""Bytes that a chip of two receives of bf16[256,512]."""
BUSY = 'fusion(%a), kind=kOutput, calls=%work, backend_config={"window_config":{"estimated_cycles":"CYCLES"}}'
WORK = """
%work (w: bf16[128,512]) -> bf16[128,128] {
  %w = bf16[128,512]{1,0} parameter(0)
  ROOT %product = bf16[128,128]{1,0} convolution(%w, %w), dim_labels=bf_oi->bf
}
"""


def read(*lines: str, computations: str = "", cycles: int = 0) -> Costs:
    """The costs of a program on four chips, whose entry holds ``lines`` and takes %a."""
    entry = ["ENTRY %main (a: bf16[128,512]) -> bf16[128,512] {", "  %a = bf16[128,512]{1,0} parameter(0)"]
    text = "\n".join(
        ["HloModule m, num_partitions=4", WORK, computations, *entry, *(f"  {line}" for line in lines), "}"]
    )
    return program_costs(hlo.parse(text.replace("CYCLES", str(cycles))), FOUR)


def test_two_blocking_collectives_of_one_channel_both_count():
    costs = read(
        f"%one = bf16[256,512]{{1,0}} {GATHER.format('%a')}",
        f"%two = bf16[256,512]{{1,0}} {GATHER.format('%a')}",
    )
    assert costs.calls("sync") == {"all-gather/2": (2, 2 * REMOTE)}
    assert costs.seconds("sync") == pytest.approx(2 * REMOTE / LINK)
    assert costs.seconds("sync") == costs.waited("sync") == costs.serial


def test_start_step_and_done_of_one_asynchronous_collective_count_once():
    inner = "\n".join(
        f"%{name} (s.{name}: bf16[128,512]) -> bf16[256,512] {{\n  %s.{name} = bf16[128,512]{{1,0}} parameter(0)\n"
        f"  ROOT %all-gather.{name} = bf16[256,512]{{1,0}} {GATHER.format(f'%s.{name}')}\n}}\n"
        for name in ("begin", "step", "end", "other")
    )
    seconds = REMOTE / LINK
    costs = read(
        "%async-collective-start.1 = (bf16[128,512]{1,0}, bf16[256,512]{1,0}) fusion(%a), kind=kCustom, calls=%begin",
        "%part = bf16[256,512]{1,0} get-tuple-element(%async-collective-start.1), index=1",
        f"%matmul = bf16[128,128]{{1,0}} {BUSY}",
        "%fusion.7 = (bf16[128,512]{1,0}, bf16[256,512]{1,0}) fusion(%a, %part), kind=kOutput, calls=%step",
        "%more = bf16[256,512]{1,0} get-tuple-element(%fusion.7), index=1",
        "%async-collective-done.1 = bf16[256,512]{1,0} fusion(%more), kind=kCustom, calls=%end",
        # Another of the same channel is another collective, not a step of the first.
        "%alone = bf16[256,512]{1,0} fusion(%a), kind=kCustom, calls=%other",
        computations=inner,
        cycles=round(seconds / 2 * FOUR.chip.clock),
    )
    assert costs.calls("async") == {"all-gather/2": (1, REMOTE)}
    assert costs.calls("sync") == {"all-gather/2": (1, REMOTE)}
    assert costs.exposed == pytest.approx(seconds / 2, rel=1e-3)
    assert costs.seconds("memory") == 0


def test_a_fused_all_reduce_and_slice_is_a_reduce_scatter_and_no_traffic():
    scatter = (
        "%scatter (g: f32[64,64]) -> f32[32,64] {\n  %g = f32[64,64]{1,0} parameter(0)\n"
        "  %ar = f32[64,64]{1,0} all-reduce(%g), channel_id=4, replica_groups={{0,1},{2,3}}, to_apply=%add\n"
        "  ROOT %cut = f32[32,64]{1,0} slice(%ar), slice={[0:32], [0:64]}\n}\n"
    )
    costs = read(
        "%b = f32[64,64]{1,0} constant({...})",
        "%all-reduce-scatter.1 = f32[32,64]{1,0} fusion(%b), kind=kCustom, calls=%scatter",
        computations=scatter,
    )
    assert costs.calls("sync") == {"reduce-scatter/2": (1, 64 * 64 * 4 / 2)}
    assert costs.bytes("memory") == 0


@pytest.mark.parametrize("form", ["call", "call with data", "async", "all-gather"])
def test_work_between_start_and_done_hides_a_collective(form):
    inner = (
        "%on_sparsecore (s: bf16[128,512]) -> bf16[256,512] {\n  %s = bf16[128,512]{1,0} parameter(0)\n"
        f'  ROOT %inner = bf16[256,512]{{1,0}} {GATHER.format("%s")}\n}}, execution_thread="sparsecore"\n'
    )
    thread = 'async_execution_thread="sparsecore", to_apply=%on_sparsecore'
    pair = "((bf16[128,512]{1,0}), bf16[256,512]{1,0})"
    work, result = f"%matmul = bf16[128,128]{{1,0}} {BUSY}", "bf16[256,512]{1,0}"
    lines = {
        # Until the update hands the data over, nothing moves.
        "call": [
            f"%start = ((), (), s32[]{{:S(2)}}) call-start(), {thread}",
            work.replace("%matmul", "%before"),
            f"%update = {pair} call-update(%start, %a)",
            work,
            f"%done = {result} call-done(%update)",
        ],
        "call with data": [f"%start = {pair} call-start(%a), {thread}", work, f"%done = {result} call-done(%start)"],
        "async": [
            f"%start = {pair} async-start(%a), calls=%on_sparsecore",
            f"%update = {pair} async-update(%start)",
            work,
            f"%done = {result} async-done(%update)",
        ],
        "all-gather": [
            f"%start = (bf16[128,512]{{1,0}}, {result}) {GATHER.format('%a').replace('(', '-start(', 1)}",
            work,
            f"%done = {result} all-gather-done(%start)",
        ],
    }[form]
    seconds = REMOTE / LINK
    costs = read(*lines, computations=inner, cycles=round(seconds / 4 * FOUR.chip.clock))
    assert costs.calls("async") == {"all-gather/2": (1, REMOTE)}
    assert costs.seconds("sync", "memory") == 0
    assert costs.exposed == pytest.approx(seconds * 3 / 4, rel=1e-3)
    assert costs.serial == pytest.approx(costs.compute + costs.exposed)
    assert costs.transfers("async")["all-gather/2"].hidden == pytest.approx(1 / 4, rel=1e-3)


def test_a_collective_between_slices_is_waited_for_at_its_receive():
    host = 'is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce_0",'
    kind = '_xla_megascale_transfer_type="ALL_REDUCE",_xla_host_transfer_handler_name="xla_megascale_runtime"}'
    lines = [
        "%token = token[] after-all()",
        f"%send = (bf16[128,512]{{1,0}}, u32[], token[]) send(%a, %token), channel_id=2, {host}{kind}",
        f"%recv = (bf16[128,512]{{1,0}}, u32[], token[]) recv(%token), channel_id=1, {host}{kind}",
        f"%matmul = bf16[128,128]{{1,0}} {BUSY}",
        "%send-done = token[] send-done(%send), channel_id=2",
        "%recv-done = (bf16[128,512]{1,0}, token[]) recv-done(%recv), channel_id=1",
    ]
    size = 128 * 512 * 2
    costs = read(*lines, cycles=1500)
    assert costs.calls("dcn") == {"all-reduce/slices": (1, size)}
    assert costs.seconds("dcn") == pytest.approx(size / FOUR.chip.dcn)
    assert costs.exposed == pytest.approx(size / FOUR.chip.dcn - costs.compute)


def test_a_retiling_that_moves_nothing_is_no_traffic():
    same = "%same (p: bf16[128,512]) -> bf16[128,512] {\n  %p = bf16[128,512]{1,0} parameter(0)\n  ROOT %c = OP\n}\n"
    line = "%copy_fusion = bf16[128,512]{1,0} fusion(%a), kind=kLoop, calls=%same"
    alias = ", output_to_operand_aliasing={{}: (0, {})}"
    copy = same.replace("OP", "bf16[128,512]{1,0} copy(%p)")
    assert read(line, computations=copy).bytes("memory") == 2 * 128 * 512 * 2
    assert read(line + alias, computations=copy).bytes("memory") == 0
    negate = same.replace("OP", "bf16[128,512]{1,0} negate(%p)")
    assert read(line + alias, computations=negate).bytes("memory") == 2 * 128 * 512 * 2

"""Bundles of a grid step and of the loops in it, from a small schedule as the compiler dumps them."""

from tests.bench import kernel_bundles

SCHEDULE = """LB: loop body
= control target key end

     0   :  { %s1 = inlined_call_operand.vmem [shape: bf16[2,8,512,128]] }
   0x1 LB: > { %s2 = sphi 0, %s3 /* iteration
index */ }
   0x2   : > {}
   0x3 LB: >> { %v1 = vld [vmem:[%s1]]  ;;  %v2 = vld [vmem:[%s1 + $0x8]] }
   0x4   : >> { %614 = sbr.rel (!%p612_p12) target = $region156 }
  0x1f PF: > { %s4 = sadd.s32 1, %s2 }
  0x20 LB: >> { %v3 = vmul.f32 %v1, %v2 }
  0x21   :  { %8 = vsyncadd [#allocation4], 4294934528 } /* End region 4 */
"""


def test_bundles_of_a_step_and_of_each_loop_inside_it():
    assert kernel_bundles.loops(SCHEDULE) == {"total": 8, "step": 6, "loops": [2, 1]}


def test_only_kernels_are_read_off_the_dumped_files(tmp_path):
    for name, text in (("TLP", "custom-call"), ("kernel.3", "100%: custom-call"), ("fusion.1", "100%: fusion")):
        (tmp_path / f"17-{name}-70-schedule-analysis_final_bundles.txt").write_text(text)
        (tmp_path / f"17-{name}-71-final_bundles.txt").write_text(SCHEDULE)
    assert kernel_bundles.bundles(tmp_path) == {"kernel": {"total": 8, "step": 6, "loops": [2, 1]}}

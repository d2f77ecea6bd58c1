"""Bundles of instructions that the TPU compiler emits for one grid step of each Pallas kernel: what pods/kernels.py prices by.

``python tests/bench/kernel_bundles.py`` compiles, for each chip and block size, a program that holds nothing but attention and its
gradient (``--kernel splash``, the default) or QK-norm and rotation (``--kernel norm_rotate``), reads the schedules that the
compiler dumps, and prints one JSON line each: kernel name -> bundles. ``--chips v5e,v6e`` and ``--blocks 640,1280`` choose.
It needs no TPU; a line takes half a minute.
"""

import argparse
import glob
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lumina_jax.model.tpu import OPTIONS
from lumina_jax.pods.chips import CHIPS
from lumina_jax.pods.topology import environment, parse

ROWS, HEADS, HEAD_DIM = 4, 8, 128
BUNDLE = re.compile(r"^ *(?:0x)?[0-9a-f]+ *(\w\w)? *: *(>*) *\{", re.MULTILINE)
WHOLE_PROGRAM = "TLP"
DUMPED = re.compile(r"\d+-(.*)-\d+-schedule-analysis_final_bundles\.txt")


def splash(block: int) -> tuple[Callable, list[tuple[tuple[int, ...], str]]]:
    """Causal splash attention with segment ids in square blocks, over two blocks of tokens; (function, shapes and dtypes)."""
    import jax
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length = 2 * block
    sides = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    attend = kernels.make_splash_mha(
        mask=masks.MultiHeadMask([masks.CausalMask((length, length))] * HEADS),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=kernels.BlockSizes(**dict.fromkeys(sides, block), use_fused_bwd_kernel=True),
    )
    heads = ((ROWS, HEADS, length, HEAD_DIM), "bfloat16")
    shapes = [heads, heads, heads, ((ROWS, length), "int32")]
    return lambda q, k, v, s: jax.vmap(attend)(q, k, v, kernels.SegmentIds(s, s)), shapes


def norm_rotate(block: int) -> tuple[Callable, list[tuple[tuple[int, ...], str]]]:
    """QK-norm and rotation over ``block`` tokens."""
    from lumina_jax.model.rotation import norm_rotate as kernel

    heads, norm, angles = (ROWS, block, HEADS * HEAD_DIM), (1, HEAD_DIM), (ROWS, block, HEAD_DIM)
    shapes = [(heads, "bfloat16"), (norm, "float32"), (norm, "float32"), (angles, "bfloat16"), (angles, "bfloat16")]
    return kernel, shapes


KERNELS = {"splash": splash, "norm_rotate": norm_rotate}
"""Name -> block size -> a function of arrays (those of integers last) that calls the kernels, and their shapes."""


def compile_alone(kernel: str, chip: str, block: int) -> None:
    """Compiles a kernel and its backward pass for one chip; the compiler dumps where LIBTPU_INIT_ARGS says."""
    import jax
    import jax.numpy as jnp

    function, shapes = KERNELS[kernel](block)
    shape = "1x1" if CHIPS[chip].axes == 2 else "1x1x1"
    sharding = jax.sharding.SingleDeviceSharding(parse(f"{chip}:{shape}").devices()[0])
    arguments = [jax.ShapeDtypeStruct(dims, dtype, sharding=sharding) for dims, dtype in shapes]

    def forward_and_backward(*xs):
        floats = [x for x in xs if jnp.issubdtype(x.dtype, jnp.floating)]
        result, pull = jax.vjp(lambda *given: function(*given, *xs[len(given) :]), *floats)
        return result, pull(result)

    vmem = {name: value for name, value in OPTIONS[chip].items() if "scoped_vmem" in name}
    jax.jit(forward_and_backward).lower(*arguments).compile(compiler_options=vmem)


def bundles(folder: Path) -> dict[str, dict]:
    """Kernel name -> its bundles, of the dumped schedules that are one custom call each."""
    found = {}
    for path in sorted(folder.iterdir()):
        name = DUMPED.fullmatch(path.name)
        if name and name[1] != WHOLE_PROGRAM and "custom-call" in path.read_text():
            (schedule,) = folder.glob(f"*-{glob.escape(name[1])}-*[0-9]-final_bundles.txt")
            found[re.sub(r"\.\d+$", "", name[1])] = loops(schedule.read_text())
    return found


def loops(schedule: str) -> dict:
    """The bundles of a schedule in ``total``, of one ``step`` of the grid, and of each loop inside it, which counts once there too.

    A line is one bundle; as many marks > as there are loops around it precede it, and LB stands where one begins.
    """
    total, step, inner = 0, 0, []
    for mark, depth in BUNDLE.findall(schedule):
        total += 1
        step += bool(depth)
        if len(depth) > 1:
            if mark == "LB" or not inner:
                inner.append(0)
            inner[-1] += 1
    return {"total": total, "step": step, "loops": inner}


def dump(kernel: str, chip: str, block: int) -> dict:
    """The row of one kernel, compiled in a process of its own, since libtpu reads its options once."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        command = [sys.executable, __file__, "--kernel", kernel, "--chips", chip, "--blocks", str(block), "--child"]
        subprocess.run(command, env=os.environ | environment() | {"LIBTPU_INIT_ARGS": options}, check=True)
        row = {"kernel": kernel, "chip": chip, "block": block, "bundles": bundles(Path(folder))}
    return row | {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", choices=KERNELS, default="splash", help="which kernel to compile")
    parser.add_argument("--chips", default=",".join(CHIPS), help="names of chips, separated by commas")
    parser.add_argument("--blocks", default="512,640,768,1280", help="tokens along an edge of a block")
    parser.add_argument("--child", action="store_true", help="only compile, as a process that dumps does")
    options = parser.parse_args()
    cases = [(chip, int(block)) for chip in options.chips.split(",") for block in options.blocks.split(",")]
    for chip, block in cases:
        if options.child:
            compile_alone(options.kernel, chip, block)
        else:
            print(json.dumps(dump(options.kernel, chip, block)), flush=True)


if __name__ == "__main__":
    main()

"""Which attention kernel, cut how, takes the fewest bundles of instructions for a head, forward and backward, on each kind of TPU.

``python tests/bench/kernel_search.py --chips v6e,v5p --lengths 1280,5120`` compiles each candidate alone, reads the schedules that
the compiler dumps, and prints one JSON line each: bundles of a head for each length, and their ratio to those of the peer, splash
attention in blocks of 640, compiled by the same call. ``--candidates`` lists what is tried: flash:BLOCKxSTRIP is ours,
splash:QUERIESxKEYSxKEYS that of JAX (the last are the keys of a step inside a block). It needs no TPU; a line takes a minute. The
figures of model/splash.py and pods/flash.py are from here.
"""

import argparse
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lumina_jax.pods.topology import environment, parse

PEER = "splash:640x640x640"
CANDIDATES = f"{PEER},splash:1280x1280x640,splash:1280x640x640,flash:512x128,flash:640x128,flash:640x256,flash:1280x256"
ROWS, HEADS, HEAD_DIM = 2, 4, 128
BUNDLE = re.compile(r"^ *(?:0x)?[0-9a-f]+ *(?:[A-Z]{2})? *: *([> ]*)\{", re.MULTILINE)
SMALL = 100
"""Fewer bundles than a block of scores takes."""


def flash(block: int, strip: int):
    """A differentiable call of our kernel over two blocks of tokens: (function of q, k, v and segments, shape of the three)."""
    import jax.numpy as jnp

    from lumina_jax.model.flash import Tiles, flash_attend

    tiles, bound = Tiles(block, strip), jnp.zeros(HEADS)
    columns = (ROWS, 2 * block, HEADS * HEAD_DIM)
    return lambda q, k, v, segments: flash_attend(q, k, v, segments, bound, tiles, tiles), columns


def splash(block_q: int, block_kv: int, compute: int):
    """The same of JAX's kernel, with its fused backward pass."""
    import jax
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length = 2 * max(block_q, block_kv)
    sizes = kernels.BlockSizes(block_q, block_kv, compute, block_q, block_kv, compute, use_fused_bwd_kernel=True)
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * HEADS)
    attend = kernels.make_splash_mha(mask=mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    heads = (ROWS, HEADS, length, HEAD_DIM)
    return lambda q, k, v, segments: jax.vmap(attend)(q, k, v, kernels.SegmentIds(segments, segments)), heads


def compile_alone(chip: str, candidate: str) -> None:
    """Compiles a candidate with its gradient; the compiler dumps where LIBTPU_INIT_ARGS says."""
    import jax
    import jax.numpy as jnp

    kind, sizes = candidate.split(":")
    attend, shape = {"flash": flash, "splash": splash}[kind](*map(int, sizes.split("x")))
    dims = "1x1x1" if chip in ("v4", "v5p", "tpu7x") else "1x1"
    sharding = jax.sharding.SingleDeviceSharding(parse(f"{chip}:{dims}").devices()[0])
    heads = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    segments = jax.ShapeDtypeStruct((ROWS, math.prod(shape) // (ROWS * HEADS * HEAD_DIM)), jnp.int32, sharding=sharding)

    def both(q, k, v, change, segments):
        value, pull = jax.vjp(lambda *heads: attend(*heads, segments), q, k, v)
        return value, pull(change)

    jax.jit(both).lower(heads, heads, heads, heads, segments).compile()


def regions(schedule: Path) -> list[tuple[int, int]]:
    """(depth, bundles) of each run of bundles that lie in equally many loops, in order."""
    found: list[tuple[int, int]] = []
    for marks in BUNDLE.findall(schedule.read_text()):
        depth = marks.count(">")
        if found and found[-1][0] == depth:
            found[-1] = (depth, found[-1][1] + 1)
        else:
            found.append((depth, 1))
    return found


def flash_parts(schedule: Path, forward: bool) -> tuple[int, int, int]:
    """Bundles of a block under the diagonal, of one on it with all that is done once a block, and of the rest.

    The innermost loop runs over blocks under the diagonal, the one around it over blocks. The forward pass has each twice: first
    those that find a maximum, which only logits without a small bound need.
    """
    parts = regions(schedule)
    deepest = max(depth for depth, n in parts if n > SMALL)
    loops = [n for n, (depth, size) in enumerate(parts) if depth == deepest and size > SMALL]
    around = [(n, size) for n, (depth, size) in enumerate(parts) if depth == deepest - 1]
    skipped = range(loops[0], loops[-1]) if forward else ()
    on = sum(size for n, size in around if n not in skipped)
    return parts[loops[-1]][1], on, sum(size for depth, size in parts if depth < deepest - 1)


def head_bundles(candidate: str, folder: Path, length: int) -> dict[str, int]:
    """Bundles of a head of ``length`` tokens, padded to whole blocks, by pass."""
    kind, sizes = candidate.split(":")
    block, keys = (int(size) for size in sizes.split("x")[:2])
    if kind == "flash":
        n = -(-length // block)
        found = {name: flash_parts(_schedule(folder, f"flash_{name}"), name == "fwd") for name in ("fwd", "bwd")}
        return {name: rest + n * on + n * (n - 1) // 2 * under for name, (under, on, rest) in found.items()}
    queries, rows = -(-length // block), -(-length // keys)
    steps = sum(min(rows, (q * block + block - 1) // keys + 1) for q in range(queries))
    totals = {
        name: sum(size for _, size in regions(_schedule(folder, f"splash_mha_{key}")))
        for name, key in (("fwd", "fwd"), ("bwd", "dkv"))
    }
    return {name: steps * total for name, total in totals.items()}


def _schedule(folder: Path, name: str) -> Path:
    (found,) = (p for p in folder.glob(f"*{name}*-final_bundles.txt") if "analysis" not in p.name)
    return found


def measure(chip: str, candidate: str, lengths: list[int]) -> dict[str, dict[str, int]]:
    """Length -> pass -> bundles, compiled in a process of its own, since libtpu reads its options once."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        command = [sys.executable, __file__, "--chips", chip, "--candidates", candidate, "--child"]
        subprocess.run(command, env=os.environ | environment() | {"LIBTPU_INIT_ARGS": options}, check=True)
        return {str(length): head_bundles(candidate, Path(folder), length) for length in lengths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", default="v5e,v5p,v6e,tpu7x", help="names of chips, separated by commas")
    parser.add_argument("--candidates", default=CANDIDATES, help="kernels and blocks, separated by commas")
    parser.add_argument("--lengths", default="1280,2560,4608,5120", help="tokens of a row")
    parser.add_argument("--child", action="store_true", help="only compile, as a process that dumps does")
    options = parser.parse_args()
    if options.child:
        return compile_alone(options.chips, options.candidates)
    lengths = [int(length) for length in options.lengths.split(",")]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    for chip in options.chips.split(","):
        peer = measure(chip, PEER, lengths)
        for candidate in options.candidates.split(","):
            found = peer if candidate == PEER else measure(chip, candidate, lengths)
            ratio = {t: round(sum(found[t].values()) / sum(peer[t].values()), 3) for t in found}
            print(
                json.dumps({"chip": chip, "candidate": candidate, "bundles": found, "to_peer": ratio} | versions),
                flush=True,
            )


if __name__ == "__main__":
    main()

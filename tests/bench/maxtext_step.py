"""MaxText's train step compiled beside ours, for the same slice, batch and compiler options, and read by the same reader.

``python tests/bench/maxtext_step.py v6e_256`` compiles MaxText's llama2-7b with our vocabulary (5 to 15 minutes on two cores) and
prints its figures as one JSON line; ``--save FILE.hlo.gz`` keeps the program. It needs Python 3.12, the packages of
lumina_jax/pods/requirements.txt and MaxText: ``pip install --no-deps maxtext==0.2.5`` and what its train_compile imports.

MaxText does less: its llama2 decoder has no QK-norm, and dropout and z-loss are off. It recomputes as little as the memory of the
chip allows, and attends in blocks of 640 by the fused backward kernel, as ours does.
"""

import argparse
import gzip
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lumina_jax.config import Experiment
from lumina_jax.pods.chips import GIB
from lumina_jax.pods.topology import environment, parse

LENGTH = 1280
VOCABULARY = 65536
WEIGHTS = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 2 * VOCABULARY * 4096 + 4096
"""Numbers of the 7B model without QK-norm."""
BLOCKS = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")


@dataclass(frozen=True)
class MaxTextCase:
    """A slice by MaxText's name and ours, rows a device, and what the backward pass need not recompute (remat_policy)."""

    slice_name: str
    topology: str
    rows: int
    remat: str


CASES = {
    "v5p_128": MaxTextCase("v5p-128", "v5p:4x4x4", 13, "minimal_with_context"),
    "v5e_256": MaxTextCase("v5e-256", "v5e:16x16", 4, "save_qkv_proj"),
    "v6e_256": MaxTextCase("v6e-256", "v6e:16x16", 4, "minimal_with_context"),
    "tpu7x_128": MaxTextCase("tpu7x-128", "tpu7x:4x4x4", 6, "minimal_with_context"),
}


def arguments(case: MaxTextCase, options: dict[str, str]) -> list[str]:
    """The command line of MaxText's train_compile."""
    from maxtext.configs import pyconfig

    settings = {
        "run_name": "bench",
        "model_name": "llama2-7b",
        "override_model_config": True,
        "vocab_size": VOCABULARY,
        "max_target_length": LENGTH,
        "per_device_batch_size": case.rows,
        "compile_topology": case.slice_name,
        "compile_topology_num_slices": 1,
        "ici_fsdp_parallelism": -1,
        "attention": "flash",
        "dataset_type": "synthetic",
        "remat_policy": case.remat,
        "sa_use_fused_bwd_kernel": True,
        "enable_checkpointing": False,
        "compile_xla_flags": " ".join(f"--{name}={value}" for name, value in options.items()),
        **{f"sa_block_{block}": 640 for block in BLOCKS},
    }
    base = Path(pyconfig.__file__).parent / "base.yml"
    return ["train_compile", str(base), *(f"{name}={value}" for name, value in settings.items())]


def compile_maxtext(case: MaxTextCase, options: dict[str, str]) -> tuple:
    """(compiled program, its mesh, seconds from tracing to the compiled program)."""
    from maxtext.trainers.pre_train import train_compile

    compiled, jit_and_compile = [], train_compile.jit_and_compile

    def keep(func, inputs, keywords, mesh, *rest):
        start = time.monotonic()
        program = jit_and_compile(func, inputs, keywords, mesh, *rest)
        compiled.append((program, mesh, time.monotonic() - start))
        return program

    train_compile.jit_and_compile = keep
    train_compile.main(arguments(case, options))
    return compiled[0]


def figures(name: str, options: dict[str, str], save: str) -> dict:
    """Compiles a case; the figures of one device."""
    from lumina_jax.pods import hlo
    from lumina_jax.pods.compile import train_flops
    from lumina_jax.pods.costs import hbm_usage
    from lumina_jax.pods.executable import program_costs
    from lumina_jax.pods.links import places

    case = CASES[name]
    topology = parse(case.topology)
    compiled, mesh, seconds = compile_maxtext(case, options)
    text = compiled.as_text()
    if save:
        Path(save).write_bytes(gzip.compress(text.encode(), mtime=0))
    costs = program_costs(hlo.parse(text), topology, order=places(mesh.devices.flat))
    parts = {
        "products_s": "mxu",
        "traffic_s": "memory",
        "kernels_s": "kernels",
        "blocking_s": "sync",
        "async_s": "async",
    }
    flops = train_flops(Experiment(), WEIGHTS, case.rows, LENGTH)
    return {
        "maxtext": name,
        "rows": case.rows * mesh.size,
        "hbm_gib": round(hbm_usage(compiled).total / GIB, 1),
        **{part: round(costs.seconds(category), 3) for part, category in parts.items()},
        "step_s": round(costs.serial, 3),
        "overlapped_s": round(costs.overlapped, 3),
        "mfu": round(flops / topology.chip.flops / costs.serial, 3),
        "compile_s": round(seconds),
        "options": options,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--options", help="JSON of compiler options in place of ours for the chip")
    parser.add_argument("--save", default="", metavar="FILE", help="also write the compiled program, .hlo.gz")
    options = parser.parse_args()
    os.environ.update(environment())  # before anything imports jax
    from lumina_jax.model.tpu import OPTIONS

    ours = OPTIONS[parse(CASES[options.case].topology).chip.name]
    chosen = json.loads(options.options) if options.options else ours
    print(json.dumps(figures(options.case, chosen, options.save)), flush=True)


if __name__ == "__main__":
    main()

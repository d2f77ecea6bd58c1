"""How long until the first step of a pod config, part by part: what one host does, and what is derived for the slice.

``python tests/bench/startup.py`` prints a JSON line for configs/pods.py:lumina_7b_512_v5p_128. Imports, tracing and lowering are
measured on this machine, on the devices that the TPU compiler describes, in seconds of a processor, which other jobs do not
lengthen. Reading the checkpoint and compiling are derived: bytes over an assumed bandwidth of the storage (``--store-gbps``, of
each host), and the seconds that lumina_jax/pods/compiled.json has.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import run
from lumina_jax.pods.topology import environment, parse

COMPILED = run.REPOSITORY / "lumina_jax/pods/compiled.json"
HOST_DEVICES = 4
TRAINER = "import lumina_jax.train.loop, lumina_jax.data.pipeline, lumina_jax.cluster.consistency"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="lumina_7b_512_v5p_128", help="a name of configs/pods.py")
    parser.add_argument("--topology", default="v5p:4x4x4", help="its slice")
    parser.add_argument(
        "--store-gbps", type=float, default=0.5, help="GB/s that a host reads of a checkpoint (default: 0.5)"
    )
    arguments = parser.parse_args()
    os.environ.update(environment())
    imports = seconds_to_import()
    topology, cfg = parse(arguments.topology), run.load_experiment(f"configs/pods.py:{arguments.config}", [])
    state, lowering, total = lowered_step(cfg, topology)
    hosts = math.ceil(topology.device_count / HOST_DEVICES)
    restored = total / hosts / 1e9 / arguments.store_gbps
    result = {
        "config": arguments.config,
        "slice": str(topology),
        "cpu_s": {"import": imports, "shapes of the state": state, "trace and lower": lowering},
        "state_gb": round(total / 1e9, 1),
        "derived_s": {
            "read its share of a checkpoint": round(restored, 1),
            "compile": compile_seconds(arguments.config),
        },
        "assumed": {"GB/s a host": arguments.store_gbps, "hosts": hosts},
    }
    print(json.dumps(result))


def seconds_to_import() -> float:
    """Processor seconds of a fresh process that imports what ``run.py train`` does."""
    start = os.times()
    subprocess.run([sys.executable, "-c", TRAINER], check=True, cwd=run.REPOSITORY)
    end = os.times()
    return round(end.children_user + end.children_system - start.children_user - start.children_system, 1)


def lowered_step(cfg, topology) -> tuple[float, float, int]:
    """(seconds for the shapes of the state, seconds to trace and lower the step, bytes of the state on all devices)."""
    import jax

    from lumina_jax.sharding import make_mesh
    from lumina_jax.train.compiled_steps import batch_shapes
    from lumina_jax.train.step import jitted_step, state_shapes

    mesh, start = make_mesh(cfg.mesh, topology.devices()), time.process_time()
    state, shaped = state_shapes(cfg, mesh), time.process_time()
    length = max(cfg.data.buckets)
    with jax.set_mesh(mesh):
        jitted_step(cfg, mesh).lower(state, batch_shapes((cfg.data.rows(length), length), mesh))
    sizes = (leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.model, state.opt)))
    return round(shaped - start, 1), round(time.process_time() - shaped, 1), sum(sizes)


def compile_seconds(name: str) -> int | None:
    """What compiled.json has for the train step of a config; None when it was not compiled."""
    rows = json.loads(COMPILED.read_text())
    found = [r["compile_s"] for r in rows if r["config"] == f"configs/pods.py:{name}" and r["program"] == "train"]
    return found[0] if found else None


if __name__ == "__main__":
    main()

"""The figures of any compiled TPU program, read off its saved text by the reader that ``run.py compile`` uses.

``python tests/bench/read_hlo.py out/step.hlo.gz --topology v6e:16x16 --flops 2.1e14`` prints the JSON row of a training step, as
tests/bench/tpu_compile.py does; of a peer's program, save ``compiled.as_text()``. ``--flops`` are those that the model needs on
one device. ``--places FILE`` (by default the .places.json beside the program) says where its devices lie, in the order of its
mesh; without one the order of their ids is taken.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lumina_jax.pods import hlo
from lumina_jax.pods.executable import iteration_costs, program_costs
from lumina_jax.pods.links import Place
from lumina_jax.pods.report import PLACES
from lumina_jax.pods.topology import parse
from tests.bench.tpu_compile import step_figures


def read_text(path: Path) -> str:
    """The text of a program, compressed or not."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def read_places(path: Path, named: str | None) -> list[Place]:
    """The places of the devices from the file ``named``, or from that beside the program; none where there is no file."""
    file = Path(named) if named else path.with_name(path.name.removesuffix(".gz").removesuffix(".hlo") + PLACES)
    if not named and not file.exists():
        return []
    return [Place(*place) for place in json.loads(file.read_text())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the HLO text of a compiled program, .gz or not")
    parser.add_argument("--topology", required=True, help="the slice it was compiled for, as v6e:16x16")
    parser.add_argument("--slices", type=int, default=1, help="how many slices")
    parser.add_argument(
        "--flops", type=float, default=0.0, help="operations that the model needs on one device, for the MFU"
    )
    parser.add_argument(
        "--places", help="JSON list of [x, y, z, device of the chip] in the order of the program's mesh"
    )
    parser.add_argument(
        "--iteration", action="store_true", help="one iteration of a decoding loop, not the whole program"
    )
    options = parser.parse_args()
    topology = parse(options.topology, options.slices)
    estimate = iteration_costs if options.iteration else program_costs
    order = read_places(options.file, options.places)
    costs = estimate(hlo.parse(read_text(options.file)), topology, order=order)
    row = {"file": options.file.name, "topology": str(topology)}
    print(json.dumps(row | step_figures(costs, options.flops, topology.chip)))


if __name__ == "__main__":
    main()

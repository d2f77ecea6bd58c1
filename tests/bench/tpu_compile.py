"""The README's table of TPU pods: ``python tests/bench/tpu_compile.py`` prints one JSON line per row, on any Linux machine.

Each row compiles the real program of a config for a slice that is not here (2 to 10 minutes on two cores), and reads what it
would take: see lumina_jax/pods. ``--only v5p`` takes the rows whose name holds these letters.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import run
from lumina_jax.pods.topology import environment, parse


@dataclass(frozen=True)
class Row:
    """``changes`` to the config as on the command line, with spaces."""

    config: str
    topology: str
    changes: str = ""
    what: str = "train"
    slices: int = 1
    int8: bool = False

    @property
    def name(self) -> str:
        kind = f"{self.what} with int8" if self.int8 else self.what
        return f"{self.config} {kind} on {self.slices} x {self.topology} {self.changes}".rstrip()


SLICES = {
    "v4_128": "v4:4x4x4",
    "v5e_256": "v5e:16x16",
    "v5p_128": "v5p:4x4x4",
    "v5p_512": "v5p:4x8x8",
    "v6e_256": "v6e:16x16",
}
"""The end of a config's name in configs/pods -> its topology."""
ONE, WINDOW = "sample.parallel=off", "sample.parallel=coupled sample.window=16"
"""A token a pass, and drafts of a window of 16 in each."""
ROWS = (
    *(
        Row(f"pods/{path.stem}", SLICES["_".join(path.stem.split("_")[-2:])])
        for path in sorted((run.REPOSITORY / "configs/pods").glob("lumina_*.py"))
    ),
    *(
        Row("lumina_7b_768", topology, changes, "decode", int8=int8)
        for int8, changes, topologies in (
            (False, ONE, ("v5p:1x1x1", "v5p:2x2x1", "v6e:1x1", "v6e:2x2", "v5e:2x2")),
            (False, f"{ONE} mesh.tensor=8", ("v6e:2x4", "v5e:2x4")),
            (False, WINDOW, ("v5p:1x1x1", "v6e:2x2")),
            (True, ONE, ("v5e:1x1", "v5e:2x2")),
        )
        for topology in topologies
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="letters that a row's name must hold, such as 7b_512 or v5p")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and compile nothing")
    options = parser.parse_args()
    os.environ.update(environment())  # before anything imports jax
    from lumina_jax.pods import report
    from lumina_jax.pods.compile import outcomes

    for row in ROWS:
        if options.only not in row.name:
            continue
        if options.list:
            print(row.name)
            continue
        cfg = run.load_experiment(str(run.REPOSITORY / f"configs/{row.config}.py"), row.changes.split())
        for outcome in outcomes(cfg, parse(row.topology, row.slices), (row.what,), row.int8):
            print(json.dumps({"row": row.name} | report.record(outcome)), flush=True)


if __name__ == "__main__":
    main()

"""Figures of the two TPU tables of MEASURED.md: compiles real programs for slices that are not here, on any Linux machine.

``python tests/bench/tpu_compile.py`` compiles every case (2 to 10 minutes each on two cores) and prints its figures as one JSON
line; ``--only v5p`` takes the cases whose name contains v5p, ``--save`` also writes the figures to lumina_jax/pods/compiled.json,
for all stages that compile the same program.
``--tables`` compiles nothing and prints the two tables from that file; ``measured.py --save`` beside it writes the page.
``--compare`` compiles (or with ``--from FILE`` reads the lines printed before), prints every figure that is worse than in that file
by more than 1%, and then ends with 1.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import run
from configs.pods import TABLE, TOPOLOGIES
from lumina_jax.config import DataConfig
from lumina_jax.pods.chips import GIB, Chip
from lumina_jax.pods.topology import Topology, environment, parse

COMPILED = run.REPOSITORY / "lumina_jax/pods/compiled.json"
KINDS = {"sync": "blocking", "async": "asynchronous", "dcn": "between slices"}
TOLERANCE = 0.01
SMALLER_IS_BETTER = (
    *("hbm_gib", "products_s", "traffic_s", "kernels_s", "waited_collectives_s", "step_s"),
    *("temporaries_mib", "pass_s", "bound_s", "all_reduces"),
)
STAGES = {"512": "stage 1", "768": "stage 2", "1024": "stage 3", "omni": "Omni"}
COUNTS = {1: "one", 4: "four", 8: "eight"}
TRAIN_HEAD = (
    "model, stage",
    "slice",
    "rows x tokens a chip",
    "HBM GiB a chip",
    "step at least",
    "MFU at most",
    "compiled in",
)
DECODE_HEAD = (
    "slice",
    "weights",
    "HBM GiB a chip",
    "temporaries",
    "pass at least",
    "weights and cache, read once",
    "all-reduces",
)


@dataclass(frozen=True)
class CompileCase:
    """One program of one config on one topology; ``changes`` to the config as on the command line, with spaces."""

    config: str
    topology: str
    program: str = "train"
    changes: str = ""
    int8: bool = False
    int4: bool = False
    pictures: int = 1

    @property
    def name(self) -> str:
        kind = f"{' int8' * self.int8}{' int4' * self.int4}{f' x {self.pictures}' * (self.pictures > 1)}"
        return f"{self.config} {self.program}{kind} on {self.topology} {self.changes}".rstrip()

    @property
    def matrices(self) -> str:
        """The dtype of the blocks' matrices when sampling."""
        return "int8" if self.int8 else "int4" if self.int4 else "bfloat16"


SINGLE = "sample.parallel=off"
WINDOW = "sample.parallel=coupled sample.window=16"
WIDE = tuple(f"sample.parallel=matched sample.window={window}" for window in (32, 64))
LONGEST = {"768": "data.buckets=2560", "1024": "data.buckets=4480"}
"""A picture's size -> its longest bucket, which is the length of the cache."""
STEPS = (
    # config, rows and their length, formats of the products: at lengths that others publish figures of
    ("lumina_7b_512_v5p_128", "data.buckets=1280 data.batch=832", ("none",)),
    ("lumina_7b_512_v5e_256", "data.buckets=1280 data.batch=1024", ("none", "int8")),
    ("lumina_7b_512_v6e_256", "data.buckets=1280 data.batch=1024", ("none", "int8")),
    ("lumina_7b_512_tpu7x_128", "data.buckets=1280 data.batch=768", ("none", "fp8")),
    ("lumina_34b_512_v5p_512", "data.buckets=4608", ("none",)),
    ("lumina_34b_512_v6e_256", "data.buckets=4608", ("none",)),
)
CASES = (
    *(
        CompileCase(f"configs/pods.py:{stage.name}_{slice_name}", TOPOLOGIES[slice_name])
        for stage, slice_name, *_ in TABLE
    ),
    *(
        CompileCase(
            f"configs/pods.py:{config}",
            TOPOLOGIES[config.split("_", 3)[3]],
            changes=f"{changes} mesh.quant={quant}" if quant != "none" else changes,
        )
        for config, changes, formats in STEPS
        for quant in formats
    ),
    *(
        CompileCase("configs/lumina_7b_768.py", topology, "decode", f"{LONGEST['768']} {changes}", int8)
        for topology, changes, int8 in (
            ("v5p:1x1x1", SINGLE, False),
            ("v5p:1x1x1", WINDOW, False),
            ("v6e:1x1", SINGLE, False),
            ("v5e:1x1", SINGLE, True),
            ("tpu7x:1x1x1", SINGLE, False),
            ("v5p:2x2x1", SINGLE, False),
            ("v6e:2x2", SINGLE, False),
            ("v6e:2x2", WINDOW, False),
            ("v5e:2x2", SINGLE, False),
            ("v5e:2x2", SINGLE, True),
            ("v6e:2x4", f"{SINGLE} mesh.tensor=8", False),
            ("v5e:2x4", f"{SINGLE} mesh.tensor=8", False),
            *(
                (topology, changes, False)
                for topology in ("v5p:1x1x1", "v6e:2x2", "v5e:2x2", "tpu7x:1x1x1")
                for changes in WIDE
            ),
        )
    ),
    CompileCase(
        "configs/lumina_7b_768.py",
        "v5e:1x1",
        "decode",
        f"{LONGEST['768']} {SINGLE} sample.cache=int8",
        int4=True,
        pictures=8,
    ),
    *(
        CompileCase(f"configs/lumina_7b_{size}.py", topology, "decode", f"{SINGLE} {LONGEST[size]}", pictures=pictures)
        for size in LONGEST
        for topology in ("v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
        for pictures in (8, 32)
        if (size, topology, pictures) != ("1024", "v6e:2x2", 32)  # its cache alone is larger than their memory
    ),
)
"""The rows of the tables, in their order."""


def compile_figures(case: CompileCase) -> dict:
    """Compiles a case; the figures of one chip, as a row of compiled.json."""
    from lumina_jax.pods import report
    from lumina_jax.pods.compile import compile_programs

    cfg = run.load_experiment(f"{run.REPOSITORY}/{case.config}", case.changes.split())
    (outcome,) = compile_programs(cfg, parse(case.topology), (case.program,), case.matrices, case.pictures)
    if outcome.costs is None:
        sys.exit(f"{case.name}: {report.verdict(outcome)}")
    return asdict(case) | _figures(outcome)


def _figures(outcome) -> dict:
    work, costs = outcome.work, outcome.costs
    sizes = {"rows": work.rows, "length": work.length, "hbm_gib": round(outcome.compilation.needed / GIB, 1)}
    compiled = {"compile_s": round(outcome.compilation.seconds)} | outcome.compilation.versions
    if outcome.program != "decode":
        return sizes | step_figures(costs, work.flops, outcome.topology.chip) | compiled
    calls = [*costs.calls("sync").items(), *costs.calls("async").items()]
    decode = {
        "temporaries_mib": round(outcome.compilation.hbm.temporaries / 2**20),
        "pass_s": round(costs.roofline, 5),
        "bound_s": round(outcome.decode_bound, 5),
        "all_reduces": sum(times for name, (times, _) in calls if name.startswith("all-reduce")),
    }
    return sizes | decode | compiled


def step_figures(costs, flops: float, chip: Chip) -> dict:
    """Seconds of one device by part, and of the step; ``flops`` are those that the model needs on it.

    ``collectives_s`` block the device, ``waited_collectives_s`` are these and what asynchronous ones do not hide.
    """
    from lumina_jax.pods.report import transfer_figures

    hidden = costs.seconds("async", "dcn") - costs.exposed
    seconds = {
        "products_s": costs.seconds("mxu"),
        "traffic_s": costs.seconds("memory"),
        "kernels_s": costs.seconds("kernels"),
        "collectives_s": costs.seconds("sync"),
        "waited_collectives_s": costs.seconds("sync") + costs.exposed,
        "hidden_collectives_s": hidden,
        "step_s": costs.serial,
        "overlapped_s": costs.overlapped,
    }
    shares = {"efficiency": costs.efficiency}
    if flops:
        shares |= {"mfu": flops / chip.flops / costs.serial, "overlapped_mfu": flops / chip.flops / costs.overlapped}
    parts = {
        f"{words} {name}": transfer_figures(t)
        for kind, words in KINDS.items()
        for name, t in costs.transfers(kind).items()
    }
    rounded = {name: round(value, 5) for name, value in seconds.items()}
    return rounded | {name: round(value, 4) for name, value in shares.items()} | {"transfers": parts}


def worse(row: dict, recorded: dict) -> list[str]:
    """The figures of ``row`` that are worse than the recorded ones by more than TOLERANCE, in words."""
    words = []
    for name in sorted(row.keys() & recorded.keys() & {*SMALLER_IS_BETTER, "mfu"}):
        old, new = recorded[name], row[name]
        ratio = new / old if old else 1 + new
        if (ratio < 1 - TOLERANCE) if name == "mfu" else (ratio > 1 + TOLERANCE):
            words.append(f"{name} {old} -> {new} ({ratio - 1:+.1%})")
    return words


def compare(rows: Iterable[dict]) -> int:
    """Prints what is worse in ``rows`` than in compiled.json; the number of such figures."""
    known, found = read_rows(), 0
    for row in rows:
        case = case_of(row)
        if case not in known:
            print(f"{case.name}: not in {COMPILED.name}", flush=True)
            continue
        lines = worse(row, known[case])
        found += len(lines)
        print(f"{case.name}: {'; '.join(lines) or 'nothing is worse'}", flush=True)
    return found


def same_program(case: CompileCase, other: CompileCase) -> bool:
    """Whether two cases compile one program: stages whose longest rows, batch, model and mesh are the same."""

    def compiled(case: CompileCase) -> tuple:
        cfg = run.load_experiment(f"{run.REPOSITORY}/{case.config}", case.changes.split())
        longest = DataConfig(buckets=cfg.data.buckets[-1:], batch=cfg.data.batch)
        return (
            replace(cfg, name="", out="", start="", data=longest),
            case.topology,
            case.program,
            case.matrices,
            case.pictures,
        )

    return case.program == other.program == "train" and compiled(case) == compiled(other)


def read_rows() -> dict[CompileCase, dict]:
    """compiled.json: case -> its row."""
    return {case_of(row): row for row in json.loads(COMPILED.read_text())}


def case_of(row: dict) -> CompileCase:
    """The case of a row; the fields that a row lacks have their default."""
    return CompileCase(**{field: row[field] for field in CompileCase.__dataclass_fields__ if field in row})


def save_row(case: CompileCase, row: dict) -> None:
    """Replaces the row of a case in compiled.json, one line a row, in the order of CASES."""
    rows = read_rows() | {case: row}
    lines = (json.dumps(rows[known]) for known in CASES if known in rows)
    COMPILED.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def tables() -> tuple[str, str]:
    """The tables of training and of decoding in MEASURED.md."""
    rows = read_rows().values()
    train = (_train_cells(row) for row in rows if row["program"] == "train")
    decode = (_decode_cells(row) for row in rows if row["program"] == "decode")
    return markdown(TRAIN_HEAD, train), markdown(DECODE_HEAD, decode)


def markdown(head: tuple[str, ...], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, of the names of its columns and the cells of its rows."""
    lines = (re.sub(" +", " ", f"| {' | '.join(cells)} |") for cells in (head, *body))
    return "\n".join((next(lines), "|---" * len(head) + "|", *lines)) + "\n"


def _train_cells(row: dict) -> tuple[str, ...]:
    topology = parse(row["topology"])
    _, size, stage, *_ = row["config"].split(":")[1].split("_")
    settings = dict(change.split("=") for change in row["changes"].split())
    rows = f"rows of {int(settings['data.buckets']):,}" if "data.buckets" in settings else STAGES[stage]
    return (
        f"{size.upper()}, {rows}{', ' * ('mesh.quant' in settings)}{settings.get('mesh.quant', '')}",
        f"{topology.cloud} ({topology.chips} chips)",
        f"{row['rows'] // topology.device_count} x {row['length']:,}{_half(topology)}",
        _hbm(row),
        f"{row['step_s']:.2f} s",
        f"{row['mfu']:.0%}",
        f"{row['compile_s']} s",
    )


def chips_of(row: dict) -> str:
    """The chips that a row is of, in words, such as "four v6e chips"."""
    topology = parse(row["topology"])
    return f"{COUNTS[topology.chips]} {topology.chip.name} chip{'s' * (topology.chips > 1)}"


def _decode_cells(row: dict) -> tuple[str, ...]:
    return (
        f"{chips_of(row)}{_decoding(row)}",
        case_of(row).matrices,
        _hbm(row),
        f"{row['temporaries_mib']} MiB",
        f"{1000 * row['pass_s']:.2f} ms",
        f"{1000 * row['bound_s']:.2f} ms",
        str(row["all_reduces"] or ""),
    )


def _decoding(row: dict) -> str:
    """What a row of decoding is of, beside one picture of 768 x 768 pixels one by one."""
    settings = dict(change.split("=") for change in row["changes"].split())
    size, pictures = row["config"].removesuffix(".py").rpartition("_")[2], row.get("pictures", 1)
    parts = [f", {size} px"] * (size != "768") + [f", {pictures} pictures"] * (pictures > 1)
    parts += [", int8 cache"] * (settings.get("sample.cache") == "int8")
    return "".join([*parts, f", a window of {settings['sample.window']} drafts" if "sample.window" in settings else ""])


def _hbm(row: dict) -> str:
    topology = parse(row["topology"])
    return f"{row['hbm_gib']:.1f} of {topology.chip.hbm / GIB:.2f}{_half(topology)}"


def _half(topology: Topology) -> str:
    """What a figure is of where a chip has several devices; elsewhere the table's head says it."""
    return " a device" if topology.chip.devices > 1 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="letters that a case's name must contain, such as 7b_512 or v5p")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and compile nothing")
    parser.add_argument("--save", action="store_true", help="also write each row to lumina_jax/pods/compiled.json")
    parser.add_argument("--tables", action="store_true", help="print the tables of MEASURED.md and compile nothing")
    parser.add_argument(
        "--compare", action="store_true", help="print what is worse than in compiled.json, and end with 1"
    )
    parser.add_argument("--from", dest="file", help="with --compare: JSON lines printed before, instead of compiling")
    options = parser.parse_args()
    if options.tables:
        print("\n".join(tables()), end="")
        return
    cases = [case for case in CASES if options.only in case.name]
    if options.list:
        print("\n".join(case.name for case in cases))
        return
    os.environ.update(environment())  # before anything imports jax
    if options.compare:
        rows = read_lines(options.file, options.only) if options.file else map(compile_figures, cases)
        sys.exit(1 if compare(rows) else 0)
    compile_cases(cases, options.save)


def read_lines(path: str, only: str) -> list[dict]:
    """The rows of a file that this program printed, for the cases whose names contain ``only``."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.startswith("{")]
    return [row for row in rows if only in case_of(row).name]


def compile_cases(cases: Iterable[CompileCase], save: bool) -> None:
    """Prints the row of each case; with ``save`` also writes it, for all cases that compile the same program."""
    saved: set[CompileCase] = set()
    for case in cases:
        if case in saved:
            continue
        row = compile_figures(case)
        print(json.dumps(row), flush=True)
        if save:
            for known in CASES:
                if known == case or same_program(known, case):
                    save_row(known, row | asdict(known))
                    saved.add(known)


if __name__ == "__main__":
    main()

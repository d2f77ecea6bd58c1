"""The page of measured numbers: ``python tests/bench/measured.py`` prints it, ``--save`` writes it to MEASURED.md.

It measures nothing. The numbers are those of tests/bench/recorded.json, and of lumina_jax/pods/compiled.json, which
tests/bench/tpu_compile.py writes. recorded.json is a list of results in the order of the page:

section, text      the heading, and what the numbers are; a result of the section before it continues that section
command            what measured them
date               when they were measured, or written down
machine, versions  where; null where nobody wrote it down
values             numbers that text and note name, as in "{steps:,} steps"
columns, rows      a table: pairs of a name and a Python format, and a list of values for each row (null: an empty cell)
derived            instead: the name of a function in TABLES, which makes the table from compiled.json and ``values``
note               what stands behind the table
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import run
from lumina_jax.pods.topology import parse
from tests.bench.tpu_compile import COMPILED, chips_of, markdown, read_rows, tables

RECORDED = run.REPOSITORY / "tests/bench/recorded.json"
PAGE = run.REPOSITORY / "MEASURED.md"
TITLE = "# Measured numbers"
INTRODUCTION = """\
`python tests/bench/measured.py --save` makes this page from `tests/bench/recorded.json` and `lumina_jax/pods/compiled.json`;
`tests/test_measured.py` compares them. To add a number, add what was measured to the JSON. The command of a result measures it
again. "Not recorded" means that nobody wrote it down.

[NEVER_RUN.md](NEVER_RUN.md) says what was never run, [LAUNCH.md](lumina_jax/pods/LAUNCH.md) what coordination, saves and starts
of pods cost, and [assets/toy/README.md](assets/toy/README.md) how well the shipped model does each task."""


def page() -> str:
    """All of MEASURED.md: contents, then a section for each kind of result."""
    sections: dict[str, list[str]] = {}
    for result in json.loads(RECORDED.read_text(encoding="utf-8")):
        sections.setdefault(result["section"], []).append(result_text(result))
    contents = "\n".join(f"- [{title}](#{title.lower().replace(' ', '-')})" for title in sections)
    return (
        "\n\n".join(
            [
                TITLE,
                contents,
                INTRODUCTION,
                *("\n\n".join([f"## {title}", *texts]) for title, texts in sections.items()),
            ]
        )
        + "\n"
    )


def result_text(result: dict) -> str:
    """One result of recorded.json: what it is, its table, its note, and where it comes from."""
    values = result.get("values", {})
    parts = [result["text"].format(**values)]
    if "derived" in result:
        parts.append(TABLES[result["derived"]](values).rstrip())
    elif "columns" in result:
        columns = result["columns"]
        body = [[cell(value, form) for value, (_, form) in zip(row, columns, strict=True)] for row in result["rows"]]
        parts.append(markdown(tuple(name for name, _ in columns), body).rstrip())
    if "note" in result:
        parts.append(result["note"].format(**values))
    machine, versions = result["machine"] or "machine not recorded", result["versions"] or "versions not recorded"
    compiler = next(iter(read_rows().values()))
    parts.append(f"(`{result['command']}`; {result['date']}; {machine}; {versions.format(**compiler)}.)")
    return "\n\n".join(parts)


def cell(value, form: str) -> str:
    """A cell of a table; ``form`` is a Python format, or "passes" for [passes, 95% interval, times fewer, branches]."""
    if value is None:
        return ""
    if form != "passes":
        return form.format(*value) if isinstance(value, list) else form.format(value)
    passes, interval, fewer, branches = value
    interval_text = f" ± {interval}" if interval else ""
    branch_text = f", {branches} of them branches" if branches else ""
    return f"{passes:,}{interval_text}{branch_text} ({fewer:.1f}x)"


def short_step(topology: str, quant: str = "") -> float:
    """Seconds of 7B's compiled train step with rows of 1,280 tokens on a slice, in bfloat16 or quantized to ``quant``."""
    for row in read_rows().values():
        settings = dict(change.split("=") for change in row["changes"].split())
        place = ("7b" in row["config"], row["topology"], row["length"], settings.get("mesh.quant", ""))
        if place == (True, topology, 1280, quant):
            return row["step_s"]
    raise ValueError(f"{COMPILED} has no step of {topology} {quant}; compile it with tpu_compile.py --save")


def slice_name(topology: str) -> str:
    """Google's name of a slice, and its chips: "v5p:4x4x4" -> "v5p-128 (64 chips)"."""
    parsed = parse(topology)
    return f"{parsed.cloud} ({parsed.chips} chips)"


def beside_maxtext(values: dict) -> str:
    """MaxText's seconds and MFU, {topology: [seconds, MFU]}, and this project's step over MaxText's."""
    body = [
        [slice_name(name), f"{step:.2f} s", f"{mfu:.0%}", f"{short_step(name) / step:.2f}"]
        for name, (step, mfu) in values.items()
    ]
    return markdown(("slice", "MaxText, step at least", "MFU at most", "this step over MaxText's"), body)


def quantized_steps(values: dict) -> str:
    """How much a quantized step takes of the one in bfloat16."""
    body = [
        [slice_name(name), quant, f"{short_step(name, quant) / short_step(name):.2f}"]
        for name, quant in (("tpu7x:4x4x4", "fp8"), ("v5e:16x16", "int8"), ("v6e:16x16", "int8"))
    ]
    return markdown(("slice", "`mesh.quant`", "times the step"), body)


def windows(values: dict) -> str:
    """What a pass with a window of drafts costs beside a pass with one token."""
    rows = [row for row in read_rows().values() if row["program"] == "decode" and row["pictures"] == 1]
    single = {(row["topology"], row["int8"]): row["pass_s"] for row in rows if "window" not in row["changes"]}
    body = [
        [
            chips_of(row),
            row["changes"].rpartition("sample.window=")[2],
            f"{row['pass_s'] / single[row['topology'], row['int8']]:.2f}",
        ]
        for row in rows
        if "window" in row["changes"]
    ]
    return markdown(("chips", "tokens of a pass", "times one token's pass"), body)


TABLES: dict[str, Callable[[dict], str]] = {
    "train_steps": lambda values: tables()[0],
    "decoding_passes": lambda values: tables()[1],
    "beside_maxtext": beside_maxtext,
    "quantized_steps": quantized_steps,
    "windows": windows,
}
"""The tables that are made from compiled.json, by the names that recorded.json has for them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help=f"write {PAGE.name} instead of printing it")
    if parser.parse_args().save:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())


if __name__ == "__main__":
    main()

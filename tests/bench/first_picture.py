"""Seconds from the command to the first picture of ``run.py sample``: with no compiled programs, with those of an earlier start,
and by another checkout of this repository.

``python tests/bench/first_picture.py --before FOLDER`` prints a JSON line. The kinds take turns, so that what else the machine does
lengthens all alike; the seconds are medians over the turns, "cpu" those of the processors. What follows -- goes to ``sample``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version, measured too (default: none)")
    parser.add_argument("--turns", type=int, default=3, help="starts of each kind (default: 3)")
    arguments, words = parser.parse_known_args()
    words = [word for word in words if word != "--"] or ["--prompt", "a red ball"]
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.turns):
            for kind, checkout in (("before", arguments.before), ("cold", REPOSITORY), ("warm", REPOSITORY)):
                if checkout:
                    seconds.setdefault(kind, []).append(started(checkout, words, Path(folder), f"{turn}"))
    result = {
        kind: {
            "s": round(statistics.median(wall for wall, _ in taken), 1),
            "cpu": round(statistics.median(cpu for _, cpu in taken), 1),
        }
        for kind, taken in seconds.items()
    }
    first = result.get("before", result["cold"])
    ratios = {kind: {name: round(result[kind][name] / first[name], 2) for name in ("s", "cpu")} for kind in result}
    print(json.dumps({"sample": words, "turns": arguments.turns, **result, "ratio": ratios}))


def started(checkout: Path, words: list[str], folder: Path, turn: str) -> tuple[float, float]:
    """(wall seconds, processor seconds) of a command of ``checkout`` with the cache of this ``turn`` below ``folder``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMPILATION", "JAX_PERS"))}
    out = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "run.py", "sample", *words, "--out", f"{out}/pictures"]
    begun, before = time.monotonic(), os.times()
    options = dict(cwd=checkout, env=kept | {"XDG_CACHE_HOME": f"{folder}/{turn}"}, capture_output=True)
    subprocess.run(command, check=True, **options)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - begun, cpu


if __name__ == "__main__":
    main()

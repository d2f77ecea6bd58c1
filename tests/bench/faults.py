"""What whole programs do when the disk or the system fails them, and whether they go on when it is mended: one JSON line.

``python tests/bench/faults.py --times 3`` (as root, for its disks in memory). Into folders of their own write pretokenize, convert
in both directions, sample and train, while: the disk becomes full after some of their calls; each later call is refused for the
quota, for want of permission, or because the disk has become read-only; one call meets EIO; or the disk was mounted read-only.
Each must end with 2 or 75 and a line that says what to do, without a traceback ("told"), or not be touched by it ("passed"); then
the fault goes, and the same command must end as if it had not been.
"""

import argparse
import errno
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(1, str(Path(__file__).resolve().parent))

from killed_programs import BALLAST, Life, Moment, live
from kills import PRELOADED, PROGRAMS, KilledProgram, KillInputs, prepared

CALLS = {
    "full": 0,
    "quota": errno.EDQUOT,
    "permission": errno.EACCES,
    "read-only": errno.EROFS,
    "EIO": errno.EIO,
}
"""Faults at one of the file calls of a program, and their numbers (0: the disk is really full)."""
READ_ONLY = "mounted read-only"
"""A fault from the beginning."""
DISK = "size=1g"
ENDED = {0: "passed", 2: "told", 75: "told"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=1, help="of each fault, at calls that are drawn")
    parser.add_argument("--what", default="pretokenize,convert,import,sample,train", help="programs, with commas")
    parser.add_argument("--seed", type=int, default=0, help="of the calls at which they fail")
    parser.add_argument("--model", type=Path, default=Path("assets/toy"), help="what is converted, and sampled from")
    parser.add_argument("--keep", type=Path, help="a folder for all files, kept (default: a temporary one)")
    options = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    names = options.what.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        training = any(name in ("sample", "train") for name in names)
        shared = prepared(options.keep or Path(scratch), options.model, training)
        table = {}
        for name in names:
            table[name] = suffered(name, PROGRAMS[name], options.times, shared, options.seed)
            print(name, table[name], file=sys.stderr)
    print(json.dumps(table))
    if any("bad" in count or "different" in count for counts in table.values() for count in counts.values()):
        sys.exit(1)


def suffered(
    name: str, program: KilledProgram, times: int, shared: KillInputs, seed: int
) -> dict[str, dict[str, object]]:
    """Counts of the ends of a program by fault, and an example of what it said."""
    rng, log = random.Random(seed), shared.folder / f"{name}.log"
    folder = shared.folder / f"{name}-disk"
    with disk(folder):
        # All folders have the same name: some files hold the paths of others.
        reference = live(program.commands(shared, folder), log, [Moment("count", 0, below=str(folder))])
        if reference.codes != [0]:
            raise RuntimeError(f"{name} ended with {reference.codes}; see {log}:\n{log.read_text()[-2000:]}")
        expected = program.result(folder)
    counts: dict[str, dict[str, object]] = {}
    for fault in (*CALLS, READ_ONLY):
        outcomes, line = Counter(), ""
        for _ in range(times if fault in CALLS else 1):
            with disk(folder):
                before = log.stat().st_size
                life = _with_fault(fault, program.commands(shared, folder), log, folder, rng, reference)
                said = log.read_bytes()[before:].decode(errors="replace")
                outcome = ENDED.get(life.codes[0], "bad") if "Traceback" not in said else "bad"
                line = line or (said.splitlines()[-1] if outcome != "passed" else "")
                if outcome == "bad":
                    (shared.folder / f"{name}-{fault}-{outcomes.total()}.bad").write_text(said)
                (folder / BALLAST).unlink(missing_ok=True)
                again = live(program.commands(shared, folder), log, [None]) if life.codes != [0] else life
                same = again.codes == [0] and program.result(folder) == expected
                outcomes[outcome] += 1
                outcomes["equal" if same else "different"] += 1
                if not same:
                    shutil.copytree(folder, shared.folder / f"{name}-{fault}-{outcomes.total()}", dirs_exist_ok=True)
        counts[fault] = {**outcomes, "says": line.replace(str(shared.folder), "")[-300:]}
    return counts


def _with_fault(
    fault: str, commands: list[list[str]], log: Path, folder: Path, rng: random.Random, reference: Life
) -> Life:
    if fault in CALLS:
        number = rng.randint(1, max(1, reference.file_calls))
        kind = "fail" if CALLS[fault] else "full"
        return live(commands, log, [Moment(kind, number, error=CALLS[fault], below=str(folder))])
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        return live(commands, log, [None])
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


@contextmanager
def disk(folder: Path):
    """A new empty disk, in memory, at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


if __name__ == "__main__":
    main()

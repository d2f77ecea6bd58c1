"""Fuzzes decoders and parsers: ``python -m tests.fuzz.run --inputs 10000 --seed 0 --target json csv`` prints a JSON line for each.

Input n of a target is a function of (seed, n) alone. A child process tries them one after another under a limit of memory; this
one watches it, kills it when an input takes too long, and starts it again behind an input that killed it. Failing inputs are
saved. Exit code 1 when there are any.
"""

import argparse
import faulthandler
import json
import mmap
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from tests.fuzz.mutations import mutated

MEMORY = 2 << 30
"""Bytes that inputs may add to the child's address space."""
SECONDS = 5.0
"""Processor time an input may take; WAITING: clock time, where it waits and computes nothing."""
WAITING = 60.0
POLL_SECONDS = 0.2
SAVED_PER_KIND = 3
FOLDERS = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where the child's files are: in memory, where there is such a folder."""
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class FuzzOutcome:
    """What became of the inputs of one target; ``failures`` are by kind, such as "KeyError at table.py:80"."""

    target: str
    seed: int
    inputs: int = 0
    returned: int = 0
    refused: int = 0
    failures: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    peak_mb: int = 0

    def line(self) -> str:
        rate = round(self.inputs / max(self.seconds, 1e-9))
        return json.dumps({**vars(self), "seconds": round(self.seconds, 1), "per_second": rate})


class Shared:
    """Numbers that child and parent share, so that the parent knows them even after a crash."""

    NAMES = ("number", "returned", "refused", "peak_mb")

    def __init__(self):
        self._map = mmap.mmap(-1, 8 * len(self.NAMES))
        self._values = memoryview(self._map).cast("q")

    def __getitem__(self, name: str) -> int:
        return self._values[self.NAMES.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._values[self.NAMES.index(name)] = value


def make_input(target: str, seeds: list[bytes], seed: int, number: int) -> bytes:
    """Input ``number`` of a run, made of the ``seeds`` of ``target``."""
    from tests.fuzz.targets import TARGETS

    return mutated(random.Random(f"{target} {seed} {number}"), seeds, TARGETS[target].words)


def fuzz(name: str, count: int, seed: int, out: Path) -> FuzzOutcome:
    """Tries ``count`` inputs of the target ``name``; failing ones are saved in ``out``."""
    from tests.fuzz.targets import TARGETS

    outcome, shared, start, seeds = (
        FuzzOutcome(name, seed, count),
        Shared(),
        time.monotonic(),
        list(TARGETS[name].seeds()),
    )
    first = 0
    while first < count:
        shared["number"] = first
        with tempfile.TemporaryFile() as reports, tempfile.TemporaryDirectory(dir=FOLDERS) as folder:
            if (child := os.fork()) == 0:
                _try_all(name, seeds, seed, range(first, count), shared, reports.fileno(), folder)
            ending = _watch(child, shared)
            reports.seek(0)
            for number, kind in map(json.loads, reports):
                _note(outcome, kind, number, make_input(name, seeds, seed, number), out)
        first = shared["number"]
        if ending:
            _note(outcome, ending, first, make_input(name, seeds, seed, first), out)
            first += 1
    outcome.returned, outcome.refused, outcome.peak_mb = (shared[key] for key in ("returned", "refused", "peak_mb"))
    outcome.seconds = time.monotonic() - start
    return outcome


def _try_all(
    name: str, seeds: list[bytes], seed: int, numbers: range, shared: Shared, reports: int, folder: str
) -> NoReturn:
    """The child: tries the inputs ``numbers`` in ``folder`` and ends."""
    from PIL import Image

    from lumina_jax.errors import UserError
    from tests.fuzz.targets import PIXELS, TARGETS

    faulthandler.disable()
    Image.MAX_IMAGE_PIXELS = PIXELS
    warnings.simplefilter("ignore")
    for output in (1, 2):  # the libraries' remarks on damaged files
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    for number in numbers:
        shared["number"] = number
        try:
            TARGETS[name].call(make_input(name, seeds, seed, number))
            shared["returned"] += 1
        except UserError:
            shared["refused"] += 1
        except BaseException as error:
            os.write(reports, (json.dumps([number, _kind(error)]) + "\n").encode())
    shared["number"] = numbers.stop
    shared["peak_mb"] = max(shared["peak_mb"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
    os._exit(0)


def _kind(error: BaseException) -> str:
    """The class of an error and the innermost line of this project that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "lumina_jax" in frame.filename]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}: {str(error)[:100]}" if not frames else f"{type(error).__name__}{where}"


def _watch(child: int, shared: Shared) -> str:
    """Waits for the child; says what killed it, empty when it tried all inputs."""
    number, used, since = shared["number"], 0.0, time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return "" if code == 0 else f"crash: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
        if shared["number"] != number:
            number, used, since = shared["number"], _processor_seconds(child), time.monotonic()
        elif _processor_seconds(child) - used > SECONDS or time.monotonic() - since > WAITING:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"hang: more than {SECONDS:.0f} s"
        time.sleep(POLL_SECONDS)


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def _note(outcome: FuzzOutcome, kind: str, number: int, content: bytes, out: Path) -> None:
    outcome.failures[kind] += 1
    if outcome.failures[kind] <= SAVED_PER_KIND:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{outcome.target}-{outcome.seed}-{number}").write_bytes(content)
        print(f"{outcome.target}, input {number}: {kind}", file=sys.stderr, flush=True)


def main() -> int:
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs of each target (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (0)")
    parser.add_argument(
        "--target", nargs="+", choices=list(TARGETS), default=list(TARGETS), help="what is fuzzed (all)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="folder for failing inputs (out/fuzz)")
    options = parser.parse_args()
    failed = False
    for name in options.target:
        outcome = fuzz(name, options.inputs, options.seed, options.out)
        failed |= bool(outcome.failures)
        print(outcome.line(), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Pretokenizing, killed and measured: ``python tests/bench/pretokenize.py`` prints one JSON line.

``--kills N`` kills -9 a pretokenizing process at N random moments, starts it again each time, and compares every folder with
that of an uninterrupted run, byte for byte. The rates are of generated photographs, read as JPEG and coded by a PatchVQ: they
measure everything but a VQ network. The three stages of 512, 768 and 1024 px are written by three runs, each reading every
image, and by one run that reads it once for all; the runs take turns.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from data_parts import CODES, tiny_vocab
from PIL import Image

from lumina_jax.data.pretokenize import pretokenize_stages
from lumina_jax.data.shard_maker import PretokenizeStage
from lumina_jax.data.sources import JsonSource
from lumina_jax.model.patchvq import PatchVQ

STRIDE = 64
EDGES = (512, 768, 1024)
KILLED_EDGES = (128, 256)
SHARD = 8
SEED = 1


def photographs(folder: Path, records: int, edge: int) -> Path:
    """Writes ``records`` records, every eighth without an image and every ninth bad, and their JPEGs of about ``edge`` px."""
    rng, lines = np.random.default_rng(0), []
    for index in range(records):
        if index % 8 == 7:
            lines.append(
                {"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "because " * 50}]}
            )
            continue
        small = rng.integers(0, 256, (12, 16, 3), np.uint8)
        path = folder / f"{index}.jpg"
        Image.fromarray(small).resize((edge * 4 // 3, edge), Image.Resampling.BICUBIC).save(path, quality=92)
        if index % 9 == 8:
            path.write_bytes(path.read_bytes()[:100])
        lines.append({"image": path.name, "caption": f"photograph {index} " * 8})
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def run(records: str | Path, out: Path, edges: tuple[int, ...] = EDGES) -> None:
    """Pretokenizes for stages of ``edges`` px into the folders ``out``/EDGE."""
    vq = PatchVQ(np.random.default_rng(0).integers(0, 256, (CODES, STRIDE, STRIDE, 3), np.uint8))
    stages = [
        PretokenizeStage(out / str(edge), [(edge, edge), (edge, edge // 2)] if edge % 256 == 0 else [(edge, edge)])
        for edge in edges
    ]
    pretokenize_stages(JsonSource(records), vq, tiny_vocab(), stages, SEED, SHARD, progress=False)


def contents(out: Path) -> dict[str, bytes]:
    """Path -> bytes of every file below a folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def killed(
    records: Path, folder: Path, kills: int, edges: tuple[int, ...] = KILLED_EDGES, seed: int = 0
) -> dict[str, int | bool]:
    """Kills a process ``kills`` times; returns the number of folders it wrote and whether all have the same bytes."""
    moments = random.Random(seed)
    run(records, folder / "whole", edges)
    begin = time.monotonic()
    run(records, folder / "timed", edges)
    seconds = time.monotonic() - begin
    uninterrupted = contents(folder / "whole")
    kills_left, folders, same = kills, 0, contents(folder / "timed") == uninterrupted
    while kills_left:
        out = folder / str(folders)
        # Each folder is killed up to three times, then finished. A process that ended before its kill does not count.
        for _ in range(min(kills_left, moments.randint(1, 3))):
            kills_left -= _kill([str(records), str(out), *map(str, edges)], moments.uniform(0, seconds))
        run(records, out, edges)
        folders += 1
        same = same and contents(out) == uninterrupted
    return {"kills": kills, "folders": folders, "same_bytes": same}


def _kill(child: list[str], seconds: float) -> bool:
    """Starts this program with --child, kills it ``seconds`` after it began its work; returns whether it was still running."""
    begun = Path(f"{child[1]}.begun")
    begun.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, __file__, "--child", *child])
    while not begun.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the process to kill ended with exit code {process.returncode} before it began")
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    return process.wait() == -signal.SIGKILL


def rates(records: Path, folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Records per second of CPU time, of each stage alone and of all stages by one run, and the speed-up of one run over three."""
    seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, edges in {**{str(edge): (edge,) for edge in EDGES}, "all": EDGES}.items():
            begin = time.process_time()
            run(records, folder / f"{name}-{number}", edges)
            seconds.setdefault(name, []).append(time.process_time() - begin)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    separate_seconds = sum(median[str(edge)] for edge in EDGES)
    return {
        **{f"records_per_core_s_{name}": round(count / seconds_of_run, 1) for name, seconds_of_run in median.items()},
        "one_read_speedup": round(separate_seconds / median["all"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how often to kill (20)")
    parser.add_argument("--records", type=int, default=96, help="records of a run (96)")
    parser.add_argument("--rounds", type=int, default=3, help="runs per rate, of which the median counts (3)")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        records, out, *edges = options.child
        Path(f"{out}.begun").touch()
        run(records, Path(out), tuple(map(int, edges)))
        return
    with tempfile.TemporaryDirectory() as folder:
        records = photographs(Path(folder), options.records, edge=1200)
        result = {"what": "pretokenize", "cores": os.cpu_count(), "records": options.records}
        if options.kills:
            result |= killed(records, Path(folder, "killed"), options.kills)
        result |= rates(records, Path(folder, "rates"), options.records, options.rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Pretokenizing, killed and measured: ``python tests/bench/pretokenize.py`` prints one JSON line.

``--kills N`` kills -9 a process that pretokenizes at N random moments, starts it again each time, and compares every folder
it ends in with that of a run nobody killed, byte for byte. The rates are of photographs made on the spot, read as JPEG and
coded by patches: those of everything but a VQ network. The three stages of 512, 768 and 1024 px are written by three runs
that read each image, and by one that reads it once for all; the runs take turns.
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
    """``records`` records, every eighth of text alone and every ninth bad, and their JPEGs of about ``edge`` px."""
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
    """Pretokenizes for stages of ``edges`` px into folders of those names in ``out``."""
    vq = PatchVQ(np.random.default_rng(0).integers(0, 256, (CODES, STRIDE, STRIDE, 3), np.uint8))
    stages = [
        PretokenizeStage(out / str(edge), [(edge, edge), (edge, edge // 2)] if edge % 256 == 0 else [(edge, edge)])
        for edge in edges
    ]
    pretokenize_stages(JsonSource(records), vq, tiny_vocab(), stages, SEED, SHARD, progress=False)


def contents(out: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def killed(
    records: Path, folder: Path, kills: int, edges: tuple[int, ...] = KILLED_EDGES, seed: int = 0
) -> dict[str, int | bool]:
    """Kills ``kills`` times; how many folders came of it, and whether all hold the same bytes."""
    moments = random.Random(seed)
    run(records, folder / "whole", edges)
    begin = time.monotonic()
    run(records, folder / "timed", edges)
    seconds = time.monotonic() - begin
    whole = contents(folder / "whole")
    left, folders, same = kills, 0, contents(folder / "timed") == whole
    while left:
        out = folder / str(folders)
        # A folder is killed up to three times on its way, then made to the end. Who ended before the moment came does not count.
        for _ in range(min(left, moments.randint(1, 3))):
            left -= _kill([str(records), str(out), *map(str, edges)], moments.uniform(0, seconds))
        run(records, out, edges)
        folders += 1
        same = same and contents(out) == whole
    return {"kills": kills, "folders": folders, "same_bytes": same}


def _kill(child: list[str], seconds: float) -> bool:
    """Starts the program as ``child``, kills it ``seconds`` after it has begun its work, and says whether it was still at it."""
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
    """Records per second of one core: of each stage alone, and of all stages by one run, and how much that beats three."""
    seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        for name, edges in {**{str(edge): (edge,) for edge in EDGES}, "all": EDGES}.items():
            begin = time.process_time()
            run(records, folder / f"{name}-{number}", edges)
            seconds.setdefault(name, []).append(time.process_time() - begin)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    apart = sum(median[str(edge)] for edge in EDGES)
    return {
        **{f"records_per_core_s_{name}": round(count / took, 1) for name, took in median.items()},
        "one_read_speedup": round(apart / median["all"], 2),
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

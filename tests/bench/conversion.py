"""Converting a checkpoint of full size, against copying the same files: ``python tests/bench/conversion.py FOLDER``.

FOLDER needs space for four copies of the checkpoint (7B: 54 GB). A random bfloat16 model is written there in transformers' layout
(unless it exists), then copied, imported into Orbax and exported again, each in a process of its own, with the source's files
dropped from the page cache before and everything flushed to disk at the end. Each run prints one JSON line: seconds, MB/s, the
ratio to the time of copying in the same run, and the peak of resident memory.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax.numpy as jnp
import numpy as np

from convert.convert import Target, atomic_folder, write
from convert.table import ROWS, Index, WeightRow, cut_sizes, shape_of, sizes_of
from convert.tokenizer_files import TokenizerFiles
from lumina_jax.config import ModelConfig

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = {
    "7b": ModelConfig(),
    "1b": ModelConfig(width=2048, layers=16, heads=16, kv_heads=16, mlp=5504),
    "34b": ModelConfig(width=8192, layers=48, heads=64, kv_heads=8, mlp=22016, qk_groups=4, post_norm=True),
}


class RandomSource:
    """A Checkpoint of random numbers of about the size of weights, drawn when they are read."""

    layout, settings, rows, dtype_examples, vq = "ours", {}, ROWS, {"bfloat16": "all"}, None

    def __init__(self, cfg: ModelConfig):
        self.folder, self.cfg = Path("random"), cfg
        self.sizes = {row.path: sizes_of(cfg, row) for row in ROWS}
        self.dtypes = dict.fromkeys(self.sizes, np.dtype(jnp.bfloat16))
        self._rng = np.random.default_rng(0)

    def read(self, row: WeightRow, layer: int, index: Index) -> np.ndarray:
        shape = shape_of(row.axes, cut_sizes(self.sizes[row.path], index))
        # Random sign and mantissa with one exponent: magnitudes of 0.008 to 0.016.
        bits = self._rng.integers(0, 1 << 16, math.prod(shape), np.uint16) & 0x807F | 0x3C00
        return bits.view(jnp.bfloat16).reshape(shape)


def drop_from_cache(folder: Path) -> None:
    """Flushes the files of ``folder`` and drops them from the page cache."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(command: list[str], source: Path, target: Path) -> tuple[float, float]:
    """Runs ``command``; returns (seconds until ``target`` is on the disk, peak resident GiB)."""
    drop_from_cache(source)
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    drop_from_cache(target)
    return time.perf_counter() - began, usage.ru_maxrss / 2**20


def main() -> None:
    """Prints one JSON line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    source, copy, orbax, back = (
        options.folder / f"{options.size}-{name}" for name in ("start", "copy", "orbax", "back")
    )
    if not source.exists():
        random = RandomSource(SIZES[options.size])
        with atomic_folder(source) as folder:
            write(random, TokenizerFiles(), folder, Target("hf", options.shards))
    run = [sys.executable, "run.py", "convert"]
    for number in range(options.runs):
        for target in (copy, orbax, back):
            shutil.rmtree(target, ignore_errors=True)
        size = sum(path.stat().st_size for path in source.glob("*.safetensors")) / 1e6
        copying, _ = timed(["cp", "-r", str(source), str(copy)], source, copy)
        importing, import_peak = timed([*run, "import", str(source), str(orbax)], source, orbax)
        exporting, export_peak = timed(
            [*run, "export", str(orbax), str(back), "--layout", "hf", "--shards", str(options.shards)], orbax, back
        )
        same = all(
            subprocess.run(["cmp", "-s", str(path), str(back / path.name)]).returncode == 0
            for path in source.glob("*.safetensors")
        )
        figures = dict(
            run=number,
            size=options.size,
            MB=round(size),
            copy_s=round(copying, 1),
            import_s=round(importing, 1),
            export_s=round(exporting, 1),
            import_MB_per_s=round(size / importing),
            export_MB_per_s=round(size / exporting),
            import_to_copy=round(copying / importing, 2),
            export_to_copy=round(copying / exporting, 2),
            import_peak_GiB=round(import_peak, 2),
            export_peak_GiB=round(export_peak, 2),
            bitwise=same,
        )
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

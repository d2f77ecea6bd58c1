"""What flipped bits and kill -9 do to a run's files, many times at random: one JSON line with the counts of each outcome.

``python tests/bench/damage_and_kills.py --flips 200 --kills 50``. Bits are flipped in all files of checkpoints, of folders of
tokens and of exported safetensors, one at a time: "noticed" by an error or by going on from the checkpoint before, "harmless"
where what is read is as it was written, and "missed" where wrong numbers are read: of those there must be none. Processes are
killed at random moments while they save checkpoint after checkpoint: after each kill the run must go on from the last save that
it had reported, or a later one, with the right numbers ("lost" where it does not), and the next start must be able to save.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "train"))

import jax
import jax.numpy as jnp
import numpy as np
from small_runs import restored, save, small_cfg, small_state
from train_parts import host_state

from convert.convert import Target, convert
from convert.orbax_folder import OrbaxSource
from convert.sources import layers_of
from lumina_jax.data.shard_writer import write_shard, write_totals
from lumina_jax.data.shards import SETTINGS, Settings, Shards, write_json
from lumina_jax.errors import UserError
from lumina_jax.storage import StorageFolder
from lumina_jax.train.checkpoint import Saver
from lumina_jax.train.deep_check import deep_damage

LONG = "optim.steps=1000000"
"""A run that no number of kills ends."""
LAST_KILL_SECONDS = 1.5
"""A process is killed at most so long after its first save."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--flips", type=int, default=10, help="bits flipped in each kind of file")
    parser.add_argument("--kills", type=int, default=3, help="processes killed while they save")
    parser.add_argument("--seed", type=int, default=0, help="of the random places and moments")
    parser.add_argument("--what", default=",".join(READERS), help="kinds of files, with commas (default: all)")
    arguments = parser.parse_args()
    rng, counts = random.Random(arguments.seed), {}
    with tempfile.TemporaryDirectory() as folder:
        # A process that has used JAX cannot be forked, so the kills come first.
        counts["kill -9 inside saves"] = kills(Path(folder, "kills"), arguments.kills, rng)
        for name in arguments.what.split(","):
            make, read = READERS[name]
            counts[name] = flips(Path(folder, name), make, read, arguments.flips, rng)
    print(json.dumps({"flips": arguments.flips, "kills": arguments.kills, **counts}))
    if any(outcome in count for count in counts.values() for outcome in ("missed", "lost")):
        sys.exit(1)


def flips(
    folder: Path, make: Callable[[Path], Path], read: Callable[[Path], str], times: int, rng: random.Random
) -> dict[str, int]:
    """Outcomes of ``times`` single flips in the files below what ``make`` gives back; ``read`` says what a reader met."""
    whole = make(folder / "whole")
    files = [path for path in sorted(whole.rglob("*")) if path.is_file() and path.stat().st_size]
    files = [path for path in files if path.suffix == ".safetensors"] or files
    outcomes = Counter()
    for _ in range(times):
        (file,) = rng.choices(files, [path.stat().st_size for path in files])
        copy = folder / "copy"
        shutil.copytree(folder / "whole", copy)
        damaged = copy / file.relative_to(folder / "whole")
        content = bytearray(damaged.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        damaged.write_bytes(content)
        with contextlib.redirect_stderr(io.StringIO()):
            outcomes[read(copy)] += 1
        shutil.rmtree(copy)
    return dict(outcomes)


def make_run(folder: Path) -> Path:
    save(small_cfg(folder), 3, 5)
    return folder / "checkpoints/5"


def read_run(folder: Path) -> str:
    """Goes on with the run; :func:`restored` compares the numbers."""
    try:
        return {5: "harmless", 3: "noticed"}[restored(small_cfg(folder))]
    except UserError:
        return "noticed"
    except AssertionError:
        return "missed"


def read_deep(folder: Path) -> str:
    if deep_damage(folder / "checkpoints/5"):
        return "noticed"
    return read_run(folder)


def make_tokens(folder: Path) -> Path:
    settings, store = Settings(24, "source", "tokenizer", "vq", 0, (), 8), StorageFolder(folder)
    write_json(store, SETTINGS, settings)
    rng = np.random.default_rng(0)
    for shard in range(settings.shards):
        samples = [(rng.integers(0, 1000, size, np.int32), rng.random(size) < 0.5) for size in rng.integers(50, 90, 8)]
        write_shard(store, settings, shard, samples)
    write_totals(store, settings)
    for report in folder.glob("*-of-*.json"):  # training does not read them
        report.unlink()
    np.savez(folder.with_suffix(".npz"), *(array for sample in Shards(folder).read(range(24)) for array in sample))
    return folder


def read_tokens(folder: Path) -> str:
    """Reads all records."""
    try:
        arrays = [array for sample in Shards(folder).read(range(24)) for array in sample]
    except (UserError, IndexError):
        return "noticed"
    with np.load(folder.with_name("whole.npz")) as expected:
        same = len(expected.files) == len(arrays)
        same = same and all(np.array_equal(array, expected[f"arr_{i}"]) for i, array in enumerate(arrays))
    return "harmless" if same else "missed"


def make_safetensors(folder: Path) -> Path:
    """A run of a tiny model, exported; its files of weights are all that is damaged."""
    run = folder.with_name("run")
    cfg = small_cfg(run, "model.heads=4", "model.kv_heads=4", "model.qk_groups=2")
    saver = Saver(cfg)
    saver.save(1, jax.tree.map(jnp.asarray, host_state(cfg)))
    saver.close()
    convert(run, folder, Target("hf", shards=2), show=False)
    return folder


def read_safetensors(folder: Path) -> str:
    """Imports them; without an error the weights must be those of the run."""
    imported = folder.with_name("imported")
    try:
        convert(folder, imported, Target("ours"), show=False)
    except UserError:
        return "noticed"
    try:
        ours, theirs = (OrbaxSource(path) for path in (imported, folder.with_name("run")))
        layers = ((row, layer) for row in ours.rows for layer in layers_of(ours, row))
        same = all(np.array_equal(ours.read(*weight, {}).copy(), theirs.read(*weight, {})) for weight in layers)
        return "harmless" if same else "missed"
    finally:
        shutil.rmtree(imported)


def kills(folder: Path, times: int, rng: random.Random) -> dict[str, int]:
    """Outcomes of ``times`` runs of one folder, each killed while it saves."""
    outcomes = Counter()
    for _ in range(times):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            save_for_ever(folder, writer)
        os.close(writer)
        first = os.read(reader, 8)  # it has saved once
        time.sleep(rng.uniform(0, LAST_KILL_SECONDS))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = [first] if first else []
        while step := os.read(reader, 8):
            said.append(step)
        os.close(reader)
        reported = max((int.from_bytes(step, "little") for step in said), default=-1)
        outcomes["whole" if 0 <= reported <= step_after_kill(folder) else "lost"] += 1
    return dict(outcomes)


def save_for_ever(folder: Path, writer: int) -> None:
    """In a process of its own: goes on from the folder and saves step after step, writing each that is on disk to the pipe."""
    cfg = small_cfg(folder, LONG)
    step, saver = restored(cfg), Saver(cfg)
    while True:
        step += 1
        saver.save(step, small_state(step))
        saver.check(wait=True)
        os.write(writer, step.to_bytes(8, "little"))


def step_after_kill(folder: Path) -> int:
    """The step that a new process goes on from; -1 where it cannot."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            os.write(writer, restored(small_cfg(folder, LONG)).to_bytes(8, "little"))
        os._exit(0)
    os.close(writer)
    step = os.read(reader, 8)
    os.close(reader)
    os.waitpid(child, 0)
    return int.from_bytes(step, "little") if step else -1


READERS = {
    "checkpoints": (make_run, read_run),
    "deep": (make_run, read_deep),
    "tokens": (make_tokens, read_tokens),
    "safetensors": (make_safetensors, read_safetensors),
}
"""Kinds of files: how they are made, and who reads them. "deep" is inspect --deep of a checkpoint."""

if __name__ == "__main__":
    main()

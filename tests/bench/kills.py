"""kill -9 at random moments of whole programs, which the same command again must end as if nothing had been: one JSON line.

``python tests/bench/kills.py --train 35 --pods 15 --pretokenize 20 --convert 20 --sample 20``, kills of each program. A program is
killed once to three times in a row, anywhere in its life, behind the beginnings of its restores and saves, and right before or
after it opens, renames or removes a file; then it runs to its end, and what it leaves is compared with what one leaves that was
never killed: the losses and the last checkpoint of training by one process, and by the two of "pods", of which one is killed, or
sleeps for 8 s ("sleeps"); the shards of tokens; the converted safetensors and checkpoints; the answers and pictures of sampling.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(1, str(Path(__file__).resolve().parent))

from killed_programs import contents, drawn, free_port, live, numbers_of_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = (
    "convert.convert",
    "lumina_jax.cli.models",
    "lumina_jax.cluster.joining",
    "lumina_jax.data.pretokenize",
    "lumina_jax.sample.job",
    "lumina_jax.train.loop",
)
"""What the programs import, once for all of them."""
CONFIG = str(ROOT / "configs/toy_stage1.py")
MODEL = ("model.width=256", "model.heads=8", "model.kv_heads=8", "model.layers=2", "mesh.unroll=2", "model.mlp=512")
LARGE = ("model.width=768", "model.layers=4", "model.heads=24", "model.kv_heads=24", "model.mlp=1536")
"""Of a model whose conversion takes a second."""
STEPS = 8
HF = ("--layout", "hf")
IN_A_ROW = 3
"""Kills before a program runs to its end, at most."""
RESTARTS = (75, 134, -6)
"""How the other processes may end when one is killed: told of it, or aborted by JAX's own service."""
Files = dict[str, object]


class KillInputs(NamedTuple):
    """What all programs read: tokens, tokenizer, image tokenizer and trained runs below ``folder``."""

    folder: Path

    def fields(self, out: Path) -> list[str]:
        """A training run into ``out``, which saves after every step."""
        paths = [f"data.path={self.folder}/tokens", f"data.tokenizer={self.folder}/tokenizer"]
        paths += [f"vq.path={self.folder}/vq.npz", f"compile_cache={self.folder}/compiled", f"out={out}"]
        steps = [f"optim.steps={STEPS}", "optim.warmup=1", "save_every=1", "data.buckets=50", "data.batch=8"]
        return [CONFIG, *MODEL, *steps, *paths, "pod.join_timeout=60"]


class KilledProgram(NamedTuple):
    """``commands(shared, folder)`` are the words behind run.py, a list for each process; ``result`` is what must be equal.
    One that ``keeps`` what it finds at its end ends with 2 where it was killed when all was done."""

    commands: Callable[[KillInputs, Path], list[list[str]]]
    result: Callable[[Path], Files]
    kinds: Sequence[str] = ("start", "file")
    keeps: bool = False
    asleep: float = 0.0


def train(shared: KillInputs, folder: Path) -> list[list[str]]:
    return [["train", *shared.fields(folder / "out"), "mesh.fsdp=1"]]


def train_by_two(shared: KillInputs, folder: Path) -> list[list[str]]:
    words = ["train", *shared.fields(folder / "out"), "mesh.replica=1", "mesh.fsdp=2", "--distributed"]
    words += ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process"]
    return [[*words, str(index)] for index in range(2)]


def pretokenize(shared: KillInputs, folder: Path) -> list[list[str]]:
    paths = [f"data.path={folder}/tokens", f"data.tokenizer={folder}/tokenizer", f"vq.path={folder}/vq.npz"]
    return [["pretokenize", CONFIG, "--source", "toy:1500", "--shard-records", "60", "--fit", *paths]]


def export(shared: KillInputs, folder: Path) -> list[list[str]]:
    return [["convert", "export", f"{shared.folder}/large", f"{folder}/exported", *HF, "--shards", "3"]]


def back(shared: KillInputs, folder: Path) -> list[list[str]]:
    return [["convert", "import", str(shared.folder / "exported"), str(folder / "imported")]]


def sample(shared: KillInputs, folder: Path) -> list[list[str]]:
    words = ["sample", "--model", str(shared.folder / "run"), "--prompts", str(shared.folder / "prompts.txt")]
    return [[*words, "--rows", "2", "--size", "64x64", "--seed", "3", "--out", str(folder / "samples"), "--resume"]]


def trained(folder: Path) -> Files:
    checkpoints = folder / "out/checkpoints"
    return {
        "metrics": (folder / "out/metrics.jsonl").read_bytes(),
        "numbers": numbers_of_checkpoint(checkpoints / str(STEPS)),
        "strays": [path.name for path in checkpoints.iterdir() if "tmp" in path.name],
    }


def converted(folder: Path) -> Files:
    """Bytes, but for a checkpoint of Orbax, whose names and times differ: there the checksums of its arrays."""
    checkpoints = sorted(folder.glob("imported/checkpoints/*"))
    files = {name: content for name, content in contents(folder).items() if "/checkpoints/" not in name}
    return files | {path.name: numbers_of_checkpoint(path) for path in checkpoints}


PROGRAMS = {
    "train": KilledProgram(train, trained, ("start", "restore", "save", "save", "file")),
    "pods": KilledProgram(train_by_two, trained, ("start", "restore", "save", "save", "file")),
    "sleeps": KilledProgram(train_by_two, trained, ("restore", "save"), asleep=8.0),
    "pretokenize": KilledProgram(pretokenize, contents),
    "convert": KilledProgram(export, converted, keeps=True),
    "import": KilledProgram(back, converted, keeps=True),
    "sample": KilledProgram(sample, contents),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in PROGRAMS:
        parser.add_argument(f"--{name}", type=int, default=1, metavar="N", help=f"kills of {name} (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    model = "a folder that is imported, and exported again (default: a model of 24M weights)"
    parser.add_argument("--model", type=Path, help=model)
    parser.add_argument("--keep", type=Path, help="a folder for all files, kept (default: a temporary one)")
    options = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        training = options.train or options.pods or options.sample or not options.model
        shared = prepared(options.keep or Path(scratch), options.model, training)
        counts = {}
        for name in filter(vars(options).get, PROGRAMS):
            counts[name] = killed(name, PROGRAMS[name], vars(options)[name], shared, rng)
            print(name, counts[name], file=sys.stderr)
    print(json.dumps(counts))
    if any(count.get("different") or count.get("failed") for count in counts.values()):
        sys.exit(1)


def prepared(folder: Path, model: Path | None, training: bool) -> KillInputs:
    """Makes what all programs read, by programs; what ``training`` needs only on request."""
    shared, log = KillInputs(folder), folder / "log"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("".join(f"a picture of number {number}\n" for number in range(12)))
    paths = [f"data.path={folder}/tokens", f"data.tokenizer={folder}/tokenizer", f"vq.path={folder}/vq.npz"]
    commands = []
    if training:
        commands += [["pretokenize", CONFIG, "--source", "toy:64", "--fit", *paths]]
        commands += [["train", *shared.fields(folder / "run"), "mesh.fsdp=1"]]
    if model:
        shutil.copytree(model, folder / "exported")
        commands += [["convert", "import", str(model), str(folder / "large")]]
    else:
        commands += [["train", *shared.fields(folder / "large"), "mesh.fsdp=1", *LARGE, "optim.steps=1"]]
        commands += [["convert", "export", str(folder / "large"), str(folder / "exported"), *HF]]
    for command in commands:
        life = live([command], log, [None])
        if life.codes != [0]:
            raise RuntimeError(f"{command} ended with {life.codes}; see {log}:\n{log.read_text()[-2000:]}")
    return shared


def killed(name: str, program: KilledProgram, times: int, shared: KillInputs, rng: random.Random) -> dict[str, object]:
    """Counts of ``times`` kills of a program, by moments, and of its ends that were equal to one without a kill, or not."""
    log, counts, moments = shared.folder / f"{name}.log", Counter(), Counter()
    whole = shared.folder / f"{name}-whole"
    reference = live(commands := program.commands(shared, whole), log, [None] * len(program.commands(shared, whole)))
    if any(reference.codes):
        raise RuntimeError(f"{name} ended with {reference.codes}; see {log}:\n{log.read_text()[-2000:]}")
    expected = program.result(whole)
    while sum(moments.values()) < times:
        folder = shared.folder / f"{name}-killed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        left = min(rng.randint(1, IN_A_ROW), times - sum(moments.values()))
        ended = False
        for _ in range(left):
            moment = drawn(rng, program.kinds, reference)._replace(asleep=program.asleep)
            plan = [moment, *[None] * (len(commands) - 1)]
            rng.shuffle(plan)
            life = live(program.commands(shared, folder), log, plan)
            moments[moment.kind] += -9 in life.codes or bool(program.asleep)
            ended = not any(life.codes)
            if ended:
                break
            if any(code not in (0, -9, *RESTARTS, *[2] * program.keeps) for code in life.codes):
                counts["failed"] += 1
        if not ended:
            codes = live(program.commands(shared, folder), log, [None] * len(commands)).codes
            ended = not any(codes) or (codes == [2] and program.keeps)
        same = ended and program.result(folder) == expected
        counts["equal" if same else "different" if ended else "failed"] += 1
        if not same:
            shutil.copytree(folder, shared.folder / f"{name}-bad-{counts.total()}")
    return {"kills": sum(moments.values()), "at": dict(moments), "seconds": round(reference.seconds, 1), **counts}


if __name__ == "__main__":
    main()

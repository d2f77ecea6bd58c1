"""What the command line says of an experiment: its config file, changed, and the image tokenizer it names."""

import runpy
from argparse import ArgumentParser
from pathlib import Path

from lumina_jax.errors import InputError, MissingFileError

REPOSITORY = Path(__file__).resolve().parents[2]


def config_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("config", help="a file of configs/, such as configs/toy_stage1.py")
    parser.add_argument("changes", nargs="*", metavar="a.b=value", help="fields to change, such as optim.lr=1e-4")


def load_experiment(path: str, changes: list[str]):
    """The experiment of a config file with the command line's changes; errors before anything else is imported."""
    from lumina_jax.config import Experiment, override

    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        known = ", ".join(sorted(str(p) for p in Path("configs").rglob("[a-z]*.py")))
        raise MissingFileError(f"no config {path}; the configs here are: {known}")
    experiment = runpy.run_path(str(file)).get("experiment")
    if not isinstance(experiment, Experiment):
        raise InputError(f"{path} does not end in `experiment = Experiment(...)`")
    return override(experiment, changes)

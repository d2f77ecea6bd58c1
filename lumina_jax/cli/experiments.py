"""What the command line names: an experiment with its changes."""

import difflib
import runpy
from argparse import ArgumentParser
from pathlib import Path

from lumina_jax.errors import InputError, MissingFileError

REPOSITORY = Path(__file__).resolve().parents[2]


def config_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("config", help="a file such as configs/toy_stage1.py, or FILE.py:NAME where it holds several")
    parser.add_argument("changes", nargs="*", metavar="a.b=value", help="fields to change, such as optim.lr=1e-4")


def load_experiment(address: str, changes: list[str]):
    """The Experiment at ``address``, a config file or FILE.py:NAME, with the ``changes`` (a.b=value) of the command line.

    Imports neither jax nor flax, so errors come at once. Raises MissingFileError for an unknown file, InputError for an
    unknown name, field or value.
    """
    from lumina_jax.config import Experiment, override

    path, _, name = address.partition(":")
    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        known = ", ".join(sorted(str(p) for p in Path("configs").rglob("[a-z]*.py")))
        raise MissingFileError(f"no config {path}; the configs here are: {known}")
    variables = runpy.run_path(str(file))
    experiments = variables.get("experiments", {"": variables.get("experiment")})
    if name not in experiments:
        raise InputError(_unknown_name(path, name, list(experiments)))
    if not isinstance(experiments[name], Experiment):
        raise InputError(f"{path} ends neither in `experiment = Experiment(...)` nor in `experiments = {{NAME: ...}}`")
    return override(experiments[name], changes)


def _unknown_name(path: str, name: str, known: list[str]) -> str:
    if known == [""]:
        return f"{path} holds one experiment; leave out :{name}"
    if nearest := difflib.get_close_matches(name, known, n=3):
        return f"{path} holds no experiment {name}; the nearest are: {', '.join(nearest)}; {path} alone lists all"
    content = f"no experiment {name}" if name else f"{len(known)} experiments"
    return f"{path} holds {content}; name one, as {path}:{known[0]}; they are: {', '.join(known)}"

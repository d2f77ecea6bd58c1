"""What the command line names: an experiment with its changes, from any folder."""

import difflib
import os
import runpy
import textwrap
import traceback
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from pathlib import Path

from lumina_jax.cli.arguments import REPOSITORY, HubModel, check_address, expand_home, input_path, model_path
from lumina_jax.cli.hub_fields import HUB_FIELDS
from lumina_jax.cli.parser import as_called
from lumina_jax.errors import InputError, MissingFileError, UserError, prefixed_errors

INPUTS = ("start", "data.tokenizer", "vq.path", "watch.held_out", "watch.prompts")
"""The fields of an experiment that name a file or folder to read, which may lie in the repository."""
PATHS = (*INPUTS, "out", "compile_cache", "data.path")
"""All fields that name a file or folder."""


def config_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("config", help="a file such as configs/toy_stage1.py, or FILE.py:NAME where it holds several")
    changes = "fields to change, such as optim.lr=1e-4; --fields lists them with what they mean"
    parser.add_argument("changes", nargs="*", default=[], metavar="a.b=value", help=changes)
    parser.add_argument("--fields", action=ShowFields, nargs=0, help="print all fields of the config and exit")


class ShowFields(Action):
    """Prints every field of the config before it, or of the default experiment, and ends the process."""

    def __call__(self, parser: ArgumentParser, options: Namespace, values: object, option: str | None = None) -> None:
        from lumina_jax.config import Experiment

        try:
            cfg = load_experiment(options.config, options.changes or []) if options.config else Experiment()
        except UserError as error:
            parser.error(str(error))
        print(as_called("\n".join(describe_fields(cfg))))
        parser.exit()


def describe_fields(cfg, prefix: str = "") -> Iterator[str]:
    """The text of --fields: what each group of fields means, and NAME=VALUE of each, with the default where it is another."""
    from dataclasses import MISSING, fields, is_dataclass
    from inspect import getdoc

    for paragraph in getdoc(type(cfg)).replace("``", "").split("\n\n"):
        yield textwrap.fill(paragraph, 78, initial_indent="# ", subsequent_indent="# ")
    for field in fields(cfg):
        value = getattr(cfg, field.name)
        if not is_dataclass(value):
            default = "" if field.default in (MISSING, value) else f"  (default: {_as_word(field.default)})"
            yield f"{prefix}{field.name}={_as_word(value)}{default}"
    for field in fields(cfg):
        if is_dataclass(value := getattr(cfg, field.name)):
            yield ""
            yield from describe_fields(value, f"{prefix}{field.name}.")


def _as_word(value: object) -> str:
    """A field's value as the command line writes it."""
    return (
        ",".join(map(str, value))
        if isinstance(value, tuple)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def load_experiment(address: str, changes: list[str]):
    """The Experiment at ``address``, a config file or FILE.py:NAME, with the ``changes`` (a.b=value) of the command line.

    A relative file is looked for here, then in the repository. Imports neither jax nor flax, so errors come at once. Raises
    MissingFileError for an unknown file, InputError for a file that is no config, an unknown name, field or value.
    """
    from lumina_jax.config import Experiment, override

    if ":/" in address and check_address(address):
        raise InputError(
            f"{address}: a config is a program, which is read from this machine alone; copy it to a local file"
        )
    path, name = (address, "") if Path(address).is_file() else address.partition(":")[::2]
    file = _config_file(path)
    try:
        variables = runpy.run_path(str(file))
    except UserError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:
        raise InputError(f"{path}{_line_of(error, file)}: {type(error).__name__}: {error}") from error
    experiments = variables.get("experiments", {"": variables.get("experiment")})
    if name not in experiments:
        raise InputError(_unknown_name(path, name, list(experiments)))
    if not isinstance(experiments[name], Experiment):
        raise InputError(f"{path} ends neither in `experiment = Experiment(...)` nor in `experiments = {{NAME: ...}}`")
    return _with_paths(override(experiments[name], changes))


def _with_paths(cfg):
    """``cfg`` with the user's home in place of ``~``, and files of the repository's assets found from any folder."""
    from lumina_jax.config import override

    changes = []
    for name in PATHS:
        group, _, field = name.rpartition(".")
        value = getattr(getattr(cfg, group) if group else cfg, field)
        with prefixed_errors(name, UserError, ArgumentTypeError):
            read = model_path if name in HUB_FIELDS else input_path if name in INPUTS else expand_home
            path = read(value)
            for part in path.split(",") if name == "data.path" else [path] * (not isinstance(path, HubModel)):
                check_address(part.strip())
        changes += [f"{name}={path}"] if path != value else []
    return override(cfg, changes)


def _config_file(path: str) -> Path:
    """The file of a config, here or in the repository; MissingFileError listing those that exist."""
    given = Path(os.path.expanduser(path))
    for file in (given, REPOSITORY / given):
        if file.suffix == ".py" and file.is_file():
            return file
    known = _known_configs()
    nearest = difflib.get_close_matches(file.stem, [Path(name).stem for name in known], n=1)
    hint = "".join(f"; did you mean {name}?" for name in known if Path(name).stem in nearest)
    raise MissingFileError(f"no config {path}{hint}; the configs here are: {', '.join(known)}")


def _known_configs() -> list[str]:
    """The config files in the folder configs here, and in that of the repository."""
    folders = dict.fromkeys(folder.resolve() for folder in (Path("configs"), REPOSITORY / "configs"))
    here = Path.cwd()
    files = [file for folder in folders for file in sorted(folder.rglob("[a-z]*.py"))]
    return [str(file.relative_to(here) if file.is_relative_to(here) else file) for file in files]


def _line_of(error: Exception, file: Path) -> str:
    """ ", line N" of ``file`` where the error was raised, if it was raised there."""
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(file) else (frames or [None])[-1]
    return f", line {line}" if line else ""


def _unknown_name(path: str, name: str, known: list[str]) -> str:
    if known == [""]:
        return f"{path} holds one experiment; leave out :{name}"
    if nearest := difflib.get_close_matches(name, known, n=3):
        return f"{path} holds no experiment {name}; the nearest are: {', '.join(nearest)}; {path} alone lists all"
    content = f"no experiment {name}" if name else f"{len(known)} experiments"
    return f"{path} holds {content}; name one, as {path}:{known[0]}; they are: {', '.join(known)}"

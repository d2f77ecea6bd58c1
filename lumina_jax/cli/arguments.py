"""Types of arguments: a wrong number or folder is refused before anything heavy is imported."""

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from lumina_jax.errors import InputError, MissingPackageError
from lumina_jax.numbers import any_seed, dtype_name, pixel_size, real_number, seed_number, whole_number

Value = TypeVar("Value")


NOTHING = "nothing was written; the same command starts again"
"""What most verbs keep when they are interrupted; a verb says it by ``set_defaults(keeps=...)``."""


def argument(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """``parse`` for argparse: its InputError becomes the message of the option."""

    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except (InputError, MissingPackageError) as error:
            raise ArgumentTypeError(str(error)) from error

    return parsed


def at_least(minimum: int) -> Callable[[str], int]:
    """A whole number from ``minimum`` on."""
    return argument(partial(whole_number, minimum=minimum))


seed = argument(seed_number)
sampling_seed = argument(any_seed)
number = argument(real_number)
tolerance = argument(partial(real_number, minimum=0))
size = argument(pixel_size)
dtype = argument(dtype_name)


@argument
def target_size(text: str) -> int:
    """A target size in px."""
    from lumina_jax.released import check_target_size

    return check_target_size(whole_number(text))


def several(parse: Callable[[str], Value]) -> Callable[[str], tuple[Value, ...]]:
    """Values with commas between, each once, as ``parse`` reads them."""
    return lambda text: tuple(dict.fromkeys(parse(word.strip()) for word in text.split(",")))


PACKAGE = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE.parent
"""The folder of lumina_jax, convert and configs: the repository, or where packages are installed."""
SHIPPED = "assets"
"""The folder of the repository whose files a command finds from any other folder."""


def shipped(path: str | Path) -> Path:
    """Where a file or folder of the project is: what an installed package brings of assets/ lies inside of it."""
    inside = PACKAGE / path
    return inside if inside.exists() else REPOSITORY / path


def check_address(address: str) -> bool:
    """Whether ``address`` is a URL. Raises InputError for one that is none quite or of an unknown scheme, MissingPackageError."""
    if ":" not in address:  # most are paths, and the clients of stores take long to import
        return False
    from lumina_jax.places import is_url, place

    place(address)
    return is_url(address)


class InputPath(str):
    """The address of a file or folder to read, as it was given; cli.checks looks for it before any work."""

    @property
    def parts(self) -> list[str]:
        """The addresses in it."""
        return [self]


class InputPaths(InputPath):
    """Several of them, with commas between."""

    @property
    def parts(self) -> list[str]:
        return [part.strip() for part in self.split(",")]


class HubModel(str):
    """The address hf:// of a repository of the Hugging Face hub; cli.models fetches it."""


class OutputPath(str):
    """The address of a folder to write, as it was given; cli.checks tries it before any work."""


class OutputFile(OutputPath):
    """The address of a file to write."""


def input_path(text: str) -> InputPath:
    """A file or folder to read, a path or a URL: ``~`` is the user's home, and a path below assets/ that is not here is the
    project's (:func:`shipped`)."""
    argument(check_address)(text)
    path = Path(os.path.expanduser(text))
    if path.parts[:1] == (SHIPPED,) and not path.exists() and shipped(path).exists():
        return InputPath(shipped(path))
    return InputPath(expand_home(text))


def model_path(text: str) -> InputPath | HubModel:
    """A model or a file of one: as :func:`input_path`, or hf://OWNER/NAME[@REVISION][/FOLDER]."""
    if "://" in text:
        from lumina_jax.hub.address import is_hub, parse

        if is_hub(text):
            return HubModel(argument(parse)(text))
    return input_path(text)


def expand_home(text: str) -> str:
    """``text`` with ``~`` for the user's home, which a shell leaves as it is behind = and :, at its start and behind : , and @."""
    return re.sub(r"(^|[:,@])(~[\w.-]*)(?=/|$)", lambda match: match[1] + os.path.expanduser(match[2]), text)


def input_paths(text: str) -> InputPaths:
    """Folders to read, paths or URLs with commas between."""
    paths = InputPaths(expand_home(text))
    for part in paths.parts:
        argument(check_address)(part)
    return paths


def output_path(text: str) -> OutputPath:
    """A folder that exists or can be made, or a URL."""
    path = os.path.expanduser(text)
    argument(check_output)(path)
    return OutputPath(path)


def output_file(text: str) -> OutputFile:
    """A file in a folder that exists or can be made, or a URL."""
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        raise ArgumentTypeError(f"{path} is a folder; give a file to write")
    if not argument(check_address)(path):
        output_path(str(Path(path).parent))
    return OutputFile(path)


def at(address: str, folder=None):
    """The place (lumina_jax.places) at ``address``, as something in the place ``folder`` calls it if one is given."""
    from lumina_jax.places import beside, place  # with the clients of stores, which --help does not wait for

    return beside(folder, address) if folder is not None else place(address)


def check_output(address: str) -> None:
    """Raises InputError where no folder can have the name ``address``, a file stands in its way, or its parent is read-only.

    Of a URL it is only seen whether its scheme is known.
    """
    if check_address(address):
        return
    path = Path(address).absolute()
    try:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
    except OSError as error:
        raise InputError(f"{address} cannot be a folder: {error.strerror}; give another") from error
    if not existing.is_dir():
        raise InputError(f"{address} cannot be a folder, for {existing} is a file; give another")
    if not os.access(existing, os.W_OK):
        raise InputError(f"{address} cannot be written: {existing} is read-only for this user; give another")

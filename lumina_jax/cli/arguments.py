"""Types of arguments: a wrong number or folder is refused before anything heavy is imported."""

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from lumina_jax.errors import InputError
from lumina_jax.numbers import any_seed, dtype_name, pixel_size, real_number, seed_number, whole_number

Value = TypeVar("Value")


NOTHING = "nothing was written; the same command starts again"
"""What most verbs keep when they are interrupted; a verb says it by ``set_defaults(keeps=...)``."""


def argument(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """``parse`` for argparse: its InputError becomes the message of the option."""

    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except InputError as error:
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


REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = "assets"
"""The folder of the repository whose files a command finds from any other folder."""


def input_path(text: str) -> str:
    """A file or folder to read: ``~`` is the user's home, and a path below assets/ that is not here is the repository's."""
    path = Path(os.path.expanduser(text))
    shipped = REPOSITORY / path
    if path.parts[:1] == (SHIPPED,) and not path.exists() and shipped.exists():
        return str(shipped)
    return expand_home(text)


def expand_home(text: str) -> str:
    """``text`` with ``~`` for the user's home, which a shell leaves as it is behind = and :, at its start and behind : , and @."""
    return re.sub(r"(^|[:,@])(~[\w.-]*)(?=/|$)", lambda match: match[1] + os.path.expanduser(match[2]), text)


def output_path(text: str) -> str:
    """A folder that exists or can be made."""
    path = os.path.expanduser(text)
    argument(check_output)(path)
    return path


def output_file(text: str) -> str:
    """A file in a folder that exists or can be made."""
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        raise ArgumentTypeError(f"{path} is a folder; give a file to write")
    output_path(str(Path(path).parent))
    return path


def check_output(address: str) -> None:
    """Raises InputError where no folder can have the name ``address``, a file stands in its way, or its parent is read-only."""
    path = Path(address).absolute()
    try:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
    except OSError as error:
        raise InputError(f"{address} cannot be a folder: {error.strerror}; give another") from error
    if "://" not in address and not existing.is_dir():
        raise InputError(f"{address} cannot be a folder, for {existing} is a file; give another")
    if "://" not in address and not os.access(existing, os.W_OK):
        raise InputError(f"{address} cannot be written: {existing} is read-only for this user; give another")

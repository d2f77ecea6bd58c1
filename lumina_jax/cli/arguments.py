"""Types of arguments: a wrong number or folder is refused before anything heavy is imported."""

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from lumina_jax.errors import InputError

LARGEST_SEED = 2**63 - 1


def at_least(minimum: int) -> Callable[[str], int]:
    """A whole number from ``minimum`` on."""

    def number(text: str) -> int:
        if not text.removeprefix("-").isdigit() or int(text) < minimum:
            raise ArgumentTypeError(f"{text} is not a whole number of at least {minimum}")
        return int(text)

    return number


def seed(text: str) -> int:
    """A whole number that both jax.random.key and numpy's generators take."""
    if not text.isdigit() or int(text) > LARGEST_SEED:
        raise ArgumentTypeError(f"{text} is not a seed; give a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def output_path(text: str) -> str:
    """A folder, or a file to be, that exists or can be made."""
    try:
        check_output(text)
    except InputError as error:
        raise ArgumentTypeError(str(error)) from error
    return text


def check_output(address: str) -> None:
    """Raises InputError where a file stands in the way of the folder ``address``, or its parent is read-only."""
    path = Path(address).absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if "://" not in address and not existing.is_dir():
        raise InputError(f"{address} cannot be a folder, for {existing} is a file; give another")
    if "://" not in address and not os.access(existing, os.W_OK):
        raise InputError(f"{address} cannot be written: {existing} is read-only for this user; give another")

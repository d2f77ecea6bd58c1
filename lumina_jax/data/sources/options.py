"""What a spec says after its path: PATH@name=value,name=value. What exists under a name is never taken for syntax."""

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping

from lumina_jax.data.sources import files
from lumina_jax.errors import InputError

OPTIONS = re.compile(r"\w+=[^,@/]*(,\w+=[^,@/]*)*")
"""What is meant as options even when no name is known."""


def has_suffix(path: str, suffixes: str | tuple[str, ...]) -> bool:
    """Whether the name of a file ends with one of ``suffixes``, in any case; a URL may carry a signature behind it."""
    return (path.partition("?")[0] if files.is_remote(path) else path).lower().endswith(suffixes)


def splits(rest: str) -> Iterator[tuple[str, str]]:
    """Every (path, suffix) of ``PATH@SUFFIX`` whose path is not empty, the shortest path first."""
    return ((rest[: at.start()], rest[at.end() :]) for at in re.finditer("@", rest) if at.start())


def split_at(rest: str, valid: Callable[[str, str], object]) -> tuple[str, str | None]:
    """``PATH@SUFFIX`` -> (PATH, SUFFIX), or (rest, None) without a suffix.

    A file or folder called ``rest`` has no suffix. A PATH that exists comes first, then the longest; ``valid`` (PATH, SUFFIX) says
    which come into question.
    """
    if os.path.exists(rest):
        return rest, None
    possible = [split for split in splits(rest) if valid(*split)]
    return next((split for split in reversed(possible) if os.path.exists(split[0])), (possible or [(rest, None)])[-1])


def parse(rest: str, known: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """``PATH@name=value,...`` -> PATH and the values of all options; ``known`` are their defaults.

    A value may hold @ and commas, but no ``,name=``. Raises InputError for a missing path and for an unknown option.
    """
    path, text = split_at(
        rest, lambda _, suffix: suffix.startswith(tuple(f"{name}=" for name in known)) or OPTIONS.fullmatch(suffix)
    )
    if not path or (text is None and path.startswith("@")):
        raise InputError(f"{rest!r} names no path; write PATH@name=value")
    return path, dict(known) | (read(text, known) if text else {})


def read(text: str, known: Collection[str]) -> dict[str, str]:
    """``name=value,name=value`` -> the values by their names; InputError for a name that is not ``known``."""
    options = dict(word.partition("=")[::2] for word in re.split(r",(?=\w+=)", text))
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"@{text}: no option {unknown[0]!r}; there are {', '.join(known) or 'none'}")
    return options


def choice(value: str, name: str, allowed: tuple[str, ...]) -> str:
    """``value`` if it is one of ``allowed``; else InputError, which names them."""
    if value not in allowed:
        raise InputError(f"{name}={value}; choose {' or '.join(filter(None, allowed))}")
    return value

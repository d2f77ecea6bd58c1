"""What stands behind the @ of a specification: PATH@name=value,name=value."""

import re
from collections.abc import Mapping

from lumina_jax.errors import InputError

OPTIONS = re.compile(r"\w+=[^,@]*(,\w+=[^,@]*)*")


def parse(rest: str, known: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """``PATH@name=value,...`` -> PATH and every option of ``known``, which holds their defaults.

    Raises ValueError for a missing path, and for an option that is not known, naming those that are.
    """
    path, at, behind = rest.rpartition("@")
    if not at or not OPTIONS.fullmatch(behind):
        path, behind = rest, ""
    if not path:
        raise InputError(f"{rest!r} names no path; write PATH@name=value")
    given = dict(word.split("=", 1) for word in behind.split(",")) if behind else {}
    if strange := sorted(set(given) - set(known)):
        raise InputError(f"{rest}: no option {strange[0]!r}; there are {', '.join(known) or 'none'}")
    return path, dict(known) | given


def choice(value: str, name: str, allowed: tuple[str, ...]) -> str:
    """``value`` if it is one of ``allowed``; ValueError naming them otherwise."""
    if value not in allowed:
        raise InputError(f"{name}={value}; choose {' or '.join(allowed)}")
    return value

"""The options of a spec: PATH@name=value,name=value."""

import re
from collections.abc import Mapping

from lumina_jax.errors import InputError

OPTIONS = re.compile(r"\w+=[^,@]*(,\w+=[^,@]*)*")


def parse(rest: str, known: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """``PATH@name=value,...`` -> PATH and the values of all options; ``known`` are their defaults.

    Raises InputError for a missing path and for an unknown option.
    """
    path, separator, text = rest.rpartition("@")
    if not separator or not OPTIONS.fullmatch(text):
        path, text = rest, ""
    if not path:
        raise InputError(f"{rest!r} names no path; write PATH@name=value")
    options = dict(word.split("=", 1) for word in text.split(",")) if text else {}
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"{rest}: no option {unknown[0]!r}; there are {', '.join(known) or 'none'}")
    return path, dict(known) | options


def choice(value: str, name: str, allowed: tuple[str, ...]) -> str:
    """``value`` if it is one of ``allowed``; else InputError, which names them."""
    if value not in allowed:
        raise InputError(f"{name}={value}; choose {' or '.join(allowed)}")
    return value

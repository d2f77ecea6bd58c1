"""argparse with help that says every default, errors of one line, and the nearest word where one is misspelt."""

import argparse
import difflib
import os
import sys
from argparse import Action, ArgumentError, Namespace, _SubParsersAction
from collections.abc import Iterable

from lumina_jax.errors import printable

EMPTY = (None, "", [])
SCRIPT, CONSOLE = "run.py", "lumina-jax"
"""The names of the command line: in a checkout, which is also the one that texts call it by, and as a console script."""


def program_name() -> str:
    """By which of its two names the command line of this process was called."""
    return CONSOLE if os.path.basename(sys.argv[0]).startswith(CONSOLE) else SCRIPT


def as_called(text: str) -> str:
    """``text`` with the commands in it under the name by which this process was called."""
    return text.replace(f"{SCRIPT} ", f"{program_name()} ")


class HelpFormatter(argparse.HelpFormatter):
    """Ends the help of every option that takes a value with its default; a help that says "default" itself stays."""

    def __init__(self, prog: str, **settings: object):
        super().__init__(prog, **{"max_help_position": 24, **settings})

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if not action.option_strings or action.nargs == 0 or action.required or "default" in text:
            return text
        return f"{text} (default: {'none' if action.default in EMPTY else '%(default)s'})"


class Parser(argparse.ArgumentParser):
    """The parser of the command line and of each of its verbs, which it makes of its own kind."""

    def __init__(self, *names: object, **settings: object):
        super().__init__(*names, **{"formatter_class": HelpFormatter, **settings})

    def format_help(self) -> str:
        return as_called(super().format_help())

    def error(self, message: str) -> None:
        """Prints one line and ends the process with code 2."""
        if message.endswith("expected one argument"):
            option = message.removeprefix("argument ").partition(":")[0]
            message += f"; give a value that begins with - as {option.rpartition('/')[2]}=VALUE"
        help_at = "" if "--help" in message else f"; see {self.prog} --help"
        self.exit(2, f"{self.prog}: {as_called(printable(message))}{help_at}\n")

    def _check_value(self, action: Action, value: str) -> None:
        try:
            super()._check_value(action, value)
        except ArgumentError as error:
            raise ArgumentError(action, f"{error.message}{did_you_mean(str(value), action.choices)}") from None

    def nested(self, options: Namespace) -> "Parser":
        """The parser of the verb that ``options`` name, or of its action where it has several."""
        for action in self._actions:
            if isinstance(action, _SubParsersAction) and getattr(options, action.dest, None):
                return action.choices[getattr(options, action.dest)].nested(options)
        return self

    def unknown_words(self, words: list[str], options: Namespace) -> str:
        """A message on ``words`` that no argument of the parsed ``options`` takes."""
        parser = self.nested(options)
        word = words[0].partition("=")[0]
        nearest = did_you_mean(word, parser._option_string_actions)
        if fields := _fields_named(word.lstrip("-").replace("-", "_")) if hasattr(options, "changes") else []:
            nearest = f"; fields of a config are given as {' or '.join(f'{field}=VALUE' for field in fields)}"
        prog = parser.prog if parser is not self else f"{self.prog} VERB"
        return f"unknown arguments: {' '.join(words)}{nearest}; see {prog} --help"


def _fields_named(name: str) -> list[str]:
    """The fields of a config, as ``a.b``, whose last part is ``name``."""
    from lumina_jax.config import Experiment, dotted_fields

    return list(dotted_fields(Experiment, name))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean NEAREST?" for the one of ``known`` that is nearest to ``word``, or nothing.

    The dashes of an option count for nothing: --steps is not near --help.
    """
    bare = {option.lstrip("-"): option for option in known}
    nearest = difflib.get_close_matches(word.lstrip("-"), list(bare), n=1)
    return f"; did you mean {bare[nearest[0]]}?" if nearest else ""

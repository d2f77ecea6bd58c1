"""Errors that a user can mend. run.py shows them as one line; any other exception is a bug and shows its traceback.

Each names the value, the limit and the cure. The subclasses are also the built-in exceptions that callers expect.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CAUSE_LETTERS = 120
"""The longest cause."""
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, other line ends, changes of the writing direction, and halves of a surrogate pair."""


class UserError(Exception):
    """What the caller gave, or what lies on disk, is wrong; the message says what to change.

    ``cause`` names the kind of error in a few words without any value of this one, such as "file not found"; rejected records
    are summed up by it. Empty: see :func:`cause_of`.
    """

    def __init__(self, *args: object, cause: str = ""):
        super().__init__(*args)
        self.cause = cause


class InputError(UserError, ValueError):
    """A wrong value: a field, an argument, the content of a file."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class ExistingFileError(UserError, FileExistsError):
    """A file or folder that would be overwritten."""


class StorageError(UserError, OSError):
    """A store, a disk or a network that does not do what was asked."""


class MissingPackageError(UserError, ImportError):
    """A package that has to be installed first."""


class SourceError(UserError):
    """A source that cannot be read as a whole. Unlike the error of one record, which is rejected, it ends a run."""


class NotFiniteError(UserError, FloatingPointError):
    """Weights, logits or a loss that hold NaN or infinity."""


def require(ok: bool, message: str) -> None:
    """Raises InputError with ``message`` unless ``ok``."""
    if not ok:
        raise InputError(message)


def cause_of(error: BaseException) -> str:
    """The kind of an error in a few words: its ``cause``, or its message without quoted texts, numbers and a prefix."""
    if cause := getattr(error, "cause", ""):
        return cause
    message = str(error).rpartition(": ")[2] if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return re.sub(r"\b\d+\b", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "...", message))[:CAUSE_LETTERS].strip()


def printable(text: str) -> str:
    """``text`` as one line of a terminal: what would move the cursor, break the line or be no letter is shown as an escape."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


@contextmanager
def prefixed_errors(prefix: str, *kinds: type[Exception]) -> Iterator[None]:
    """A border: an error of ``kinds`` (default: ValueError) leaves as an InputError whose message begins with ``prefix``."""
    kinds = kinds or (ValueError,)
    try:
        yield
    except kinds as error:
        raise InputError(f"{prefix}: {str(error).strip()}", cause=cause_of(error)) from error


@contextmanager
def interrupted(keeps: str | Callable[[], str]) -> Iterator[None]:
    """Says what a Ctrl-C in the block leaves: ``keeps`` is a sentence, or makes one, on what is kept and how to go on.

    It becomes a note of the KeyboardInterrupt, of which run.py prints the innermost, which knows most.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(keeps if isinstance(keeps, str) else keeps())
        raise

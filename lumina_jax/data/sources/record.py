"""What a source yields: conversations with their images, as stored files and as decoded pictures."""

import errno
import reprlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from PIL import Image

from lumina_jax.conversation import Turn, check_symbols, image_prompt, messages_of, parse_turns
from lumina_jax.data.sources import files
from lumina_jax.data.sources.images import ImageFile, decode_image, read_image
from lumina_jax.errors import InputError, SourceError, StorageError, UserError, cause_of
from lumina_jax.text import checked_text
from lumina_jax.vocab import IMAGE_SYMBOL

IMAGE_KEYS = ("image", IMAGE_SYMBOL)
CAPTION_KEYS = ("caption", "text")
EXPECTED = (UserError, ValueError, OSError, MemoryError, RecursionError)
"""What reading a bad record raises. Any other exception is likely a bug, so its reject says where it was raised."""
EXHAUSTED = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n), or lower data.threads"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room on the disk"),
}
"""Errors of the machine, which every further record would meet too, and their cures."""
MAX_CONSECUTIVE_REJECTS = 1000
BUGS_AT_START = 16
"""When the first so many records all meet one unexpected error, it is a bug."""
REASON_LETTERS = 2000
"""The longest reason."""
PACKAGE = Path(__file__).parents[2]

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """A conversation and its images, not cropped and not tokenized.

    ``images`` replace the ``<|image|>`` symbols of ``turns`` in order (see conversation.tokenize). A record with a ``caption``
    has one image and no turns: its conversation asks for that image, at the size of its crop.
    """

    turns: list[Turn]
    images: list[Image.Image]
    caption: str | None = None

    def __post_init__(self):
        _check_caption(self.caption, self.turns, len(self.images))

    def conversation(self, sizes: Sequence[tuple[int, int]]) -> list[Turn]:
        """The turns, given ``sizes``, the (width, height) in px of each image's crop."""
        if self.caption is None:
            return self.turns
        width, height = sizes[0]
        return [(image_prompt(width, height, self.caption), IMAGE_SYMBOL)]


class Source(Protocol):
    """A numbered collection of records, safe to read from several threads."""

    @property
    def fingerprint(self) -> str:
        """Changes when the records do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises an InputError or the like for a bad record; its message is the reason in rejects.jsonl (see read_record)."""


@dataclass(frozen=True)
class StoredRecord:
    """A record whose images are image files, not decoded."""

    turns: list[Turn]
    files: list[ImageFile] = field(default_factory=list)
    caption: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the image files."""
        return sum(len(file.content) for file in self.files)

    def decode(self) -> Record:
        """Decodes the images; InputError naming the file when one is damaged."""
        return Record(self.turns, [decode_image(file) for file in self.files], self.caption)


class StoredSource:
    """A source that can also give its records with their image files, which copy without any loss."""

    fingerprint: str

    def __len__(self) -> int:
        raise NotImplementedError

    def stored(self, index: int) -> StoredRecord:
        """Raises as :meth:`Source.__getitem__` does."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.stored(index).decode()


class Reject(NamedTuple):
    """Why a record is not kept: the ``reason``, and its kind, the ``cause``, by which rejects are summed up (errors.cause_of).

    ``bug`` is the exception if it is none of EXPECTED.
    """

    reason: str
    cause: str
    bug: BaseException | None = None

    def line(self, index: int) -> dict[str, int | str]:
        """The entry of record ``index`` in rejects.jsonl."""
        return {"index": index, "reason": self.reason, "cause": self.cause}


def read_record(read: Callable[..., T], *arguments: object) -> T | Reject:
    """``read(*arguments)``, which fetches, parses, decodes, crops or tokenizes one record; a Reject whatever it raises.

    Only what every other record would meet too passes: a SourceError, an interrupt, and a StorageError when the machine has no
    more open files or no room.
    """
    try:
        return read(*arguments)
    except BaseException as error:
        # The panics of libraries written in Rust are no Exceptions, so that nobody catches them by accident.
        panic = type(error).__module__.startswith("pyo3_runtime")
        if isinstance(error, SourceError) or not (panic or isinstance(error, Exception)):
            raise
        for cause in _chain(error):
            if cure := EXHAUSTED.get(getattr(cause, "errno", None)):
                raise StorageError(f"{error}; {cure}, then start again") from error
        return _reject(error)


class RejectStreak:
    """Ends a run whose records are rejected one after another for one cause: a dead network, a disk that is not mounted, a bug.

    ``limit`` is the most that are rejected in a row, 0 for any number; ``option`` is its name on the command line.
    """

    def __init__(self, limit: int, option: str = "data.max_consecutive_rejects"):
        self._limit, self._option = limit, option
        self._first, self._length, self._cause, self._any_other = 0, 0, "", False

    def add(self, index: int, reject: Reject | None) -> None:
        """Takes the next record in reading order; None is one that is kept.

        Raises SourceError when the streak is as long as the limit, or the exception itself when it is a bug.
        """
        if reject is None or reject.cause != self._cause:
            self._any_other |= reject is None or self._length > 0
            self._first, self._length, self._cause = index, 0, reject.cause if reject else ""
        if reject is None or not self._limit:
            return
        self._length += 1
        if reject.bug and (self._length == self._limit or (self._length == BUGS_AT_START and not self._any_other)):
            raise reject.bug
        if self._length == self._limit:
            raise SourceError(
                f"{self._length:,} records in a row, {self._first:,} to {index:,}, were rejected for one cause, {self._cause}: "
                f"{reject.reason}; mend it and give the command again, or go on without them by {self._option}=0 (no limit)"
            )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _reject(error: BaseException) -> Reject:
    message = str(error).strip()
    if isinstance(error, EXPECTED):
        return Reject(_cut(message or f"{type(error).__name__}"), cause_of(error))
    kind, place = type(error), _place(error)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return Reject(_cut(f"{name}{': ' if message else ''}{message}") + f" ({place})", f"{name} in {place}", error)


def _place(error: BaseException) -> str:
    """FILE:LINE of the innermost code of this package that raised ``error``, or without such of the innermost of any."""
    frames = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    inside = [(file.relative_to(PACKAGE.parent), line) for file, line in frames[1:] if file.is_relative_to(PACKAGE)]
    file, line = (inside or frames)[-1]
    return f"{file if inside else file.name}:{line}"


def _cut(reason: str) -> str:
    return reason if len(reason) <= REASON_LETTERS else f"{reason[:REASON_LETTERS]} ..."


def stored_record(item: object, fetch: Callable[[object], ImageFile]) -> StoredRecord:
    """A record in Lumina's form (see JsonSource) -> StoredRecord; ``fetch`` turns each image value of it into an image file.

    A key whose value is null counts as absent. Raises InputError when the record is not well-formed, before anything is fetched.
    """
    item = checked_object(item, "the record is")
    images = _images(item)
    if item.get("conversations") is not None:
        turns = parse_turns(item["conversations"])
        _check_answers(turns)
        check_symbols(messages_of(turns), len(images))
        return StoredRecord(turns, [fetch(image) for image in images])
    key = next((key for key in CAPTION_KEYS if item.get(key) is not None), None)
    if key is None:
        raise InputError(
            f"the record has neither 'conversations' nor 'caption', only {shortened(list(item)) if item else 'nothing'}",
            cause="neither conversations nor caption",
        )
    caption = checked_text(item[key], f"'{key}'")
    _check_caption(caption, [], len(images))
    return StoredRecord([], [fetch(image) for image in images], caption)


def image_reader(folder: str) -> Callable[[object], ImageFile]:
    """What reads the image files of a record by their paths, absolute or relative to ``folder``."""

    def fetch(image: object) -> ImageFile:
        if not isinstance(image, str):
            raise InputError(f"an image is a JSON {type(image).__name__}, neither a path nor a list of paths")
        if not image.strip():
            raise InputError("the path of the image is empty")
        return read_image(files.join(folder, image))

    return fetch


def shortened(value: object) -> str:
    """``value`` as Python writes it, with the middle of what is long left out."""
    return reprlib.repr(value)


def checked_object(value: object, subject: str) -> Mapping:
    """``value`` if it is a JSON object; else InputError, which begins with ``subject``, such as "the line is"."""
    if not isinstance(value, Mapping):
        raise InputError(f"{subject} a JSON {type(value).__name__}, not an object")
    return value


def _images(item: Mapping) -> list[object]:
    keys = [key for key in IMAGE_KEYS if item.get(key) is not None]
    if len(keys) > 1:
        raise InputError(f"images stand under both {keys[0]!r} and {keys[1]!r}; keep one")
    images = item[keys[0]] if keys else []
    return images if isinstance(images, list) else [images]


def _check_answers(turns: Sequence[Turn]) -> None:
    for number, (_, answer) in enumerate(turns):
        if answer is not None and not answer.strip():
            raise InputError(f"message {2 * number + 1}, an answer, is empty; there is nothing to learn from it")


def _check_caption(caption: str | None, turns: Sequence[Turn], images: int) -> None:
    if caption is None:
        return
    if turns or images != 1:
        raise InputError(f"a record with a caption has one image and no turns, not {images} and {len(turns)}")
    if not caption.strip():
        raise InputError("the caption is empty; it asks for nothing")

"""A dialog as data: its turns, the pictures in them, and the line of JSON that holds both, in Lumina's own form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lumina_jax.conversation import SPEAKERS, Turn, check_symbols, explicit, messages_of, parse_turns, plain
from lumina_jax.errors import InputError
from lumina_jax.vocab import IMAGE_SYMBOL

DIALOG_FIELDS = ("conversations", "image", "images", "codes")
"""The fields of a line that holds a dialog."""


@dataclass(frozen=True)
class DialogPicture:
    """A picture of a dialog: what people see, RGB, and what the model sees, its codes i32[R C]."""

    image: Image.Image
    codes: np.ndarray


@dataclass(frozen=True)
class Dialog:
    """Turns, and the pictures that replace the ``<|image|>`` of their messages, in order and one each."""

    turns: tuple[Turn, ...] = ()
    pictures: tuple[DialogPicture, ...] = ()

    def __post_init__(self):
        check_symbols(messages_of(self.turns), len(self.pictures))

    @property
    def grids(self) -> list[np.ndarray]:
        """The codes of the pictures."""
        return [picture.codes for picture in self.pictures]

    @property
    def ended(self) -> bool:
        """Whether its last message is an answer, or there is none."""
        return not self.turns or self.turns[-1][1] is not None

    def messages(self) -> Iterator[tuple[str, list[str | DialogPicture]]]:
        """("human" or "gpt", the message as its texts and pictures in order) of every message."""
        pictures = iter(self.pictures)
        for speaker, message in _spoken_by(self.turns):
            spans = map(plain, message.split(IMAGE_SYMBOL))
            pieces = [next(spans)]
            for span in spans:
                pieces += [next(pictures), span]
            yield speaker, [piece for piece in pieces if piece != ""]


def dialog_record(dialog: Dialog, files: Sequence[str]) -> dict:
    """The JSON object of a dialog whose pictures stand in ``files``; :func:`parse_dialog` reads it again.

    It is a record of Lumina's data too: sources of training data read it.
    """
    record = {"conversations": [{"from": speaker, "value": message} for speaker, message in _spoken_by(dialog.turns)]}
    if dialog.pictures:
        record |= {"image": list(files), "codes": [grid.tolist() for grid in dialog.grids]}
    return record


def parse_dialog(record: Mapping) -> tuple[list[Turn], list[str], list[np.ndarray | None]]:
    """The turns, the files of the pictures, and their codes i32[R C] (None where they are to be read from the file) of a line.

    ``conversations`` as conversation.parse_turns takes it, ``image`` or ``images`` a file or a list of files, ``codes`` per
    picture the rows of its codes or null. Raises InputError naming what is wrong.
    """
    record = {name: value for name, value in record.items() if value is not None}
    turns = parse_turns(record.get("conversations"))
    if {"image", "images"} <= set(record):
        raise InputError("image and images are both given; give one of them", cause="image and images")
    files = record.get("image", record.get("images", []))
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise InputError("image must be a file or a list of files", cause="field of a wrong type")
    codes = record.get("codes", [None] * len(files))
    if not isinstance(codes, list) or len(codes) != len(files):
        raise InputError(
            f"codes is no list of {len(files)}, one per picture: rows of codes, or null",
            cause="codes not one per picture",
        )
    check_symbols(messages := messages_of(turns), len(files))
    if files and not any(IMAGE_SYMBOL in message for message in messages):
        turns[0] = (explicit(turns[0][0], len(files)), turns[0][1])
    return turns, files, [None if rows is None else _grid(rows, file) for rows, file in zip(codes, files, strict=True)]


def _spoken_by(turns: Sequence[Turn]) -> Iterator[tuple[str, str]]:
    """(speaker, message) of every message."""
    for turn in turns:
        yield from ((names[0], message) for names, message in zip(SPEAKERS, turn, strict=True) if message is not None)


def _grid(rows: object, file: str) -> np.ndarray:
    is_grid = isinstance(rows, list) and rows and all(isinstance(row, list) and len(row) for row in rows)
    if not is_grid or len(set(map(len, rows))) > 1 or not all(type(code) is int for row in rows for code in row):
        raise InputError(
            f"the codes of {file} are no rows of whole numbers of one length; write null to have them read from the picture",
            cause="codes that are no grid",
        )
    if not all(0 <= code < 1 << 31 for row in rows for code in row):
        raise InputError(f"the codes of {file} hold a negative or too large number", cause="codes out of range")
    return np.array(rows, np.int32)

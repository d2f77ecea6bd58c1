"""Where records come from: one small interface, and Lumina's JSON files behind it."""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from lumina_jax.conversation import Turn, image_prompt
from lumina_jax.vocab import IMAGE_SYMBOL

IMAGE_KEYS = ("image", IMAGE_SYMBOL)
CAPTION_KEYS = ("caption", "text")
SPEAKERS = (("human",), ("gpt", "assistant"))


@dataclass(frozen=True)
class Record:
    """A conversation and its images, neither cropped nor tokenized.

    ``images`` fill the ``<|image|>`` symbols of ``turns`` in order (see conversation.tokenize). A record with a ``caption``
    has no turns and one image: its conversation asks for that image at the size it will be cropped to.
    """

    turns: list[Turn]
    images: list[Image.Image]
    caption: str | None = None

    def __post_init__(self):
        if self.caption is not None and (self.turns or len(self.images) != 1):
            raise ValueError(
                f"a record with a caption has one image and no turns, not {len(self.images)} and {len(self.turns)}"
            )

    def conversation(self, sizes: Sequence[tuple[int, int]]) -> list[Turn]:
        """The turns, once ``sizes``, the (width, height) in pixels of each crop, are known."""
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
        """Raises ValueError or OSError for a bad record; the text of the error is the reason of its rejection."""


class JsonSource:
    """Records of a JSON list or a JSONL file (original: FinetuneConversationDataset).

    A record is ``{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...], "image": ...}``
    with one path or a list of paths under ``image`` (or ``<|image|>``), or ``{"image": ..., "caption": ...}`` (or ``text``),
    which asks for the image by its caption. Paths are relative to the file's folder, or absolute.

    A JSON list is held in memory; of JSONL only the places of the lines are, so large sets belong there. Raises
    FileNotFoundError, or ValueError when a file that begins with ``[`` is no JSON list.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no file {self.path}; a JSON list or a JSONL file of records is expected there")
        with open(self.path, "rb") as file:
            is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        if is_list:
            content = self.path.read_bytes()
            self._items = _parse_list(content, self.path)
            self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        else:
            self._items = None
            self._spans, self.fingerprint = index_lines(self.path)

    def __len__(self) -> int:
        return len(self._spans if self._items is None else self._items)

    def __getitem__(self, index: int) -> Record:
        return parse_record(self._item(index), self.path.parent)

    def _item(self, index: int) -> object:
        if self._items is not None:
            return self._items[index]
        start, stop = self._spans[index]
        # A file of its own per read: nothing is shared between threads or with child processes.
        with open(self.path, "rb") as file:
            file.seek(start)
            return json.loads(file.read(stop - start))


def index_lines(path: Path, chunk: int = 1 << 24) -> tuple[np.ndarray, str]:
    """The i64[n 2] byte spans of the n lines of a file that are not empty, and 16 hex digits of its content's SHA-256."""
    digest, ends, size = hashlib.sha256(), [], 0
    with open(path, "rb") as file:
        while block := file.read(chunk):
            digest.update(block)
            ends.append(size + np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")))
            size += len(block)
    stops = np.concatenate([*ends, [size]]).astype(np.int64)
    starts = np.concatenate([[0], stops[:-1] + 1])
    return np.stack([starts, stops], 1)[stops > starts], digest.hexdigest()[:16]


def parse_record(item: object, folder: Path) -> Record:
    """One JSON value -> its Record, image paths taken relative to ``folder``; ValueError or OSError when it is not well-formed."""
    if not isinstance(item, Mapping):
        raise ValueError(f"the record is a JSON {type(item).__name__}, not an object")
    images = [open_image(folder / path) for path in _image_paths(item)]
    if "conversations" in item:
        return Record(_parse_turns(item["conversations"]), images)
    key = next((key for key in CAPTION_KEYS if key in item), None)
    if key is None:
        raise ValueError(f"the record has neither 'conversations' nor 'caption', only {', '.join(item) or 'nothing'}")
    return Record([], images, _checked_text(item[key], f"'{key}'"))


def open_image(path: Path) -> Image.Image:
    """Reads an image whole, so that a damaged one fails here: OSError or ValueError naming the file."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (
        SyntaxError,
        EOFError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:  # also how Pillow says "damaged"
        raise ValueError(f"{path}: {error}") from error
    except OSError as error:
        raise OSError(f"{path}: {error.strerror or error}") from error


def _parse_list(content: bytes, path: Path) -> list[object]:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} begins like a JSON list but is none: {error}") from error


def _image_paths(item: Mapping) -> list[str]:
    keys = [key for key in IMAGE_KEYS if item.get(key) is not None]
    if len(keys) > 1:
        raise ValueError(f"images stand under both {keys[0]!r} and {keys[1]!r}; keep one")
    paths = item[keys[0]] if keys else []
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{keys[0]!r} is neither a path nor a list of paths")
    return paths


def _parse_turns(messages: object) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        raise ValueError("'conversations' is not a list of at least one message")
    texts: list[str | None] = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {number} of the conversation is not an object with 'from' and 'value'")
        if (speaker := message.get("from")) not in SPEAKERS[number % 2]:
            raise ValueError(f"message {number} is from {speaker!r}; human and gpt must take turns, human first")
        value = message.get("value")
        unanswered = value is None and number % 2 == 1 and number == len(messages) - 1
        texts.append(None if unanswered else _checked_text(value, f"the value of message {number}"))
    return list(zip_longest(texts[::2], texts[1::2]))


def _checked_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is a JSON {type(value).__name__}, not a text")
    value.encode()  # JSON can spell half a surrogate pair, which no tokenizer takes: UnicodeEncodeError is a ValueError
    return value

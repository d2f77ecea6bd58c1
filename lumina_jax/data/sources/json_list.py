"""Lumina's own files: a JSON list or JSONL of conversations and captions, local or remote."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lumina_jax.data.sources import files, json_spans
from lumina_jax.data.sources.record import StoredRecord, StoredSource, image_reader, stored_record
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.errors import InputError, MissingFileError, prefixed_errors
from lumina_jax.text import parse_json


def unchanged(item: object) -> object:
    return item


class JsonSource(StoredSource):
    """Records of a JSON list or a JSONL file (original: FinetuneConversationDataset).

    A record is ``{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...], "image": ...}``
    with one path or a list of paths under ``image`` (or ``<|image|>``), or ``{"image": ..., "caption": ...}`` (or ``text``),
    whose conversation asks for the image. The file and the images may be local or remote (see files). Image paths are absolute
    or relative to ``folder``, by default the folder of the file. ``adapt`` converts records of other forms into this one.

    In memory are only the byte spans of the records (see TextFile). Raises MissingFileError, or InputError when the file is no
    text, begins with ``[`` and is no complete JSON list, or is one JSON object that holds the records.
    """

    def __init__(self, path: str | Path, folder: str | None = None, adapt: Callable[[object], object] = unchanged):
        self.path = str(path)
        if not files.is_remote(self.path) and not os.path.isfile(self.path):
            raise MissingFileError(f"no file {self.path}; a JSON list or a JSONL file of records is expected there")
        self.folder = files.folder_of(self.path) if folder is None else folder
        self._adapt = adapt
        self._text = TextFile(self.path)
        if json_spans.begins_list(self._text):
            self._spans, self.fingerprint = json_spans.index_list(self._text)
        else:
            self._spans, self.fingerprint = json_spans.index_lines(self._text)
            _check_no_container(self._text, self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def stored(self, index: int) -> StoredRecord:
        with prefixed_errors(f"{self.path}, record {index}"):
            return stored_record(self.item(index), image_reader(self.folder))

    def item(self, index: int) -> object:
        """The JSON of record ``index``, which should have Lumina's form, not checked; InputError when it is no JSON."""
        return self._adapt(parse_json(self._text.text(*map(int, self._spans[index]))))


def _check_no_container(text: TextFile, spans: np.ndarray) -> None:
    """InputError when the file is one JSON object, over several lines or around the list of records."""
    lines = [text.read(*map(int, span)).strip() for span in spans[:2]]
    values = [_value(line) for line in lines]
    if values == [None, None] and lines[0].startswith(b"{") and lines[0].endswith((b"{", b"[")):
        raise InputError(
            f"{text.path} is a JSON object over several lines; give a JSON list, or JSON Lines with a record on each line "
            "(jq -c . FILE writes them; jq .KEY FILE takes out the list under a key)"
        )
    if len(values) == 1 and isinstance(values[0], Mapping) and text.path.endswith(".json"):
        lists = [
            key
            for key, value in values[0].items()
            if isinstance(value, list) and isinstance(next(iter(value), 0), Mapping)
        ]
        if lists and "conversations" not in values[0]:
            raise InputError(
                f"{text.path} is one JSON object, not a list of records; if they are the list under {lists[0]!r}, take it out: "
                f"jq '.[{json.dumps(lists[0])}]' FILE"
            )


def _value(line: bytes) -> object:
    """The JSON value of a line, None where it is none."""
    try:
        return parse_json(line)
    except InputError:
        return None

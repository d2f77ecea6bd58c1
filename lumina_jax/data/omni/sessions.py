"""Sessions of edits as they are published: MagicBrush as Parquet and as folders, SEED-Data-Edit as JSON lines."""

import hashlib
import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lumina_jax.data.sources import files, json_spans
from lumina_jax.data.sources.images import ImageFile, read_image
from lumina_jax.data.sources.lru import Recent
from lumina_jax.errors import InputError

KEPT_GROUPS = 2
"""Row groups of Parquet in memory: each holds hundreds of pictures."""
ID, TURN, BEFORE, TOLD, AFTER = "img_id", "turn_index", "source_img", "instruction", "target_img"

T = TypeVar("T")


@dataclass(frozen=True)
class Edit:
    """One change: what stands for the picture before, what is said, what stands for the picture after."""

    before: object
    told: object
    after: object


class Sessions(Protocol):
    """Numbered sequences of edits, each edit going on where the one before it ended."""

    lengths: np.ndarray
    fingerprint: str

    def name(self, session: int) -> str:
        """What a session is called by when it is bad."""

    def edits(self, session: int, first: int, end: int) -> Sequence[Edit]:
        """The edits from ``first`` up to ``end`` of a session; ValueError when one is not well-formed."""

    def fetch(self, image: object) -> ImageFile:
        """What stands for a picture -> its file; ValueError or OSError when there is none."""


class MagicBrushParquet:
    """MagicBrush as Hugging Face has it: a row for each turn, with the pictures before and after it, mask-free.

    Rows that follow each other with one ``img_id`` and a rising ``turn_index`` are a session. In memory are 20 bytes a
    session and KEPT_GROUPS row groups.
    """

    def __init__(self, pattern: str):
        self.places = files.expand(pattern)
        digest, ends, ids, turns = hashlib.sha256(), [0], [], []
        for place in self.places:
            with files.open_binary(place) as file:
                table = _read(place, lambda file=file: pq.read_table(file, columns=[ID, TURN, TOLD]))
            ids += table[ID].to_pylist()
            turns += table[TURN].to_pylist()
            ends.append(len(ids))
            digest.update(f"{posixpath.basename(place)} {files.size(place)} {table[TOLD].to_pylist()}".encode())
        begins = [
            row
            for row in range(len(ids))
            if not row or ids[row] != ids[row - 1] or turns[row] != (turns[row - 1] or 0) + 1
        ]
        self._starts = np.array(begins, np.int64)
        self.lengths = np.diff(self._starts, append=len(ids))
        self._ends = np.array(ends, np.int64)
        self._groups = [self._rows_of_groups(place) for place in self.places]
        self.fingerprint = digest.hexdigest()[:16]
        self._recent: Recent[pa.Table] = Recent(KEPT_GROUPS)

    def name(self, session: int) -> str:
        file, row = self._place(int(self._starts[session]))
        return f"{self.places[file]}, row {row}"

    def edits(self, session: int, first: int, end: int) -> Sequence[Edit]:
        start = int(self._starts[session])
        rows = [self._row(row) for row in range(start + first, start + end)]
        return [Edit(row[BEFORE], row[TOLD], row[AFTER]) for row in rows]

    def fetch(self, image: object) -> ImageFile:
        if not isinstance(image, Mapping) or not isinstance(image.get("bytes"), bytes):
            raise InputError("a picture is no {bytes, path}")
        return ImageFile(str(image.get("path") or "a picture"), image["bytes"])

    def _place(self, row: int) -> tuple[int, int]:
        """The number of the file that holds a row of all, and its number there."""
        file = int(np.searchsorted(self._ends, row, side="right")) - 1
        return file, row - int(self._ends[file])

    def _row(self, row: int) -> Mapping:
        file, row = self._place(row)
        group = int(np.searchsorted(self._groups[file], row, side="right")) - 1
        table = self._recent.get((file, group), lambda: self._read_group(file, group))
        (values,) = table.slice(row - int(self._groups[file][group]), 1).to_pylist()
        return values

    def _rows_of_groups(self, place: str) -> np.ndarray:
        with files.open_binary(place) as file:
            described = _read(place, lambda: pq.read_metadata(file))
        counts = [described.row_group(number).num_rows for number in range(described.num_row_groups)]
        return np.cumsum([0, *counts])

    def _read_group(self, file: int, group: int) -> pa.Table:
        place = self.places[file]
        with files.open_binary(place) as held:
            return _read(place, lambda: pq.ParquetFile(held).read_row_group(group, columns=[BEFORE, TOLD, AFTER]))


class MagicBrushFolder:
    """MagicBrush's own folders: edit_sessions.json, and the pictures of image 139306 in images/139306/."""

    def __init__(self, folder: str):
        self._images = files.join(folder, "images")
        self.place = files.join(folder, "edit_sessions.json")
        content = files.read(self.place)
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        held = json.loads(content)
        if not isinstance(held, dict):
            raise InputError(f"{self.place} holds a JSON {type(held).__name__}, not an object of sessions by image")
        self._held = list(held.items())
        self.lengths = np.array([len(turns) if isinstance(turns, list) else 1 for _, turns in self._held], np.int64)

    def name(self, session: int) -> str:
        return f"{self.place}, image {self._held[session][0]}"

    def edits(self, session: int, first: int, end: int) -> Sequence[Edit]:
        turns = self._held[session][1]
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
            raise InputError("the session is no list of at least one turn with input, instruction and output")
        return [Edit(turn.get("input"), turn.get("instruction"), turn.get("output")) for turn in turns[first:end]]

    def fetch(self, image: object) -> ImageFile:
        if not isinstance(image, str):
            raise InputError(f"a picture is called {image!r}, not by the name of its file")
        return read_image(files.join(self._images, f"{image.partition('-')[0]}/{image}"))


class SeedSessions:
    """SEED-Data-Edit: annotations/split_*.jsonl and images/ in a folder real_editing or multi_turn_editing.

    A line has source_image, instruction and target_image; or source_image, instruction_1, edit_image_1, instruction_2, and
    so on. Every line is read once to count its turns; 28 bytes a line stay in memory.
    """

    def __init__(self, folder: str):
        self._images = files.join(folder, "images")
        self.places = files.expand(files.join(folder, "annotations/split_*.jsonl"))
        digest, found = hashlib.sha256(), []
        for number, place in enumerate(self.places):
            lines, fingerprint = json_spans.index_lines(place)
            digest.update(fingerprint.encode())
            content = files.read(place)
            found += [(number, start, end, _turns(content[start:end])) for start, end in lines]
        self._lines = np.array(found, np.int64).reshape(-1, 4)
        self.lengths = self._lines[:, 3]
        self.fingerprint = digest.hexdigest()[:16]

    def name(self, session: int) -> str:
        number, start = map(int, self._lines[session, :2])
        return f"{self.places[number]}, line at byte {start}"

    def edits(self, session: int, first: int, end: int) -> Sequence[Edit]:
        number, start, stop, turns = map(int, self._lines[session])
        item = json.loads(files.read(self.places[number], start, stop))
        if not isinstance(item, Mapping):
            raise InputError(f"the line is a JSON {type(item).__name__}, not an object")
        if "target_image" in item:
            return [Edit(item.get("source_image"), item.get("instruction"), item["target_image"])]
        pictures = [item.get("source_image"), *(item.get(f"edit_image_{turn}") for turn in range(1, turns + 1))]
        told = [item.get(f"instruction_{turn}") for turn in range(1, turns + 1)]
        edits = zip(pictures[first:end], told[first:end], pictures[first + 1 : end + 1], strict=True)
        return [Edit(*edit) for edit in edits]

    def fetch(self, image: object) -> ImageFile:
        if not isinstance(image, str) or not image:
            raise InputError(f"a picture is called {image!r}, not by the path of its file")
        return read_image(files.join(self._images, image))


def _turns(line: bytes) -> int:
    """How many turns a line of SEED-Data-Edit has: at least one, so that a malformed one becomes a bad record."""
    try:
        item = json.loads(line)
    except ValueError:
        return 1
    turn = 1
    while isinstance(item, Mapping) and (item.get(f"instruction_{turn + 1}") or item.get(f"edit_image_{turn + 1}")):
        turn += 1
    return turn


def _read(place: str, read: Callable[[], T]) -> T:
    """What ``read`` reads of a Parquet file; ValueError naming it when it is damaged."""
    try:
        return read()
    except (OSError, pa.ArrowException, KeyError) as error:  # OSError is also how pyarrow says "damaged"
        raise InputError(f"{place}: {str(error).strip()}") from error

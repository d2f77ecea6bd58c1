"""Published editing sessions: MagicBrush as Parquet and as folders, SEED-Data-Edit as JSON lines.

A session is a sequence of edits, each of which starts from the picture after the one before; ``lengths`` i64[n] counts the edits of
each. ``name`` is how errors call a session. ``edits`` are those from ``first`` to ``end`` - 1; ValueError when one is not
well-formed. ``fetch`` turns a picture value of an edit into its image file; ValueError or OSError when there is none.
"""

import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lumina_jax.data.sources import files, json_spans
from lumina_jax.data.sources.images import ImageFile, read_image
from lumina_jax.data.sources.lru import LRUCache
from lumina_jax.data.sources.record import checked_object
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.text import parse_json

CACHED_GROUPS = 2
"""Parquet row groups in memory. Each holds hundreds of pictures."""
ID, TURN, BEFORE, INSTRUCTION, AFTER = "img_id", "turn_index", "source_img", "instruction", "target_img"

DAMAGED = (OSError, pa.ArrowException, KeyError)
"""What pyarrow raises for a damaged Parquet file."""


@dataclass(frozen=True)
class SessionEdit:
    """One edit: picture before, instruction, picture after. ``fetch`` turns a picture value into its file."""

    before: object
    instruction: object
    after: object


class MagicBrushParquet:
    """MagicBrush as on Hugging Face: a row for each turn, with the pictures before and after it. Masks are not read.

    Consecutive rows of one ``img_id`` with rising ``turn_index`` are a session. In memory are 20 bytes a session and
    CACHED_GROUPS row groups.
    """

    def __init__(self, pattern: str):
        self.paths = files.expand(pattern)
        digest, ends, ids, turns = hashlib.sha256(), [0], [], []
        for path in self.paths:
            with files.open_binary(path) as file, prefixed_errors(path, *DAMAGED):
                table = pq.read_table(file, columns=[ID, TURN, INSTRUCTION])
            ids += table[ID].to_pylist()
            turns += table[TURN].to_pylist()
            ends.append(len(ids))
            digest.update(f"{posixpath.basename(path)} {files.size(path)} {table[INSTRUCTION].to_pylist()}".encode())
        begins = [
            row
            for row in range(len(ids))
            if not row or ids[row] != ids[row - 1] or turns[row] != (turns[row - 1] or 0) + 1
        ]
        self._starts = np.array(begins, np.int64)
        self.lengths = np.diff(self._starts, append=len(ids))
        self._ends = np.array(ends, np.int64)
        self._groups = [self._group_starts(path) for path in self.paths]
        self.fingerprint = digest.hexdigest()[:16]
        self._cache: LRUCache[pa.Table] = LRUCache(CACHED_GROUPS)

    def name(self, session: int) -> str:
        file, row = self._locate(int(self._starts[session]))
        return f"{self.paths[file]}, row {row}"

    def edits(self, session: int, first: int, end: int) -> Sequence[SessionEdit]:
        start = int(self._starts[session])
        rows = [self._row(row) for row in range(start + first, start + end)]
        return [SessionEdit(row[BEFORE], row[INSTRUCTION], row[AFTER]) for row in rows]

    def fetch(self, image: object) -> ImageFile:
        if not isinstance(image, Mapping) or not isinstance(image.get("bytes"), bytes):
            raise InputError("a picture is no {bytes, path}")
        return ImageFile(str(image.get("path") or "a picture"), image["bytes"])

    def _locate(self, row: int) -> tuple[int, int]:
        """The file that holds a row, counted over all files, and the row's number in it."""
        file = int(np.searchsorted(self._ends, row, side="right")) - 1
        return file, row - int(self._ends[file])

    def _row(self, row: int) -> Mapping:
        file, row = self._locate(row)
        group = int(np.searchsorted(self._groups[file], row, side="right")) - 1
        table = self._cache.get((file, group), lambda: self._read_group(file, group))
        (values,) = table.slice(row - int(self._groups[file][group]), 1).to_pylist()
        return values

    def _group_starts(self, path: str) -> np.ndarray:
        """The first row of each row group of a file, and the number of rows, i64[groups + 1]."""
        with files.open_binary(path) as file, prefixed_errors(path, *DAMAGED):
            metadata = pq.read_metadata(file)
        counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        return np.cumsum([0, *counts])

    def _read_group(self, file: int, group: int) -> pa.Table:
        path, columns = self.paths[file], [BEFORE, INSTRUCTION, AFTER]
        with files.open_binary(path) as parquet, prefixed_errors(path, *DAMAGED):
            return pq.ParquetFile(parquet).read_row_group(group, columns=columns)


class MagicBrushFolder:
    """A folder of MagicBrush's test set: edit_sessions.json, and the pictures of image 139306 in images/139306/."""

    def __init__(self, folder: str):
        self._images = files.join(folder, "images")
        self.path = files.join(folder, "edit_sessions.json")
        content = files.read(self.path)
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        with prefixed_errors(f"{self.path} cannot be read; download it again"):
            sessions = parse_json(content)
        if not isinstance(sessions, dict):
            raise InputError(f"{self.path} holds a JSON {type(sessions).__name__}, not an object of sessions by image")
        self._sessions = list(sessions.items())
        self.lengths = np.array([len(turns) if isinstance(turns, list) else 1 for _, turns in self._sessions], np.int64)

    def name(self, session: int) -> str:
        return f"{self.path}, image {self._sessions[session][0]}"

    def edits(self, session: int, first: int, end: int) -> Sequence[SessionEdit]:
        turns = self._sessions[session][1]
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
            raise InputError("the session is no list of at least one turn with input, instruction and output")
        return [SessionEdit(*map(turn.get, ("input", "instruction", "output"))) for turn in turns[first:end]]

    def fetch(self, image: object) -> ImageFile:
        if not isinstance(image, str):
            raise InputError(f"a picture is {image!r}, not the name of a file")
        return read_image(files.join(self._images, f"{image.partition('-')[0]}/{image}"))


class SeedSessions:
    """SEED-Data-Edit: annotations/split_*.jsonl and images/ in a folder real_editing or multi_turn_editing.

    A line has source_image, instruction and target_image; or source_image, instruction_1, edit_image_1, instruction_2, and
    so on. Opening reads every line once to count its turns; a line takes 28 bytes of memory.
    """

    def __init__(self, folder: str):
        self._images = files.join(folder, "images")
        self._texts = [TextFile(path) for path in files.expand(files.join(folder, "annotations/split_*.jsonl"))]
        digest, lines = hashlib.sha256(), []
        for number, text in enumerate(self._texts):
            spans, fingerprint = json_spans.index_lines(text)
            digest.update(fingerprint.encode())
            lines += [(number, start, end, _turns(text, start, end)) for start, end in spans.tolist()]
        self._lines = np.array(lines, np.int64).reshape(-1, 4)
        self.lengths = self._lines[:, 3]
        self.fingerprint = digest.hexdigest()[:16]

    def name(self, session: int) -> str:
        number, start = map(int, self._lines[session, :2])
        return f"{self._texts[number].path}, line at byte {start}"

    def edits(self, session: int, first: int, end: int) -> Sequence[SessionEdit]:
        number, start, stop, turns = map(int, self._lines[session])
        item = checked_object(parse_json(self._texts[number].text(start, stop)), "the line is")
        if "target_image" in item:
            return [SessionEdit(item.get("source_image"), item.get("instruction"), item["target_image"])]
        pictures = [item.get("source_image"), *(item.get(f"edit_image_{turn}") for turn in range(1, turns + 1))]
        instructions = [item.get(f"instruction_{turn}") for turn in range(1, turns + 1)]
        edits = zip(pictures[first:end], instructions[first:end], pictures[first + 1 : end + 1], strict=True)
        return [SessionEdit(*edit) for edit in edits]

    def fetch(self, image: object) -> ImageFile:
        if not isinstance(image, str) or not image:
            raise InputError(f"a picture is {image!r}, not the path of a file")
        return read_image(files.join(self._images, image))


Sessions = MagicBrushParquet | MagicBrushFolder | SeedSessions


def _turns(text: TextFile, start: int, stop: int) -> int:
    """The number of turns of a line of SEED-Data-Edit; 1 for a malformed line, to make it a bad record."""
    try:
        item = parse_json(text.text(start, stop))
    except InputError:
        return 1
    turn = 1
    while isinstance(item, Mapping) and (item.get(f"instruction_{turn + 1}") or item.get(f"edit_image_{turn + 1}")):
        turn += 1
    return turn

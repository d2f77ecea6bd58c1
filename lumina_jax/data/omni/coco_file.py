"""COCO's annotation files: one JSON object of long lists, of which only the places of the values are held."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from lumina_jax.data.sources import files
from lumina_jax.errors import InputError

BLANK = re.compile(r"[ \t\r\n]*")
NO_IMAGE = -1


def members(content: bytes, keys: Collection[str]) -> Iterator[tuple[str, int, int, object]]:
    """(key, first byte, end, value) of every value in the lists under ``keys`` of a JSON object, in the file's order.

    One value is decoded at a time; its texts are right only as far as they are ASCII. ValueError where it is no JSON.
    """
    text = content.decode("latin-1")  # one letter a byte, so that places in the text are places in the file
    decode = json.JSONDecoder().raw_decode
    at = _past(text, 0, "{")
    while text[at : at + 1] != "}":
        key, at = decode(text, at)
        at = _past(text, _skip(text, at), ":")
        if key not in keys or text[at : at + 1] != "[":
            at = decode(text, at)[1]
        else:
            at = _past(text, at, "[")
            while text[at : at + 1] != "]":
                value, end = decode(text, at)
                yield key, at, end, value
                at = _behind_value(text, end, "]")
            at += 1
        at = _behind_value(text, at, "}")


class CocoFile:
    """The images of a COCO annotation file, each with its annotations: ``images`` and ``annotations`` joined by id.

    Those without an annotation that ``keep`` keeps do not count. An annotation of no image is an entry without an image.
    40 bytes an image and annotation are in memory; the file itself only while it is opened. Raises OSError, or ValueError
    when the file is not one whole JSON object.
    """

    def __init__(self, place: str, keep: Callable[[Mapping], bool]):
        self.place = place
        content = files.read(place)
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        images, annotations = Places(), Places()
        try:
            for key, start, end, value in members(content, ("images", "annotations")):
                if key == "images":
                    images.add(start, end, _number(value, "id"))
                elif not isinstance(value, Mapping) or keep(value):
                    annotations.add(start, end, _number(value, "image_id"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is no whole JSON object: {error}; download it again") from error
        self._images, ids = images.arrays()
        self._annotations, owners = annotations.arrays()
        by_id = np.argsort(ids, kind="stable")
        places = np.searchsorted(ids, owners, sorter=by_id)
        # An annotation of no image stands behind all images, an entry of its own.
        rows = len(ids) + np.arange(len(owners))
        known = places < len(ids)
        known[known] = ids[by_id[places[known]]] == owners[known]
        known &= owners != NO_IMAGE
        rows[known] = by_id[places[known]]
        self._order = np.argsort(rows, kind="stable")
        self._rows, self._starts = np.unique(rows[self._order], return_index=True)

    def __len__(self) -> int:
        return len(self._rows)

    def entry(self, index: int) -> tuple[Mapping, list[Mapping]]:
        """Image ``index`` and its annotations; ValueError naming the annotation that has none, or what is no object."""
        if not 0 <= index < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        stop = self._starts[index + 1] if index + 1 < len(self._starts) else len(self._order)
        mine = [self._read(self._annotations[place]) for place in self._order[self._starts[index] : stop]]
        if (row := self._rows[index]) >= len(self._images):
            raise InputError(
                f"annotation {mine[0].get('id')} is of image {mine[0].get('image_id')}, which is not listed"
            )
        return self._read(self._images[row]), mine

    def _read(self, span: np.ndarray) -> Mapping:
        value = json.loads(files.read(self.place, int(span[0]), int(span[1])))
        if not isinstance(value, Mapping):
            raise InputError(f"at byte {span[0]} stands a JSON {type(value).__name__}, not an object")
        return value


class Places:
    """Where values lie in a file, and a number for each."""

    def __init__(self):
        self._held: list[tuple[int, int, int]] = []

    def add(self, start: int, end: int, number: int) -> None:
        self._held.append((start, end, number))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Spans i64[n 2] and numbers i64[n]."""
        held = np.array(self._held, np.int64).reshape(-1, 3)
        return held[:, :2].copy(), held[:, 2].copy()


def _number(value: object, key: str) -> int:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, int) and 0 <= found < 1 << 62 else NO_IMAGE


def _skip(text: str, at: int) -> int:
    return BLANK.match(text, at).end()


def _past(text: str, at: int, letter: str) -> int:
    """Where the next thing stands behind ``letter``, which stands at ``at`` up to blanks."""
    at = _skip(text, at)
    if text[at : at + 1] != letter:
        raise InputError(f"expected {letter!r} at byte {at}, found {text[at : at + 8]!r}")
    return _skip(text, at + 1)


def _behind_value(text: str, at: int, closing: str) -> int:
    """Where the next value, or the ``closing`` bracket, stands."""
    at = _skip(text, at)
    return at if text[at : at + 1] == closing else _past(text, at, ",")

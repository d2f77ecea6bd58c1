"""COCO's annotation files: one JSON object of long lists; only the byte spans of their values stay in memory."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from lumina_jax.data.sources.record import checked_object
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.errors import InputError
from lumina_jax.text import parse_json

BLANK = re.compile(r"[ \t\r\n]*")
NO_IMAGE = -1


def members(content: bytes, keys: Collection[str]) -> Iterator[tuple[str, int, int, object]]:
    """(key, first byte, end, value) of every value in the lists under ``keys`` of a JSON object, in the order of the file.

    Decodes one value at a time; only ASCII letters of its strings are right. Raises ValueError where it is no JSON.
    """
    text = content.decode("latin-1")  # one letter per byte, so that offsets in the text are offsets in the file
    decode = json.JSONDecoder().raw_decode
    offset = _expect(text, 0, "{")
    while text[offset : offset + 1] != "}":
        key, offset = decode(text, offset)
        offset = _expect(text, offset, ":")
        if key not in keys or text[offset : offset + 1] != "[":
            offset = decode(text, offset)[1]
        else:
            offset = _expect(text, offset, "[")
            while text[offset : offset + 1] != "]":
                value, end = decode(text, offset)
                yield key, offset, end, value
                offset = _after_value(text, end, "]")
            offset += 1
        offset = _after_value(text, offset, "}")


class CocoFile:
    """The images of a COCO annotation file with their annotations: ``images`` and ``annotations`` joined by id.

    Images without an annotation for which ``keep`` is true are left out. An annotation without an image is an entry of its own,
    which cannot be read. Each image and annotation takes 40 bytes of memory; the file is in memory only while this opens it.
    Raises InputError when the file is not one complete JSON object.
    """

    def __init__(self, path: str, keep: Callable[[Mapping], bool]):
        self.path = path
        self._text, digest = TextFile(path), hashlib.sha256()
        content = b"".join(self._text.blocks(digest.update))
        self.fingerprint = digest.hexdigest()[:16]
        spans: dict[str, list[tuple[int, int, int]]] = {"images": [], "annotations": []}
        try:
            for key, start, end, value in members(content, spans):
                if key == "images" or not isinstance(value, Mapping) or keep(value):
                    spans[key].append((start, end, _number(value, "id" if key == "images" else "image_id")))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no complete JSON object: {error}; download it again") from error
        images, annotations = (np.array(rows, np.int64).reshape(-1, 3) for rows in spans.values())
        self._images, ids = images[:, :2].copy(), images[:, 2]
        self._annotations, owners = annotations[:, :2].copy(), annotations[:, 2]
        by_id = np.argsort(ids, kind="stable")
        rank = np.searchsorted(ids, owners, sorter=by_id)
        # Annotations without an image get rows of their own after those of all images.
        rows = len(ids) + np.arange(len(owners))
        known = rank < len(ids)
        known[known] = ids[by_id[rank[known]]] == owners[known]
        known &= owners != NO_IMAGE
        rows[known] = by_id[rank[known]]
        self._order = np.argsort(rows, kind="stable")
        self._rows, self._starts = np.unique(rows[self._order], return_index=True)

    def __len__(self) -> int:
        return len(self._rows)

    def entry(self, index: int) -> tuple[Mapping, list[Mapping]]:
        """Image ``index`` and its annotations; InputError when the image is not listed or a value is no object."""
        stop = self._starts[index + 1] if index + 1 < len(self._starts) else len(self._order)
        annotations = [self._read(self._annotations[number]) for number in self._order[self._starts[index] : stop]]
        if (row := self._rows[index]) >= len(self._images):
            raise InputError(
                f"annotation {annotations[0].get('id')} is of image {annotations[0].get('image_id')}, which is not listed"
            )
        return self._read(self._images[row]), annotations

    def _read(self, span: np.ndarray) -> Mapping:
        value = parse_json(self._text.text(int(span[0]), int(span[1])))
        return checked_object(value, f"the value at byte {span[0]} is")


def _number(value: object, key: str) -> int:
    number = value.get(key) if isinstance(value, Mapping) else None
    return number if isinstance(number, int) and 0 <= number < 1 << 62 else NO_IMAGE


def _skip_blanks(text: str, offset: int) -> int:
    return BLANK.match(text, offset).end()


def _expect(text: str, offset: int, letter: str) -> int:
    """The offset of what follows ``letter``, which must come next, blanks left out."""
    offset = _skip_blanks(text, offset)
    if text[offset : offset + 1] != letter:
        raise InputError(f"expected {letter!r} at byte {offset}, found {text[offset : offset + 8]!r}")
    return _skip_blanks(text, offset + 1)


def _after_value(text: str, offset: int, closing: str) -> int:
    """The offset of the next value or of the ``closing`` bracket."""
    offset = _skip_blanks(text, offset)
    return offset if text[offset : offset + 1] == closing else _expect(text, offset, ",")

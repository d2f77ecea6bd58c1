"""Captions in a separate file, looked up by the path of the photo."""

import contextlib
import hashlib
import posixpath
from collections.abc import Mapping

import numpy as np

from lumina_jax.data.omni.coco_file import CocoFile
from lumina_jax.data.sources import json_spans
from lumina_jax.data.sources.adapters import pair
from lumina_jax.data.sources.record import checked_object
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.text import checked_text, parse_json


class LineCaptions:
    """Lines ``{"image": PATH, "caption": TEXT}`` of a JSONL file, under any usual keys (adapters.pair); 24 bytes of memory each.

    A line that cannot be read is the caption of no photo; InputError when that is so of every line.
    """

    def __init__(self, path: str):
        self.path, self._text = path, TextFile(path)
        self._spans, self.fingerprint = json_spans.index_lines(self._text)
        keys, good, errors = [], [], []
        for number, span in enumerate(self._spans):
            try:
                keys.append(_key(self._read(span).get("image")))
                good.append(number)
            except InputError as error:
                errors.append(error)
        if errors and not good:
            raise errors[0]
        self._spans, keys = self._spans[good], np.array(keys, np.uint64)
        self._unread = f"; {len(errors)} of its lines cannot be read, the first: {errors[0]}" if errors else ""
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def of(self, photo: str) -> str:
        """The caption of the photo with this path; InputError when there is none."""
        key = np.uint64(_key(photo))
        first, end = (int(np.searchsorted(self._keys, key, side)) for side in ("left", "right"))
        for line in self._order[first:end]:
            item = self._read(self._spans[line])
            if item.get("image") == photo:
                return _caption(item.get("caption"), f"{self.path}, byte {self._spans[line, 0]}")
        raise InputError(
            f"{self.path} has no caption of {photo}; add one, or leave the photo out with match={self._unread}"
        )

    def _read(self, span: np.ndarray) -> Mapping:
        with prefixed_errors(f"{self.path}, byte {span[0]}"):
            item = pair(parse_json(self._text.text(*map(int, span))))
        return checked_object(item, f"{self.path}, byte {span[0]}:")


class CocoCaptions:
    """The first caption of each image of COCO's captions_train2017.json or a file like it."""

    def __init__(self, path: str):
        self.path = path
        coco = CocoFile(path, lambda annotation: "caption" in annotation)
        self.fingerprint = coco.fingerprint
        self._captions: dict[object, object] = {}
        for index in range(len(coco)):
            with contextlib.suppress(InputError):  # a damaged entry is the caption of no photo
                image, annotations = coco.entry(index)
                self._captions[str(image.get("file_name"))] = annotations[0].get("caption")

    def of(self, photo: str) -> str:
        """The caption of the photo with this path or name; InputError when there is none."""
        name = posixpath.basename(photo)
        if name not in self._captions:
            raise InputError(f"{self.path} has no caption of {name}")
        return _caption(self._captions[name], self.path)


Captions = LineCaptions | CocoCaptions


def open_captions(path: str) -> Captions:
    """A JSONL file of captions, or COCO's JSON of them; OSError, or ValueError when it is neither."""
    return LineCaptions(path) if path.endswith(".jsonl") else CocoCaptions(path)


def _caption(value: object, where: str) -> str:
    caption = checked_text(value, f"{where}: the caption").strip()
    if not caption:
        raise InputError(f"{where}: the caption is empty; it asks for nothing")
    return caption


def _key(path: object) -> int:
    return int.from_bytes(hashlib.blake2b(str(path).encode(errors="surrogatepass"), digest_size=8).digest(), "little")

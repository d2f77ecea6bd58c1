"""Data sets prepared by TFDS as ArrayRecord: those of its catalogue and those of data.prepare."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from lumina_jax.data.sources import files
from lumina_jax.data.sources.adapters import PAIR_CAPTIONS
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.record import StoredRecord, StoredSource, checked_object, stored_record
from lumina_jax.errors import InputError, MissingFileError, prefixed_errors
from lumina_jax.places import is_url
from lumina_jax.text import parse_json

IMAGES, RECORD = "images", "record"
"""The features that data.prepare writes: the image files, and the record's JSON in Lumina's form without images."""

NAME = re.compile(r"(?P<name>[^:]+)(:(?P<version>\d+\.\d+\.\d+))?(:(?P<split>.+))?", re.DOTALL)
HOME = "~/tensorflow_datasets"
DAMAGED = (ValueError, RuntimeError, TypeError, LookupError, DecodeError)
"""What ArrayRecord and TFDS raise for an example that is damaged or not there."""


class TfdsSource(StoredSource):
    """The examples of a data set prepared in ``data_dir`` (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets).

    ``name`` is ``NAME[/CONFIG][:VERSION][:SPLIT]``, by default the newest version and the split train; ``train[:10%]`` is part
    of a split. Of a set of the catalogue it uses the first image feature and the feature called caption, text or the like (of
    several captions the first). Needs no TensorFlow, downloads nothing.

    Raises MissingFileError naming the sets that are there, or InputError when the set has another file format, no such split,
    or no image and caption.
    """

    def __init__(self, name: str, data_dir: str | None = None):
        match = NAME.fullmatch(name)
        if match is None:
            raise InputError(f"{name!r} is not NAME[/CONFIG][:VERSION][:SPLIT]")
        if is_url(data_dir or ""):
            raise InputError(f"{data_dir}: TFDS reads its files from a disk; copy the data set to a local folder")
        home = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or HOME).expanduser()
        self.folder = str(_version_folder(home, match["name"], match["version"]))
        split = match["split"] or "train"
        # TFDS lets pass whatever its readers of JSON and protobufs raise.
        with prefixed_errors(f"{self.folder} is no whole data set, prepare it again", Exception):
            builder = tfds.builder_from_directory(self.folder)
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise InputError(
                f"{self.folder} is prepared as {builder.info.file_format.value}, which has no random access; prepare it "
                "with file_format='array_record', or convert it with tfds's scripts/convert_format"
            )
        self._image, self._text = _features(builder.info.features, self.folder)
        decoders = {self._image: tfds.decode.SkipDecoding()} if self._image != IMAGES else None
        with prefixed_errors(f"{self.folder}, split {split}"):
            self._examples = builder.as_data_source(split=split, decoders=decoders)
        self.fingerprint = _fingerprint(builder.info, split)

    def __len__(self) -> int:
        return len(self._examples)

    def stored(self, index: int) -> StoredRecord:
        name = f"{self.folder}, example {index}"
        with prefixed_errors(name):
            try:
                example = self._examples[index]
            except DAMAGED as error:
                raise InputError(
                    f"it cannot be read, its file is damaged or cut short: {error}", cause="damaged example"
                ) from error
            return stored_record(self._item(example), lambda content: ImageFile(name, content))

    def _item(self, example: Mapping[str, object]) -> dict:
        if self._text == RECORD:
            return {
                **checked_object(parse_json(example[RECORD]), "its record is"),
                "image": list(example[IMAGES]) or None,
            }
        return {"image": example[self._image], "caption": _caption(example[self._text])}


def _version_folder(home: Path, name: str, version: str | None) -> Path:
    """The folder of ``version``, or of the newest version, of a data set."""
    folders = [path for path in (home / name).glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    if version is not None:
        folders = [path for path in folders if path.name == version]
    if not folders:
        prepared = sorted(str(path.parent.relative_to(home)) for path in home.glob("**/features.json"))
        raise MissingFileError(
            f"no data set {name}{f':{version}' if version else ''} in {home}, which holds {', '.join(prepared) or 'none'}; "
            "prepare it there with TFDS, or give its folder after an @"
        )
    return max(folders, key=lambda path: tuple(map(int, path.name.split("."))))


def _features(features: Mapping[str, object], folder: str) -> tuple[str, str]:
    """The names of the image feature and of the text feature."""
    if {IMAGES, RECORD} <= set(features):
        return IMAGES, RECORD
    image = next((name for name in features if isinstance(features[name], tfds.features.Image)), None)
    text = next((name for name in PAIR_CAPTIONS if name in features), None)
    if image is None or text is None:
        raise InputError(
            f"{folder} has features {', '.join(features)}; an image and a {' or '.join(PAIR_CAPTIONS[:3])} are needed"
        )
    return image, text


def _caption(value: object) -> object:
    """The text of a feature; of several texts the first."""
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, list | np.ndarray) and np.ndim(value) and len(value):
        value = value[0]
    return value.decode() if isinstance(value, bytes) else value


def _fingerprint(info: tfds.core.DatasetInfo, split: str) -> str:
    """A digest of the set's name, description and features, and of the sizes of the split's files."""
    described = [info.full_name, info.description, split, str(info.features)]
    base = re.split(r"[\[+]", split)[0]
    sizes = [files.size(os.fspath(path)) for path in info.splits[base].filepaths] if base in info.splits else []
    return hashlib.sha256(json.dumps([*described, sizes]).encode()).hexdigest()[:16]

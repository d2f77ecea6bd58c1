"""RefCOCO, RefCOCO+ and RefCOCOg as pictures with a box drawn around the object that an expression refers to."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from lumina_jax.data.omni.coco_file import CocoFile, members
from lumina_jax.data.omni.pictures import colours, painted, size_of
from lumina_jax.data.omni.pose import box
from lumina_jax.data.omni.views import View, Views
from lumina_jax.data.sources import files
from lumina_jax.data.sources.images import ImageFile, read_image
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.pictures import annotations
from lumina_jax.text import checked_text, parse_json

FRAME_SHARE, MIN_FRAME = 1 / 160, 2
"""Thickness of a frame: a share of the picture's longer side, but at least so many px."""
OBJECT_SUFFIX = re.compile(r"_\d+(?=\.jpg$)")
"""The number of the object that REFER's annotations append to the name of an image."""


class MdetrViews(Views):
    """A view for each expression of a file of MDETR's annotations, such as finetune_refcoco_train.json.

    Each "image" of the file is an expression (its ``caption``) with its boxes as annotations. ``images`` is the folder of COCO's
    train2014.
    """

    task = "detect"

    def __init__(self, path: str, images: str):
        super().__init__(CocoFile(path, lambda annotation: True), f"{path}, expression")
        self._images, self.fingerprint = images, self._entries.fingerprint

    def view(self, index: int) -> View:
        image, objects = self._entries.entry(index)
        path = str(image.get("file_name"))
        photo = read_image(files.join(self._images, path))
        return boxed(path, photo, image.get("caption"), [box(annotation) for annotation in objects])


class ReferViews(Views):
    """A view for each expression of refcoco.json, REFER's annotations joined with COCO's by TFDS's script.

    ``selection`` are the values of "dataset", "dataset_partition" and "split" of the references to use.
    """

    task = "detect"

    def __init__(self, path: str, images: str, selection: Mapping[str, str]):
        self.path, self._images = path, images
        self._text, digest = TextFile(path), hashlib.sha256()
        content = b"".join(self._text.blocks(digest.update))
        digest.update(json.dumps(dict(selection)).encode())
        self.fingerprint = digest.hexdigest()[:16]
        try:
            refs = [
                (start, end, _sentences(ref), isinstance(ref, Mapping))
                for _, start, end, ref in members(content, ("ref",))
                if not isinstance(ref, Mapping) or all(ref.get(key) == value for key, value in selection.items())
            ]
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no complete JSON object: {error}; make it again") from error
        if not any(is_object for *_, is_object in refs):
            raise InputError(f"{path} has no reference with {', '.join(f'{k}={v}' for k, v in selection.items())}")
        spans = [(start, end, number) for start, end, sentences, _ in refs for number in range(sentences)]
        super().__init__(np.array(spans, np.int64), f"{path}, expression")

    def view(self, index: int) -> View:
        start, end, number = map(int, self._entries[index])
        ref = parse_json(self._text.text(start, end))
        if not isinstance(ref, Mapping) or not isinstance(ref.get("ann"), Mapping) or not _sentences(ref, malformed=0):
            raise InputError(f"the reference at byte {start} lacks 'ann' or 'sentences'")
        path = OBJECT_SUFFIX.sub("", str(ref.get("file_name")))
        photo = read_image(files.join(self._images, path))
        return boxed(path, photo, ref["sentences"][number].get("raw"), [box(ref["ann"])])


class TfdsViews(Views):
    """A view for each expression of ref_coco as TFDS prepares it, in ArrayRecord; ``name`` is ref_coco/CONFIG[:SPLIT].

    Opening it reads every example once; an expression takes 12 bytes of memory.
    """

    task = "detect"

    def __init__(self, name: str, data_dir: str | None):
        import tensorflow_datasets as tfds  # a second of imports

        set_name, _, split = name.partition(":")
        split = split or "train"
        try:
            builder = tfds.core.read_only_builder.builder_from_files(set_name, data_dir=data_dir)
        except (tfds.core.DatasetNotFoundError, ValueError) as error:
            raise MissingFileError(
                f"no {set_name} in {data_dir}; prepare it there with TFDS, or give its folder as data_dir="
            ) from error
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise InputError(f"{set_name} is not prepared with file_format='array_record', and has no random access")
        self._name = f"{builder.info.full_name}:{split}"
        self._examples = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        expressions = [
            (example, thing, number)
            for example in range(len(self._examples))
            for thing, texts in enumerate(self._examples[example]["objects"]["refexp"]["raw"])
            for number in range(len(texts))
        ]
        # Number of the example, of the object in it, and of the expression for the object.
        super().__init__(np.array(expressions, np.int32).reshape(-1, 3), f"{self._name}, expression")
        self.fingerprint = hashlib.sha256(self._name.encode() + self._entries.tobytes()).hexdigest()[:16]

    def view(self, index: int) -> View:
        number_of_example, thing, number = map(int, self._entries[index])
        example = self._examples[number_of_example]
        photo = ImageFile(f"{self._name}, image {example['image/id']}", example["image"])
        width, height = size_of(photo)
        top, left, bottom, right = example["objects"]["bbox"][thing] * (height, width, height, width)
        expression = example["objects"]["refexp"]["raw"][thing][number].decode()
        return boxed(str(example["image/id"]), photo, expression, [(left, top, right - left, bottom - top)])


def boxed(path: str, photo: ImageFile, expression: object, boxes: Sequence[Sequence[float]]) -> View:
    """A photo with frames around ``boxes``, (x, y, width, height) in px each, the objects that ``expression`` refers to.

    annotations.read_box is the inverse. Raises InputError when the expression is empty or a box is outside the photo.
    """
    text = checked_text(expression, "the expression").strip().rstrip(".").strip()
    if not text:
        raise InputError("the expression is empty; it refers to nothing")
    picture = colours(photo)
    for x, y, width, height in boxes:
        edges = round(x), round(y), max(round(x + width), round(x) + 1), max(round(y + height), round(y) + 1)
        picture = annotations.draw_box(picture, edges, frame_thickness(picture.shape, min(width, height)))
    return View(path, photo, painted(f"{photo.name}, boxed", picture), text)


def frame_thickness(shape: tuple[int, ...], shorter: float) -> int:
    """In px, for a picture of ``shape`` (Y, X, ...). A frame leaves at least half of its box's ``shorter`` side open."""
    thickness = max(MIN_FRAME, round(max(shape[:2]) * FRAME_SHARE))
    return max(1, min(thickness, int(shorter // 4)))


def _sentences(ref: object, malformed: int = 1) -> int:
    """The number of expressions of a reference; ``malformed`` if it has none that can be read, 1 to make it a bad record."""
    sentences = ref.get("sentences") if isinstance(ref, Mapping) else None
    well_formed = isinstance(sentences, list) and all(isinstance(sentence, Mapping) for sentence in sentences)
    return len(sentences) if well_formed else malformed

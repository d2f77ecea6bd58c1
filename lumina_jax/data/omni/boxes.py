"""RefCOCO, RefCOCO+ and RefCOCOg as pictures with a drawn box: the thing that an expression tells from all others."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from lumina_jax.data.omni.coco_file import CocoFile, members
from lumina_jax.data.omni.pictures import colours, painted, size_of
from lumina_jax.data.omni.pose import box
from lumina_jax.data.omni.views import View
from lumina_jax.data.sources import files
from lumina_jax.data.sources.images import ImageFile, read_image
from lumina_jax.data.sources.record import checked_text
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.pictures import annotations

FRAME_SHARE, LEAST_FRAME = 1 / 160, 2
"""Thickness of a frame as a share of the picture's longer side, and its least in px."""
OBJECT_MARK = re.compile(r"_\d+(?=\.jpg$)")
"""What the annotations of REFER put behind the name of an image: the number of the object."""


class MdetrViews:
    """A view for each expression of a file of MDETR's annotations: finetune_refcoco_train.json and the like.

    There every "image" is an expression, its ``caption``, with its boxes as annotations. ``images`` holds COCO's train2014.
    """

    task = "detect"

    def __init__(self, place: str, images: str):
        self._coco, self._images = CocoFile(place, lambda annotation: True), images
        self.fingerprint = self._coco.fingerprint

    def __len__(self) -> int:
        return len(self._coco)

    def name(self, index: int) -> str:
        return f"{self._coco.place}, expression {index}"

    def view(self, index: int) -> View:
        image, annotations = self._coco.entry(index)
        path = str(image.get("file_name"))
        photo = read_image(files.join(self._images, path))
        return boxed(path, photo, image.get("caption"), [box(annotation) for annotation in annotations])


class ReferViews:
    """A view for each expression of refcoco.json, REFER's annotations as TFDS has them joined with COCO's.

    ``chosen`` is what a reference says of itself under "dataset", "dataset_partition" and "split".
    """

    task = "detect"

    def __init__(self, place: str, images: str, chosen: Mapping[str, str]):
        self.place, self._images = place, images
        content = files.read(place)
        self.fingerprint = hashlib.sha256(content + json.dumps(dict(chosen)).encode()).hexdigest()[:16]
        try:
            refs = [
                (start, end, _sentences(ref), isinstance(ref, Mapping))
                for _, start, end, ref in members(content, ("ref",))
                if not isinstance(ref, Mapping) or all(ref.get(key) == value for key, value in chosen.items())
            ]
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is no whole JSON object: {error}; make it again") from error
        if not any(chosen_one for *_, chosen_one in refs):
            raise InputError(f"{place} has no reference with {', '.join(f'{k}={v}' for k, v in chosen.items())}")
        spans = [(start, end, number) for start, end, sentences, _ in refs for number in range(sentences)]
        self._spans = np.array(spans, np.int64)

    def __len__(self) -> int:
        return len(self._spans)

    def name(self, index: int) -> str:
        return f"{self.place}, expression {index}"

    def view(self, index: int) -> View:
        start, end, number = map(int, self._spans[index])
        ref = json.loads(files.read(self.place, start, end))
        if not isinstance(ref, Mapping) or not isinstance(ref.get("ann"), Mapping) or not _sentences(ref, least=0):
            raise InputError(f"the reference at byte {start} lacks 'ann' or 'sentences'")
        path = OBJECT_MARK.sub("", str(ref.get("file_name")))
        photo = read_image(files.join(self._images, path))
        return boxed(path, photo, ref["sentences"][number].get("raw"), [box(ref["ann"])])


class TfdsViews:
    """A view for each expression of ref_coco as TFDS prepares it, as ArrayRecord: ``name`` is ref_coco/CONFIG[:SPLIT].

    Where the expressions of an example begin is found once, by reading every example: 12 bytes an expression.
    """

    task = "detect"

    def __init__(self, name: str, data_dir: str | None):
        import tensorflow_datasets as tfds  # a second of imports

        set_name, _, split = name.partition(":")
        split = split or "train"
        try:
            builder = tfds.core.read_only_builder.builder_from_files(set_name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise MissingFileError(
                f"no {set_name} in {data_dir}; prepare it there with TFDS, or say data_dir="
            ) from error
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise InputError(f"{set_name} is not prepared with file_format='array_record', and has no random access")
        self._where = f"{builder.info.full_name}:{split}"
        self._examples = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        found = [
            (example, thing, number)
            for example in range(len(self._examples))
            for thing, expressions in enumerate(self._examples[example]["objects"]["refexp"]["raw"])
            for number in range(len(expressions))
        ]
        self._places = np.array(found, np.int32).reshape(-1, 3)
        self.fingerprint = hashlib.sha256(self._where.encode() + self._places.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        return f"{self._where}, expression {index}"

    def view(self, index: int) -> View:
        example, thing, number = map(int, self._places[index])
        held = self._examples[example]
        photo = ImageFile(f"{self._where}, image {held['image/id']}", held["image"])
        width, height = size_of(photo)
        top, left, bottom, right = held["objects"]["bbox"][thing] * (height, width, height, width)
        expression = held["objects"]["refexp"]["raw"][thing][number].decode()
        return boxed(str(held["image/id"]), photo, expression, [(left, top, right - left, bottom - top)])


def boxed(path: str, photo: ImageFile, expression: object, boxes: Sequence[Sequence[float]]) -> View:
    """A photo with the frames of ``boxes``, (x, y, width, height) each, for what ``expression`` says;
    read back by annotations.read_box.

    Raises ValueError when the expression says nothing or a box has no pixel in the photo.
    """
    said = checked_text(expression, "the expression").strip().rstrip(".").strip()
    if not said:
        raise InputError("the expression is empty; it points at nothing")
    picture = colours(photo)
    for x, y, width, height in boxes:
        edges = round(x), round(y), max(round(x + width), round(x) + 1), max(round(y + height), round(y) + 1)
        picture = annotations.draw_box(picture, edges, frame_thickness(picture.shape, min(width, height)))
    return View(path, photo, painted(f"{photo.name}, boxed", picture), said)


def frame_thickness(shape: tuple[int, ...], shorter: float) -> int:
    """Px for a picture of ``shape`` (Y, X, ...); a frame leaves half of the ``shorter`` side of its box open."""
    wanted = max(LEAST_FRAME, round(max(shape[:2]) * FRAME_SHARE))
    return max(1, min(wanted, int(shorter // 4)))


def _sentences(ref: object, least: int = 1) -> int:
    """How many expressions a reference has; a malformed one counts ``least``, so that it becomes a bad record."""
    held = ref.get("sentences") if isinstance(ref, Mapping) else None
    return len(held) if isinstance(held, list) and all(isinstance(one, Mapping) for one in held) else least

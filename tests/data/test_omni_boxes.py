"""RefCOCO in its published forms: each expression is a photo with a drawn box that reads back as the annotated box."""

import importlib
import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from omni_parts import colours, file_bytes, is_file, packed, photo, reason, write_json
from PIL import Image

from lumina_jax.conversation import tokenize
from lumina_jax.data.omni.boxes import frame_thickness
from lumina_jax.data.sources import open_source
from lumina_jax.pictures import annotations, metrics
from lumina_jax.vocab import IMAGE_SYMBOL

SIZE = (320, 240)
BOX = [40.4, 30.6, 100.0, 60.2]
EDGES = (40, 31, 140, 91)
NAME = "COCO_train2014_000000460986.jpg"


def check_box(source, index, expression, photo_path, vocab, edges=EDGES):
    record = source[index]
    assert record.turns == [(f"Detect: {expression}. {IMAGE_SYMBOL}", IMAGE_SYMBOL)] and is_file(
        record.images[0], photo_path
    )
    before, after = map(colours, record.images)
    assert annotations.read_box(after) == edges and metrics.box_iou(annotations.read_box(after), edges) == 1
    changed = (before != after).any(axis=-1)
    left, upper, right, lower = edges
    assert (
        changed.sum() <= 2 * 2 * (right - left + lower - upper)
        and not changed[:upper].any()
        and not changed[lower:].any()
    )
    tokens, learn = tokenize(record.turns, [np.zeros((2, 2), int), np.ones((2, 2), int)], vocab)
    want, labels = packed(record.turns, [np.zeros((2, 2), int), np.ones((2, 2), int)], vocab)
    assert tokens.tolist() == want and np.where(learn, tokens, -100).tolist() == labels


def test_mdetr_s_annotations_become_boxes(tmp_path, vocab):
    photo_path = photo(tmp_path / "train2014" / NAME, SIZE)
    image = {"file_name": NAME, "height": SIZE[1], "width": SIZE[0], "original_id": 460986, "dataset_name": "refcoco"}
    expressions = ["far right pottery piece", "The tallest <|image|> pot.", "", "x", "lost", "edge"]
    images = [image | {"id": number, "caption": caption} for number, caption in enumerate(expressions)]
    images[4]["file_name"] = "COCO_train2014_000000000001.jpg"
    boxes = [BOX, [300.2, 200.5, 19.8, 39.5], BOX, [BOX[0], "y", 3, 4], BOX, [400.0, 10.0, 5.0, 5.0]]
    objects = [
        {
            **{"area": box[2] * box[3], "iscrowd": 0, "image_id": number, "category_id": 51, "id": number, "bbox": box},
            **{"original_id": 718034, "tokens_positive": [[0, 9]], "tokens": [1]},
        }
        for number, box in enumerate(boxes)
    ]
    file = {"info": {}, "licenses": [], "images": images, "annotations": objects, "categories": []}
    path = write_json(tmp_path / "mdetr_annotations" / "finetune_refcoco_train.json", file)
    source = open_source(f"refcoco:{path}@images={tmp_path}/train2014")
    assert len(source) == 6
    check_box(source, 0, expressions[0], photo_path, vocab)
    assert annotations.read_box(colours(source[1].images[1])) == (300, 200, 320, 240)
    assert "Detect: The tallest <|image|> pot. " in vocab.decode(
        tokenize(source[1].turns, [np.zeros((2, 2), int)] * 2, vocab)[0]
    )
    reasons = {
        2: "the expression is empty",
        3: "annotation 3: 'bbox' is [40.4, 'y', 3, 4]",
        4: "000000000001.jpg: No such file",
        5: "no pixel in a picture of 320x240",
    }
    for index, why in reasons.items():
        assert why in reason(source, index)
    assert "finetune_refcoco_train.json, expression 3" in reason(source, 3)
    assert pickle.loads(pickle.dumps(source))[0].turns == source[0].turns


def reference(dataset: str, partition: str, split: str, expressions: list, **changed) -> dict:
    ann = {
        "segmentation": [[1.0, 2.0]],
        "area": 5.0,
        "iscrowd": 0,
        "image_id": 460986,
        "bbox": BOX,
        "category_id": 51,
        "id": 7,
    }
    sentences = [
        {"tokens": text.split(), "raw": text, "sent_id": n, "sent": text.lower()} for n, text in enumerate(expressions)
    ]
    ref = {"dataset": dataset, "dataset_partition": partition, "split": split, "sentences": sentences, "ann": ann}
    return (
        ref | {"sent_ids": [1], "file_name": NAME.replace(".jpg", "_3.jpg"), "image_id": 460986, "ref_id": 9} | changed
    )


def test_references_joined_by_tfds_become_boxes(tmp_path, vocab):
    photo_path = photo(tmp_path / "coco_train2014" / NAME, SIZE)
    refs = [
        reference("refcoco", "unc", "train", ["left vase", "cup on the left"]),
        reference("refcoco", "google", "train", ["other partition"]),
        reference("refcoco+", "unc", "val", ["plus"]),
        reference("refcoco", "unc", "train", ["bowl"], ann=None),
        reference("refcoco", "unc", "train", ["bowl"], sentences="none"),
        "no object",
    ]
    image = {"info": {"file_name": NAME, "width": SIZE[0], "height": SIZE[1]}, "anns": []}
    path = write_json(tmp_path / "refcoco.json", {"ref": refs, "coco_anns": {"460986": image}})
    spec = f"refcoco:{path}@images={tmp_path}/coco_train2014"
    source = open_source(spec)
    assert len(source) == 5
    check_box(source, 0, "left vase", photo_path, vocab)
    check_box(source, 1, "cup on the left", photo_path, vocab)
    for index in (2, 3, 4):
        assert (
            "refcoco.json, expression" in (message := reason(source, index)) and "lacks 'ann' or 'sentences'" in message
        )
    plus = open_source(f"{spec},dataset=refcoco+,split=val")
    assert plus[0].turns[0][0].startswith("Detect: plus.") and plus.fingerprint != source.fingerprint
    with pytest.raises(ValueError, match="no reference with dataset=refcocog"):
        open_source(f"{spec},dataset=refcocog")


class RefCoco(tfds.core.GeneratorBasedBuilder):
    """The features of TFDS's ref_coco, and one photo with two objects."""

    name = "ref_coco"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="refcoco_unc"),)

    def __init__(self, photo_bytes: bytes, **arguments):
        self._photo = photo_bytes
        super().__init__(**arguments)

    def _info(self):
        features = tfds.features
        box = {"id": np.int64, "area": np.int64, "bbox": features.BBoxFeature(), "label": np.int64}
        texts = features.Sequence({"refexp_id": np.int64, "raw": features.Text()})
        kinds = {
            "image": features.Image(encoding_format="jpeg"),
            "image/id": np.int64,
            "objects": features.Sequence({**box, "gt_box_index": np.int64, "refexp": texts}),
            "coco_annotations": features.Sequence(box),
        }
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(kinds))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        width, height = SIZE
        edges = [EDGES, (200, 100, 260, 220)]
        boxes = [
            {
                **{"id": n, "area": 4, "label": 3},
                "bbox": tfds.features.BBox(upper / height, left / width, lower / height, right / width),
            }
            for n, (left, upper, right, lower) in enumerate(edges)
        ]
        expressions = [["left vase", "cup on the left"], ["the other"]]
        objects = [
            {
                **box,
                "gt_box_index": n,
                "refexp": [{"refexp_id": k, "raw": text} for k, text in enumerate(expressions[n])],
            }
            for n, box in enumerate(boxes)
        ]
        damaged = self._photo[:200]
        for key, content in ((460986, self._photo), (460987, damaged)):
            yield key, {"image": io.BytesIO(content), "image/id": key, "objects": objects, "coco_annotations": boxes}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    # Without TensorFlow TFDS writes nested sequences only when this type is numpy's.
    feature = importlib.import_module("tensorflow_datasets.core.features.feature")
    monkeypatch.setattr(feature.TensorInfo, "dtype", property(lambda self: self.np_dtype))
    photo_path = photo(tmp_path / "460986.jpg", SIZE)
    content = file_bytes(Image.open(photo_path), "PNG")
    builder = RefCoco(content, data_dir=str(tmp_path / "tfds"), file_format="array_record", config="refcoco_unc")
    builder.download_and_prepare()
    monkeypatch.undo()
    return tmp_path / "tfds", photo_path


def test_the_set_prepared_by_tfds_becomes_boxes(prepared, vocab):
    data_dir, photo_path = prepared
    source = open_source(f"refcoco:ref_coco/refcoco_unc:train@data_dir={data_dir}")
    assert len(source) == 6
    checked = {}
    for index in range(6):
        try:
            checked[source[index].turns[0][0]] = index
        except ValueError as error:
            assert "ref_coco/refcoco_unc/1.0.0:train, expression" in str(error)
    assert len(checked) == 3
    for expression, edges in (("left vase", EDGES), ("cup on the left", EDGES), ("the other", (200, 100, 260, 220))):
        check_box(source, checked[f"Detect: {expression}. {IMAGE_SYMBOL}"], expression, photo_path, vocab, edges)
    assert pickle.loads(pickle.dumps(source)).fingerprint == source.fingerprint


def test_a_set_that_is_not_prepared_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no ref_coco/refcoco_unc in"):
        open_source(f"refcoco:ref_coco/refcoco_unc@data_dir={tmp_path}")
    with pytest.raises(ValueError, match=r"FILE\.json@images=DIR"):
        open_source(f"refcoco:{tmp_path}/finetune_refcoco_train.json")


def test_a_frame_leaves_its_object_visible():
    assert [frame_thickness((480, 640, 3), side) for side in (200.0, 12.0, 2.0, 0.3)] == [4, 3, 1, 1]

"""RefCOCO in its published forms: each expression a photo with a drawn box, read back as the box that was annotated."""

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


def check_box(source, index, said, place, vocab, edges=EDGES):
    record = source[index]
    assert record.turns == [(f"Detect: {said}. {IMAGE_SYMBOL}", IMAGE_SYMBOL)] and is_file(record.images[0], place)
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


def test_as_mdetr_annotates_it(tmp_path, vocab):
    place = photo(tmp_path / "train2014" / NAME, SIZE)
    image = {"file_name": NAME, "height": SIZE[1], "width": SIZE[0], "original_id": 460986, "dataset_name": "refcoco"}
    said = ["far right pottery piece", "The tallest <|image|> pot.", "", "x", "lost", "edge"]
    images = [image | {"id": number, "caption": caption} for number, caption in enumerate(said)]
    images[4]["file_name"] = "COCO_train2014_000000000001.jpg"
    boxes = [BOX, [300.2, 200.5, 19.8, 39.5], BOX, [BOX[0], "y", 3, 4], BOX, [400.0, 10.0, 5.0, 5.0]]
    annotations = [
        {
            **{"area": box[2] * box[3], "iscrowd": 0, "image_id": number, "category_id": 51, "id": number, "bbox": box},
            **{"original_id": 718034, "tokens_positive": [[0, 9]], "tokens": [1]},
        }
        for number, box in enumerate(boxes)
    ]
    held = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": []}
    path = write_json(tmp_path / "mdetr_annotations" / "finetune_refcoco_train.json", held)
    source = open_source(f"refcoco:{path}@images={tmp_path}/train2014")
    assert len(source) == 6
    check_box(source, 0, said[0], place, vocab)
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


def reference(dataset: str, partition: str, split: str, said: list, **changed) -> dict:
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
        {"tokens": text.split(), "raw": text, "sent_id": n, "sent": text.lower()} for n, text in enumerate(said)
    ]
    held = {"dataset": dataset, "dataset_partition": partition, "split": split, "sentences": sentences, "ann": ann}
    return (
        held | {"sent_ids": [1], "file_name": NAME.replace(".jpg", "_3.jpg"), "image_id": 460986, "ref_id": 9} | changed
    )


def test_as_tfds_joins_the_references(tmp_path, vocab):
    place = photo(tmp_path / "coco_train2014" / NAME, SIZE)
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
    check_box(source, 0, "left vase", place, vocab)
    check_box(source, 1, "cup on the left", place, vocab)
    for index in (2, 3, 4):
        assert "refcoco.json, expression" in (told := reason(source, index)) and "lacks 'ann' or 'sentences'" in told
    plus = open_source(f"{spec},dataset=refcoco+,split=val")
    assert plus[0].turns[0][0].startswith("Detect: plus.") and plus.fingerprint != source.fingerprint
    with pytest.raises(ValueError, match="no reference with dataset=refcocog"):
        open_source(f"{spec},dataset=refcocog")


class RefCoco(tfds.core.GeneratorBasedBuilder):
    """The features of TFDS's ref_coco, and one photo with two things."""

    name = "ref_coco"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="refcoco_unc"),)

    def __init__(self, photo_bytes: bytes, **arguments):
        self._photo = photo_bytes
        super().__init__(**arguments)

    def _info(self):
        features = tfds.features
        box = {"id": np.int64, "area": np.int64, "bbox": features.BBoxFeature(), "label": np.int64}
        said = features.Sequence({"refexp_id": np.int64, "raw": features.Text()})
        held = {
            "image": features.Image(encoding_format="jpeg"),
            "image/id": np.int64,
            "objects": features.Sequence({**box, "gt_box_index": np.int64, "refexp": said}),
            "coco_annotations": features.Sequence(box),
        }
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(held))

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
        said = [["left vase", "cup on the left"], ["the other"]]
        objects = [
            {**box, "gt_box_index": n, "refexp": [{"refexp_id": k, "raw": text} for k, text in enumerate(said[n])]}
            for n, box in enumerate(boxes)
        ]
        damaged = self._photo[:200]
        for key, content in ((460986, self._photo), (460987, damaged)):
            yield key, {"image": io.BytesIO(content), "image/id": key, "objects": objects, "coco_annotations": boxes}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    # TFDS writes nested sequences without TensorFlow but for this one name of a type.
    feature = importlib.import_module("tensorflow_datasets.core.features.feature")
    monkeypatch.setattr(feature.TensorInfo, "dtype", property(lambda self: self.np_dtype))
    place = photo(tmp_path / "460986.jpg", SIZE)
    content = file_bytes(Image.open(place), "PNG")
    builder = RefCoco(content, data_dir=str(tmp_path / "tfds"), file_format="array_record", config="refcoco_unc")
    builder.download_and_prepare()
    monkeypatch.undo()
    return tmp_path / "tfds", place


def test_as_tfds_prepares_it(prepared, vocab):
    home, place = prepared
    source = open_source(f"refcoco:ref_coco/refcoco_unc:train@data_dir={home}")
    assert len(source) == 6
    checked = {}
    for index in range(6):
        try:
            checked[source[index].turns[0][0]] = index
        except ValueError as error:
            assert "ref_coco/refcoco_unc/1.0.0:train, expression" in str(error)
    assert len(checked) == 3
    for said, edges in (("left vase", EDGES), ("cup on the left", EDGES), ("the other", (200, 100, 260, 220))):
        check_box(source, checked[f"Detect: {said}. {IMAGE_SYMBOL}"], said, place, vocab, edges)
    assert pickle.loads(pickle.dumps(source)).fingerprint == source.fingerprint


def test_what_is_not_prepared_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no ref_coco/refcoco_unc in"):
        open_source(f"refcoco:ref_coco/refcoco_unc@data_dir={tmp_path}")
    with pytest.raises(ValueError, match=r"FILE\.json@images=DIR"):
        open_source(f"refcoco:{tmp_path}/finetune_refcoco_train.json")


def test_a_frame_leaves_its_thing_open():
    assert [frame_thickness((480, 640, 3), side) for side in (200.0, 12.0, 2.0, 0.3)] == [4, 3, 1, 1]

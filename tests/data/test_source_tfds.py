"""Data sets prepared with TFDS: those of data.prepare hold the same bits as their source; those of the catalogue are read too."""

import importlib
import json
import pickle
import shutil

import numpy as np
import pytest
from data_parts import NoiseSource, noise

from lumina_jax.data.prepare import prepare
from lumina_jax.data.sources import open_source
from lumina_jax.errors import InputError
from lumina_jax.vocab import IMAGE_SYMBOL


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for seed, name in enumerate(["a.png", "b.png", "sub/a.jpg", "bad.png", "c.png"]):
        noise((12, 8), seed).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("an a")
    (tmp_path / "b.caption").write_text(f"a b, {IMAGE_SYMBOL}")
    turns = [{"from": "human", "value": f"What? {IMAGE_SYMBOL}"}, {"from": "gpt", "value": "A dög."}]
    (tmp_path / "sub" / "a.json").write_text(json.dumps({"conversations": turns}))
    (tmp_path / "bad.png").write_bytes((tmp_path / "bad.png").read_bytes()[:99])
    (tmp_path / "bad.txt").write_text("x")
    return tmp_path


def test_a_prepared_set_reads_like_its_source(folder, tmp_path):
    original = open_source(f"folder:{folder}")
    prepared = prepare(original, tmp_path / "shared", "my_pictures", threads=2, progress=False)
    rejects = [json.loads(line) for line in (prepared / "rejects.jsonl").read_text().splitlines()]
    assert [reject["index"] for reject in rejects] == [2, 3] and "no caption beside" in rejects[1]["reason"]
    shared = open_source(f"tfds:my_pictures@{tmp_path}/shared")
    assert len(shared) == 3
    for number, index_of_source in enumerate((0, 1, 4)):
        copy, original_record = shared.stored(number), original.stored(index_of_source)
        assert (copy.turns, copy.caption) == (original_record.turns, original_record.caption)
        assert [file.content for file in copy.files] == [file.content for file in original_record.files]
    assert pickle.loads(pickle.dumps(shared))[1].caption == f"a b, {IMAGE_SYMBOL}"
    assert len(open_source(f"tfds:my_pictures:1.0.0:train[1:]@{tmp_path}/shared")) == 2
    other = prepare(open_source(f"folder:{folder}/sub"), tmp_path / "shared", "sub", progress=False)
    assert other.exists() and open_source(f"tfds:sub@{tmp_path}/shared").fingerprint != shared.fingerprint


def test_pictures_without_files_are_prepared_without_loss(tmp_path):
    source = NoiseSource(12, bad=(3,))
    prepare(source, tmp_path, "noise", progress=False)
    shared = open_source(f"tfds:noise@{tmp_path}")
    good = [index for index in range(12) if index != 3]
    assert len(shared) == len(good)
    for copy, index in zip(map(shared.__getitem__, range(len(good))), good, strict=True):
        original_record = source[index]
        assert (copy.turns, copy.caption) == (original_record.turns, original_record.caption)
        for a, b in zip(copy.images, original_record.images, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_wrong_names_and_missing_sets_are_errors(tmp_path):
    with pytest.raises(ValueError, match="small letters"):
        prepare(NoiseSource(2), tmp_path, "My Set", progress=False)
    with pytest.raises(ValueError, match="no records"):
        prepare(NoiseSource(0), tmp_path, "empty", progress=False)
    prepare(NoiseSource(2), tmp_path, "noise", progress=False)
    with pytest.raises(FileExistsError, match="exists already"):
        prepare(NoiseSource(2), tmp_path, "noise", progress=False)
    with pytest.raises(FileNotFoundError, match=r"no data set other in .* which holds noise"):
        open_source(f"tfds:other@{tmp_path}")
    with pytest.raises(ValueError, match="split"):
        open_source(f"tfds:noise:validation@{tmp_path}")


CATALOGUE = """
import io
import numpy as np
import tensorflow_datasets as tfds

kinds = tfds.features

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.1.0")

    def _info(self):
        several = kinds.Sequence({"id": kinds.Scalar(np.int64), "text": kinds.Text()})
        features = {"image": kinds.Image(encoding_format="png"), "FEATURE": several if SEVERAL else kinds.Text()}
        return tfds.core.DatasetInfo(builder=self, features=kinds.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        several = [{"id": 1, "text": "a dög"}, {"id": 2, "text": "other"}]
        image = io.BytesIO(open("PICTURE", "rb").read())
        return {"val": [(0, {"image": image, "FEATURE": several if SEVERAL else "a dög"})]}

    def _generate_examples(self):
        raise NotImplementedError
"""


@pytest.mark.parametrize(("several", "feature"), [(False, "caption"), (True, "captions")])
def test_a_set_of_the_catalogue_gives_image_and_first_caption(tmp_path, monkeypatch, several, feature):
    package = tmp_path / f"like_coco_{feature}"  # TFDS wants each builder in a package of its own
    package.mkdir()
    text = (
        CATALOGUE.replace("FEATURE", feature)
        .replace("SEVERAL", str(several))
        .replace("PICTURE", str(package / "a.png"))
    )
    noise((12, 8), 5).save(package / "a.png")
    (package / f"{package.name}_dataset_builder.py").write_text(text, encoding="utf-8")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    builder = importlib.import_module(f"{package.name}.{package.name}_dataset_builder").Builder
    builder(data_dir=str(tmp_path / "data"), file_format="array_record").download_and_prepare()
    source = open_source(f"tfds:{package.name}:val@{tmp_path}/data")
    assert len(source) == 1 and source[0].caption == "a dög" and source[0].images[0].size == (12, 8)
    info = tmp_path / "data" / package.name / "1.1.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="prepared as tfrecord, which has no random access"):
        open_source(f"tfds:{package.name}:val@{tmp_path}/data")


@pytest.fixture(scope="module")
def noise_set(tmp_path_factory):
    """A prepared set of five records, its one file of examples and the folder above."""
    home = tmp_path_factory.mktemp("tfds")
    folder = prepare(NoiseSource(5), home, "noise", progress=False)
    (shard,) = folder.glob("*array_record*")
    return home, folder.relative_to(home), shard.name


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "overwritten": lambda path: path.write_bytes(path.read_bytes()[:70_000] + b"\xff" * 70_000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_examples_of_a_damaged_file_are_rejected_one_by_one(noise_set, tmp_path, damage):
    home, folder, shard = noise_set
    shutil.copytree(home, tmp_path / "[x] @y")
    DAMAGES[damage](tmp_path / "[x] @y" / folder / shard)
    source = open_source(f"tfds:noise@{tmp_path}/[x] @y")
    assert len(source) == 5
    for index in range(5):
        with pytest.raises(InputError, match=rf"example {index}: it cannot be read, its file is damaged"):
            source[index]


def test_more_examples_promised_than_there_are_are_rejected(noise_set, tmp_path):
    home, folder, _ = noise_set
    shutil.copytree(home, tmp_path / "set")
    info = tmp_path / "set" / folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"5"', '"7"'))
    source = open_source(f"tfds:noise@{tmp_path}/set")
    kept = [index for index in range(len(source)) if source_gives(source, index)]
    assert len(source) == 7 and kept == [0, 1, 2, 3, 4]


def source_gives(source, index: int) -> bool:
    try:
        return bool(source[index])
    except InputError:
        return False


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', None])
def test_a_set_without_its_description_is_an_error_that_names_it(noise_set, tmp_path, name, content):
    home, folder, _ = noise_set
    shutil.copytree(home, tmp_path / "set")
    if content is None:
        (tmp_path / "set" / folder / name).unlink()
    else:
        (tmp_path / "set" / folder / name).write_text(content)
    with pytest.raises(InputError, match=r"noise/1.0.0 is no whole data set, prepare it again: "):
        open_source(f"tfds:noise@{tmp_path}/set")


@pytest.mark.parametrize("record", [b"[1]", b"{", b"[" * 9999, b'{"caption": "\\ud800"}', b"\xff"])
def test_a_record_that_is_none_is_rejected(noise_set, monkeypatch, record):
    source = open_source(f"tfds:noise@{noise_set[0]}")
    monkeypatch.setattr(source, "_examples", [{"record": record, "images": []}])
    with pytest.raises(InputError, match="example 0: "):
        source[0]


@pytest.mark.parametrize("name", ["no set", "c4/en.x", "日本", "../up", "[a]"])
def test_names_of_sets_may_hold_any_letter_but_a_colon(noise_set, name):
    with pytest.raises(FileNotFoundError, match="which holds noise"):
        open_source(f"tfds:{name}@{noise_set[0]}")

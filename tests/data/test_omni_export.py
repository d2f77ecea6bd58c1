"""A published set exported to JSON lines and back, and pretokenized: bad records are listed, and nothing else is lost."""

import io
import json
import re
import runpy
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from data_parts import CONFIG, SIZES, tiny_vocab, tiny_vq
from omni_parts import colours, photo, write_json
from PIL import Image

from lumina_jax import layout
from lumina_jax.data.export import export
from lumina_jax.data.omni import SETS
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.data.shards import Shards
from lumina_jax.data.sources import KINDS, OMNI, open_source
from lumina_jax.pictures.formats import SUFFIXES

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def frames(tmp_path) -> str:
    """Three frames of Virtual KITTI 2, the second without its depth."""
    clip = tmp_path / "vkitti2" / "Scene01" / "clone" / "frames"
    (clip / "depth" / "Camera_0").mkdir(parents=True)
    for number in range(3):
        photo(clip / "rgb" / "Camera_0" / f"rgb_{number:05d}.jpg", (32, 32), number)
        if number != 1:
            values = np.full((32, 32), 100 * (number + 1), np.uint16)
            Image.fromarray(values).save(clip / "depth" / "Camera_0" / f"depth_{number:05d}.png")
    return f"vkitti2:{tmp_path}/vkitti2"


def test_every_set_is_a_kind_of_source():
    assert tuple(SETS) == OMNI and set(OMNI) < set(KINDS)


def test_an_export_reads_like_its_source(frames, tmp_path):
    source = open_source(frames)
    path, good, bad = export(source, tmp_path / "out", threads=2, progress=False)
    assert (good, bad) == (2, 1)
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject["index"] == 1 and "depth_00001.png: No such file" in reject["reason"]
    again = open_source(str(path))
    assert len(again) == 2
    for number, index in enumerate((0, 2)):
        assert again[number].turns == source[index].turns
        for image, original in zip(again[number].images, source[index].images, strict=True):
            np.testing.assert_array_equal(colours(image), colours(original))
    paths = [json.loads(line)["image"] for line in path.read_text().splitlines()]
    assert Path(paths[0][0]).name == "rgb_00000.jpg" and paths[1][1] == "pictures/000000/000000002_1.png"
    assert len(list((tmp_path / "out" / "pictures").rglob("*.png"))) == 2
    with pytest.raises(FileExistsError, match="delete it to make it anew"):
        export(source, tmp_path / "out", progress=False)


@pytest.mark.parametrize("kind", ["JPEG2000", "JPEG", "HEIF", "SGI"])
def test_a_picture_of_an_archive_is_exported_under_an_ending_that_sources_know(kind, tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(content, kind)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("a.png", content.getvalue()), ("a.txt", b"a cat")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    export(open_source(f"webdataset:{tmp_path / 'a.tar'}"), tmp_path / "out", progress=False)
    (picture,) = (path for path in (tmp_path / "out" / "pictures").rglob("*") if path.is_file())
    assert picture.suffix in SUFFIXES and picture.read_bytes() == content.getvalue()


def test_a_set_is_pretokenized_like_any_source(frames, tmp_path):
    vocab = tiny_vocab()
    pretokenize(open_source(frames), tiny_vq(), vocab, tmp_path / "tokens", CONFIG, 0, sizes=SIZES, progress=False)
    folder = Shards(tmp_path / "tokens")
    assert (folder.manifest.kept, folder.manifest.rejected) == (2, 1) and folder.manifest.kinds == {"mixed": 2}
    tokens, learn = folder[0]
    question, answer = layout.images_in(tokens, vocab)
    assert not learn[question].any() and learn[answer].all()


def test_dialogs_of_edits_keep_the_order_of_their_pictures(tmp_path):
    names = ["1-input.png", "1-output1.png", "1-output2.png"]
    for seed, name in enumerate(names):
        photo(tmp_path / "images" / "1" / name, (16, 16), seed)
    turns = [
        {"input": before, "mask": "", "output": after, "instruction": f"step {number}"}
        for number, (before, after) in enumerate(pairwise(names))
    ]
    write_json(tmp_path / "edit_sessions.json", {"1": turns})
    vocab, vq = tiny_vocab(), tiny_vq()
    source = open_source(f"magicbrush:{tmp_path}")
    pretokenize(source, vq, vocab, tmp_path / "tokens", CONFIG, 0, sizes=SIZES, progress=False)
    tokens, learn = Shards(tmp_path / "tokens")[0]
    images = layout.images_in(tokens, vocab)
    assert [bool(learn[image].all()) for image in images] == [False, True, True]
    for image, stored in zip(images, source[0].images, strict=True):
        pixels = np.asarray(stored, np.float32)[None] / 255 * 2 - 1
        assert layout.decode_grid(tokens[image], vocab).tolist() == vq.encode(pixels)[0].tolist()


@pytest.mark.parametrize("config", ["lumina_7b_omni", "lumina_34b_omni"])
def test_the_mixture_has_the_folders_that_omni_md_makes(config):
    data = runpy.run_path(str(REPOSITORY / "configs" / f"{config}.py"))["experiment"].data
    page = (REPOSITORY / "lumina_jax" / "data" / "OMNI.md").read_text(encoding="utf-8")
    commands = dict(re.findall(r"^\$P data\.path=(\S+).* --source '?([\w-]+):", page, re.MULTILINE))
    assert set(data.paths) == set(commands) and set(commands.values()) <= set(KINDS)
    assert sum(data.weights) == pytest.approx(1) and len(data.weights) == len(data.paths)
    assert 0.1 < dict(zip(data.paths, data.weights, strict=True))["tokens/omni/generate"] < 0.5

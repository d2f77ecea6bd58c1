"""The Python face: nothing happens on import, pictures are those of the command line, a dialog is the command line's."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from commands import blocks
from PIL import ExifTags, Image
from project_sources import REPO
from sample.tiny import CODES, tiny_model, tiny_vocab

import lumina_jax
import run
from lumina_jax.cli.settings import FIELDS
from lumina_jax.config import DataConfig, MeshConfig, SampleConfig
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.face import Chat, LoadedModel, SamplingSettings, generate, load
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample.files import open_image
from lumina_jax.sample.job import seed_key
from lumina_jax.sample.live import LiveChat, Words
from lumina_jax.sample.prompt import PromptBuilder
from lumina_jax.sharding import make_mesh

VOCAB = tiny_vocab()
VQ = PatchVQ(np.random.default_rng(0).integers(0, 200, (CODES, 16, 16, 3), np.uint8))
CFG = SampleConfig(image_top_k=12, text_top_k=10, max_new_tokens=18, guidance=1.0)
(TEN_LINES,) = (code for _, code in blocks((REPO / "lumina_jax/INSTALL.md").read_text(encoding="utf-8"), "python"))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    builder = PromptBuilder(VQ, VOCAB, DataConfig(size=64, patch=32))
    return LoadedModel(tiny_model(), VOCAB, VQ, CFG, builder)


def python(code: str, cwd, **environment: str) -> str:
    """What a new process prints that runs ``code`` in the folder ``cwd``."""
    command = [sys.executable, "-c", code]
    pipes = dict(capture_output=True, text=True, check=True)
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, **pipes).stdout


@pytest.mark.smoke
def test_importing_the_package_loads_nothing_and_its_names_start_no_device(tmp_path):
    code = """
import sys
import lumina_jax
known = ("jax", "flax", "numpy", "fsspec", "PIL", "convert", "lumina_jax")
print([name for name in sys.modules if name.split(".")[0] in known])
from lumina_jax import Chat, generate, load
from jax._src.xla_bridge import backends_are_initialized
print(backends_are_initialized())
"""
    assert python(code, tmp_path, PYTHONPATH=str(REPO)) == "['lumina_jax']\nFalse\n"


def test_the_names_are_those_of_the_package():
    assert all(getattr(lumina_jax, name).__name__ == name for name in lumina_jax.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'paint'"):
        getattr(lumina_jax, "paint")  # noqa: B009
    assert tuple(SamplingSettings.__annotations__) == FIELDS


def test_ten_lines_paint_from_the_built_package_what_the_command_line_paints(tmp_path, wheel):
    """The package as it is installed, unpacked beside no repository, and the command line of the repository: the same bits."""
    assert len(TEN_LINES.splitlines()) <= 10
    python(TEN_LINES, tmp_path, PYTHONPATH=str(wheel), JAX_NUM_CPU_DEVICES="8")
    prompt, out = "a red circle left of a blue square", tmp_path / "out"
    assert prompt in TEN_LINES and "64x64" in TEN_LINES and "seed=7" in TEN_LINES
    assert run.main(["sample", "--prompt", prompt, "--size", "64x64", "--seed", "7", "--out", str(out)]) == 0
    ours, theirs = Image.open(tmp_path / "circle.png"), Image.open(out / "000-0.png")
    assert ours.mode == theirs.mode and ours.size == (64, 64) and ours.tobytes() == theirs.tobytes()


def test_pictures_come_in_the_order_of_the_prompts_whatever_else_is_asked(loaded):
    sizes = dict(size=(64, 32), seed=5, guidance=1.5)
    pictures = generate(loaded, ["w1", "w2 w3"], per_prompt=2, **sizes)
    assert [picture.size for picture in pictures] == [(64, 32)] * 4
    assert len({picture.tobytes() for picture in pictures}) > 1
    (alone,) = generate(loaded, "w1", **sizes | {"size": "64x32"})
    assert alone.tobytes() == pictures[0].tobytes()
    edited = generate(loaded, "w4", task="edit", images=[pictures[0]])
    assert [picture.size for picture in edited] == [(64, 32)]


def test_a_picture_may_be_given_by_its_file(loaded, tmp_path):
    picture = Image.new("RGB", (64, 32), "red")
    picture.save(tmp_path / "red.png")
    (expected,) = generate(loaded, "w4", task="edit", images=[picture])
    for images in (tmp_path / "red.png", [str(tmp_path / "red.png")], picture):
        (edited,) = generate(loaded, "w4", task="edit", images=images)
        assert edited.tobytes() == expected.tobytes()
    replies = [Chat(loaded, seed=3).say("w2", images) for images in ([picture], str(tmp_path / "red.png"))]
    assert replies[0].text == replies[1].text
    with pytest.raises(InputError, match=r"gone\.png is not a picture that can be read: there is no such file"):
        generate(loaded, "w4", task="edit", images="gone.png")


def test_a_picture_is_seen_as_its_file_is_shown(loaded, tmp_path, monkeypatch):
    """A photo that its file turns and a scan of 16 bits reach the model as from the command line, and stay what they were."""
    colours, exif = np.random.default_rng(1).integers(0, 256, (64, 32, 3), np.uint8), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(colours).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    seen = []
    monkeypatch.setattr("lumina_jax.face.painting._pictures", lambda _, job: seen.append(job.prompts[0].ids))
    for name in ("turned.png", "deep.png"):
        expected = loaded.prompts.task("depth", "", [open_image(tmp_path / name)], CFG).ids
        with Image.open(tmp_path / name) as picture:
            before = (picture.mode, picture.size, dict(picture.info))
            generate(loaded, "", task="depth", images=[picture])
            assert (picture.mode, picture.size, dict(picture.info)) == before
        assert (seen.pop() == expected).all()
    with Image.open(tmp_path / "turned.png") as picture:
        chat = Chat(loaded)
        chat.say("w1", [picture])
        assert chat.dialog.pictures[0].image.size == (64, 32)


def test_a_chat_is_the_dialog_of_the_command_line(loaded):
    chat, picture = Chat(loaded, seed=3, temperature=0.9), Image.new("RGB", (64, 64), "red")
    cfg = replace(CFG, temperature=0.9)
    other = LiveChat(loaded.model, loaded.prompts, seed_key(3), cfg)
    painted = chat.say("w1", size="64x32")
    list(other.say("w1", size=(64, 32), cfg=cfg))
    assert painted.pictures[0].size == (64, 32)
    said = chat.say("w2", [picture])
    assert said.text == "".join(event.text for event in other.say("w2", [picture]) if isinstance(event, Words)).strip()
    assert chat.dialog.turns == other.dialog.turns and len(said.pictures) == len(chat.dialog.pictures) - 2
    chat.clear()
    assert chat.dialog.turns == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(guidence=4.0), "no setting 'guidence'; did you mean guidance"),
        (dict(task="describe"), "'describe' paints nothing; give one of generate"),
        (dict(task="edit", size="64x64"), "'edit' takes the size of its image"),
        (dict(images=[Image.new("RGB", (64, 64))]), "'generate' takes no images"),
        (dict(per_prompt=0), "0 pictures of each"),
        (dict(size="wide"), "'wide' is not WIDTHxHEIGHT"),
        (dict(size=(64, 63)), "must be multiples of 32 px"),
        (dict(max_new_tokens=9), "takes 14 tokens; raise it"),
        (dict(temperature=-1.0), "temperature"),
        (dict(parallel="off", window=4), "window=4: parallel=off draws one token in a pass; choose a method too"),
    ],
)
def test_a_wrong_wish_is_refused_before_anything_is_compiled(options, words, loaded, monkeypatch):
    monkeypatch.setattr("lumina_jax.face.painting.draw", None)
    with pytest.raises(InputError, match=words):
        generate(loaded, "w1", **{"size": (64, 32)} | options)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (dict(model="/nowhere"), MissingFileError, "/nowhere"),
        (dict(dtype="float8"), InputError, "dtype: "),
        (dict(quantize="int2"), InputError, "quantize='int2'"),
        (dict(target_size=7), InputError, "target-size: .*7"),
        (dict(image_layout="square"), InputError, "image-layout: .*lumina"),
    ],
)
def test_a_wrong_model_is_refused_in_the_words_of_the_command_line(options, kind, words):
    with pytest.raises(kind, match=words):
        load(**options)


def test_a_model_is_loaded_onto_a_mesh_with_its_own_settings():
    mesh = make_mesh(MeshConfig(replica=-1, fsdp=1, tensor=2))
    loaded = load(mesh=mesh, dtype="bf16")
    weight = loaded.model.blocks.attention.wq[...]
    assert weight.dtype == "bfloat16" and len(weight.sharding.device_set) == 8
    assert loaded.settings.guidance == 1.2 and (128, 96) in loaded.prompts.sizes

"""What a type checker knows of the public names: mypy reads this file, nothing runs it."""

from pathlib import Path
from typing import assert_type

from jax.sharding import Mesh
from PIL import Image

import convert
from lumina_jax import Chat, generate, load
from lumina_jax.config import ModelConfig, SampleConfig
from lumina_jax.face import LoadedModel, Reply
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.vqvae import VQVAE
from lumina_jax.sample.dialog import Dialog
from lumina_jax.vocab import Vocab


def paint(mesh: Mesh) -> list[Image.Image]:
    assert_type(load(), LoadedModel)
    loaded = load(Path("out/7B-768"), mesh, "bf16", "int8", target_size=768)
    assert_type(loaded.model, Chameleon)
    assert_type(loaded.vocab, Vocab)
    assert_type(loaded.vocab.encode("red"), list[int])
    assert_type(loaded.vocab.id_of("<pad>"), int)
    assert_type(Vocab.load("out/7B-768"), Vocab)
    assert_type(loaded.settings, SampleConfig)
    assert_type(loaded.settings.guidance, float)
    assert_type(ModelConfig().width, int)
    pictures = generate(loaded, ["a fox", "a hare"], size=(768, 768), seed=7, guidance=4.0, image_top_k=2000)
    assert_type(pictures, list[Image.Image])
    return pictures + generate(loaded, "in winter", task="edit", images=pictures[:1])


def talk(loaded: LoadedModel, image: Image.Image) -> str:
    chat = Chat(loaded, seed=3, text_top_k=1)
    assert_type(chat.say("What is this?", [image]), Reply)
    assert_type(chat.say("And this?", Path("photo.png")), Reply)
    assert_type(chat.paint("a fox", size="512x512").pictures, tuple[Image.Image, ...])
    assert_type(chat.dialog, Dialog)
    return chat.say("Why?").text


def convert_weights(mesh: Mesh) -> None:
    model, cfg = convert.load_model("out/7B-768", mesh, "bfloat16")
    assert_type(model, Chameleon)
    assert_type(cfg, ModelConfig)
    assert_type(convert.load_vqvae("vq"), VQVAE)
    assert_type(convert.save_model(model, cfg, "out/7B-768-hf", layout="hf", shards=2), None)


def wrong(loaded: LoadedModel) -> None:
    generate(loaded, "a fox", guidence=4.0)  # type: ignore[call-arg]
    generate(loaded, "a fox", guidance="4")  # type: ignore[arg-type]
    load(quantize="int2")  # type: ignore[arg-type]

"""Which rule the pictures of a checkpoint follow: given, recorded, or that of the family; and the command line that serves them."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoints import Sizes, rewrite, write_meta
from flax import nnx
from PIL import Image

import run
from convert import image_layout, save_model
from convert.convert import Target, convert, open_source
from convert.describe import describe
from convert.file_sums import SUMS
from convert.pictures import image_layout_of
from lumina_jax.config import ModelConfig, VQConfig
from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.vqvae import VQVAE
from lumina_jax.vocab import CHAMELEON, UNI_REP

EDGE = 32
"""Of a picture in pixels: four codes in all."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_path) -> Path:
    """A random checkpoint of Chameleon as transformers keeps it: processor, tokenizer, weights with the encoder."""
    cfg = ModelConfig(vocab=65536, width=8, layers=1, heads=2, kv_heads=2, head_dim=4, mlp=8, dropout=0.0)
    vq = VQConfig(codes=8192, embed=4, latent=4, base=32, multipliers=(1,) * 5, res_blocks=1, resolution=EDGE)
    folder = tmp_path_factory.mktemp("models") / "chameleon-7b"
    save_model(drawn(Chameleon, cfg), cfg, folder, vqvae=drawn(VQVAE, vq))
    shutil.copy(tokenizer_path / "tokenizer.json", folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "ChameleonProcessor"}))
    return folder


def drawn(module: type, cfg):
    """A module of ``cfg``, its weights drawn by numpy, which compiles nothing."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: module(cfg, nnx.Rngs(0)))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def found(folder: Path, *options) -> tuple[str, str]:
    """(the name of the image layout, "" where unknown; what is printed of it)."""
    layout = image_layout_of(open_source(folder), *options)
    return layout.image_layout.name if layout.image_layout else "", layout.line


def test_a_chameleon_is_known_by_its_name_its_processor_or_meta_s_files(folder, tmp_path):
    for name, reason in (("Chameleon_7B_mGPT", "whose name"), ("chameleon-30b-bf16", "whose name")):
        layout, line = found(shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("processor*")))
        assert layout == "chameleon" and reason in line and "--image-layout lumina" in line
    renamed = shutil.copytree(folder, tmp_path / "mine")
    assert found(renamed)[0] == "chameleon" and "whose processor and image encoder" in found(renamed)[1]
    assert image_layout(renamed) == CHAMELEON and image_layout(renamed, "lumina") == UNI_REP
    (renamed / "processor_config.json").unlink()
    assert found(renamed) == ("", "")
    with pytest.raises(InputError, match="nothing tells its image layout"):
        image_layout(renamed)
    meta = write_meta(tmp_path / "any", Sizes(shards=1))
    assert found(meta)[0] == "chameleon" and "whose files" in found(meta)[1]


def test_a_lumina_is_known_by_its_name_or_its_target_size(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "Lumina-mGPT-7B-768", ignore=shutil.ignore_patterns("processor*"))
    assert found(bare) == ("lumina", "")
    mine = shutil.copytree(bare, tmp_path / "mine")
    assert (
        found(mine) == ("", "")
        and found(mine, "", 768) == ("lumina", "")
        and found(mine, "chameleon")[0] == "chameleon"
    )
    assert found(run.REPOSITORY / run.TOY_MODEL)[0] == "lumina"
    with pytest.raises(InputError, match=r"target size of 512 for .*chameleon-7b.*--image-layout lumina"):
        found(folder, "", 512)


def test_a_fine_tune_of_chameleon_is_none_by_the_name_of_its_start(folder, tmp_path):
    mine = shutil.copytree(folder, tmp_path / "mine", ignore=shutil.ignore_patterns("processor*"))
    settings = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps(settings | {"_name_or_path": "Alpha-VLLM/Chameleon_7B_mGPT"}))
    assert found(mine) == ("", "") and found(mine, "", 512) == ("lumina", "")


def test_an_option_says_what_it_contradicts(folder):
    layout, line = found(folder, "lumina")
    assert layout == "lumina" and line.endswith("lumina that was given takes the place of chameleon, whose name it has")
    assert found(folder, "chameleon") == ("chameleon", "")


def test_an_import_and_an_export_record_it(tmp_path):
    convert(write_meta(tmp_path / "any", Sizes(shards=1)), tmp_path / "a", Target("ours"), show=False)
    assert found(tmp_path / "a") == ("chameleon", "")
    assert "image layout" in describe(tmp_path / "a").text() and "target size" not in describe(tmp_path / "a").text()
    convert(tmp_path / "a", tmp_path / "b", Target("meta", image_layout="lumina", target_size=768), show=False)
    assert found(tmp_path / "b") == ("lumina", "") and "768 x 768" in describe(tmp_path / "b").text()


def test_an_unknown_record_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"image_layout": "spiral"}))
    with pytest.raises(InputError, match="'spiral'; choose one of lumina, chameleon"):
        found(copy)


@pytest.fixture
def sample(folder, tmp_path, monkeypatch, capsys):
    """``sample("--prompt", "a")`` -> (exit code, stdout, stderr) of the command for the checkpoint, or for another ``model``."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 64), "teal").save("cat.png")

    def call(*words: str, model: Path = folder) -> tuple[int, str, str]:
        try:
            code = run.main(["sample", "--model", str(model), "--max-new-tokens", "6", *words])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_pictures_are_talked_about_in_chameleon_s_layout(sample, tmp_path, vocab, monkeypatch):
    prompts = []
    monkeypatch.setattr(
        "lumina_jax.cli.sample._paint", lambda model, builder, options, asked, *_: prompts.extend(asked) or 0
    )
    asks = [
        {"task": "question", "image": "cat.png", "prompt": "Which colour?"},
        {"task": "describe", "image": "cat.png"},
    ]
    (tmp_path / "asks.jsonl").write_text("\n".join(map(json.dumps, asks)))
    assert sample("--prompts", "asks.jsonl")[0] == 0 and len(prompts) == 2
    for prompt in prompts:
        begin, end = (int(np.flatnonzero(prompt.ids == token)[0]) for token in (vocab.boi, vocab.eoi))
        assert end - begin == 1 + 4 and (vocab.code_of[prompt.ids[begin + 1 : end]] >= 0).all() and not prompt.picture


def test_what_a_checkpoint_cannot_paint_is_refused_with_the_cure(sample, folder, tmp_path):
    code, _, error = sample("--prompt", "A cat.")
    assert code == 2 and "paints no pictures" in error and "vqgan.ckpt" in error
    zeroed = shutil.copytree(folder, tmp_path / "chameleon-7b")

    def zero(tensors) -> None:
        tensors["lm_head.weight"][4 : 4 + 8192] = 0

    rewrite(zeroed, zero)
    (zeroed / SUMS).unlink()
    code, _, error = sample("--task", "edit", "--image", "cat.png", "--prompt", "Make it red.", model=zeroed)
    assert code == 2 and "all zero" in error and "start=FOLDER" in error


def test_sizes_are_those_of_the_layout(sample):
    assert sample("--list-sizes")[:2] == (0, "512x512 1,026 tokens\n")
    code, _, error = sample("--target-size", "768", "--list-sizes")
    assert code == 0 and "target size" not in error
    code, _, error = sample("--target-size", "768", "--prompt", "A cat.")
    assert code == 2 and "leave the target size out" in error

"""A folder's report says what is there, what is missing and what is broken, and never fails itself."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import run
from convert import save_model
from convert.convert import Wish, convert
from convert.describe import Report, inspect, parameters
from convert.sources import names_of
from convert.table import ROWS, shape_of, sizes_of
from lumina_jax.config import Experiment, ModelConfig
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.train.checkpoint import Saver
from lumina_jax.train.step import new_state

CFG = ModelConfig(vocab=48, width=32, layers=2, heads=8, kv_heads=4, head_dim=4, mlp=40, qk_groups=2, post_norm=True)
TOY = run.REPOSITORY / run.TOY_MODEL
BIG = ModelConfig(width=8192, layers=48, heads=64, kv_heads=8, mlp=22016, qk_groups=4, post_norm=True)


def said(report: Report, what: str) -> str:
    """The only entry about ``what``."""
    (entry,) = [entry.said for entry in report.entries if entry.what == what]
    return entry


@pytest.fixture
def model(tmp_path) -> Path:
    """A small checkpoint in three files, without companions."""
    shapes = jax.eval_shape(lambda: Chameleon(CFG, nnx.Rngs(0)))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    save_model(zeros, CFG, tmp_path / "model", "lumina", shards=3)
    return tmp_path / "model"


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("layout", "words", "rows"),
    [
        ("hf", "as transformers saves it", "one per head (8 of queries, 4 of keys), 2 different"),
        ("lumina", "as Lumina-mGPT saves it", "one per group of heads, 2"),
        ("ours", "lumina_jax", "one per group of heads, 2"),
    ],
)
def test_a_whole_checkpoint_is_told_by_its_layout(model, layout, words, rows, tmp_path):
    convert(model, tmp_path / layout, Wish(layout), show=False)
    report = inspect(tmp_path / layout)
    assert report.whole, report.text()
    assert words in said(report, "layout")
    assert said(report, "QK-norm rows") == rows
    assert said(report, "norms") == "behind attention and MLP (swin), eps 1e-05"
    assert said(report, "parameters") == f"{parameters(CFG):,}"
    assert said(report, "dtype") == "float32"
    assert said(report, "VQ encoder") == "none"
    assert [note.partition(":")[0] for note in report.notes] == ["no tokenizer", "no image tokenizer"]
    assert "whole\nnext: python run.py convert " in report.text()
    assert ("export" if layout == "ours" else "import") in report.following


def test_meta_s_release_is_told_from_its_root_or_its_model(tmp_path):
    pytest.importorskip("torch")
    from checkpoints import Sizes, write_meta

    folder = write_meta(tmp_path / "release" / "models" / "30b", Sizes(shards=2))
    for at in (folder, folder.parents[1], folder / "consolidated.00.pth"):
        report = inspect(at)
        assert report.whole, report.text()
        assert said(report, "layout") == "Meta's Chameleon"
        assert said(report, "dtype") == "bfloat16"
        assert "consolidated.01.pth" in said(report, "weights")
    (folder / "consolidated.01.pth").unlink()
    report = inspect(folder)
    assert not report.whole
    assert "missing: consolidated.01.pth" in report.text()
    assert "consolidated.00.pth" in said(report, "weights")


@pytest.mark.smoke
def test_companions_are_found_and_counted():
    report = inspect(TOY)
    assert report.whole, report.text()
    assert said(report, "tokenizer").startswith(f"{TOY / 'tokenizer.json'}: 1,538 names, 1,150 image codes")
    assert said(report, "image tokenizer") == f"{TOY / 'vq.npz'}: 1,150 codes"
    assert not report.notes


@pytest.mark.parametrize(
    ("cfg", "name"),
    [
        (ModelConfig(), "the numbers of Chameleon 7B, Lumina-mGPT 7B"),
        (BIG, "the numbers of Chameleon 34B (Meta's 30b), Lumina-mGPT 34B"),
        (replace(BIG, post_norm=False), "Lumina-mGPT 34B, but post_norm False instead of True"),
    ],
    ids=["7b", "34b", "34b-norms"],
)
def test_published_models_are_told_by_their_numbers_from_headers_alone(cfg, name, tmp_path):
    shapes = {key: (sizes_of(cfg, row), row.hf) for row in ROWS for key in names_of(row.hf_name, cfg.layers)}
    header, end = {}, 0
    for key, (sizes, layout) in shapes.items():
        start, end = end, end + 2 * math.prod(sizes.values())
        header[key] = {"dtype": "BF16", "shape": list(shape_of(layout, sizes)), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)  # a hole, which takes no disk
    settings = dict(vocab_size=cfg.vocab, hidden_size=cfg.width, num_hidden_layers=cfg.layers, rms_norm_eps=cfg.eps)
    settings |= dict(num_attention_heads=cfg.heads, num_key_value_heads=cfg.kv_heads, intermediate_size=cfg.mlp)
    settings |= dict(model_parallel_size=cfg.qk_groups, swin_norm=cfg.post_norm, mask_image_logits=True)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    report = inspect(tmp_path)
    assert report.whole, report.text()
    assert said(report, "model").endswith(name)
    assert any("mask_image_logits" in note for note in report.notes)


def test_a_run_says_how_far_it_is_and_what_it_was(tmp_path):
    tiny = replace(CFG, width=16, heads=4, kv_heads=4)
    cfg = Experiment(name="mine", out=str(tmp_path), model=tiny)
    shapes = jax.eval_shape(lambda: new_state(cfg))._replace(key=None)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    saver = Saver(cfg)
    saver.save(7, zeros._replace(key=jax.random.key(0)))
    saver.close()
    (tmp_path / "checkpoints" / "9").mkdir()
    report = inspect(tmp_path)
    assert report.whole, report.text()
    assert said(report, "experiment") == "mine"
    assert said(report, "training").startswith("step 7, with ")
    assert any("checkpoints/9 is a write" in note for note in report.notes)
    convert(tmp_path, tmp_path / "weights", Wish("ours"), show=False)
    report = inspect(tmp_path / "weights")
    assert said(report, "training") == "weights only"
    assert said(report, "comes from") == f"{tmp_path.name} (lumina_jax (Orbax))"


def test_the_zeroed_image_head_is_told(tmp_path):
    for layout in ("ours", "lumina"):
        convert(TOY, tmp_path / layout, Wish(layout, zero_image_head=True), show=False)
        assert said(inspect(tmp_path / layout), "image head").startswith("zeroed")


def test_a_carried_encoder_is_told_with_its_codes():
    from goldens_at import golden_roots

    folder = next((golden_roots("lm")[0] / "lm").glob("*/ckpt_lumina"))
    assert said(inspect(folder), "VQ encoder") == "carried, 64 codes, float32"


def settings(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        change(said)
        (folder / "config.json").write_text(json.dumps(said))

    return damage


def of_two_dtypes(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({name: t.astype(np.float16) if "head" in name else t for name, t in tensors.items()}, file)


def cut_short(folder: Path) -> None:
    os.truncate(folder / "model-00002-of-00003.safetensors", 3000)


def with_meta_s_files(folder: Path) -> None:
    (folder / "params.json").write_text("{}")


def with_the_toy_s_tokenizer(folder: Path) -> None:
    shutil.copy(TOY / "tokenizer.json", folder)


DAMAGES = {
    "missing shard": (lambda at: (at / "model-00002-of-00003.safetensors").unlink(), r"lacks model-00002-of-00003"),
    "cut short": (cut_short, r"model-00002-of-00003.safetensors is damaged or cut short"),
    "no config": (lambda at: (at / "config.json").unlink(), r"is no checkpoint"),
    "no JSON": (lambda at: (at / "config.json").write_text("{"), r"config.json is not JSON"),
    "a field missing": (settings(lambda said: said.pop("hidden_size")), r"says nothing of 'hidden_size'"),
    "no number": (settings(lambda said: said.update(hidden_size="wide")), r"wide|TypeError"),
    "other sizes": (settings(lambda said: said.update(intermediate_size=44)), r"misshapen"),
    "several dtypes": (of_two_dtypes, r"several dtypes"),
    "several models": (with_meta_s_files, r"holds several models"),
    "another tokenizer": (with_the_toy_s_tokenizer, r"model.vocab=48, but .* has ids up to 1536"),
    "no tokenizer": (lambda at: (at / "tokenizer.json").write_text("{}"), r"is not a tokenizers JSON file"),
    "no image tokenizer": (lambda at: (at / "vqgan.ckpt").touch(), r"no .*vqgan.yaml"),
    "nothing": (shutil.rmtree, r"is no checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_broken_is_a_problem_and_no_failure(model, damage, capsys):
    act, words = DAMAGES[damage]
    act(model)
    assert run.main(["convert", "inspect", str(model)]) == 1
    printed = capsys.readouterr().out
    problems = [line for line in printed.splitlines() if line.startswith("problem: ")]
    assert problems == list(dict.fromkeys(problems))
    assert re.search(words, "\n".join(problems)), printed
    assert printed.endswith(f"next: mend this, then: python run.py convert inspect {model}\n")


def test_image_codes_must_be_as_many_as_the_image_tokenizer_has(tmp_path):
    other = Path(shutil.copytree(TOY, tmp_path / "other"))
    with np.load(other / "vq.npz") as stored:
        arrays = {name: stored[name][:-1] if stored[name].shape[:1] == (1150,) else stored[name] for name in stored}
    np.savez(other / "vq.npz", **arrays)
    report = inspect(other)
    assert any("has 1149 codes but" in problem for problem in report.problems), report.text()

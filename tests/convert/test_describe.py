"""The report on a folder says what it holds, what is missing and what is broken; only a bug makes it fail."""

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
from project_sources import REPO
from safetensors.numpy import load_file, save_file

import run
from convert import describe as module
from convert import save_model
from convert.convert import Target, convert, open_source
from convert.describe import FolderReport, describe, parameters
from convert.sources import layer_names
from convert.table import ROWS, shape_of, sizes_of
from lumina_jax.config import Experiment, ModelConfig
from lumina_jax.errors import MissingFileError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.train.checkpoint import Saver
from lumina_jax.train.step import new_state

CFG = ModelConfig(vocab=48, width=32, layers=2, heads=8, kv_heads=4, head_dim=4, mlp=40, qk_groups=2, post_norm=True)
TOY = run.REPOSITORY / run.TOY_MODEL
BIG = ModelConfig(width=8192, layers=48, heads=64, kv_heads=8, mlp=22016, qk_groups=4, post_norm=True)


def finding(report: FolderReport, topic: str) -> str:
    """The text of the only finding about ``topic``."""
    (text,) = [finding.text for finding in report.findings if finding.topic == topic]
    return text


@pytest.fixture
def model(tmp_path) -> Path:
    """A small checkpoint in three files, without tokenizer files."""
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
def test_a_checkpoint_is_described_in_every_layout(model, layout, words, rows, tmp_path):
    convert(model, tmp_path / layout, Target(layout), show=False)
    report = describe(tmp_path / layout)
    assert not report.problems, report.text()
    assert words in finding(report, "layout")
    assert finding(report, "QK-norm rows") == rows
    assert finding(report, "norms") == "behind attention and MLP (swin), eps 1e-05"
    assert finding(report, "parameters") == f"{parameters(CFG):,}"
    assert finding(report, "dtype") == "float32"
    assert finding(report, "VQ encoder") == "none"
    assert [note.partition(":")[0] for note in report.notes] == ["no tokenizer", "no image tokenizer"]
    assert "no problems\nnext: python run.py convert " in report.text()
    assert ("export" if layout == "ours" else "import") in report.next_command


def test_meta_s_release_is_found_from_its_root_or_its_model(tmp_path):
    pytest.importorskip("torch")
    from checkpoints import Sizes, write_meta

    folder = write_meta(tmp_path / "release" / "models" / "30b", Sizes(shards=2))
    for path in (folder, folder.parents[1], folder / "consolidated.00.pth"):
        report = describe(path)
        assert not report.problems, report.text()
        assert finding(report, "layout") == "Meta's Chameleon"
        assert finding(report, "dtype") == "bfloat16"
        assert "consolidated.01.pth" in finding(report, "weights")
    (folder / "consolidated.01.pth").unlink()
    report = describe(folder)
    assert report.problems
    assert "missing: consolidated.01.pth" in report.text()
    assert "consolidated.00.pth" in finding(report, "weights")


@pytest.mark.smoke
def test_tokenizer_files_are_found_and_counted():
    report = describe(TOY)
    assert not report.problems, report.text()
    assert finding(report, "tokenizer").startswith(f"{TOY / 'tokenizer.json'}: 1,538 names, 1,150 image codes")
    assert finding(report, "image tokenizer") == f"{TOY / 'vq.npz'}: 1,150 codes"
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
def test_published_models_are_recognized_from_headers_alone(cfg, name, tmp_path):
    shapes = {key: (sizes_of(cfg, row), row.hf_axes) for row in ROWS for key in layer_names(row.hf_name, cfg.layers)}
    header, end = {}, 0
    for key, (sizes, layout) in shapes.items():
        start, end = end, end + 2 * math.prod(sizes.values())
        header[key] = {"dtype": "BF16", "shape": list(shape_of(layout, sizes)), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)  # a sparse file, which takes no space on disk
    settings = dict(vocab_size=cfg.vocab, hidden_size=cfg.width, num_hidden_layers=cfg.layers, rms_norm_eps=cfg.eps)
    settings |= dict(num_attention_heads=cfg.heads, num_key_value_heads=cfg.kv_heads, intermediate_size=cfg.mlp)
    settings |= dict(model_parallel_size=cfg.qk_groups, swin_norm=cfg.post_norm, mask_image_logits=True)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    report = describe(tmp_path)
    assert not report.problems, report.text()
    assert finding(report, "model").endswith(name)
    assert any("mask_image_logits" in note for note in report.notes)


def test_a_run_is_described_with_its_step_and_experiment(tmp_path):
    tiny = replace(CFG, width=16, heads=4, kv_heads=4)
    cfg = Experiment(name="experiment", out=str(tmp_path), model=tiny)
    shapes = jax.eval_shape(lambda: new_state(cfg))._replace(key=None)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    saver = Saver(cfg)
    saver.save(7, zeros._replace(key=jax.random.key(0)))
    saver.close()
    (tmp_path / "checkpoints" / "9").mkdir()
    report = describe(tmp_path)
    assert not report.problems, report.text()
    assert finding(report, "experiment") == "experiment"
    assert finding(report, "training").startswith("step 7, with ")
    assert any("checkpoints/9 is not whole: " in note for note in report.notes)
    convert(tmp_path, tmp_path / "weights", Target("ours"), show=False)
    report = describe(tmp_path / "weights")
    assert finding(report, "training") == "weights only"
    assert finding(report, "comes from") == f"{tmp_path.name} (lumina_jax (Orbax))"


def test_a_zeroed_image_head_is_described(tmp_path):
    for layout in ("ours", "lumina"):
        convert(TOY, tmp_path / layout, Target(layout, zero_image_head=True), show=False)
        assert finding(describe(tmp_path / layout), "image head").startswith("zeroed")


def test_a_vq_encoder_is_described_with_its_codes():
    from goldens_at import golden_roots

    folder = next((golden_roots("lm")[0] / "lm").glob("*/ckpt_lumina"))
    assert finding(describe(folder), "VQ encoder") == "carried, 64 codes, float32"


def settings(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text())
        change(fields)
        (folder / "config.json").write_text(json.dumps(fields))

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
    "missing shard": (
        lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(),
        r"lacks model-00002-of-00003",
    ),
    "cut short": (cut_short, r"model-00002-of-00003.safetensors is damaged or cut short"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"is no checkpoint"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), r"config.json is not JSON"),
    "a field missing": (settings(lambda fields: fields.pop("hidden_size")), r"has no field 'hidden_size'"),
    "no number": (settings(lambda fields: fields.update(hidden_size="wide")), r"hidden_size is 'wide'"),
    "other sizes": (settings(lambda fields: fields.update(intermediate_size=44)), r"misshapen"),
    "several dtypes": (of_two_dtypes, r"several dtypes"),
    "several models": (with_meta_s_files, r"holds several models"),
    "another tokenizer": (with_the_toy_s_tokenizer, r"model.vocab=48, but .* has ids up to 1536"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"is not a tokenizers JSON file"),
    "no image tokenizer": (lambda folder: (folder / "vqgan.ckpt").touch(), r"no .*vqgan.yaml"),
    "nothing": (shutil.rmtree, r"is no checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_broken_is_reported_as_a_problem(model, damage, capsys):
    break_folder, words = DAMAGES[damage]
    break_folder(model)
    assert run.main(["convert", "inspect", str(model)]) == 1
    printed = capsys.readouterr().out
    problems = [line for line in printed.splitlines() if line.startswith("problem: ")]
    assert problems == list(dict.fromkeys(problems))
    assert re.search(words, "\n".join(problems)), printed
    assert printed.endswith(f"next: mend this, then: python run.py convert inspect {model}\n")


def test_a_bug_is_raised_and_not_reported(model, monkeypatch):
    def fail(source):
        raise KeyError("bug")

    monkeypatch.setattr(module, "dtype_names", fail)
    with pytest.raises(KeyError, match="bug"):
        run.main(["convert", "inspect", str(model)])


def test_the_tokenizers_must_agree_on_the_number_of_image_codes(tmp_path):
    other = Path(shutil.copytree(TOY, tmp_path / "other"))
    with np.load(other / "vq.npz") as stored:
        arrays = {name: stored[name][:-1] if stored[name].shape[:1] == (1150,) else stored[name] for name in stored}
    np.savez(other / "vq.npz", **arrays)
    report = describe(other)
    assert any("has 1149 codes but" in problem for problem in report.problems), report.text()


def test_the_model_beside_a_wrong_folder_is_named(tmp_path):
    for wrong, right in ((REPO / "assets", "assets/toy"), (tmp_path / "run/checkpoints", "run"), (tmp_path, "run")):
        (tmp_path / "run/checkpoints").mkdir(parents=True, exist_ok=True)
        with pytest.raises(MissingFileError, match=rf"is no checkpoint: .*; did you mean \S*{right}\?"):
            open_source(wrong)

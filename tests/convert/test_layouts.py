"""Exports as each layout's own readers load them, the options of a conversion, and the files copied along with the weights."""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens_at import golden_roots
from orbax.checkpoint import v1 as ocp
from PIL import Image
from safetensors import safe_open
from train.train_parts import batches, experiment, host_state

import run
from convert import load_model, load_vqvae, save_model, tokenizer_files
from convert.convert import Target, convert, experiment_of, open_source
from convert.orbax_folder import IMPORTED, ORIGIN
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sharding import make_mesh
from lumina_jax.train.checkpoint import flatten
from lumina_jax.train.loop import initial_state, train
from lumina_jax.vocab import Vocab

REPOSITORY = Path(__file__).resolve().parents[2]
TOY = REPOSITORY / "assets" / "toy"
LAYOUTS = ("hf", "lumina", "meta", "ours")
LM = sorted({folder for root in golden_roots("lm") for folder in (root / "lm").glob("*/ckpt_*")})
META = sorted({folder for root in golden_roots("meta") for folder in (root / "meta").iterdir() if folder.is_dir()})


def weights(model: Chameleon) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in flatten(model).items()}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same names, dtypes and bits."""
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        assert array.dtype == expected[name].dtype and array.tobytes() == expected[name].tobytes(), name


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> dict[str, Path]:
    """The toy model in every layout."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("toys")
    for layout in LAYOUTS:
        convert(TOY, folder / layout, Target(layout), show=False)
    return {layout: folder / layout for layout in LAYOUTS}


@pytest.mark.parametrize("golden", META, ids=lambda path: path.name)
def test_meta_converts_to_the_recorded_bits(golden, tmp_path):
    """The bits are those that Lumina-mGPT's own converter wrote from the same files."""
    torch = pytest.importorskip("torch")
    convert(golden, tmp_path / "out", Target("lumina"), show=False)
    recorded = json.loads((golden / "converted_hf_tensors.json").read_text())
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == sorted(recorded)
        for name, info in recorded.items():
            tensor = file.get_tensor(name)
            assert (list(tensor.shape), str(tensor.dtype)) == (info["shape"], info["dtype"])
            assert hashlib.sha256(tensor.view(torch.int16).numpy().tobytes()).hexdigest() == info["sha256"], name
    config = json.loads((tmp_path / "out/config.json").read_text())
    theirs = json.loads((golden / "converted_hf_config_without_vocab_map.json").read_text())
    shared = set(config) & set(theirs) - {"mask_image_logits", "transformers_version"}
    assert {name: config[name] for name in shared} == {name: theirs[name] for name in shared}
    assert not config["mask_image_logits"]


def transformers_logits(folder: Path, ids: np.ndarray, caplog) -> np.ndarray:
    """Unmasked logits f32[B T V] of the checkpoint in transformers, which must load it without a warning."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    transformers.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        model, report = transformers.ChameleonForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32
        )
    assert not any(report.values()), report
    assert not [record for record in caplog.records if record.name.startswith("transformers")]
    with torch.no_grad():
        hidden = model.eval().model(torch.from_numpy(ids)).last_hidden_state
        return model.lm_head(hidden).numpy()


def jax_logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Logits f32[B T V] of the checkpoint in lumina_jax."""
    model, _ = load_model(folder, dtype="float32")
    return np.asarray(jax.jit(lambda model, ids: model.logits(model(ids)))(model, jnp.asarray(ids)))


def prompts(vocab: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (2, 12))


@pytest.mark.parametrize("checkpoint", LM, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_transformers_reads_an_export(checkpoint, tmp_path, caplog):
    convert(checkpoint, tmp_path / "out", Target("hf", 3), show=False)
    ids = prompts(open_source(checkpoint).cfg.vocab)
    logits = transformers_logits(tmp_path / "out", ids, caplog)
    np.testing.assert_allclose(logits, jax_logits(checkpoint, ids), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("golden", META, ids=lambda path: path.name)
def test_transformers_reads_an_export_of_meta_s_release(golden, tmp_path, caplog):
    """With the VQ encoder of the vqgan.ckpt in the release's tokenizer/."""
    pytest.importorskip("torch")
    release = Path(shutil.copytree(golden / "models", tmp_path / "release/models")).parent
    shutil.copytree(golden_roots("vq")[0] / "vq/small", release / "tokenizer")
    notes = convert(release, tmp_path / "out", Target("hf", binary=True), show=False)
    assert len(notes) == 2 and "tokenizer" in notes[0] and "that of Chameleon is assumed" in notes[1]
    ids = prompts(1024)
    logits = transformers_logits(tmp_path / "out", ids, caplog)
    np.testing.assert_allclose(logits, jax_logits(release, ids), atol=5e-5, rtol=1e-4)
    encoder = load_vqvae(release / "tokenizer")
    assert_same(*({n: np.asarray(a) for n, a in flatten(vq).items()} for vq in (encoder, load_vqvae(tmp_path / "out"))))


def test_transformers_reads_a_saved_model(tmp_path, caplog):
    pytest.importorskip("torch")
    cfg = replace(experiment().model, width=64)
    model = host_state(replace(experiment(), model=cfg)).model
    vqvae = load_vqvae(golden_roots("vq")[0] / "vq/small")
    save_model(model, cfg, tmp_path / "out", "hf", vqvae=vqvae)
    ids = prompts(cfg.vocab)
    logits = transformers_logits(tmp_path / "out", ids, caplog)
    np.testing.assert_allclose(logits, jax_logits(tmp_path / "out", ids), atol=5e-5, rtol=1e-4)
    assert_same(weights(model), weights(load_model(tmp_path / "out")[0]))
    with safe_open(tmp_path / "out/model.safetensors", framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("model.vqmodel.quantize.embedding.weight"), vqvae.codebook[...])


def test_an_export_has_the_vocabulary_that_transformers_reads(toys):
    """transformers tells image tokens from text by it."""
    vocabulary = json.loads((toys["hf"] / "config.json").read_text())["vocabulary_map"]
    vocab = Vocab.load(TOY)
    assert [vocabulary[name] for name in ("IMGIMGAZ", "<racm3:break>")] == [vocab.code_ids[0], vocab.boi]
    assert sorted(i for name, i in vocabulary.items() if name.startswith("IMGIMG")) == vocab.code_ids.tolist()
    assert max(vocabulary.values()) < open_source(TOY).cfg.vocab


@pytest.mark.smoke
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_image_rows_of_the_head_can_be_zeroed(layout, tmp_path):
    if layout == "meta":
        pytest.importorskip("torch")
    convert(TOY, tmp_path / "zeroed", Target(layout, zero_image_head=True), show=False)
    image = Vocab.load(TOY).code_ids
    before, after = weights(load_model(TOY)[0]), weights(load_model(tmp_path / "zeroed")[0])
    assert before["head"][:, image].any(0).all()
    before["head"][:, image] = 0
    assert_same(before, after)


@pytest.mark.parametrize("first", ["ours", "lumina"])
def test_a_zeroed_head_stays_recorded(first, tmp_path):
    convert(TOY, tmp_path / "1", Target(first, zero_image_head=True), show=False)
    for number, layout in enumerate(("ours", "hf", "ours"), 1):
        convert(tmp_path / str(number), tmp_path / str(number + 1), Target(layout), show=False)
    for folder in (tmp_path / str(number) for number in (1, 2, 3, 4)):
        if (folder / "config.json").is_file():
            assert json.loads((folder / "config.json").read_text())["zero_image_head"] is True
        else:
            assert ocp.checkpointables_metadata(folder / IMPORTED).custom_metadata[ORIGIN]["zero_image_head"] is True


def test_a_head_is_not_zeroed_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"--zero-image-head needs the tokenizer.*--tokenizer"):
        convert(LM[0], tmp_path / "out", Target("lumina", zero_image_head=True), show=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_dtype_can_be_changed(layout, tmp_path):
    """To bfloat16, rounded as in torch, and from there to float32 and back without a change."""
    torch = pytest.importorskip("torch")
    folder = TOY
    for number, dtype in enumerate(("bfloat16", "fp32", "bf16")):
        convert(folder, tmp_path / str(number), Target(layout, dtype=dtype), show=False)
        folder = tmp_path / str(number)
    first, wide, again = (weights(load_model(tmp_path / str(number))[0]) for number in range(3))
    assert_same(first, again)
    for name, array in weights(load_model(TOY)[0]).items():
        rounded = torch.from_numpy(np.array(array)).bfloat16().float().numpy()
        assert first[name].dtype == jnp.bfloat16 and wide[name].dtype == np.float32
        np.testing.assert_array_equal(wide[name], rounded)


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokenizer_files_are_copied(source, layout, toys, tmp_path):
    assert convert(toys[source], tmp_path / "out", Target(layout), show=False) == (
        []
        if layout != "hf"
        else ["no VQ encoder to write: transformers will say that it draws model.vqmodel.* at random"]
    )
    files = tokenizer_files.find(open_source(tmp_path / "out").folder)
    assert files.tokenizer.read_bytes() == (TOY / "tokenizer.json").read_bytes()
    assert files.vq.read_bytes() == (TOY / "vq.npz").read_bytes()
    assert_same(weights(load_model(TOY)[0]), weights(load_model(tmp_path / "out")[0]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokenizer_files_of_meta_s_release_are_copied(layout, tmp_path):
    pytest.importorskip("torch")
    release = tmp_path / "release"
    shutil.copytree(META[0] / "models", release / "models")
    shutil.copytree(golden_roots("vq")[0] / "vq/small", release / "tokenizer")
    folder = release
    for number, step in enumerate((layout, "meta")):
        convert(folder, tmp_path / str(number), Target(step), show=False)
        folder = tmp_path / str(number)
        vq = tokenizer_files.find(open_source(folder).folder).vq
        for suffix in (".ckpt", ".yaml"):
            assert vq.with_suffix(suffix).read_bytes() == (release / f"tokenizer/vqgan{suffix}").read_bytes()
    assert vq == tmp_path / "1/tokenizer/vqgan.ckpt"


def test_the_tokenizer_of_lumina_s_release_is_copied(tmp_path):
    """It is in original_tokenizers/, under Meta's name."""
    source = Path(shutil.copytree(TOY, tmp_path / "source"))
    (source / "original_tokenizers").mkdir()
    (source / "tokenizer.json").rename(source / "original_tokenizers/text_tokenizer.json")
    for number, layout in enumerate(("ours", "hf")):
        convert(source, tmp_path / str(number), Target(layout), show=False)
        tokenizer = tokenizer_files.find(tmp_path / str(number)).tokenizer
        assert tokenizer.name == "text_tokenizer.json"
        assert tokenizer.read_bytes() == (TOY / "tokenizer.json").read_bytes()


def test_training_starts_from_an_import_and_its_weights_are_exported(tmp_path):
    """A fine-tune from a PyTorch checkpoint, exported again without the optimizer's state."""
    cfg = experiment(out=str(tmp_path / "run"), start=str(tmp_path / "import"))
    cfg = replace(cfg, model=replace(cfg.model, width=64), optim=replace(cfg.optim, steps=1))
    first = host_state(cfg).model
    save_model(first, cfg.model, tmp_path / "torch", "lumina")
    convert(tmp_path / "torch", tmp_path / "import", Target("ours", dtype="bfloat16"), show=False)
    assert experiment_of(open_source(tmp_path / "import")) is None
    begun = weights(initial_state(cfg, make_mesh(cfg.mesh)).model)
    assert_same(begun, {n: a.astype(jnp.bfloat16).astype(np.float32) for n, a in weights(first).items()})

    last = weights(train(cfg, batches(cfg), show=False).model)
    assert any((begun[name] != last[name]).any() for name in last)
    assert open_source(tmp_path / "run").training_state
    for number, layout in enumerate(("ours", "lumina")):
        convert(tmp_path / "run", tmp_path / str(number), Target(layout), show=False)
        source = open_source(tmp_path / str(number))
        assert_same(last, weights(load_model(tmp_path / str(number))[0]))
        trained = experiment_of(source)
        assert trained.optim == cfg.optim and not (trained.out or trained.start)
    assert not open_source(tmp_path / "0").training_state


def test_every_layout_generates_the_same_image(toys, tmp_path):
    pictures = set()
    for layout, folder in {"toy": TOY, **toys}.items():
        arguments = ["sample", "--model", str(folder), "--prompt", "a red circle", "--size", "32x32", "--seed", "1"]
        arguments += [
            "--guidance",
            "2",
            "--temperature",
            "1",
            "--top-k",
            "50",
            "--min-p",
            "0",
            "--max-new-tokens",
            "40",
        ]
        assert run.main([*arguments, "--out", str(tmp_path / layout)]) == 0
        with Image.open(tmp_path / layout / "000-0.png") as image:
            pictures.add(image.tobytes())
    assert len(pictures) == 1


@pytest.mark.smoke
def test_safetensors_need_no_torch(tmp_path):
    steps = [(TOY, "ours", "1"), ("1", "lumina", "2"), ("2", "hf", "3"), ("3", "ours", "4")]
    code = f"""
import os, sys
from convert.convert import Target, convert
os.chdir({str(tmp_path)!r})
for source, layout, target in {[(str(source), layout, target) for source, layout, target in steps]}:
    convert(source, target, Target(layout), show=False)
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert_same(weights(load_model(TOY)[0]), weights(load_model(tmp_path / "4")[0]))

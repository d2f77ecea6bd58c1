"""What is measured while a model trains equals what is measured afterwards."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import run
from convert import load_image_tokenizer, load_model
from lumina_jax.config import DataConfig, Experiment, MeshConfig, WatchConfig
from lumina_jax.errors import InputError, MissingFileError
from lumina_jax.evaluate import while_training
from lumina_jax.evaluate.heldout import held_out
from lumina_jax.evaluate.while_training import HeldOutLoss, SampleSheets, read_prompts, watchers
from lumina_jax.model.image_tokenizer import decode_image, encode_image
from lumina_jax.sharding import make_mesh, shardings
from lumina_jax.vocab import Vocab

TOY = run.REPOSITORY / run.TOY_MODEL


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> str:
    """Eight scenes of the embedded world."""
    folder = tmp_path_factory.mktemp("scenes") / "tokens"
    names = [f"data.path={folder}", f"data.tokenizer={TOY}", f"vq.path={TOY / 'vq.npz'}", "data.size=64"]
    config = str(run.REPOSITORY / "configs/toy_stage1.py")
    assert run.main(["pretokenize", config, "--source", "toy:8", *names]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def experiment(scenes) -> Experiment:
    data = DataConfig(path="elsewhere", size=64, buckets=(128,), batch=16, packing=False)
    mesh = MeshConfig(replica=1, fsdp=2, compute="float32", loss_chunk=64)
    cfg = Experiment(model=load_model(TOY)[1], data=data, mesh=mesh, watch=WatchConfig(held_out=scenes))
    return replace(cfg, optim=replace(cfg.optim, accumulate=2), vq=replace(cfg.vq, kind="patch"))


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return Vocab.load(TOY)


def test_the_held_out_loss_of_a_sharded_model_is_that_of_evaluate(experiment, scenes, vocab):
    model, mesh = load_model(TOY)[0], make_mesh(experiment.mesh, jax.devices()[:2])
    watcher = HeldOutLoss(replace(experiment, watch=replace(experiment.watch, held_out_every=5)), vocab, mesh)
    state = SimpleNamespace(model=jax.device_put(model, shardings(model, mesh)))
    measured = watcher.measure(5, state)
    assert watcher.every == 5 and list(measured) == ["held_out"]
    assert measured["held_out"] == pytest.approx(held_out(model, vocab, scenes)["xent"], rel=1e-5)
    assert watcher.measure(10, state) == measured


@pytest.mark.smoke
def test_nothing_is_watched_unless_it_is_asked_for(experiment, vocab):
    assert watchers(experiment, vocab, None, None) == []
    with pytest.raises(InputError, match=r"watch\.sheet_every=5 needs watch\.prompts or watch\.pictures"):
        WatchConfig(sheet_every=5)
    with pytest.raises(InputError, match=r"watch\.held_out_every=5 needs a token folder|needs watch\.held_out"):
        WatchConfig(held_out_every=5)


def test_a_sheet_shows_the_picture_of_each_prompt(experiment, vocab, tmp_path, monkeypatch):
    """The sampler is tested elsewhere; here it answers the second prompt without a picture."""
    (tmp_path / "prompts.txt").write_text("a red circle\n\n a blue square \na third\n")
    watch = WatchConfig(prompts=str(tmp_path / "prompts.txt"), sheet_every=3, sheet_prompts=2)
    cfg = replace(experiment, out=str(tmp_path / "run"), watch=watch)
    model, asked = load_model(TOY)[0], []

    def answers(model, ids, key, settings, vocab, *, sizes):
        asked.append((len(ids), sizes, {w.devices().pop() for w in jax.tree.leaves(model)}))
        return [np.zeros(0, np.int32)] * len(ids)

    monkeypatch.setattr(while_training, "generate", answers)
    sheets = SampleSheets(cfg, vocab, load_image_tokenizer(str(TOY / "vq.npz")))
    mesh = make_mesh(cfg.mesh, jax.devices()[:2])
    assert sheets.measure(3, SimpleNamespace(model=jax.device_put(model, shardings(model, mesh)))) == {}
    ((count, sizes, devices),) = asked
    assert count == 2 and len(set(sizes)) == 1 and devices == {jax.local_devices()[0]}
    with Image.open(tmp_path / "run" / "sheets" / "00000003.png") as sheet:
        assert sheet.width > 2 * 64


def test_reconstructions_are_shown_once(experiment, vocab, tmp_path):
    vq = load_image_tokenizer(str(TOY / "vq.npz"))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    painted = decode_image(vq, encode_image(vq, Image.fromarray(pixels)))
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.asarray(painted)).save(tmp_path / "pictures" / "a.png")
    Image.fromarray(pixels).save(tmp_path / "pictures" / "b.png")
    watch = WatchConfig(pictures=str(tmp_path / "pictures"), sheet_every=3)
    cfg = replace(experiment, out=str(tmp_path / "run"), watch=watch)
    (sheets,) = watchers(cfg, vocab, None, lambda path: vq)
    assert sheets.measure(3, None) == {} and list(sheets.images()) == ["reconstructions"]
    shown = np.asarray(sheets.images()["reconstructions"])
    with Image.open(tmp_path / "run" / "sheets" / "reconstructions.png") as sheet:
        assert (np.asarray(sheet) == shown).all()
    assert sheets.measure(6, None) == {} and sheets.images() == {}
    with pytest.raises(InputError, match="gone is not a picture that can be read: there is no such file"):
        watchers(replace(cfg, watch=replace(watch, pictures=str(tmp_path / "gone"))), vocab, None, lambda path: vq)


def test_a_copy_on_the_first_device_has_the_dtype_of_computing(experiment):
    model = load_model(TOY)[0]
    mesh = make_mesh(experiment.mesh, jax.devices()[:2])
    copy = while_training.on_first_device(jax.device_put(model, shardings(model, mesh)), jnp.dtype("bfloat16"))
    assert {w.dtype for w in jax.tree.leaves(copy)} == {jnp.dtype("bfloat16")}


@pytest.mark.smoke
def test_prompts_are_the_lines_that_are_not_empty(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"holds no prompt; write one a line"):
        read_prompts(str(tmp_path / "empty.txt"))
    with pytest.raises(MissingFileError):
        read_prompts(str(tmp_path / "gone.txt"))

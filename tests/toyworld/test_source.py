"""The canvases of each stage, and the codebook and tokenizer that all stages share."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import run
from lumina_jax.config import DataConfig, VQConfig
from lumina_jax.data.fit import fit
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.data.shards import Shards
from lumina_jax.layout import crop_sizes
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample.picture import pictures
from lumina_jax.toyworld.fit import fit_world
from lumina_jax.toyworld.scenes import MINI
from lumina_jax.toyworld.source import REVIEW, STAGES, ToySource, stage_sizes, training_sizes
from lumina_jax.vocab import Vocab


@pytest.mark.smoke
def test_a_stage_trains_mostly_on_its_own_canvases_and_sometimes_on_earlier_ones():
    for number, target in enumerate(STAGES):
        sizes = training_sizes(target)
        assert all(sizes.count(size) >= REVIEW for size in stage_sizes(target))
        assert set(sizes) == {size for stage in STAGES[: number + 1] for size in stage_sizes(stage)}
        assert set(stage_sizes(target)) <= set(crop_sizes(target))
    assert len({width / height for width, height in stage_sizes(128)}) >= 5


def test_the_world_s_codebook_is_exact_and_fits_the_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(run.REPOSITORY)
    stage = run.load_experiment("configs/toy_stage3.py", [f"vq.path={tmp_path}/vq.npz", f"data.tokenizer={tmp_path}"])
    fit_world(stage.vq, stage.data)
    vq, vocab = PatchVQ.load(tmp_path / "vq.npz"), Vocab.load(tmp_path)
    vocab.check_fits(stage.model.vocab)
    assert vq.codes == stage.vq.codes == len(vocab.code_ids)
    unseen = ToySource(MINI, training_sizes(128), 100, seed=12345)
    pictures = [np.asarray(unseen[index].images[0]) for index in range(len(unseen))]
    assert vq.report(pictures)["exact"] == 1.0


class _Folder:
    """Two captioned pictures and one unreadable record."""

    fingerprint = "folder"

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise ValueError("no picture")
        picture = Image.fromarray(np.random.default_rng(index).integers(0, 255, (70, 100, 3), np.uint8))
        record = ToySource(MINI, [(64, 64)], 1, 0)[0]
        return replace(record, images=[picture], caption=f"some walrus number {index}")


def test_a_fit_contains_the_words_and_patches_of_its_data(tmp_path):
    cfg = VQConfig(kind="patch", path=str(tmp_path / "vq.npz"), codes=64)
    report = fit(_Folder(), cfg, DataConfig(size=64, tokenizer=str(tmp_path)))
    assert report["exact"] == 1.0
    vocab = Vocab.load(tmp_path)
    assert len(vocab.encode(" walrus")) == 1
    assert len(vocab.code_ids) == PatchVQ.load(cfg.path).codes


def test_pictures_of_every_area_keep_their_size_when_pretokenized(tmp_path):
    """Later stages mix canvases of one aspect ratio and several areas; none may be scaled to another."""
    stage = run.load_experiment(str(run.REPOSITORY / "configs/toy_stage3.py"), [])
    cfg = replace(stage.vq, path=str(tmp_path / "vq.npz"))
    fit_world(cfg, replace(stage.data, tokenizer=str(tmp_path)))
    vq, vocab = PatchVQ.load(cfg.path), Vocab.load(tmp_path)
    sizes = training_sizes(128)
    source = ToySource(MINI, sizes, len(sizes), seed=3)
    pretokenize(source, vq, vocab, tmp_path / "data", stage.data, seed=0, sizes=source.sizes, progress=False)
    for index, (tokens, _) in enumerate(Shards(tmp_path / "data")):
        picture = pictures(tokens, vq, vocab)[0]
        assert picture.size == sizes[index]
        assert (np.asarray(picture) == np.asarray(source[index].images[0])).all()


@pytest.mark.parametrize("source", ["toy:8", "omni:8"])
def test_what_a_killed_fit_began_is_gone_in_the_end(source, tmp_path):
    strays = [tmp_path / name for name in ("vq.npz.086f6bd2.tmp", "vq.npz.fit.json.dba6c347.tmp")]
    strays.append(tmp_path / "tokenizer" / "tokenizer.json.01234567.tmp")
    (tmp_path / "tokenizer").mkdir()
    fields = [f"data.path={tmp_path}/tokens", f"data.tokenizer={tmp_path}/tokenizer", f"vq.path={tmp_path}/vq.npz"]
    for path in strays:
        path.write_text("left")
    assert (
        run.main(["pretokenize", str(run.REPOSITORY / "configs/toy_stage1.py"), "--source", source, "--fit", *fields])
        == 0
    )
    assert [path.name for path in tmp_path.rglob("*.tmp")] == []

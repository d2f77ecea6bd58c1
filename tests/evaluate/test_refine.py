"""Refining measures the picture of the model's answer against the original."""

import jax
import numpy as np
import pytest
from PIL import Image

from lumina_jax.config import DataConfig, SampleConfig
from lumina_jax.conversation import task_prompt, tokenize
from lumina_jax.evaluate import refine as room
from lumina_jax.layout import encode_grid
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.pictures.metrics import psnr, ssim
from lumina_jax.sample.prompt import PromptBuilder
from lumina_jax.vocab import Vocab


@pytest.fixture(scope="module")
def builder(request) -> PromptBuilder:
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    vq = PatchVQ(np.broadcast_to(levels[:, None, None, None], (6, 16, 16, 3)).copy())
    return PromptBuilder(vq, Vocab.load(request.config.rootpath / "assets/toy"), DataConfig(size=64, patch=32))


def test_a_refined_picture_is_the_model_s_answer(builder, monkeypatch):
    def repeats_brighter(model, prompts, key, cfg, vocab, sizes):
        prompt, codes = prompts[0], np.full((4, 4), 3)
        request, _ = tokenize([(task_prompt("refine"), None)], [np.full((4, 4), 2)], vocab)
        assert (prompt == request).all() and sizes == [(4, 4)] and cfg.max_new_tokens >= 24
        return [encode_grid(codes, vocab)]

    monkeypatch.setattr(room, "generate", repeats_brighter)
    refined = room.refine(None, builder, Image.new("RGB", (80, 64), (110, 110, 110)), SampleConfig(), jax.random.key(0))
    assert refined.original.size == refined.decoded.size == refined.refined.size == (64, 64)
    table = refined.table()
    assert table["before"]["psnr_db"] == pytest.approx(10 * np.log10(255**2 / 8**2)), "the nearest code is 102"
    assert table["after"]["psnr_db"] == pytest.approx(10 * np.log10(255**2 / 43**2), abs=0.3)
    assert table["after"]["ssim"] < table["before"]["ssim"] < 1


def test_an_answer_without_the_picture_is_an_error(builder, monkeypatch):
    monkeypatch.setattr(room, "generate", lambda *_, **__: [np.array(builder.vocab.encode("circle"), np.int32)])
    with pytest.raises(ValueError, match=r"without a picture of 64x64 px; refining takes a model of Omni-SFT"):
        room.refine(None, builder, Image.new("RGB", (64, 64)), SampleConfig(), jax.random.key(0))


@pytest.mark.smoke
def test_ssim_is_one_for_equals_and_falls_with_noise():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (48, 40, 3), np.uint8)
    noisy = [np.clip(picture + rng.normal(0, spread, picture.shape), 0, 255).astype(np.uint8) for spread in (5, 20, 60)]
    scores = [ssim(picture, other) for other in (picture, *noisy)]
    assert scores[0] == pytest.approx(1) and scores == sorted(scores, reverse=True) and scores[-1] < 0.8
    assert ssim(picture, noisy[0]) == pytest.approx(ssim(noisy[0], picture))
    assert psnr(picture, picture) == 100


@pytest.mark.smoke
def test_ssim_of_even_pictures_is_that_of_their_means():
    dark, bright = (np.full((32, 32, 3), level, np.uint8) for level in (100, 150))
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, bright) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))

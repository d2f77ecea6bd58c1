"""Laws of the pixel judge: it accepts every true picture and rejects wrong ones."""

from dataclasses import replace

import numpy as np
import pytest

from lumina_jax.layout import crop_sizes
from lumina_jax.toyworld.captions import Count, facts_true, parse
from lumina_jax.toyworld.judge import judge, perceive
from lumina_jax.toyworld.scenes import FULL, MINI, Object, Scene
from lumina_jax.toyworld.source import captioned_scene, stage_sizes

ALL_SIZES = sorted({size for target in (64, 96, 128) for size in crop_sizes(target)})
RED, BLUE = Object("circle", "red", "small", 16, 32), Object("square", "blue", "small", 48, 32)
PAIR = Scene(64, 64, "white", (RED, BLUE))
CAPTION = parse("a small red circle left of a small blue square on white")


def wrong_facts(scene_or_image, size=None) -> set[str]:
    image = scene_or_image.render() if isinstance(scene_or_image, Scene) else scene_or_image
    verdict = judge(image, CAPTION, size)
    wrong = {fact.name for fact in verdict.facts if not fact.right}
    assert verdict.all_right == (not wrong)
    return wrong


@pytest.mark.parametrize("canvas", ALL_SIZES)
def test_all_of_2000_true_pictures_are_accepted_at_every_size(canvas):
    for index in range(2000):
        scene, caption = captioned_scene(FULL if index % 2 else MINI, [canvas], 0, index)
        assert judge(scene.render(), caption, canvas).all_right, (index, caption.text)


@pytest.mark.parametrize("target", [64, 96, 128])
def test_pictures_with_the_caption_of_another_are_rejected(target):
    drawn = [captioned_scene(MINI, stage_sizes(target), 1, index) for index in range(2000)]
    pairs = [(scene, caption) for (scene, _), (_, caption) in zip(drawn, drawn[7:] + drawn[:7], strict=True)]
    true = [facts_true(scene, caption.claims) for scene, caption in pairs]
    accepted = [judge(scene.render(), caption).all_right for scene, caption in pairs]
    assert sum(true) < 20  # a short caption may be true of another scene by chance
    assert sum(accepted) - sum(true) <= 0.01 * (len(pairs) - sum(true))
    assert all(is_accepted for is_accepted, is_true in zip(accepted, true, strict=True) if is_true)


@pytest.mark.smoke
def test_the_scene_is_read_back_exactly():
    for index in range(300):
        scene, _ = captioned_scene(FULL, stage_sizes(64) + stage_sizes(128), 2, index)
        perception = perceive(scene.render())
        assert perception.clean and set(perception.scene.objects) == set(scene.objects)
        assert (perception.scene.canvas, perception.scene.background) == (scene.canvas, scene.background)


@pytest.mark.smoke
def test_each_wrong_fact_is_named():
    circle, square = "a small red circle", "a small blue square"
    assert wrong_facts(PAIR, (64, 64)) == set()
    assert wrong_facts(PAIR, (96, 64)) == {"size 96x64"}
    assert wrong_facts(replace(PAIR, background="black")) == {"on white"}
    assert wrong_facts(replace(PAIR, objects=(replace(RED, x=48), replace(BLUE, x=16)))) == {"left of"}
    assert wrong_facts(replace(PAIR, objects=(replace(RED, y=8), replace(BLUE, x=24, y=48)))) == {"left of"}
    assert circle in wrong_facts(replace(PAIR, objects=(replace(RED, colour="green"), BLUE)))
    assert circle in wrong_facts(replace(PAIR, objects=(replace(RED, shape="square"), BLUE)))
    assert square in wrong_facts(replace(PAIR, objects=(RED, replace(BLUE, size="large", x=40))))
    assert square in wrong_facts(replace(PAIR, objects=(RED,)))
    extra = Object("triangle", "yellow", "small", 32, 56)
    assert wrong_facts(replace(PAIR, objects=(RED, BLUE, extra))) == {"nothing else"}
    assert wrong_facts(replace(PAIR, objects=(RED, BLUE, replace(RED, y=56)))) == {"nothing else"}


def test_a_patch_that_is_no_object_fails_nothing_else():
    for colour in ((255, 0, 255), (128, 128, 128), (0, 0, 0)):
        image = PAIR.render()
        image[4:9, 30:35] = colour
        assert wrong_facts(image) == {"nothing else"}


@pytest.mark.parametrize("target", [64, 128])
def test_a_garbled_patch_is_rejected(target):
    rng = np.random.default_rng(0)
    drawn = [captioned_scene(MINI, stage_sizes(target), 3, index) for index in range(400)]
    images = [scene.render() for scene, _ in drawn]
    rejected = []
    for image, (_, caption) in zip(images, drawn, strict=True):
        patch, other = _patch(image, rng), _patch(images[rng.integers(len(images))], rng)
        noise = rng.integers(0, 256, patch.shape, dtype=np.uint8)
        before = patch.copy()
        for garbled in (noise, 255 - before, other.copy()):
            patch[:] = garbled
            if (patch != before).any(-1).sum() > 20:  # fewer wrong pixels are a slightly wrong edge
                rejected.append(not judge(image, caption).all_right)
            patch[:] = before
    assert len(rejected) > 800 and np.mean(rejected) >= 0.99


def _patch(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = (16 * int(rng.integers(side // 16)) for side in image.shape[:2])
    return image[y : y + 16, x : x + 16]


def test_noise_and_small_shifts_are_accepted():
    rng = np.random.default_rng(0)
    for index in range(200):
        scene, caption = captioned_scene(FULL, stage_sizes(64) + stage_sizes(128), 4, index)
        noisy = scene.render() + rng.normal(0, 15, (scene.height, scene.width, 3))
        assert judge(np.clip(noisy, 0, 255).astype(np.uint8), caption).all_right, (index, caption.text)
    assert wrong_facts(replace(PAIR, objects=(replace(RED, x=19, y=30), replace(BLUE, x=47, y=35)))) == set()


def test_blank_and_noise_pictures_have_no_objects():
    blank = np.full((64, 96, 3), 255, np.uint8)
    assert wrong_facts(blank) == {"a small red circle", "left of", "a small blue square"}
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert "nothing else" in wrong_facts(noise)
    assert not perceive(noise).scene.objects


def test_the_facts_are_in_the_order_of_the_caption():
    names = [fact.name for fact in judge(PAIR.render(), CAPTION, (64, 64)).facts]
    assert names == ["a small red circle", "left of", "a small blue square", "on white", "nothing else", "size 64x64"]
    assert isinstance(CAPTION.claims[-1], Count)


def test_only_pictures_are_judged():
    with pytest.raises(ValueError, match="float64"):
        judge(np.zeros((64, 64, 3)), CAPTION)

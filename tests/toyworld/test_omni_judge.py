"""Laws of the scores: perfect for the truth, also through the codebook, and clearly worse for the truth of another exercise."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from truth import true_replies

from lumina_jax.config import DataConfig, VQConfig
from lumina_jax.conversation import tokenize
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.pictures.pixels import to_pixels
from lumina_jax.sample.picture import pictures
from lumina_jax.toyworld.captions import describe, parse
from lumina_jax.toyworld.exercises import ApplyEdits, Describe, PaintFromView, PredictView, Script
from lumina_jax.toyworld.fit import extended, fit_omni, patch_pictures
from lumina_jax.toyworld.omni import MIX, OmniSource, evaluation_exercises
from lumina_jax.toyworld.omni_judge import WORST, mean_scores, score
from lumina_jax.toyworld.scenes import MINI, OMNI, Object, Scene
from lumina_jax.toyworld.source import STAGES, stage_sizes
from lumina_jax.vocab import Vocab

PERFECT = {name: 1.0 for name in WORST} | {"abs_rel": 0.0, "degrees": 0.0, "psnr_db": 100.0}
NEARLY = {"abs_rel": 1e-4, "degrees": 0.4}
"""How far 8-bit maps may be from the truth."""
SHUFFLED = {
    "abs_rel": 0.2,
    "degrees": 10.0,
    "accuracy": 0.9,
    "delta": 0.9,
    "kept": 0.6,
    "exact": 0.6,
    "psnr_db": 20.0,
}
"""Bounds that the truth of another exercise must miss; for all other scores the bound is 0.5."""


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """The codebook of the world and its tokenizer."""
    folder = tmp_path_factory.mktemp("omni")
    cfg = VQConfig(kind="patch", path=str(folder / "vq.npz"), codes=1200)
    fit_omni(cfg, DataConfig(tokenizer=str(folder)))
    return PatchVQ.load(cfg.path), Vocab.load(folder)


def through(vq, reply):
    """A reply, encoded and decoded if it is a picture."""
    if isinstance(reply, str):
        return reply
    codes = vq.encode(to_pixels(Image.fromarray(reply))[None])
    return np.clip((vq.decode(codes)[0] + 1) * 127.5, 0, 255).astype(np.uint8)


def answers_of(other, exercise):
    """The true answers of another exercise, as many as this one has turns."""
    turns = len(exercise.turns)
    return (true_replies(other) + [None] * turns)[:turns]


@pytest.mark.parametrize("task", MIX)
def test_the_truth_is_perfect_and_the_truth_of_another_exercise_is_not(task, coded):
    vq, _ = coded
    for target in STAGES:
        sizes = stage_sizes(target)
        exercises = evaluation_exercises(task, sizes, 3 * len(sizes), 0)
        true = mean_scores([score(e, true_replies(e)) for e in exercises])
        kept = mean_scores([score(e, [through(vq, reply) for reply in true_replies(e)]) for e in exercises])
        others = exercises[len(sizes) :] + exercises[: len(sizes)]  # of the same size
        false = mean_scores([score(e, answers_of(other, e)) for e, other in zip(exercises, others, strict=True)])
        for name, value in true.items():
            assert abs(value - PERFECT[name]) <= NEARLY.get(name, 0) and abs(kept[name] - value) < 1e-6, (name, value)
            is_worse = false[name] > SHUFFLED[name] if name in NEARLY else false[name] < SHUFFLED.get(name, 0.5)
            assert is_worse, (name, false[name])


@pytest.mark.parametrize("task", MIX)
def test_a_missing_reply_and_one_of_another_kind_have_the_worst_scores(task):
    (exercise,) = evaluation_exercises(task, stage_sizes(64), 1, 0)
    small, wrong = np.zeros((16, 16, 3), np.uint8), {"right": 0.0}
    for reply in (None, small, "walrus"):
        scores = score(exercise, [reply] * len(exercise.turns))
        assert scores == ({name: WORST[name] for name in scores} or wrong)
    noise = (
        np.random.default_rng(0).integers(0, 256, exercise.pictures[0].shape, np.uint8) if exercise.pictures else small
    )
    assert score(exercise, [noise] * len(exercise.turns)).get("right", 0.0) == 0.0


RED, BLUE = Object("circle", "red", "small", 16, 32), Object("square", "blue", "small", 48, 16)
PAIR = Scene(64, 64, "white", (RED, BLUE))


@pytest.mark.smoke
def test_an_edit_is_right_only_if_nothing_else_changed():
    (exercise,) = evaluation_exercises("recolour", [(64, 64)], 1, 0)
    assert score(exercise, true_replies(exercise)) == {"inside": 1.0, "outside": 1.0, "right": 1.0}
    speck = true_replies(exercise)[0].copy()
    free = np.argwhere((speck == exercise.scenes[0].render()).all(axis=-1))
    speck[tuple(free[0])] ^= 8
    assert score(exercise, [speck]) == {"inside": 1.0, "outside": 0.0, "right": 0.0}
    assert score(exercise, [exercise.scenes[0].render()]) == {"inside": 0.0, "outside": 1.0, "right": 0.0}


def test_a_later_edit_is_compared_with_the_reply_before_it():
    exercises = evaluation_exercises("edits", [(128, 128)], 60, 0)
    exercise = next(e for e in exercises if [edit.kind for edit in e.edits] == ["move", "recolour"])
    moved, done = exercise.scenes[1:]
    subject = exercise.edits[0].difference(*exercise.scenes[:2])
    elsewhere = next(
        scene
        for x, y in OMNI.centres(subject.new.size, moved.canvas)
        if (scene := _with(moved, subject.new, replace(subject.new, x=x, y=y))) != moved
        and exercise.edits[0].difference(exercise.scenes[0], scene) is not None
    )
    new = next(thing for thing in elsewhere.objects if thing not in moved.objects)
    recoloured = exercise.edits[1].difference(moved, done)
    target = new if recoloured.old == subject.new else recoloured.old
    after = _with(elsewhere, target, replace(target, colour=recoloured.new.colour))
    assert score(exercise, [elsewhere.render(), after.render()])["right"] == 1.0
    assert score(exercise, [moved.render(), after.render()])["right"] == 0.0


def _with(scene: Scene, old: Object, new: Object) -> Scene:
    return replace(scene, objects=tuple(new if thing == old else thing for thing in scene.objects))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a small red circle left of a small blue square on white", 1.0),
        ("a small blue square right of a small red circle on white", 1.0),
        ("a red circle left of a small blue square on white", 0.0),
        ("a small red circle left of a small blue square", 0.0),
        ("a small red circle at the left on white", 0.0),
        ("a small green circle left of a small blue square on white", 0.0),
        ("it is art", 0.0),
    ],
)
def test_a_description_must_be_true_and_complete(text, right):
    assert describe(PAIR).text == "a small red circle left of a small blue square on white"
    assert score(Describe(PAIR), [text]) == {"right": right}


def test_a_condition_fixes_positions_and_poses_too():
    person = Object("person", "red", "large", 16, 16, (True, False, False, True))
    square = Object("square", "blue", "small", 80, 48)
    scene = Scene(128, 64, "white", (person, square))
    elsewhere, moved = replace(square, x=96), replace(scene, objects=(person, replace(square, x=96)))
    waved = replace(scene, objects=(replace(person, pose=(False,) * 4), square))
    assert describe(moved) == describe(waved) == describe(scene)
    for view, right in (("depth", (1.0, 0.0, 0.0)), ("pose", (1.0, 1.0, 0.0))):
        replies = [variant.render() for variant in (scene, moved, waved)]
        assert tuple(score(PaintFromView(scene, view), [reply])["right"] for reply in replies) == right
    assert score(PaintFromView(scene, "pose"), [replace(scene, objects=(elsewhere,)).render()]) == {"right": 0.0}


def test_joints_of_nobody_count_as_errors():
    first, second = evaluation_exercises("pose", [(128, 128)], 2, 0)
    both = np.maximum(true_replies(first)[0], true_replies(second)[0])
    assert score(first, [both])["pck"] == pytest.approx(0.5, abs=0.1)


def test_the_codebook_has_all_patches_and_no_others(coded):
    vq, vocab = coded
    assert vq.codes == len(vocab.code_ids) and 1100 < vq.codes < 1200
    used = np.zeros(vq.codes, bool)
    for picture in patch_pictures():
        used[vq.encode(to_pixels(Image.fromarray(picture))[None])] = True
    assert used.all()


def test_the_codes_of_a_base_codebook_keep_their_numbers(coded, tmp_path):
    vq, _ = coded
    base = PatchVQ.fit([MINI.scene((64, 64), 0, index).render() for index in range(200)], 512)
    grown = extended(base, vq)
    assert (grown.codebook[: base.codes] == base.codebook).all()
    assert len({patch.tobytes() for patch in grown.codebook}) == grown.codes == vq.codes
    cfg = VQConfig(kind="patch", path=str(tmp_path / "vq.npz"), codes=500)
    with pytest.raises(ValueError, match=f"500.*{grown.codes}"):
        fit_omni(cfg, DataConfig(tokenizer=str(tmp_path)), base)


def test_records_are_short_token_sequences_and_decode_exactly(coded):
    vq, vocab = coded
    source = OmniSource(OMNI, stage_sizes(64), 60, 1)
    for index in range(len(source)):
        record = source[index]
        grids = [vq.encode(to_pixels(image)[None])[0] for image in record.images]
        tokens, learn = tokenize(record.turns, grids, vocab)
        limit = 180 if source.task(index) in ("chain", "dialog", "talk") else 140
        assert len(tokens) <= limit and learn.any()
        for image, decoded in zip(record.images, pictures(tokens, vq, vocab), strict=True):
            assert (np.asarray(decoded) == np.asarray(image)).all()
        texts = [text for turn in record.turns for message in turn for text in message.split("<|image|>")]
        words = sum(len(text.split()) for text in texts)
        assert sum(len(vocab.encode(text)) for text in texts) <= words + 12, texts


def test_refining_is_scored_by_psnr_and_exact_pixels():
    exercise = PredictView(PAIR, "refine")
    dark = PAIR.render() // 2
    assert score(exercise, [PAIR.render()]) == {"psnr_db": 100.0, "exact": 1.0}
    assert score(exercise, [dark])["exact"] == 0.0 and score(exercise, [dark])["psnr_db"] < 10
    assert isinstance(evaluation_exercises("edits", [(64, 64)], 1, 0)[0], ApplyEdits)


def test_a_script_is_judged_by_the_pictures_that_it_really_shows():
    """The model may paint another picture than the truth: answers must be true of that one, and edits must change that one."""
    (asked,) = evaluation_exercises("paint_ask", [(96, 96)], 1, 0)
    painted, about = asked.parts
    other = replace(painted.scene, background="black" if painted.scene.background == "white" else "white")
    free = replace(painted, caption=parse(" ".join(map(str, painted.caption.claims[:1]))))
    question = ("What colour is the background?",)
    asked = Script((free, replace(about, questions=((*question, painted.scene.background),))))
    assert score(asked, [painted.scene.render(), painted.scene.background]) == {"right": 1.0, "turns": 1.0}
    assert score(asked, [other.render(), other.background]) == {"right": 1.0, "turns": 1.0}
    assert score(asked, [other.render(), painted.scene.background]) == {"right": 0.0, "turns": 0.5}
    (edited,) = evaluation_exercises("paint_edit", [(96, 96)], 1, 1)
    painted, edit = edited.parts
    assert score(edited, [painted.scene.render(), edit.scenes[1].render()])["right"] == 1.0
    assert score(edited, [painted.scene.render(), painted.scene.render()]) == {"right": 0.0, "turns": 0.5}
    assert score(edited, [None, None]) == {"right": 0.0, "turns": 0.0}

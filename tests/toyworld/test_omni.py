"""Laws of the embedded world's exercises: reproducible, held out where promised, told in words that fit what is shown."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lumina_jax.conversation import check_symbols
from lumina_jax.toyworld import edits
from lumina_jax.toyworld.captions import Thing, describe, facts_true, parse
from lumina_jax.toyworld.exercises import Answer, Change, Exercise, dialog, replies
from lumina_jax.toyworld.figures import PERSON, POSES
from lumina_jax.toyworld.omni import LESSONS, MIX, QUESTIONS, OmniSource, exercise, exercises
from lumina_jax.toyworld.scenes import FULL, MINI, OMNI, Object, Scene, clear
from lumina_jax.toyworld.source import STAGES, ToySource, stage_sizes, training_sizes
from lumina_jax.vocab import IMAGE_SYMBOL

SIZES = stage_sizes(64)


def scenes_of(made: Exercise) -> tuple[Scene, ...]:
    return made.scenes if isinstance(made, Answer | Change) else (made.scene,)


def test_the_worlds_without_persons_are_what_they_were():
    digest = hashlib.sha256()
    for world, held_out in ((MINI, False), (MINI, True), (FULL, False)):
        for record in ToySource(world, training_sizes(128), 120, 5, held_out):
            digest.update(record.caption.encode() + record.images[0].tobytes())
    assert digest.hexdigest() == "8db0fea95e9595ce1ea11e90c6b554b98634d623b828ecfa87495bce38276406"


@pytest.mark.smoke
def test_a_record_is_a_pure_function_of_its_index():
    first, second = (OmniSource(OMNI, SIZES, 60, 3) for _ in range(2))
    for index in reversed(range(60)):
        one, other = first[index], second[index]
        assert one.turns == other.turns
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
        assert all(image.size in first.sizes for image in one.images)
        check_symbols([message for turn in one.turns for message in turn], len(one.images))
    assert {image.size for index in range(60) for image in first[index].images} == set(SIZES)
    with pytest.raises(IndexError, match="60"):
        first[60]


def test_the_fingerprint_changes_with_the_records():
    made = [
        OmniSource(OMNI, SIZES, 60, 3),
        OmniSource(OMNI, SIZES, 60, 4),
        OmniSource(OMNI, SIZES, 61, 3),
        OmniSource(OMNI, SIZES[:2], 60, 3),
        OmniSource(MINI, SIZES, 60, 3),
        OmniSource(OMNI, SIZES, 60, 3, {"depth": 1.0, "text": 2.0}),
    ]
    assert len({source.fingerprint for source in made}) == len(made)
    assert made[0].fingerprint == OmniSource(OMNI, SIZES, 60, 3, dict(MIX)).fingerprint


def test_tasks_come_by_their_weights():
    source = OmniSource(OMNI, SIZES, 4000, 0, {"depth": 3.0, "text": 1.0, "edits": 0.0})
    counts = Counter(source.task(index) for index in range(len(source)))
    assert set(counts) == {"depth", "text"} and abs(counts["depth"] / len(source) - 0.75) < 0.03


@pytest.mark.parametrize(
    ("mix", "message"), [({"dance": 1.0}, "dance"), ({"depth": 0.0}, "positive"), ({"depth": -1.0}, "negative")]
)
def test_a_wrong_mix_is_refused(mix, message):
    with pytest.raises(ValueError, match=message):
        OmniSource(OMNI, SIZES, 10, 0, mix)


def test_a_lesson_has_every_task_and_canvases_up_to_a_size():
    for lesson in LESSONS.values():
        assert list(lesson.mix) == list(MIX)
        counts = Counter(lesson.sizes(96))
        times = {
            size: often for area, often in zip(STAGES[:2], lesson.often, strict=False) for size in stage_sizes(area)
        }
        assert counts == times and set(lesson.sizes(128)) == {size for area in STAGES for size in stage_sizes(area)}


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"'dance'.*depth"):
        exercise(OMNI, "dance", (64, 64), 0, 0)


@pytest.mark.parametrize("task", MIX)
def test_every_task_is_made_at_every_size(task):
    for target in STAGES:
        sizes = stage_sizes(target)
        for size, made in zip(sizes, exercises(task, sizes, len(sizes), 0), strict=True):
            assert all(picture.shape == (size[1], size[0], 3) for picture in made.pictures)
            assert all(picture.dtype == np.uint8 for picture in made.pictures)
            check_symbols([message for turn in made.turns for message in turn], len(made.pictures))


@pytest.mark.smoke
@pytest.mark.parametrize("task", [task for task in MIX if task != "text"])
def test_no_scene_shows_a_held_out_composition_but_where_it_is_asked_for(task):
    def held_out(scene):
        return len(scene.objects) == 2 and OMNI.is_held_out(*scene.objects)

    for index in range(40):
        size = SIZES[index % len(SIZES)]
        assert not any(held_out(scene) for scene in scenes_of(exercise(OMNI, task, size, 1, index)))
        assert any(held_out(scene) for scene in scenes_of(exercise(OMNI, task, size, 1, index, held_out=True)))


def test_evaluation_draws_from_streams_of_its_own():
    trained = [exercise(OMNI, "describe", (128, 128), 0, index).scene for index in range(150)]
    fresh = [made.scene for made in exercises("describe", [(128, 128)], 150, 0)]
    assert sum(one == other for one, other in zip(trained, fresh, strict=True)) < 5


def test_objects_stay_apart_in_every_scene_of_an_edit():
    for task in (*edits.KINDS, "edits", "chain"):
        for made in exercises(task, stage_sizes(96), 40, 2):
            for scene in made.scenes:
                assert all(clear(*scene.objects, scene.canvas) for _ in range(len(scene.objects) // 2))


@pytest.mark.parametrize("kind", edits.KINDS)
def test_an_edit_is_what_it_says_and_no_other(kind):
    made = exercises(kind, SIZES, 60, 3)
    for one, other in zip(made, made[1:] + made[:1], strict=True):
        (edit,), (before, after) = one.edits, one.scenes
        assert edit.kind == kind and edit.difference(before, after) is not None
        assert edit.difference(before, before) is None
        assert edit.difference(before, other.scenes[1]) is None


def test_an_edit_of_the_wrong_object_or_of_more_than_was_asked_is_none():
    red, blue = Object("circle", "red", "small", 16, 16), Object("square", "blue", "small", 80, 32)
    before = Scene(128, 64, "white", (red, blue))
    remove = edits.Edit("remove", Thing("red", "circle"))
    assert remove.difference(before, replace(before, objects=(blue,))) == edits.Difference(red, None)
    assert remove.difference(before, replace(before, objects=(red,))) is None
    assert remove.difference(before, replace(before, objects=(blue,), background="black")) is None
    move, there = edits.Edit("move", Thing("red", "circle"), "bottom left"), replace(red, y=48)
    assert move.difference(before, replace(before, objects=(there, blue))) == edits.Difference(red, there)
    assert move.difference(before, replace(before, objects=(replace(there, colour="green"), blue))) is None
    assert move.difference(before, replace(before, objects=(there, replace(blue, x=96)))) is None


def test_edits_are_worded_as_people_would():
    red, blue = Thing("red", "circle"), Thing("blue", "square", "small")
    assert edits.Edit("remove", red).text == "Remove the red circle."
    assert edits.Edit("recolour", blue, "green").text == "Recolour the small blue square green."
    assert edits.Edit("move", red, "left").text == "Move the red circle to the left."
    assert edits.Edit("add", blue, "left of", red).text == "Add a small blue square left of the red circle."


def test_an_object_is_called_by_the_fewest_words_that_mean_it_alone():
    one, two = Object("circle", "red", "small", 16, 32), Object("circle", "red", "large", 80, 32)
    assert edits.name(one, Scene(128, 64, "white", (one,))) == Thing("red", "circle")
    assert edits.name(two, Scene(128, 64, "white", (one, two))) == Thing("red", "circle", "large")
    assert edits.name(one, Scene(128, 64, "white", (one, Object("circle", "red", "small", 80, 32)))) is None


def test_a_description_is_true_whole_and_the_same_from_either_object():
    for index in range(200):
        scene = OMNI.scene((128, 96), 4, index)
        said = describe(scene)
        assert facts_true(scene, said.claims) and parse(said.text).claims == said.claims
        assert describe(Scene(*scene.canvas, scene.background, scene.objects[::-1])) == said


def test_answers_are_even_enough_that_none_can_be_guessed():
    for task, most in (("question", 0.35), ("compare", 0.5), ("text", 0.2)):
        counts = Counter(answer for made in exercises(task, SIZES, 400, 0) for _, answer in made.asked)
        assert counts.most_common(1)[0][1] / 400 < most, counts
    asked = [made.asked[0] for made in exercises("question", SIZES, 400, 0)]
    answers = [answer for question, answer in asked if question.startswith("Is ")]
    assert abs(np.mean([answer == "yes" for answer in answers]) - 0.5) < 0.15


def test_a_dialog_asks_something_else_in_every_turn_and_shows_its_pictures_once():
    made = exercises("dialog", SIZES, 60, 0)
    assert {len(one.scenes) for one in made} == {1, 2}
    for one in made:
        first, *later = [human for human, _ in one.turns]
        assert len({first, *later}) == QUESTIONS and first.count(IMAGE_SYMBOL) == len(one.scenes)
        assert not any(IMAGE_SYMBOL in human for human in later)
    turns = [turn for one in made if len(one.scenes) == 1 for turn in one.asked]
    counted = next((question, answer) for question, answer in turns if question == "How many objects are there?")
    scene = next(one.scenes[0] for one in made if counted in one.asked)
    assert counted[1] == str(len(scene.objects))


def test_of_two_objects_at_most_one_is_removed_in_a_chain():
    chains = exercises("chain", SIZES, 60, 0)
    assert {len(made.scenes) for made in chains} == {5} and all(
        len(scene.objects) for one in chains for scene in one.scenes
    )
    for made in chains:
        for edit, before, after in zip(made.edits, made.scenes, made.scenes[1:], strict=False):
            assert edit.difference(before, after) is not None


def test_persons_come_in_all_poses_and_one_size():
    scenes = [OMNI.scene(size, 0, index) for index in range(400) for size in ((64, 64), (128, 96))]
    persons = [thing for scene in scenes for thing in scene.objects if thing.shape == PERSON]
    assert {thing.pose for thing in persons} == set(POSES)
    assert all(rows.stop - rows.start == 32 for rows, _ in (p.box((64, 64)) for p in persons if p.size == "large"))
    assert {len(scene.objects) for scene in scenes} == {1, 2}
    with pytest.raises(ValueError, match="persons"):
        OMNI.scene((256, 256), 0, 0)


@pytest.mark.parametrize("task", ["edits", "chain", "depth", "compare", "dialog", "text"])
def test_a_dialog_goes_on_from_the_replies_given(task):
    (made,) = exercises(task, SIZES, 1, 0)
    given = []
    for number, reply in enumerate(replies(made)):
        turns, pictures = dialog(made, given)
        assert len(turns) == number + 1 and turns[-1] == (made.turns[number][0], None)
        assert [answer for _, answer in turns[:-1]] == [answer for _, answer in made.turns[:number]]
        check_symbols([message for turn in turns for message in turn if message], len(pictures))
        assert all((one == other).all() for one, other in zip(pictures, made.pictures, strict=False))
        given.append(reply)
    assert sum(isinstance(reply, np.ndarray) for reply in given) == sum(a == IMAGE_SYMBOL for _, a in made.turns)

"""Laws of the embedded world's exercises: reproducible, held out where required, with texts that are true of their pictures."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from truth import true_replies

from lumina_jax.conversation import check_symbols
from lumina_jax.toyworld import edits, omni, questions
from lumina_jax.toyworld.captions import Thing, describe, facts_true, parse
from lumina_jax.toyworld.exercises import AnswerQuestions, ApplyEdits, Exercise, Script, next_prompt, true_turns
from lumina_jax.toyworld.figures import PERSON, POSES
from lumina_jax.toyworld.omni import LESSONS, MIX, QUESTIONS, OmniSource, evaluation_exercises
from lumina_jax.toyworld.scenes import FULL, MINI, OMNI, Object, Scene, clear
from lumina_jax.toyworld.source import STAGES, ToySource, stage_sizes, training_sizes
from lumina_jax.vocab import IMAGE_SYMBOL

SIZES = stage_sizes(64)


def scenes_of(exercise: Exercise) -> tuple[Scene, ...]:
    if isinstance(exercise, Script):
        return tuple(scene for part in exercise.parts for scene in scenes_of(part))
    return exercise.scenes if isinstance(exercise, AnswerQuestions | ApplyEdits) else (exercise.scene,)


def test_the_records_of_worlds_without_persons_are_pinned():
    digest = hashlib.sha256()
    for world, held_out in ((MINI, False), (MINI, True), (FULL, False)):
        for record in ToySource(world, training_sizes(128), 120, 5, held_out):
            digest.update(record.caption.encode() + record.images[0].tobytes())
    assert digest.hexdigest() == "8db0fea95e9595ce1ea11e90c6b554b98634d623b828ecfa87495bce38276406"


@pytest.mark.smoke
def test_a_record_is_a_pure_function_of_its_index():
    first, second = (OmniSource(OMNI, SIZES, 60, 3) for _ in range(2))
    for index in reversed(range(60)):
        record, repeated = first[index], second[index]
        assert record.turns == repeated.turns
        assert [image.tobytes() for image in record.images] == [image.tobytes() for image in repeated.images]
        assert all(image.size in first.sizes for image in record.images)
        check_symbols([message for turn in record.turns for message in turn], len(record.images))
    assert {image.size for index in range(60) for image in first[index].images} == set(SIZES)
    with pytest.raises(IndexError, match="60"):
        first[60]


def test_the_fingerprint_changes_with_the_records():
    sources = [
        OmniSource(OMNI, SIZES, 60, 3),
        OmniSource(OMNI, SIZES, 60, 4),
        OmniSource(OMNI, SIZES, 61, 3),
        OmniSource(OMNI, SIZES[:2], 60, 3),
        OmniSource(MINI, SIZES, 60, 3),
        OmniSource(OMNI, SIZES, 60, 3, {"depth": 1.0, "text": 2.0}),
    ]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert sources[0].fingerprint == OmniSource(OMNI, SIZES, 60, 3, dict(MIX)).fingerprint


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
        expected = {
            size: repeats
            for area, repeats in zip(STAGES[:2], lesson.repeats, strict=False)
            for size in stage_sizes(area)
        }
        assert counts == expected and set(lesson.sizes(128)) == {size for area in STAGES for size in stage_sizes(area)}


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"'dance'.*depth"):
        omni.exercise(OMNI, "dance", (64, 64), 0, 0)


@pytest.mark.parametrize("task", MIX)
def test_every_task_is_made_at_every_size(task):
    for target in STAGES:
        sizes = stage_sizes(target)
        for size, exercise in zip(sizes, evaluation_exercises(task, sizes, len(sizes), 0), strict=True):
            assert all(picture.shape == (size[1], size[0], 3) for picture in exercise.pictures)
            assert all(picture.dtype == np.uint8 for picture in exercise.pictures)
            check_symbols([message for turn in exercise.turns for message in turn], len(exercise.pictures))


@pytest.mark.smoke
@pytest.mark.parametrize("task", [task for task in MIX if task not in ("text", "texts")])
def test_held_out_compositions_come_in_held_out_exercises_only(task):
    def held_out(scene):
        return len(scene.objects) == 2 and OMNI.is_held_out(*scene.objects)

    for index in range(40):
        size = SIZES[index % len(SIZES)]
        assert not any(held_out(scene) for scene in scenes_of(omni.exercise(OMNI, task, size, 1, index)))
        assert any(held_out(scene) for scene in scenes_of(omni.exercise(OMNI, task, size, 1, index, held_out=True)))


def test_evaluation_streams_differ_from_those_of_training():
    training = [omni.exercise(OMNI, "describe", (128, 128), 0, index).scene for index in range(150)]
    fresh = [exercise.scene for exercise in evaluation_exercises("describe", [(128, 128)], 150, 0)]
    assert sum(first == second for first, second in zip(training, fresh, strict=True)) < 5


def test_objects_stay_apart_in_every_scene_of_an_edit():
    for task in (*edits.KINDS, "edits", "chain"):
        for exercise in evaluation_exercises(task, stage_sizes(96), 40, 2):
            for scene in exercise.scenes:
                assert all(clear(*scene.objects, scene.canvas) for _ in range(len(scene.objects) // 2))


@pytest.mark.parametrize("kind", edits.KINDS)
def test_an_edit_is_recognised_in_its_own_result_only(kind):
    exercises = evaluation_exercises(kind, SIZES, 60, 3)
    for exercise, other in zip(exercises, exercises[1:] + exercises[:1], strict=True):
        (edit,), (before, after) = exercise.edits, exercise.scenes
        assert edit.kind == kind and edit.difference(before, after) is not None
        assert edit.difference(before, before) is None
        assert edit.difference(before, other.scenes[1]) is None


def test_an_edit_of_a_wrong_or_a_further_object_is_refused():
    red, blue = Object("circle", "red", "small", 16, 16), Object("square", "blue", "small", 80, 32)
    before = Scene(128, 64, "white", (red, blue))
    remove = edits.SceneEdit("remove", Thing("red", "circle"))
    assert remove.difference(before, replace(before, objects=(blue,))) == edits.Difference(red, None)
    assert remove.difference(before, replace(before, objects=(red,))) is None
    assert remove.difference(before, replace(before, objects=(blue,), background="black")) is None
    move, moved = edits.SceneEdit("move", Thing("red", "circle"), "bottom left"), replace(red, y=48)
    assert move.difference(before, replace(before, objects=(moved, blue))) == edits.Difference(red, moved)
    assert move.difference(before, replace(before, objects=(replace(moved, colour="green"), blue))) is None
    assert move.difference(before, replace(before, objects=(moved, replace(blue, x=96)))) is None


def test_edits_are_worded_as_instructions():
    red, blue = Thing("red", "circle"), Thing("blue", "square", "small")
    assert edits.SceneEdit("remove", red).text == "Remove the red circle."
    assert edits.SceneEdit("recolour", blue, "green").text == "Recolour the small blue square green."
    assert edits.SceneEdit("move", red, "left").text == "Move the red circle to the left."
    assert edits.SceneEdit("add", blue, "left of", red).text == "Add a small blue square left of the red circle."


def test_an_object_is_named_by_the_shortest_unique_phrase():
    small, large = Object("circle", "red", "small", 16, 32), Object("circle", "red", "large", 80, 32)
    assert edits.unique_phrase(small, Scene(128, 64, "white", (small,))) == Thing("red", "circle")
    assert edits.unique_phrase(large, Scene(128, 64, "white", (small, large))) == Thing("red", "circle", "large")
    assert (
        edits.unique_phrase(small, Scene(128, 64, "white", (small, Object("circle", "red", "small", 80, 32)))) is None
    )


def test_a_description_is_true_complete_and_independent_of_object_order():
    for index in range(200):
        scene = OMNI.scene((128, 96), 4, index)
        caption = describe(scene)
        assert facts_true(scene, caption.claims) and parse(caption.text).claims == caption.claims
        assert describe(Scene(*scene.canvas, scene.background, scene.objects[::-1])) == caption


def test_no_answer_is_frequent_enough_to_be_guessed():
    for task, limit in (("question", 0.35), ("compare", 0.5), ("text", 0.2)):
        counts = Counter(
            answer for exercise in evaluation_exercises(task, SIZES, 400, 0) for _, answer in exercise.questions
        )
        assert counts.most_common(1)[0][1] / 400 < limit, counts
    pairs = [exercise.questions[0] for exercise in evaluation_exercises("question", SIZES, 400, 0)]
    answers = [answer for question, answer in pairs if question.startswith("Is ")]
    assert abs(np.mean([answer == "yes" for answer in answers]) - 0.5) < 0.15


def test_a_dialog_has_different_questions_and_its_pictures_in_the_first_turn():
    exercises = evaluation_exercises("dialog", SIZES, 60, 0)
    assert {len(exercise.scenes) for exercise in exercises} == {1, 2}
    for exercise in exercises:
        first, *later = [human for human, _ in exercise.turns]
        assert len({first, *later}) == QUESTIONS and first.count(IMAGE_SYMBOL) == len(exercise.scenes)
        assert not any(IMAGE_SYMBOL in human for human in later)
    turns = [turn for exercise in exercises if len(exercise.scenes) == 1 for turn in exercise.questions]
    counted = next((question, answer) for question, answer in turns if question == "How many objects are there?")
    scene = next(exercise.scenes[0] for exercise in exercises if counted in exercise.questions)
    assert counted[1] == str(len(scene.objects))


def test_a_chain_removes_at_most_one_of_two_objects():
    chains = evaluation_exercises("chain", SIZES, 60, 0)
    assert {len(chain.scenes) for chain in chains} == {5}
    assert all(len(scene.objects) for chain in chains for scene in chain.scenes)
    for chain in chains:
        for edit, before, after in zip(chain.edits, chain.scenes, chain.scenes[1:], strict=False):
            assert edit.difference(before, after) is not None


def test_persons_come_in_all_poses_and_one_size():
    scenes = [OMNI.scene(size, 0, index) for index in range(400) for size in ((64, 64), (128, 96))]
    persons = [thing for scene in scenes for thing in scene.objects if thing.shape == PERSON]
    assert {thing.pose for thing in persons} == set(POSES)
    assert all(rows.stop - rows.start == 32 for rows, _ in (p.box((64, 64)) for p in persons if p.size == "large"))
    assert {len(scene.objects) for scene in scenes} == {1, 2}
    with pytest.raises(ValueError, match="persons"):
        OMNI.scene((256, 256), 0, 0)


@pytest.mark.parametrize("task", ["edits", "chain", "depth", "compare", "dialog", "text", "paint_show_ask"])
def test_the_next_prompt_contains_the_earlier_replies(task):
    (exercise,) = evaluation_exercises(task, SIZES, 1, 0)
    earlier = []
    for number, reply in enumerate(true_replies(exercise)):
        turns, pictures = next_prompt(exercise, earlier)
        assert len(turns) == number + 1 and turns[-1] == (exercise.turns[number][0], None)
        assert [answer for _, answer in turns[:-1]] == [answer for _, answer in exercise.turns[:number]]
        check_symbols([message for turn in turns for message in turn if message], len(pictures))
        assert all((first == second).all() for first, second in zip(pictures, exercise.pictures, strict=False))
        earlier.append(reply)
    assert sum(isinstance(reply, np.ndarray) for reply in earlier) == sum(a == IMAGE_SYMBOL for _, a in exercise.turns)


def test_pictures_come_in_the_order_of_their_symbols():
    (exercise,) = evaluation_exercises("paint_show_ask", SIZES, 1, 0)
    (_, (human, _), *later), turns = exercise.turns, true_turns(exercise)
    assert human.endswith("?<|image|>") and not any(IMAGE_SYMBOL in message for turn in later for message in turn)
    painted, shown = (part.scenes[-1] if part.task == "question" else part.scene for part in exercise.parts[:2])
    assert [turn.task for turn in turns] == ["generate", "question", "question", "question"]
    assert (turns[0].answer == painted.render()).all() and (turns[1].inputs[0] == shown.render()).all()


def test_questions_are_answered_from_their_words_and_the_pictures():
    """Drawn answers are those of true_answer, also about pictures that say so by their number; others suit no picture."""
    red, blue = Object("circle", "red", "small", 16, 16), Object("square", "blue", "small", 80, 32)
    first, second = Scene(128, 64, "white", (red, blue)), Scene(128, 64, "black", (red,))
    for question, answer in {
        "How many blue objects are there in the first image?": "1",
        "How many objects are there in the second image?": "1",
        "What colour is the background in the second image?": "black",
        "What colour is the square in the second image?": None,
        "Where is the red circle in the first image?": "left of the blue square",
        "Is the blue square right of the red circle in the first image?": "yes",
        "Which image shows more objects?": "the first",
        "Which image shows a red circle?": "both",
        "Which image shows a green circle?": "neither",
        "Why?": None,
    }.items():
        assert questions.true_answer(question, (first, second)) == answer

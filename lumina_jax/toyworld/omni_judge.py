"""Scores of replies to exercises: every task in its field's metrics, against exact ground truth."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from lumina_jax.errors import InputError
from lumina_jax.pictures import annotations, dense_maps, metrics
from lumina_jax.toyworld import exercises, views
from lumina_jax.toyworld.captions import Caption, Count, Thing, describe, facts_true, parse
from lumina_jax.toyworld.exercises import REFINE, Exercise, Reply
from lumina_jax.toyworld.figures import JOINTS, PERSON, RADIUS
from lumina_jax.toyworld.judge import ALL_KINDS, judge, perceive
from lumina_jax.toyworld.questions import true_answer
from lumina_jax.toyworld.scenes import Object, Scene

Scores = dict[str, float]

LABELS = {
    "right": "all right",
    "answers": "answers right",
    "turns": "turns right",
    "inside": "edit done",
    "outside": "all else kept",
    "miou": "mIoU",
    "accuracy": "pixel accuracy",
    "delta": "depth within 1.25",
    "delta_objects": "the same on objects",
    "abs_rel": "AbsRel",
    "degrees": "mean angle in degrees",
    "pck": "PCK at 0.1",
    "iou": "box IoU",
    "kept": "all else kept",
    "psnr_db": "PSNR in dB",
    "exact": "pixels exact",
}
"""Score name -> label."""
WORST = dict.fromkeys(LABELS, 0.0) | {"abs_rel": 1.0, "degrees": 90.0}
"""Score name -> the value that a missing picture or one of another size gets."""

JOINT_TOLERANCE = 0.1
"""A predicted joint is correct within this share of a person's height."""
POSITION_TOLERANCE = 2
"""An object may lie this many px, along each axis, from its position in the condition."""


def score(exercise: Exercise, replies: Sequence[Reply]) -> Scores:
    """Scores of the replies, one per turn, by names of WORST. ``right`` is 1 if everything is as it should be, otherwise 0."""
    reply = replies[0]
    match exercise:
        case exercises.Script():
            return _score_script(exercise, replies)
        case exercises.AnswerQuestions():
            return _score_answers(exercise, replies)
        case exercises.Describe():
            return {"right": float(isinstance(reply, str) and _describes(reply, exercise.scene))}
        case exercises.ApplyEdits():
            return _score_edits(exercise, exercise.scenes[0].render(), replies)
        case exercises.PredictView():
            names, measure = VIEW_SCORES[exercise.view]
        case exercises.Detect():
            names, measure = ("iou", "kept"), partial(_score_box, thing=exercise.thing)
        case exercises.Paint():
            names, measure = ("right",), partial(_score_painted, caption=exercise.caption)
        case exercises.PaintFromView():
            names, measure = ("right",), partial(_score_painted, caption=exercise.caption, view=exercise.view)
    scene = exercise.scene
    if not isinstance(reply, np.ndarray) or reply.shape != (scene.height, scene.width, 3):
        return {name: WORST[name] for name in names}
    return dict(zip(names, map(float, measure(reply, scene)), strict=True))


def _score_answers(exercise: exercises.AnswerQuestions, replies: Sequence[Reply]) -> Scores:
    """Whether all answers are right, and for several questions also the share of right ones."""
    pairs = zip(replies, exercise.questions, strict=True)
    right = [_says(reply, answer) for reply, (_, answer) in pairs]
    return {"right": float(all(right))} | ({"answers": float(np.mean(right))} if len(right) > 1 else {})


def _score_script(exercise: exercises.Script, replies: Sequence[Reply]) -> Scores:
    """The share of turns that are right, and whether all are; each against the pictures that the dialog shows before it.

    So an edit must change the model's own picture, and an answer must be true of it, whatever the true picture shows.
    """
    right = turns_right(exercise, replies)
    return {"right": float(all(right)), "turns": float(np.mean(right))}


def turns_right(exercise: exercises.Script, replies: Sequence[Reply]) -> list[bool]:
    """Whether each turn of a script is right; the turns of consecutive edits are judged as one."""
    seen: list[np.ndarray] = []
    right: list[bool] = []
    turns, rest = exercises.true_turns(exercise), list(replies)
    for part in exercise.parts:
        count = len(part.turns)
        own, rest, (first, *_), turns = rest[:count], rest[count:], turns[:count], turns[count:]
        seen += first.inputs
        right += _part_right(part, seen, own)
        seen += [reply for reply in own if isinstance(reply, np.ndarray)]
    return right


def _part_right(part: Exercise, seen: Sequence[np.ndarray], replies: Sequence[Reply]) -> list[bool]:
    """Whether each reply of a part of a script is right about the last pictures of ``seen``."""
    match part:
        case exercises.AnswerQuestions(scenes=scenes, questions=questions):
            shown = [perceive(picture, ALL_KINDS).scene for picture in seen[len(seen) - len(scenes) :]]
            known = part.known and len(shown) == len(scenes)
            answers = [true_answer(question, shown) if known else answer for question, answer in questions]
            return [_says(reply, answer) for reply, answer in zip(replies, answers, strict=True)]
        case exercises.ApplyEdits(known=1):
            right = bool(seen) and _score_edits(part, seen[-1], replies)["right"] == 1
        case _:
            right = score(part, replies)["right"] == 1
    return [right] * len(replies)


def _says(reply: Reply, answer: str | None) -> bool:
    return isinstance(reply, str) and reply.strip() == answer


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The mean of each score."""
    return {name: float(np.mean([single[name] for single in scores])) for name in scores[0]}


def _score_segmentation(picture: np.ndarray, scene: Scene) -> tuple[float, ...]:
    predicted = dense_maps.decode_classes(picture, views.CLASS_COLOURS)
    counts = metrics.confusion(views.classes(scene), predicted, len(views.CLASSES))
    return metrics.mean_iou(counts), metrics.pixel_accuracy(counts)


def _score_depth(picture: np.ndarray, scene: Scene) -> tuple[float, ...]:
    truth, predicted = views.depth(scene), dense_maps.decode_depth(picture, views.NEAR, views.FAR)
    things = views.classes(scene) > 0
    within = metrics.delta(truth, predicted), metrics.delta(truth[things], predicted[things])
    return metrics.abs_rel(truth, predicted), *within


def _score_normals(picture: np.ndarray, scene: Scene) -> tuple[float, ...]:
    return (metrics.angular_error(views.normals(scene), dense_maps.decode_normals(picture)),)


def _score_pose(picture: np.ndarray, scene: Scene) -> tuple[float, ...]:
    """The share of correct joints; a dot beyond the number of persons counts like a missed joint."""
    truth = np.stack([joints for _, joints in views.people(scene)])
    predicted = annotations.read_joints(picture, len(JOINTS))
    radius = np.full(len(truth), JOINT_TOLERANCE * 2 * RADIUS)
    right = sum(metrics.correct_keypoints(truth[:, joint], radius, predicted[joint]) for joint in range(len(JOINTS)))
    return (right / sum(max(len(truth), len(dots)) for dots in predicted),)


def _score_refined(picture: np.ndarray, scene: Scene) -> tuple[float, ...]:
    """PSNR against the true picture, and the share of pixels that are equal to it."""
    truth = scene.render()
    return metrics.psnr(truth, picture), np.mean((picture == truth).all(axis=-1))


VIEW_SCORES: dict[str, tuple[tuple[str, ...], Callable[[np.ndarray, Scene], tuple[float, ...]]]] = {
    "segmentation": (("miou", "accuracy"), _score_segmentation),
    "depth": (("abs_rel", "delta", "delta_objects"), _score_depth),
    "normal": (("degrees",), _score_normals),
    "pose": (("pck",), _score_pose),
    REFINE: (("psnr_db", "exact"), _score_refined),
}
"""View -> the names of its scores and the function that returns them; ``delta_objects`` leaves out the wall of constant depth."""


def _score_box(picture: np.ndarray, scene: Scene, thing: Object) -> tuple[float, ...]:
    """IoU of the drawn box, and the share of unchanged pixels outside the true and the drawn frame."""
    truth, predicted = views.bounds(thing, scene), annotations.read_box(picture)
    framed = np.zeros((scene.height, scene.width), bool)
    for box in (truth, predicted or truth):
        blank = np.zeros((*framed.shape, 3), np.uint8)
        framed |= annotations.draw_box(blank, box, views.thickness(thing, scene), (1, 1, 1)).any(axis=-1)
    kept = (picture == scene.render()).all(axis=-1)[~framed].mean()
    return (metrics.box_iou(truth, predicted) if predicted else 0.0), kept


def _score_painted(picture: np.ndarray, scene: Scene, caption: Caption, view: str = "") -> tuple[bool]:
    """Whether the picture shows all that the caption says and, with a ``view``, has the layout that the view shows."""
    right = judge(picture, caption, scene.canvas, ALL_KINDS).all_right
    return (right and (not view or _same_layout(picture, scene, persons_only=view == "pose")),)


def _same_layout(picture: np.ndarray, scene: Scene, persons_only: bool) -> bool:
    """Whether the picture has every object that a condition shows, with the same shape, size, pose and position."""
    unmatched = list(perceive(picture, ALL_KINDS).scene.objects)
    for thing in scene.objects:
        if persons_only and thing.shape != PERSON:
            continue
        match = next((other for other in unmatched if _same_outline(thing, other)), None)
        if match is None:
            return False
        unmatched.remove(match)
    return True


def _same_outline(first: Object, second: Object) -> bool:
    same = (first.shape, first.size, first.pose) == (second.shape, second.size, second.pose)
    return same and max(abs(first.x - second.x), abs(first.y - second.y)) <= POSITION_TOLERANCE


def _score_edits(exercise: exercises.ApplyEdits, picture: np.ndarray, replies: Sequence[Reply]) -> Scores:
    """Whether each edit is done to the model's own previous picture, and all pixels outside the edited object are equal.

    The first edit is that of ``picture`` u8[Y X 3], which may be of the model itself.
    """
    before = perceive(picture, ALL_KINDS).scene
    inside = outside = True
    for edit, true_before, true_after, reply in zip(
        exercise.edits, exercise.scenes[:-1], exercise.scenes[1:], replies, strict=True
    ):
        if not isinstance(reply, np.ndarray) or reply.shape != picture.shape:
            return {name: WORST[name] for name in ("inside", "outside", "right")}
        perception = perceive(reply, ALL_KINDS)
        difference = edit.difference(before, perception.scene) if perception.clean else None
        inside = inside and difference is not None
        same = (reply == picture).all(axis=-1)
        for thing in difference or edit.difference(true_before, true_after):
            if thing is not None:
                same[thing.box(before.canvas)] = True
        outside = outside and bool(same.all())
        before, picture = perception.scene, reply
    return {"inside": float(inside), "outside": float(outside), "right": float(inside and outside)}


def _describes(text: str, scene: Scene) -> bool:
    """Whether a description is true and complete."""
    try:
        claims = parse(text).claims
    except InputError:
        return False
    sizes = all(claim.size for claim in claims if isinstance(claim, Thing))
    complete = len(claims) == len(describe(scene).claims) and isinstance(claims[-1], Count)
    return sizes and complete and facts_true(scene, claims)

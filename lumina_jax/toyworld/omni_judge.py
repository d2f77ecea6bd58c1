"""Scores of replies to exercises: every capability in the measure of its field, against exact ground truth."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from lumina_jax.pictures import annotations, dense_maps, metrics
from lumina_jax.toyworld import views
from lumina_jax.toyworld.captions import Caption, Count, Thing, describe, facts_true, parse
from lumina_jax.toyworld.exercises import (
    REFINE,
    Answer,
    Change,
    Condition,
    Describe,
    Detect,
    Exercise,
    Look,
    Paint,
    Reply,
)
from lumina_jax.toyworld.figures import JOINTS, PERSON, RADIUS
from lumina_jax.toyworld.judge import ALL_KINDS, judge, perceive
from lumina_jax.toyworld.scenes import Object, Scene

Scores = dict[str, float]

WORST: Mapping[str, float] = MappingProxyType(
    {"abs_rel": 1.0, "degrees": 90.0, "miou": 0.0, "accuracy": 0.0, "delta": 0.0, "delta_objects": 0.0, "pck": 0.0}
    | {
        "iou": 0.0,
        "kept": 0.0,
        "psnr_db": 0.0,
        "exact": 0.0,
        "inside": 0.0,
        "outside": 0.0,
        "right": 0.0,
        "answers": 0.0,
    }
)
"""What counts where there is no picture, or one of another size."""

REACH = 0.1
"""A joint is found within this share of a person's height."""
SLACK = 2
"""How far in px an object may lie from where a condition shows it."""
BEST_PSNR = 100.0


def score(exercise: Exercise, given: Sequence[Reply]) -> Scores:
    """Scores of the replies, one for each turn. ``right`` is 1 where all is as it should be; the others are WORST's keys."""
    reply = given[0]
    match exercise:
        case Answer():
            return _answered(exercise, given)
        case Describe():
            return {"right": float(isinstance(reply, str) and _says_all(reply, exercise.scene))}
        case Change():
            return _changed(exercise, given)
    scene = exercise.scene
    names = _measured(exercise)
    if not isinstance(reply, np.ndarray) or reply.shape != (scene.height, scene.width, 3):
        return {name: WORST[name] for name in names}
    match exercise:
        case Paint():
            values = (_painted(reply, scene, exercise.said),)
        case Condition():
            values = (_painted(reply, scene, exercise.said) and _laid_out(reply, scene, exercise.view == "pose"),)
        case Detect():
            values = _boxed(reply, scene, exercise.thing)
        case Look():
            values = LOOKS[exercise.view](reply, scene)
    return dict(zip(names, map(float, values), strict=True))


def _answered(exercise: Answer, given: Sequence[Reply]) -> Scores:
    """Whether every answer is right, and of a dialog how many are."""
    told = zip(given, exercise.asked, strict=True)
    right = [isinstance(reply, str) and reply.strip() == answer for reply, (_, answer) in told]
    return {"right": float(all(right))} | ({"answers": float(np.mean(right))} if len(right) > 1 else {})


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Their averages."""
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}


def _measured(exercise: Exercise) -> tuple[str, ...]:
    """The names of what is measured, in order."""
    match exercise:
        case Detect():
            return "iou", "kept"
        case Look():
            return MEASURES[exercise.view]
    return ("right",)


def _segmented(picture: np.ndarray, scene: Scene) -> tuple[float, ...]:
    found = dense_maps.decode_classes(picture, views.CLASS_COLOURS)
    counts = metrics.confusion(views.classes(scene), found, len(views.CLASSES))
    return metrics.mean_iou(counts), metrics.pixel_accuracy(counts)


def _deep(picture: np.ndarray, scene: Scene) -> tuple[float, ...]:
    truth, found = views.depth(scene), dense_maps.decode_depth(picture, views.NEAR, views.FAR)
    things = views.classes(scene) > 0
    return metrics.abs_rel(truth, found), metrics.delta(truth, found), metrics.delta(truth[things], found[things])


def _facing(picture: np.ndarray, scene: Scene) -> tuple[float, ...]:
    return (metrics.angular_error(views.normals(scene), dense_maps.decode_normals(picture)),)


def _posed(picture: np.ndarray, scene: Scene) -> tuple[float, ...]:
    """The share of joints that are found; dots that are no joint of anybody count as joints that are not."""
    truth = np.stack([joints for _, joints in views.people(scene)])
    found = annotations.read_joints(picture, len(JOINTS))
    reach = np.full(len(truth), REACH * 2 * RADIUS)
    right = sum(metrics.correct_keypoints(truth[:, joint], reach, found[joint]) for joint in range(len(JOINTS)))
    return (right / sum(max(len(truth), len(dots)) for dots in found),)


def _kept(picture: np.ndarray, scene: Scene) -> tuple[float, ...]:
    """PSNR to the true picture, and the share of pixels that are exactly its."""
    truth = scene.render()
    error = np.mean(np.square(picture.astype(np.float64) - truth))
    psnr = min(BEST_PSNR, 10 * np.log10(255**2 / error)) if error else BEST_PSNR
    return psnr, np.mean((picture == truth).all(axis=-1))


LOOKS = MappingProxyType({"segmentation": _segmented, "depth": _deep, "normal": _facing, "pose": _posed, REFINE: _kept})
MEASURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "segmentation": ("miou", "accuracy"),
        "depth": ("abs_rel", "delta", "delta_objects"),
        "normal": ("degrees",),
        "pose": ("pck",),
        REFINE: ("psnr_db", "exact"),
    }
)
"""What LOOKS measure; ``delta_objects`` leaves the wall out, which is everywhere the same."""


def _boxed(picture: np.ndarray, scene: Scene, thing: Object) -> tuple[float, ...]:
    """IoU of the drawn box, and the share of pixels outside of both frames that are the picture's own."""
    box, found = views.bounds(thing, scene), annotations.read_box(picture)
    framed = np.zeros((scene.height, scene.width), bool)
    for one in (box, found or box):
        blank = np.zeros((*framed.shape, 3), np.uint8)
        framed |= annotations.draw_box(blank, one, views.thickness(thing, scene), (1, 1, 1)).any(axis=-1)
    kept = (picture == scene.render()).all(axis=-1)[~framed].mean()
    return (metrics.box_iou(box, found) if found else 0.0), kept


def _painted(picture: np.ndarray, scene: Scene, said: Caption) -> bool:
    return judge(picture, said, scene.canvas, ALL_KINDS).all_right


def _laid_out(picture: np.ndarray, scene: Scene, persons_only: bool) -> bool:
    """Whether every object that a condition shows is there: its shape, size and pose, at its place."""
    left = list(perceive(picture, ALL_KINDS).scene.objects)
    for thing in scene.objects:
        if persons_only and thing.shape != PERSON:
            continue
        found = next((other for other in left if _same_place(thing, other)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_place(one: Object, other: Object) -> bool:
    same = (one.shape, one.size, one.pose) == (other.shape, other.size, other.pose)
    return same and max(abs(one.x - other.x), abs(one.y - other.y)) <= SLACK


def _changed(exercise: Change, given: Sequence[Reply]) -> Scores:
    """Whether each edit is done to the picture before it, and all else is the same to the last pixel."""
    before, picture = exercise.scenes[0], exercise.scenes[0].render()
    inside = outside = True
    for edit, true_before, true_after, reply in zip(
        exercise.edits, exercise.scenes[:-1], exercise.scenes[1:], given, strict=True
    ):
        if not isinstance(reply, np.ndarray) or reply.shape != picture.shape:
            return {name: WORST[name] for name in ("inside", "outside", "right")}
        seen = perceive(reply, ALL_KINDS)
        found = edit.difference(before, seen.scene) if seen.clean else None
        inside = inside and found is not None
        touched = found or edit.difference(true_before, true_after)
        same = (reply == picture).all(axis=-1)
        for thing in touched:
            if thing is not None:
                same[thing.box(before.canvas)] = True
        outside = outside and bool(same.all())
        before, picture = seen.scene, reply
    return {"inside": float(inside), "outside": float(outside), "right": float(inside and outside)}


def _says_all(text: str, scene: Scene) -> bool:
    """Whether a description is true, and says as much as there is to say."""
    try:
        said = parse(text)
    except ValueError:
        return False
    sizes = all(claim.size for claim in said.claims if isinstance(claim, Thing))
    whole = len(said.claims) == len(describe(scene).claims) and isinstance(said.claims[-1], Count)
    return sizes and whole and facts_true(scene, said.claims)

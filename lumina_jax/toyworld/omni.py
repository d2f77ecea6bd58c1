"""Exercises of every task, drawn by (seed, index), and a weighted mix of them as records to pretokenize."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image

from lumina_jax.data.sources import Record
from lumina_jax.errors import InputError
from lumina_jax.toyworld import edits, questions
from lumina_jax.toyworld.captions import random_caption
from lumina_jax.toyworld.exercises import (
    REFINE,
    AnswerQuestions,
    ApplyEdits,
    Describe,
    Detect,
    Exercise,
    Paint,
    PaintFromView,
    PredictView,
)
from lumina_jax.toyworld.figures import PERSON
from lumina_jax.toyworld.scenes import OMNI, Pixels, Scene, World, pick
from lumina_jax.toyworld.source import EVALUATION, STAGES, check_stream, stage_sizes
from lumina_jax.toyworld.views import VIEWS

MIX: Mapping[str, float] = MappingProxyType(
    {
        "generate": 2.0,
        **dict.fromkeys(VIEWS, 1.0),
        "pose": 1.5,
        "detect": 2.0,
        **{f"{view}_to_image": 1.0 for view in VIEWS},
        "pose_to_image": 2.0,
        **dict.fromkeys(edits.KINDS, 1.5),
        "edits": 2.0,
        "describe": 3.0,
        "question": 2.0,
        "compare": 1.0,
        "text": 4.0,
        REFINE: 0.5,
        "dialog": 5.0,
        "chain": 2.0,
    }
)
"""All tasks with their relative frequencies.

Dialogs are frequent because a text answer is a few tokens and a picture dozens: several questions about one picture teach
several times as much per token as single ones.
"""

SLOW_MIX: Mapping[str, float] = MappingProxyType(
    {
        "generate": 1.0,
        **dict.fromkeys(VIEWS, 0.5),
        "depth": 1.5,
        "detect": 4.0,
        **{f"{view}_to_image": 0.5 for view in VIEWS},
        "pose_to_image": 1.0,
        **dict.fromkeys(edits.KINDS, 1.0),
        "remove": 1.5,
        "move": 3.5,
        "edits": 3.0,
        "describe": 5.0,
        "question": 3.0,
        "compare": 1.0,
        "text": 5.0,
        REFINE: 0.25,
        "dialog": 8.0,
        "chain": 4.0,
    }
)
"""The frequencies in the second part of training: tasks that are slow to learn come more often."""


@dataclass(frozen=True)
class Lesson:
    """The mix of one part of training: the weights of tasks, and the weights of canvases by STAGES.

    Small canvases come more often: they teach the same in fewer tokens.
    """

    mix: Mapping[str, float]
    repeats: tuple[int, ...]

    def sizes(self, target: int) -> list[Pixels]:
        """The canvas sizes of all stages up to ``target``, each repeated as ``repeats`` says for its stage."""
        stages = zip(STAGES, self.repeats, strict=True)
        return [size for stage, repeats in stages if stage <= target for size in repeats * stage_sizes(stage)]


LESSONS: Mapping[str, Lesson] = MappingProxyType(
    {
        "omni": Lesson(MIX, (6, 2, 1)),
        "omni_slow": Lesson(SLOW_MIX, (12, 1, 1)),
    }
)

QUESTIONS = 5
"""Questions in one dialog."""
TWO_PICTURES_SHARE = 0.35
"""Share of these dialogs that are about two pictures."""

DRAWS = 8
"""Attempts to draw a later edit of one scene before the next scene is tried."""

MAX_SCENES = 256
"""Scenes that one exercise may try; if none of them suits the task, the canvas is too small for it."""


class DrawContext(NamedTuple):
    """What one exercise is drawn from: candidate scenes, their world, a generator, and whether compositions are held out."""

    scenes: Iterator[Scene]
    world: World
    rng: np.random.Generator
    held_out: bool


def exercise(world: World, task: str, size: Pixels, seed: int, index: int, held_out: bool = False) -> Exercise:
    """Exercise ``index`` of stream ``seed`` of a task of MIX, on a canvas of ``size``: a pure function of its arguments.

    With ``held_out`` its first scene has a held-out composition; without, none of its scenes has. Raises InputError for an
    unknown task, and for a canvas that is too small for the task.
    """
    if task not in MAKERS:
        raise InputError(f"no task {task!r}; the tasks of the embedded world are {', '.join(MAKERS)}")
    first = index * MAX_SCENES
    scenes = (world.scene(size, seed, number, held_out) for number in range(first, first + MAX_SCENES))
    rng = np.random.default_rng((seed, index, list(MIX).index(task), int(held_out)))
    if (drawn := MAKERS[task](DrawContext(scenes, world, rng, held_out))) is None:
        raise InputError(f"a canvas of {size[0]}x{size[1]} px has no room for the task {task!r}")
    return drawn


def evaluation_exercises(
    task: str, sizes: Sequence[Pixels], count: int, seed: int, held_out: bool = False, world: World = OMNI
) -> list[Exercise]:
    """``count`` exercises of a task for evaluation, from streams that training never uses; ``sizes`` are taken in turn."""
    return [
        exercise(world, task, sizes[index % len(sizes)], EVALUATION + seed, index, held_out) for index in range(count)
    ]


class OmniSource:
    """``count`` records of all tasks, drawn by the weights ``mix`` and made on access; a data source for pretokenizing.

    Canvas sizes are drawn from ``sizes``: one listed twice comes twice as often. The attribute ``sizes`` has no duplicates.
    """

    def __init__(self, world: World, sizes: Sequence[Pixels], count: int, seed: int, mix: Mapping[str, float] = MIX):
        check_stream(sizes, count, seed)
        if unknown := sorted(set(mix) - set(MAKERS)):
            raise InputError(f"no task {unknown[0]!r}; the tasks of the embedded world are {', '.join(MAKERS)}")
        if min(mix.values(), default=0) < 0 or not sum(mix.values()) > 0:
            raise InputError(
                f"the weights of the tasks are {dict(mix)}; none may be negative, and one must be positive"
            )
        self.sizes = sorted(set(sizes))
        self._settings = (world, tuple(sizes), count, seed, tuple(mix.items()))
        self._tasks, weights = zip(*mix.items(), strict=True)
        self._cumulative = np.cumsum(weights) / sum(weights)

    @property
    def fingerprint(self) -> str:
        """Hash of all settings, 16 hex digits: it changes when the records do."""
        return hashlib.sha256(repr(self._settings).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._settings[2]

    def __getitem__(self, index: int) -> Record:
        drawn = self.exercise(index)
        return Record(drawn.turns, [Image.fromarray(picture) for picture in drawn.pictures])

    def task(self, index: int) -> str:
        """The task of record ``index``."""
        return self._tasks[int(np.searchsorted(self._cumulative, self._rng(index).random(), side="right"))]

    def exercise(self, index: int) -> Exercise:
        """The exercise of record ``index``. Raises IndexError outside 0 to len(self) - 1."""
        world, sizes, count, seed, _ = self._settings
        if not 0 <= index < count:
            raise IndexError(f"record {index} of {count}")
        _, share = self._rng(index).random(2)
        return exercise(world, self.task(index), sizes[int(share * len(sizes))], seed, index)

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self._settings[3], index))


def _paint(ctx: DrawContext) -> Exercise:
    scene = next(ctx.scenes)
    return Paint(scene, random_caption(scene, ctx.rng))


def _view(ctx: DrawContext, make: type[PredictView | PaintFromView], view: str) -> Exercise | None:
    suitable = (scene for scene in ctx.scenes if view != "pose" or any(o.shape == PERSON for o in scene.objects))
    return next((make(scene, view) for scene in suitable), None)


def _detect(ctx: DrawContext) -> Exercise | None:
    for scene in ctx.scenes:
        thing = pick(ctx.rng, scene.objects)
        if (phrase := edits.unique_phrase(thing, scene)) is not None:
            return Detect(scene, thing, phrase)
    return None


def _edit(ctx: DrawContext, kind: str) -> ApplyEdits | None:
    for scene in ctx.scenes:
        if (drawn := edits.draw_edit(kind, scene, ctx.world, ctx.rng, ctx.held_out)) is not None:
            before, edit, after = drawn
            return ApplyEdits((before, after), (edit,))
    return None


def _edits(ctx: DrawContext, later: int) -> ApplyEdits | None:
    kinds = pick(ctx.rng, edits.KINDS), *(pick(ctx.rng, edits.LATER_KINDS) for _ in range(later))
    # A scene has two objects at most: only one may be removed, so further removals become moves.
    removals = [number for number, kind in enumerate(kinds) if kind == "remove"][1:]
    kinds = tuple("move" if number in removals else kind for number, kind in enumerate(kinds))
    while (chain := _edit(ctx, kinds[0])) is not None:
        for kind in kinds[1:]:
            draws = (edits.draw_edit(kind, chain.scenes[-1], ctx.world, ctx.rng, ctx.held_out) for _ in range(DRAWS))
            if (drawn := next(filter(None, draws), None)) is None:
                break
            _, edit, after = drawn
            chain = ApplyEdits((*chain.scenes, after), (*chain.edits, edit))
        else:
            return chain
    return None


def _describe(ctx: DrawContext) -> Exercise:
    return Describe(next(ctx.scenes))


def _question(ctx: DrawContext) -> Exercise:
    scene = next(ctx.scenes)
    return AnswerQuestions((scene,), (questions.ask(scene, ctx.world, ctx.rng),))


def _compare(ctx: DrawContext) -> Exercise:
    first, second = next(ctx.scenes), next(ctx.scenes)
    return AnswerQuestions((first, second), (questions.compare(first, second, ctx.world, ctx.rng),))


def _dialog(ctx: DrawContext) -> Exercise:
    subjects = tuple(next(ctx.scenes) for _ in range(1 + int(ctx.rng.random() < TWO_PICTURES_SHARE)))
    ask = questions.ask if len(subjects) == 1 else questions.compare
    return AnswerQuestions(subjects, questions.distinct(lambda: ask(*subjects, ctx.world, ctx.rng), QUESTIONS))


def _text(ctx: DrawContext) -> Exercise:
    return AnswerQuestions((), (questions.text_task(ctx.world, ctx.rng),))


MAKERS: Mapping[str, Callable[[DrawContext], Exercise | None]] = MappingProxyType(
    {
        "generate": _paint,
        **{view: partial(_view, make=PredictView, view=view) for view in (*VIEWS, REFINE)},
        "detect": _detect,
        **{f"{view}_to_image": partial(_view, make=PaintFromView, view=view) for view in VIEWS},
        **{kind: partial(_edit, kind=kind) for kind in edits.KINDS},
        "edits": partial(_edits, later=1),
        "describe": _describe,
        "question": _question,
        "compare": _compare,
        "text": _text,
        "dialog": _dialog,
        "chain": partial(_edits, later=3),
    }
)
"""Task -> function that draws an exercise from the first candidate scenes that suit it; None when no scene does."""

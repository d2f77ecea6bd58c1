"""Exercises of every task, drawn by (seed, index), and a weighted mix of them as records to pretokenize."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from lumina_jax.data.sources import Record
from lumina_jax.errors import InputError
from lumina_jax.toyworld import edits, exercises, questions
from lumina_jax.toyworld.captions import describe, random_caption
from lumina_jax.toyworld.exercises import REFINE, Exercise, Script
from lumina_jax.toyworld.figures import PERSON
from lumina_jax.toyworld.scenes import MINI, OMNI, Pixels, Scene, World, pick, region
from lumina_jax.toyworld.source import EVALUATION, STAGES, ToySource, WorldSource, stage_sizes, training_sizes
from lumina_jax.toyworld.views import VIEWS

WEIGHTS: dict[str, tuple[float, ...]] = {
    "generate": (2.0, 1.0, 1.0, 1.0, 1.0),
    **dict.fromkeys(VIEWS, (1.0, 0.5, 0.5, 0.5, 0.75)),
    "depth": (1.0, 1.5, 1.5, 1.5, 1.5),
    "pose": (1.5, 0.5, 0.75, 0.75, 1.0),
    "detect": (2.0, 4.0, 3.5, 3.5, 6.0),
    **{f"{view}_to_image": (1.0, 0.5, 0.5, 0.5, 0.75) for view in VIEWS},
    "pose_to_image": (2.0, 1.0, 1.0, 1.0, 1.25),
    **dict.fromkeys(edits.KINDS, (1.5, 1.0, 1.0, 1.0, 1.75)),
    "remove": (1.5, 1.5, 1.0, 1.0, 1.25),
    "move": (1.5, 3.5, 3.0, 3.0, 4.5),
    "edits": (2.0, 3.0, 2.0, 2.0, 2.0),
    "describe": (3.0, 5.0, 4.0, 3.0, 7.0),
    "question": (2.0, 3.0, 4.0, 10.0, 5.0),
    "compare": (1.0, 1.0, 6.0, 16.0, 16.0),
    "text": (4.0, 5.0, 1.0, 0.5, 0.5),
    REFINE: (0.5, 0.25, 0.25, 0.25, 0.25),
    "dialog": (5.0, 8.0, 9.0, 9.0, 10.0),
    "chain": (2.0, 4.0, 4.0, 3.0, 3.0),
    "paint_edit": (0.0, 0.0, 3.0, 3.0, 2.0),
    "paint_edits": (0.0, 0.0, 2.0, 2.0, 2.0),
    "paint_ask": (0.0, 0.0, 4.0, 4.0, 3.0),
    "paint_show_ask": (0.0, 0.0, 4.0, 4.0, 4.0),
    "texts": (0.0, 0.0, 3.0, 1.5, 1.5),
    "describe_ask_text": (0.0, 0.0, 2.0, 2.0, 2.0),
    "ask_paint": (0.0, 0.0, 1.0, 1.0, 1.0),
    "talk": (0.0, 0.0, 4.0, 4.0, 3.0),
}
"""All tasks with their relative frequencies in the five parts of training.

Dialogs are frequent because a text answer is a few tokens and a picture dozens: several questions about one picture teach
several times as much per token as single ones. In the second part tasks that are slow to learn come more often; in the third
come scripts, dialogs that go from one task to another, and more comparisons; in the fourth more of those and of single
questions; in the fifth more of what was weakest behind the fourth.
"""
MIX, SLOW_MIX, SCRIPT_MIX, QUESTION_MIX, WEAK_MIX = (
    {task: weights[lesson] for task, weights in WEIGHTS.items()} for lesson in range(5)
)


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


LESSONS = {
    "omni": Lesson(MIX, (6, 2, 1)),
    "omni_slow": Lesson(SLOW_MIX, (12, 1, 1)),
    "omni_scripts": Lesson(SCRIPT_MIX, (12, 1, 1)),
    "omni_questions": Lesson(QUESTION_MIX, (12, 1, 1)),
    "omni_weak": Lesson(WEAK_MIX, (12, 1, 1)),
}

QUESTIONS = 5
"""Questions in one dialog."""
TWO_PICTURES_SHARE = 0.35
"""Share of these dialogs that are about two pictures."""
ORDINAL_SHARE = 0.6
"""Share of later questions about two pictures that are about the first or the second of them, not about both."""

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


def evaluation_exercises(task: str, sizes: Sequence[Pixels], count: int, seed: int) -> list[Exercise]:
    """``count`` exercises of a task for evaluation, from streams that training never uses; ``sizes`` are taken in turn."""
    return [exercise(OMNI, task, sizes[index % len(sizes)], EVALUATION + seed, index) for index in range(count)]


class OmniSource(WorldSource):
    """Records of all tasks, drawn by the weights ``mix``; canvas sizes are drawn from ``sizes``."""

    def __init__(self, world: World, sizes: Sequence[Pixels], count: int, seed: int, mix: Mapping[str, float] = MIX):
        super().__init__(world, sizes, count, seed, tuple(mix.items()))
        if unknown := sorted(set(mix) - set(MAKERS)):
            raise InputError(f"no task {unknown[0]!r}; the tasks of the embedded world are {', '.join(MAKERS)}")
        if min(mix.values(), default=0) < 0 or not sum(mix.values()) > 0:
            raise InputError(
                f"the weights of the tasks are {dict(mix)}; none may be negative, and one must be positive"
            )
        self._tasks, weights = zip(*mix.items(), strict=True)
        self._cumulative = np.cumsum(weights) / sum(weights)

    def __getitem__(self, index: int) -> Record:
        drawn = self.exercise(index)
        return Record(drawn.turns, [Image.fromarray(picture) for picture in drawn.pictures])

    def task(self, index: int) -> str:
        """The task of record ``index``."""
        return self._tasks[int(np.searchsorted(self._cumulative, self._rng(index).random(), side="right"))]

    def exercise(self, index: int) -> Exercise:
        """The exercise of record ``index``. Raises IndexError outside 0 to len(self) - 1."""
        self._check(index)
        world, sizes, _, seed, _ = self._settings
        _, share = self._rng(index).random(2)
        return exercise(world, self.task(index), sizes[int(share * len(sizes))], seed, index)

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self._settings[3], index))


def training_source(kind: str, target: int, count: int, seed: int) -> WorldSource:
    """``count`` training records for canvases of about ``target``² px: captioned scenes ("toy") or one of LESSONS."""
    if kind == "toy":
        return ToySource(MINI, training_sizes(target), count, seed)
    return OmniSource(OMNI, LESSONS[kind].sizes(target), count, seed, LESSONS[kind].mix)


def _paint(ctx: DrawContext) -> Exercise:
    scene = next(ctx.scenes)
    return exercises.Paint(scene, random_caption(scene, ctx.rng))


def _view(ctx: DrawContext, make: type[exercises.PredictView | exercises.PaintFromView], view: str) -> Exercise | None:
    suitable = (scene for scene in ctx.scenes if view != "pose" or any(o.shape == PERSON for o in scene.objects))
    return next((make(scene, view) for scene in suitable), None)


def _detect(ctx: DrawContext) -> Exercise | None:
    for scene in ctx.scenes:
        thing = pick(ctx.rng, scene.objects)
        if (phrase := edits.unique_phrase(thing, scene)) is not None:
            return exercises.Detect(scene, thing, phrase)
    return None


def _edit(ctx: DrawContext, kind: str) -> exercises.ApplyEdits | None:
    for scene in ctx.scenes:
        if (drawn := edits.draw_edit(kind, scene, ctx.world, ctx.rng, ctx.held_out)) is not None:
            before, edit, after = drawn
            return exercises.ApplyEdits((before, after), (edit,))
    return None


def _edits(ctx: DrawContext, later: int) -> exercises.ApplyEdits | None:
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
            chain = exercises.ApplyEdits((*chain.scenes, after), (*chain.edits, edit))
        else:
            return chain
    return None


def _ask(ctx: DrawContext, pictures: int, count: int = 1) -> Exercise:
    return _about(ctx, tuple(next(ctx.scenes) for _ in range(pictures)), count)


def _dialog(ctx: DrawContext) -> Exercise:
    return _ask(ctx, 1 + int(ctx.rng.random() < TWO_PICTURES_SHARE), QUESTIONS)


def _script(ctx: DrawContext, *makers: Callable[[DrawContext], Exercise | None]) -> Script | None:
    """The exercises of ``makers`` one after the other."""
    drawn = [make(ctx) for make in makers]
    if None in drawn:
        return None
    return Script(tuple(part for made in drawn for part in (made.parts if isinstance(made, Script) else (made,))))


def _paint_edit(ctx: DrawContext, later: int) -> Script | None:
    """Paint a picture, then edit it. The caption says all, so that the edit is possible whichever picture is painted."""
    while (chain := _edits(ctx, later)) is not None:
        before, first = chain.scenes[0], chain.edits[0]
        if first.kind != "add" or SIDES[first.goal] not in region(before.objects[0], before.canvas):
            return Script((exercises.Paint(before, describe(before)), replace(chain, known=1)))
    return None


def _paint_ask(ctx: DrawContext, count: int) -> Script:
    painted = _paint(ctx)
    return Script((painted, replace(_about(ctx, (painted.scene,), count), known=1)))


def _paint_show_ask(ctx: DrawContext) -> Script:
    """Paint a picture, ask about another one that is shown, then about both or about one of them by its number."""
    painted, shown = _paint(ctx), next(ctx.scenes)
    scenes = painted.scene, shown

    def later() -> questions.QuestionAnswer:
        if ctx.rng.random() >= ORDINAL_SHARE:
            return questions.compare(*scenes, ctx.world, ctx.rng)
        return questions.ask_of_two(*scenes, ctx.world, ctx.rng)

    both = exercises.AnswerQuestions(scenes, questions.distinct(later, 2), known=2)
    return Script((painted, _about(ctx, (shown,), 1), both))


def _describe_ask(ctx: DrawContext) -> Script:
    scene = next(ctx.scenes)
    return Script((exercises.Describe(scene), replace(_about(ctx, (scene,), 1), known=1)))


def _about(ctx: DrawContext, scenes: tuple[Scene, ...], count: int) -> exercises.AnswerQuestions:
    ask = questions.ask if len(scenes) == 1 else questions.compare
    return exercises.AnswerQuestions(scenes, questions.distinct(lambda: ask(*scenes, ctx.world, ctx.rng), count))


def _text(ctx: DrawContext) -> exercises.AnswerQuestions:
    return exercises.AnswerQuestions((), (questions.text_task(ctx.world, ctx.rng),))


def _talk(ctx: DrawContext) -> Script | None:
    """Two random scripts or tasks, with a text task put between any two of their parts, before or behind them."""
    drawn = _script(ctx, pick(ctx.rng, TALKS), pick(ctx.rng, TALKS))
    if drawn is None:
        return None
    place = int(ctx.rng.integers(len(drawn.parts) + 1))
    return Script((*drawn.parts[:place], _text(ctx), *drawn.parts[place:]))


SIDES = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
"""Relation -> the word of the regions at that side of a canvas."""

MAKERS: dict[str, Callable[[DrawContext], Exercise | None]] = {
    "generate": _paint,
    **{view: partial(_view, make=exercises.PredictView, view=view) for view in (*VIEWS, REFINE)},
    "detect": _detect,
    **{f"{view}_to_image": partial(_view, make=exercises.PaintFromView, view=view) for view in VIEWS},
    **{kind: partial(_edit, kind=kind) for kind in edits.KINDS},
    "edits": partial(_edits, later=1),
    "describe": lambda ctx: exercises.Describe(next(ctx.scenes)),
    "question": partial(_ask, pictures=1),
    "compare": partial(_ask, pictures=2),
    "text": _text,
    "dialog": _dialog,
    "chain": partial(_edits, later=3),
    "paint_edit": partial(_paint_edit, later=0),
    "paint_edits": partial(_paint_edit, later=1),
    "paint_ask": partial(_paint_ask, count=2),
    "paint_show_ask": _paint_show_ask,
    "texts": lambda ctx: _script(ctx, _text, _text, _text),
    "describe_ask_text": lambda ctx: _script(ctx, _describe_ask, _text),
    "ask_paint": lambda ctx: _script(ctx, partial(_ask, pictures=1), _paint),
    "talk": _talk,
}
"""Task -> function that draws an exercise from the first candidate scenes that suit it; None when no scene does."""

TALKS = (
    _paint,
    _describe_ask,
    partial(_ask, pictures=1, count=2),
    partial(_edits, later=0),
    partial(_paint_edit, later=0),
    partial(_paint_ask, count=1),
)
"""What "talk" is made of; each part is about pictures of its own, or about the one before it."""

"""Every capability as a stream of exercises, and all of them mixed as records to pretokenize."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from PIL import Image

from lumina_jax.data.sources import Record
from lumina_jax.errors import InputError
from lumina_jax.toyworld import edits, questions
from lumina_jax.toyworld.captions import caption
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
)
from lumina_jax.toyworld.figures import PERSON
from lumina_jax.toyworld.scenes import OMNI, Pixels, Scene, World, pick
from lumina_jax.toyworld.source import EVALUATION, STAGES, stage_sizes
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
"""Every task, and how often it comes: weights, of which only the proportions count.

An answer in words is a few tokens among the dozens of a picture: a dialog asks of one picture again and again, and so teaches
in as many tokens a multiple of what single questions do.
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
"""The same for a second part of training: what was slow to learn comes more often."""


@dataclass(frozen=True)
class Lesson:
    """A part of training: the weights of tasks, and how often a canvas of each of STAGES comes.

    What small canvases teach in few tokens is true of all.
    """

    mix: Mapping[str, float]
    often: tuple[int, ...]

    def sizes(self, target: int) -> list[Pixels]:
        """The canvases up to those of about ``target``² px, each as many times as ``often`` says."""
        often = zip(STAGES, self.often, strict=True)
        return [size for stage, times in often if stage <= target for size in times * stage_sizes(stage)]


LESSONS: Mapping[str, Lesson] = MappingProxyType(
    {
        "omni": Lesson(MIX, (6, 2, 1)),
        "omni_slow": Lesson(SLOW_MIX, (12, 1, 1)),
    }
)

QUESTIONS = 5
"""In one dialog."""
ABOUT_TWO = 0.35
"""How often such a dialog is about two pictures."""

DRAWS = 8
"""How often a later edit is drawn for one scene before the next scene's turn comes."""

MOST_SCENES = 256
"""A canvas has no room for a task when none of so many scenes will do."""

Maker = Callable[[Iterator[Scene], World, np.random.Generator, bool], Exercise | None]
"""Makes an exercise of the next scenes that will do; None when they run out."""


def exercise(world: World, task: str, size: Pixels, seed: int, index: int, held_out: bool = False) -> Exercise:
    """Exercise ``index`` of stream ``seed`` of a task of MIX, on a canvas of ``size``: a pure function of its arguments.

    With ``held_out`` it comes from a scene with a held-out composition; without, no such composition is anywhere in it.
    Raises ValueError for an unknown task, and for a canvas without room for it.
    """
    if task not in MAKERS:
        raise InputError(f"no task {task!r}; the tasks of the embedded world are {', '.join(MAKERS)}")
    first = index * MOST_SCENES
    scenes = (world.scene(size, seed, number, held_out) for number in range(first, first + MOST_SCENES))
    rng = np.random.default_rng((seed, index, list(MIX).index(task), int(held_out)))
    if (made := MAKERS[task](scenes, world, rng, held_out)) is None:
        raise InputError(f"a canvas of {size[0]}x{size[1]} px has no room for the task {task!r}")
    return made


def exercises(
    task: str, sizes: Sequence[Pixels], count: int, seed: int, held_out: bool = False, world: World = OMNI
) -> list[Exercise]:
    """``count`` exercises of a task to evaluate with, from streams no training record comes from."""
    return [
        exercise(world, task, sizes[index % len(sizes)], EVALUATION + seed, index, held_out) for index in range(count)
    ]


class OmniSource:
    """``count`` records of all tasks by the weights of ``mix``, made when asked for; a data source for pretokenizing.

    Canvases are drawn; one listed twice comes twice as often. ``sizes`` holds each of them once.
    """

    def __init__(self, world: World, sizes: Sequence[Pixels], count: int, seed: int, mix: Mapping[str, float] = MIX):
        if not sizes or count < 1 or not 0 <= seed < EVALUATION:
            raise InputError(
                f"{len(sizes)} sizes, count={count}, seed={seed}: need at least 1, 1, and 0 <= seed < 2**32"
            )
        if unknown := sorted(set(mix) - set(MAKERS)):
            raise InputError(f"no task {unknown[0]!r}; the tasks of the embedded world are {', '.join(MAKERS)}")
        if min(mix.values(), default=0) < 0 or not sum(mix.values()) > 0:
            raise InputError(
                f"the weights of the tasks are {dict(mix)}; none may be negative, and one must be positive"
            )
        self.sizes = sorted(set(sizes))
        self._made_from = (world, tuple(sizes), count, seed, tuple(mix.items()))
        self._tasks, weights = zip(*mix.items(), strict=True)
        self._upto = np.cumsum(weights) / sum(weights)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when the records do."""
        return hashlib.sha256(repr(self._made_from).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._made_from[2]

    def __getitem__(self, index: int) -> Record:
        made = self.exercise(index)
        return Record(made.turns, [Image.fromarray(picture) for picture in made.pictures])

    def task(self, index: int) -> str:
        """Which task record ``index`` is of."""
        return self._tasks[int(np.searchsorted(self._upto, self._rng(index).random(), side="right"))]

    def exercise(self, index: int) -> Exercise:
        """What record ``index`` is made of."""
        world, sizes, count, seed, _ = self._made_from
        if not 0 <= index < count:
            raise IndexError(f"record {index} of {count}")
        _, place = self._rng(index).random(2)
        return exercise(world, self.task(index), sizes[int(place * len(sizes))], seed, index)

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self._made_from[3], index))


def _paint(scenes: Iterator[Scene], world: World, rng: np.random.Generator, held_out: bool) -> Exercise:
    scene = next(scenes)
    return Paint(scene, caption(scene, rng))


def _look(
    scenes: Iterator[Scene], world: World, rng: np.random.Generator, held_out: bool, view: str
) -> Exercise | None:
    return next((Look(scene, view) for scene in scenes if _serves(scene, view)), None)


def _condition(
    scenes: Iterator[Scene], world: World, rng: np.random.Generator, held_out: bool, view: str
) -> Exercise | None:
    return next((Condition(scene, view) for scene in scenes if _serves(scene, view)), None)


def _serves(scene: Scene, view: str) -> bool:
    """A pose needs somebody who takes it."""
    return view != "pose" or any(thing.shape == PERSON for thing in scene.objects)


def _detect(scenes: Iterator[Scene], world: World, rng: np.random.Generator, held_out: bool) -> Exercise | None:
    for scene in scenes:
        thing = pick(rng, scene.objects)
        if (said := edits.name(thing, scene)) is not None:
            return Detect(scene, thing, said)
    return None


def _edit(scenes: Iterator[Scene], world: World, rng: np.random.Generator, held_out: bool, kind: str) -> Change | None:
    for scene in scenes:
        if (drawn := edits.draw(kind, scene, world, rng, held_out)) is not None:
            before, edit, after = drawn
            return Change((before, after), (edit,))
    return None


def _edits(
    scenes: Iterator[Scene], world: World, rng: np.random.Generator, held_out: bool, later: int
) -> Change | None:
    kinds = pick(rng, edits.KINDS), *(pick(rng, edits.LATER_KINDS) for _ in range(later))
    # After one object has gone, the other stays.
    gone = [number for number, kind in enumerate(kinds) if kind == "remove"][1:]
    kinds = tuple("move" if number in gone else kind for number, kind in enumerate(kinds))
    while (made := _edit(scenes, world, rng, held_out, kinds[0])) is not None:
        for kind in kinds[1:]:
            draws = (edits.draw(kind, made.scenes[-1], world, rng, held_out) for _ in range(DRAWS))
            if (drawn := next(filter(None, draws), None)) is None:
                break
            _, edit, after = drawn
            made = Change((*made.scenes, after), (*made.edits, edit))
        else:
            return made
    return None


def _describe(scenes: Iterator[Scene], world: World, rng: np.random.Generator, held_out: bool) -> Exercise:
    return Describe(next(scenes))


def _question(scenes: Iterator[Scene], world: World, rng: np.random.Generator, held_out: bool) -> Exercise:
    scene = next(scenes)
    return Answer((scene,), (questions.ask(scene, world, rng),))


def _compare(scenes: Iterator[Scene], world: World, rng: np.random.Generator, held_out: bool) -> Exercise:
    first, second = next(scenes), next(scenes)
    return Answer((first, second), (questions.compare(first, second, world, rng),))


def _dialog(scenes: Iterator[Scene], world: World, rng: np.random.Generator, held_out: bool) -> Exercise:
    shown = tuple(next(scenes) for _ in range(1 + int(rng.random() < ABOUT_TWO)))
    ask = questions.ask if len(shown) == 1 else questions.compare
    return Answer(shown, questions.several(lambda: ask(*shown, world, rng), QUESTIONS))


def _text(scenes: Iterator[Scene], world: World, rng: np.random.Generator, held_out: bool) -> Exercise:
    return Answer((), (questions.text_task(world, rng),))


MAKERS: Mapping[str, Maker] = MappingProxyType(
    {
        "generate": _paint,
        **{view: partial(_look, view=view) for view in (*VIEWS, REFINE)},
        "detect": _detect,
        **{f"{view}_to_image": partial(_condition, view=view) for view in VIEWS},
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

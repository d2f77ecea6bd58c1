"""Exercises: one class per capability, each with its name in conversation.TASKS, its turns, its pictures and their scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lumina_jax.conversation import Turn, image_prompt, task_prompt
from lumina_jax.toyworld.captions import Caption, Thing, describe
from lumina_jax.toyworld.edits import SceneEdit, without_article
from lumina_jax.toyworld.questions import QuestionAnswer
from lumina_jax.toyworld.scenes import Object, Scene
from lumina_jax.toyworld.views import VIEWS, boxed
from lumina_jax.vocab import IMAGE_SYMBOL

REFINE = "refine"


@dataclass(frozen=True)
class Paint:
    """Paint the picture of a caption."""

    scene: Scene
    caption: Caption
    task = "generate"

    @property
    def turns(self) -> list[Turn]:
        return [(image_prompt(*self.scene.canvas, self.caption.text), IMAGE_SYMBOL)]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [self.scene.render()]


@dataclass(frozen=True)
class PredictView:
    """Turn a picture into one of VIEWS or, to refine it, repeat it."""

    scene: Scene
    view: str
    task = property(lambda self: self.view)

    @property
    def turns(self) -> list[Turn]:
        return [(task_prompt(self.view), IMAGE_SYMBOL)]

    @property
    def pictures(self) -> list[np.ndarray]:
        picture = self.scene.render()
        return [picture, picture if self.view == REFINE else VIEWS[self.view](self.scene)]


@dataclass(frozen=True)
class Detect:
    """Draw the box of the object that ``phrase`` refers to."""

    scene: Scene
    thing: Object
    phrase: Thing
    task = "detect"

    @property
    def turns(self) -> list[Turn]:
        return [(task_prompt(self.task, without_article(self.phrase)), IMAGE_SYMBOL)]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [self.scene.render(), boxed(self.scene, self.thing)]


@dataclass(frozen=True)
class PaintFromView:
    """Paint the scene that one of VIEWS and a caption describe."""

    scene: Scene
    view: str
    task = "condition"

    @property
    def caption(self) -> Caption:
        return describe(self.scene)

    @property
    def turns(self) -> list[Turn]:
        return [(task_prompt(self.task, self.caption.text), IMAGE_SYMBOL)]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [VIEWS[self.view](self.scene), self.scene.render()]


@dataclass(frozen=True)
class ApplyEdits:
    """Edit a picture once or several times in one dialog; ``scenes`` are the first one and the result of each edit.

    The first one is shown, or with ``known=1`` is the last picture of the turns before.
    """

    scenes: tuple[Scene, ...]
    edits: tuple[SceneEdit, ...]
    known: int = 0
    task = "edit"

    @property
    def turns(self) -> list[Turn]:
        return [
            (task_prompt(self.task, edit.text, images=0 if number else 1 - self.known), IMAGE_SYMBOL)
            for number, edit in enumerate(self.edits)
        ]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [scene.render() for scene in self.scenes[self.known :]]


@dataclass(frozen=True)
class Describe:
    """Describe a picture completely."""

    scene: Scene
    task = "describe"

    @property
    def turns(self) -> list[Turn]:
        return [(task_prompt(self.task), describe(self.scene).text)]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [self.scene.render()]


@dataclass(frozen=True)
class AnswerQuestions:
    """Answer questions about any number of pictures, possibly none, in one dialog.

    The first ``known`` pictures are the last ones of the turns before; the others are shown with the first question.
    """

    scenes: tuple[Scene, ...]
    questions: tuple[QuestionAnswer, ...]
    known: int = 0
    task = "question"

    @property
    def turns(self) -> list[Turn]:
        return [
            (task_prompt(self.task, question, images=0 if number else len(self.scenes) - self.known), answer)
            for number, (question, answer) in enumerate(self.questions)
        ]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [scene.render() for scene in self.scenes[self.known :]]


@dataclass(frozen=True)
class Script:
    """Several exercises one after the other in one dialog; later ones may be about pictures of earlier ones."""

    parts: tuple[Paint | ApplyEdits | Describe | AnswerQuestions, ...]

    @property
    def turns(self) -> list[Turn]:
        return [turn for part in self.parts for turn in part.turns]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [picture for part in self.parts for picture in part.pictures]


Exercise = Paint | PredictView | Detect | PaintFromView | ApplyEdits | Describe | AnswerQuestions | Script
Reply = np.ndarray | str | None
"""A model's answer in one turn: a picture u8[Y X 3], a text, or None if a picture was due and the answer holds no complete one."""


class TrueTurn(NamedTuple):
    """A turn of an exercise: the name of its task in conversation.TASKS, its input pictures, and its true answer."""

    task: str
    inputs: tuple[np.ndarray, ...]
    answer: np.ndarray | str


def true_turns(exercise: Exercise) -> list[TrueTurn]:
    """The turns of an exercise with its pictures, which come in the order of their symbols in the texts."""
    parts = exercise.parts if isinstance(exercise, Script) else (exercise,)
    pictures = iter(exercise.pictures)
    return [
        TrueTurn(
            part.task,
            tuple(next(pictures) for _ in range(human.count(IMAGE_SYMBOL))),
            next(pictures) if answer == IMAGE_SYMBOL else answer,
        )
        for part in parts
        for human, answer in part.turns
    ]


def next_prompt(exercise: Exercise, replies: Sequence[Reply]) -> tuple[list[Turn], list[np.ndarray]]:
    """The turns and pictures of the prompt for the next turn, after the model gave ``replies`` in the earlier ones."""
    answers = [*replies, None]
    turns, pictures = [], []
    for (human, _), true, reply in zip(exercise.turns, true_turns(exercise), answers, strict=False):
        painted = isinstance(reply, np.ndarray)
        turns.append((human, IMAGE_SYMBOL if painted else reply))
        pictures += [*true.inputs, *[reply] * painted]
    return turns, pictures

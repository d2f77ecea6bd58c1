"""Exercises: one class per capability, each with its name in conversation.TASKS, its turns, its pictures and their scenes."""

from collections.abc import Sequence
from dataclasses import dataclass

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

    @property
    def task(self) -> str:
        return self.view

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
    """Edit a picture once or several times in one dialog; ``scenes`` are the first one and the result of each edit."""

    scenes: tuple[Scene, ...]
    edits: tuple[SceneEdit, ...]
    task = "edit"

    @property
    def turns(self) -> list[Turn]:
        return [
            (task_prompt(self.task, edit.text, images=int(not number)), IMAGE_SYMBOL)
            for number, edit in enumerate(self.edits)
        ]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [scene.render() for scene in self.scenes]


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
    """Answer questions about any number of pictures, possibly none, in one dialog."""

    scenes: tuple[Scene, ...]
    questions: tuple[QuestionAnswer, ...]
    task = "question"

    @property
    def turns(self) -> list[Turn]:
        return [
            (task_prompt(self.task, question, images=0 if number else len(self.scenes)), answer)
            for number, (question, answer) in enumerate(self.questions)
        ]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [scene.render() for scene in self.scenes]


Exercise = Paint | PredictView | Detect | PaintFromView | ApplyEdits | Describe | AnswerQuestions
Reply = np.ndarray | str | None
"""A model's answer in one turn: a picture u8[Y X 3], a text, or None if a picture was due and the answer holds no complete one."""


def true_replies(exercise: Exercise) -> list[Reply]:
    """The true answer of each turn."""
    outputs = sum(answer == IMAGE_SYMBOL for _, answer in exercise.turns)
    pictures = iter(exercise.pictures[len(exercise.pictures) - outputs :])
    return [next(pictures) if answer == IMAGE_SYMBOL else answer for _, answer in exercise.turns]


def next_prompt(exercise: Exercise, replies: Sequence[Reply]) -> tuple[list[Turn], list[np.ndarray]]:
    """The turns and pictures of the prompt for the next turn, after the model gave ``replies`` in the earlier ones."""
    turns, pictures = exercise.turns[: len(replies) + 1], exercise.pictures
    inputs = sum(human.count(IMAGE_SYMBOL) for human, _ in turns)
    painted = [reply for reply in replies if isinstance(reply, np.ndarray)]
    answers = [reply if isinstance(reply, str) else IMAGE_SYMBOL for reply in replies]
    prompt = [(human, answer) for (human, _), answer in zip(turns, [*answers, None], strict=True)]
    return prompt, [*pictures[:inputs], *painted]

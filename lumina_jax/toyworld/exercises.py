"""Exercises: one for each capability, each with its words, its pictures and the truth about them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lumina_jax.conversation import Turn, image_prompt, task_prompt
from lumina_jax.toyworld.captions import Caption, Thing, describe
from lumina_jax.toyworld.edits import Edit, bare
from lumina_jax.toyworld.questions import Asked
from lumina_jax.toyworld.scenes import Object, Scene
from lumina_jax.toyworld.views import VIEWS, boxed
from lumina_jax.vocab import IMAGE_SYMBOL

REFINE = "refine"


@dataclass(frozen=True)
class Paint:
    """Paint what a caption says."""

    scene: Scene
    said: Caption

    @property
    def turns(self) -> list[Turn]:
        return [(image_prompt(*self.scene.canvas, self.said.text), IMAGE_SYMBOL)]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [self.scene.render()]


@dataclass(frozen=True)
class Look:
    """Show a picture as one of VIEWS does, or, to refine it, as it is."""

    scene: Scene
    view: str

    @property
    def turns(self) -> list[Turn]:
        return [(task_prompt(self.view), IMAGE_SYMBOL)]

    @property
    def pictures(self) -> list[np.ndarray]:
        shown = self.scene.render() if self.view == REFINE else VIEWS[self.view](self.scene)
        return [self.scene.render(), shown]


@dataclass(frozen=True)
class Detect:
    """Draw the box of the object that ``said`` means."""

    scene: Scene
    thing: Object
    said: Thing

    @property
    def turns(self) -> list[Turn]:
        return [(task_prompt("detect", bare(self.said)), IMAGE_SYMBOL)]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [self.scene.render(), boxed(self.scene, self.thing)]


@dataclass(frozen=True)
class Condition:
    """Paint the scene that one of VIEWS and a caption describe."""

    scene: Scene
    view: str

    @property
    def said(self) -> Caption:
        return describe(self.scene)

    @property
    def turns(self) -> list[Turn]:
        return [(task_prompt("condition", self.said.text), IMAGE_SYMBOL)]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [VIEWS[self.view](self.scene), self.scene.render()]


@dataclass(frozen=True)
class Change:
    """Edit a picture, once or several times in one dialog; ``scenes`` are those before, between and after."""

    scenes: tuple[Scene, ...]
    edits: tuple[Edit, ...]

    @property
    def turns(self) -> list[Turn]:
        return [
            (task_prompt("edit", edit.text, images=int(not number)), IMAGE_SYMBOL)
            for number, edit in enumerate(self.edits)
        ]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [scene.render() for scene in self.scenes]


@dataclass(frozen=True)
class Describe:
    """Say everything about a picture."""

    scene: Scene

    @property
    def turns(self) -> list[Turn]:
        return [(task_prompt("describe"), describe(self.scene).text)]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [self.scene.render()]


@dataclass(frozen=True)
class Answer:
    """Answer questions about any number of pictures, none among them, in one dialog."""

    scenes: tuple[Scene, ...]
    asked: tuple[Asked, ...]

    @property
    def turns(self) -> list[Turn]:
        return [
            (task_prompt("question", question, images=0 if number else len(self.scenes)), answer)
            for number, (question, answer) in enumerate(self.asked)
        ]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [scene.render() for scene in self.scenes]


Exercise = Paint | Look | Detect | Condition | Change | Describe | Answer
Reply = np.ndarray | str | None
"""What a model gives in one turn: a picture u8[Y X 3], a text, or None where a whole picture was asked for and none came."""


def replies(exercise: Exercise) -> list[Reply]:
    """The true answers, one for each turn."""
    shown = len(exercise.pictures) - sum(answer == IMAGE_SYMBOL for _, answer in exercise.turns)
    painted = iter(exercise.pictures[shown:])
    return [next(painted) if answer == IMAGE_SYMBOL else answer for _, answer in exercise.turns]


def dialog(exercise: Exercise, given: Sequence[Reply]) -> tuple[list[Turn], list[np.ndarray]]:
    """The turns and pictures of the next prompt, once replies have been ``given`` to the turns before it."""
    turns, pictures = exercise.turns[: len(given) + 1], exercise.pictures
    shown = sum(human.count(IMAGE_SYMBOL) for human, _ in turns)
    painted = [reply for reply in given if isinstance(reply, np.ndarray)]
    said = [reply if isinstance(reply, str) else IMAGE_SYMBOL for reply in given]
    asked = [(human, answer) for (human, _), answer in zip(turns, [*said, None], strict=True)]
    return asked, [*pictures[:shown], *painted]

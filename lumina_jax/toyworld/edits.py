"""Edits of scenes in words: add, remove, recolour or move an object; and whether a scene is such an edit of another."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lumina_jax.toyworld.captions import REGION_PHRASES, Thing
from lumina_jax.toyworld.scenes import Object, Scene, World, clear, pick, region, relation

KINDS = ("add", "remove", "recolour", "move")
LATER_KINDS = ("remove", "recolour", "move")
"""The kinds that are possible after an earlier edit, when the scene may hold one object only."""


class Difference(NamedTuple):
    """The edited object before and after the edit; None before it is added and after it is removed."""

    old: Object | None
    new: Object | None


@dataclass(frozen=True)
class SceneEdit:
    """A requested edit of ``subject``. ``goal`` is its new colour, its new region or, to add, its relation to ``other``."""

    kind: str
    subject: Thing
    goal: str = ""
    other: Thing | None = None

    @property
    def text(self) -> str:
        """The instruction, such as "Move the red circle to the top left."."""
        if self.kind == "add":
            return f"Add {self.subject} {self.goal} {definite(self.other)}."
        if self.kind == "move":
            target = REGION_PHRASES[self.goal].split(" ", 1)[1]
            return f"Move {definite(self.subject)} to {target}."
        if self.kind == "recolour":
            return f"Recolour {definite(self.subject)} {self.goal}."
        return f"Remove {definite(self.subject)}."

    def difference(self, before: Scene, after: Scene) -> Difference | None:
        """The object that changed, if ``after`` is ``before`` with this edit done and nothing else changed; otherwise None."""
        old = None if self.kind == "add" else _match(self.subject, before)
        changed = list(after.objects)
        for thing in before.objects:
            if thing is not old and thing in changed:
                changed.remove(thing)
        unchanged_count = len(before.objects) - (old is not None)
        new_count = int(self.kind != "remove")
        same = (before.canvas, before.background) == (after.canvas, after.background)
        if not same or len(after.objects) != unchanged_count + new_count or len(changed) != new_count:
            return None
        new = changed[0] if new_count else None
        return Difference(old, new) if self._is_done(old, new, before) else None

    def _is_done(self, old: Object | None, new: Object | None, before: Scene) -> bool:
        if self.kind == "add":
            other = _match(self.other, before)
            return other is not None and self.subject.matches(new) and relation(new, other) == self.goal
        if old is None or self.kind == "remove":
            return old is not None
        if self.kind == "recolour":
            return new == replace(old, colour=self.goal)
        return replace(new, x=old.x, y=old.y) == old and region(new, before.canvas) == self.goal


def definite(phrase: Thing) -> str:
    """The phrase with the definite article, such as "the red circle"."""
    return f"the {without_article(phrase)}"


def without_article(phrase: Thing) -> str:
    """The phrase without an article, such as "red circle"."""
    return str(phrase).removeprefix("a ")


def unique_phrase(thing: Object, scene: Scene) -> Thing | None:
    """The shortest phrase that matches this object and no other of its scene; None if there is none."""
    short, full = Thing(thing.colour, thing.shape), Thing(thing.colour, thing.shape, thing.size)
    return next((phrase for phrase in (short, full) if sum(map(phrase.matches, scene.objects)) == 1), None)


def draw_edit(
    kind: str, scene: Scene, world: World, rng: np.random.Generator, held_out: bool = False
) -> tuple[Scene, SceneEdit, Scene] | None:
    """A random edit as (scene before, edit, scene after), or None when the draw is no valid edit and must be repeated.

    ``scene`` is the one before, except for "add", where it is the one after; "add" and "remove" need two objects. Unless
    ``held_out``, the edit creates no held-out composition.
    """
    subject = pick(rng, scene.objects)
    others = tuple(thing for thing in scene.objects if thing is not subject)
    phrase, rest = unique_phrase(subject, scene), replace(scene, objects=others)
    if phrase is None or (kind in ("add", "remove") and not others):
        return None
    if kind == "remove":
        return scene, SceneEdit(kind, phrase), rest
    if kind == "add":
        full = Thing(subject.colour, subject.shape, subject.size)
        return rest, SceneEdit(kind, full, relation(subject, others[0]), unique_phrase(others[0], rest)), scene
    if kind == "recolour":
        new = replace(subject, colour=pick(rng, world.colours))
        edit = SceneEdit(kind, phrase, new.colour)
    else:
        x, y = pick(rng, world.centres(subject.size, scene.canvas))
        new = replace(subject, x=x, y=y)
        edit = SceneEdit(kind, phrase, region(new, scene.canvas))
        if edit.goal == region(subject, scene.canvas):
            return None
    is_clear = all(clear(new, thing, scene.canvas) for thing in others)
    allowed = held_out or not any(world.is_held_out(new, thing) for thing in others)
    if new == subject or not is_clear or not allowed:
        return None
    return scene, edit, replace(scene, objects=tuple(new if thing is subject else thing for thing in scene.objects))


def _match(phrase: Thing, scene: Scene) -> Object | None:
    return next((thing for thing in scene.objects if phrase.matches(thing)), None)

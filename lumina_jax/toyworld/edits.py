"""Edits of scenes in words: add, remove, recolour and move an object; and whether one scene is such an edit of another."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lumina_jax.toyworld.captions import REGION_PHRASES, Thing
from lumina_jax.toyworld.scenes import Object, Scene, World, clear, pick, region, relation

KINDS = ("add", "remove", "recolour", "move")
LATER_KINDS = ("remove", "recolour", "move")
"""What may follow an edit."""


class Difference(NamedTuple):
    """The object an edit is about, before and after it; None where there is none."""

    old: Object | None
    new: Object | None


@dataclass(frozen=True)
class Edit:
    """One wish about ``subject``; ``goal`` is its new colour, its new region, or its relation to ``other``."""

    kind: str
    subject: Thing
    goal: str = ""
    other: Thing | None = None

    @property
    def text(self) -> str:
        """The wish in words, such as "Move the red circle to the top left."."""
        if self.kind == "add":
            return f"Add {self.subject} {self.goal} {called(self.other)}."
        if self.kind == "move":
            place = REGION_PHRASES[self.goal].split(" ", 1)[1]
            return f"Move {called(self.subject)} to {place}."
        if self.kind == "recolour":
            return f"Recolour {called(self.subject)} {self.goal}."
        return f"Remove {called(self.subject)}."

    def difference(self, before: Scene, after: Scene) -> Difference | None:
        """What is different, where ``after`` is ``before`` with this wish fulfilled and nothing else changed; None elsewhere."""
        old = None if self.kind == "add" else _found(self.subject, before)
        left = list(after.objects)
        for thing in before.objects:
            if thing is not old and thing in left:
                left.remove(thing)
        kept = len(before.objects) - (old is not None)
        wanted = self.kind != "remove"
        same = (before.canvas, before.background) == (after.canvas, after.background)
        if not same or len(after.objects) != kept + wanted or len(left) != wanted:
            return None
        found = Difference(old, left[0] if wanted else None)
        return found if self._fulfilled(found, before) else None

    def _fulfilled(self, found: Difference, before: Scene) -> bool:
        old, new = found
        if self.kind == "add":
            other = _found(self.other, before)
            return other is not None and self.subject.fits(new) and relation(new, other) == self.goal
        if old is None or self.kind == "remove":
            return old is not None
        if self.kind == "recolour":
            return new == replace(old, colour=self.goal)
        return replace(new, x=old.x, y=old.y) == old and region(new, before.canvas) == self.goal


def called(thing: Thing) -> str:
    """A thing one can point at, such as "the red circle"."""
    return f"the {bare(thing)}"


def bare(thing: Thing) -> str:
    """The words of a thing without an article."""
    return str(thing).removeprefix("a ")


def name(thing: Object, scene: Scene) -> Thing | None:
    """The fewest words that mean this object and no other of its scene; None where all of them do not do."""
    short, full = Thing(thing.colour, thing.shape), Thing(thing.colour, thing.shape, thing.size)
    return next((said for said in (short, full) if sum(map(said.fits, scene.objects)) == 1), None)


def draw(
    kind: str, scene: Scene, world: World, rng: np.random.Generator, held_out: bool = False
) -> tuple[Scene, Edit, Scene] | None:
    """A scene, an edit of some kind, and the scene it leads to; None where the draw came to nothing: draw again.

    To remove and to add, ``scene`` has two objects: to add, it is where the edit leads to. Held-out compositions come up
    in what is made only where ``held_out`` allows them.
    """
    subject = pick(rng, scene.objects)
    others = tuple(thing for thing in scene.objects if thing is not subject)
    said, rest = name(subject, scene), replace(scene, objects=others)
    if said is None or (kind in ("add", "remove") and not others):
        return None
    if kind == "remove":
        return scene, Edit(kind, said), rest
    if kind == "add":
        thing = Thing(subject.colour, subject.shape, subject.size)
        return rest, Edit(kind, thing, relation(subject, others[0]), name(others[0], rest)), scene
    if kind == "recolour":
        new = replace(subject, colour=pick(rng, world.colours))
        edit = Edit(kind, said, new.colour)
    else:
        x, y = pick(rng, world.centres(subject.size, scene.canvas))
        new = replace(subject, x=x, y=y)
        edit = Edit(kind, said, region(new, scene.canvas))
        if edit.goal == region(subject, scene.canvas):
            return None
    fits = all(clear(new, thing, scene.canvas) for thing in others)
    known = held_out or not any(world.is_held_out(new, thing) for thing in others)
    if new == subject or not fits or not known:
        return None
    return scene, edit, replace(scene, objects=tuple(new if thing is subject else thing for thing in scene.objects))


def _found(said: Thing, scene: Scene) -> Object | None:
    return next((thing for thing in scene.objects if said.fits(thing)), None)

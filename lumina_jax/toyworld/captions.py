"""Captions: the words for a scene, the claims they make, and whether those claims are true of a scene."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from lumina_jax.toyworld.scenes import (
    ALL_SHAPES,
    BACKGROUNDS,
    COLOURS,
    REGIONS,
    RELATIONS,
    SIZES,
    Object,
    Scene,
    region,
    relation,
)

SAY_SIZE, SAY_REGION, SAY_BACKGROUND = 0.5, 0.6, 0.6
"""How often a caption mentions what it may leave out."""


@dataclass(frozen=True)
class Thing:
    """There is such an object; ``size`` None leaves its size open."""

    colour: str
    shape: str
    size: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, ("a", self.size, self.colour, self.shape)))

    def fits(self, thing: Object) -> bool:
        """Whether an object is of this kind."""
        return (thing.colour, thing.shape) == (self.colour, self.shape) and self.size in (None, thing.size)


@dataclass(frozen=True)
class Relation:
    """The first thing lies so as seen from the second."""

    word: str

    def __str__(self) -> str:
        return self.word


@dataclass(frozen=True)
class Region:
    """The only thing lies in this ninth of the canvas."""

    word: str

    def __str__(self) -> str:
        return REGION_PHRASES[self.word]


@dataclass(frozen=True)
class Background:
    """The background has this colour."""

    colour: str

    def __str__(self) -> str:
        return f"on {self.colour}"


@dataclass(frozen=True)
class Count:
    """There are no more objects than this, nor anything else."""

    number: int

    def __str__(self) -> str:
        return "nothing else"


Claim = Thing | Relation | Region | Background | Count

REGION_PHRASES = {
    word: f"{'at' if word in ('top', 'bottom', 'left', 'right') else 'in'} the {word}"
    for row in REGIONS
    for word in row
}


@dataclass(frozen=True)
class Caption:
    """A text and what it claims: things in the order named, where they are, the background if said, the count."""

    text: str
    claims: tuple[Claim, ...]


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """Words for a scene of one or two objects, such as "a small red circle left of a blue square on white".

    The first object is the subject; ``rng`` decides whether sizes, region and background are said.
    """
    things = [Thing(one.colour, one.shape, one.size if rng.random() < SAY_SIZE else None) for one in scene.objects]
    claims: list[Claim] = [things[0]]
    if len(things) == 2:
        claims += [Relation(relation(*scene.objects)), things[1]]
    elif rng.random() < SAY_REGION:
        claims.append(Region(region(scene.objects[0], scene.canvas)))
    if rng.random() < SAY_BACKGROUND:
        claims.append(Background(scene.background))
    return Caption(" ".join(str(claim) for claim in claims), (*claims, Count(len(things))))


def describe(scene: Scene) -> Caption:
    """Everything there is to say about a scene, in one wording only: the object further left or up comes first."""
    first, *rest = scene.objects
    if rest and relation(first, rest[0]) not in ("left of", "above"):
        first, rest = rest[0], [first]
    things = [Thing(one.colour, one.shape, one.size) for one in (first, *rest)]
    where = Relation(relation(first, rest[0])) if rest else Region(region(first, scene.canvas))
    claims = (things[0], where, *things[1:], Background(scene.background))
    return Caption(" ".join(str(claim) for claim in claims), (*claims, Count(len(things))))


def parse(text: str) -> Caption:
    """What a prompt in the words of :func:`caption` claims; also takes "on a white background".

    Raises ValueError naming the first word that is not understood and what may stand in its place.
    """
    words = _Words(text)
    claims: list[Claim] = [_thing(words)]
    things = 1
    if word := words.take(_each(RELATIONS)):
        claims += [Relation(word), _thing(words)]
        things = 2
    elif word := words.take({phrase: word for word, phrase in REGION_PHRASES.items()}):
        claims.append(Region(word))
    backgrounds = {f"on {name}": name for name in BACKGROUNDS} | {
        f"on a {name} background": name for name in BACKGROUNDS
    }
    if name := words.take(backgrounds):
        claims.append(Background(name))
    words.end()
    return Caption(text, (*claims, Count(things)))


def facts_true(scene: Scene, claims: tuple[Claim, ...]) -> bool:
    """Whether everything claimed is true of a scene."""
    return all(grade(scene, claims))


def grade(scene: Scene, claims: tuple[Claim, ...]) -> tuple[bool, ...]:
    """One truth value per claim, for the reading of the scene that makes most of them true.

    A reading says which object each :class:`Thing` means; an object stands for one thing at most.
    """
    wanted = sum(isinstance(claim, Thing) for claim in claims)
    candidates = (*scene.objects, *[None] * (wanted - len(scene.objects)))
    return max((_read(scene, claims, meant) for meant in permutations(candidates, wanted)), key=sum)


def _read(scene: Scene, claims: tuple[Claim, ...], meant: tuple[Object | None, ...]) -> tuple[bool, ...]:
    """The truth values when the things named mean these objects; None stands for a thing that is not there."""
    unread = iter(meant)
    right = []
    for claim in claims:
        match claim:
            case Thing():
                thing = next(unread)
                right.append(thing is not None and claim.fits(thing))
            case Relation(word):
                right.append(None not in meant and relation(*meant) == word)
            case Region(word):
                right.append(meant[0] is not None and region(meant[0], scene.canvas) == word)
            case Background(colour):
                right.append(scene.background == colour)
            case Count(number):
                right.append(len(scene.objects) <= number)
    return tuple(right)


class _Words:
    """The words of a prompt, taken from the front."""

    def __init__(self, text: str):
        self.text = text
        self.left = text.lower().strip(" .\n").split()
        self.expected: list[str] = []

    def take(self, options: dict[str, str]) -> str | None:
        """The value of the phrase the prompt goes on with, which is taken off; None where it goes on otherwise."""
        for phrase, value in options.items():
            words = phrase.split()
            if self.left[: len(words)] == words:
                del self.left[: len(words)]
                self.expected = []
                return value
        self.expected += options
        return None

    def need(self, options: dict[str, str]) -> str:
        found = self.take(options)
        if found is None:
            raise self.not_understood()
        return found

    def end(self) -> None:
        if self.left:
            raise self.not_understood()

    def not_understood(self) -> ValueError:
        at = repr(self.left[0]) if self.left else "the end"
        return ValueError(f"in the prompt {self.text!r}: expected one of {self.expected}, not {at}")


def _thing(words: _Words) -> Thing:
    words.need(_each("a"))
    size = words.take(_each(SIZES))
    colour = words.need(_each(COLOURS))
    return Thing(colour, words.need(_each(ALL_SHAPES)), size)


def _each(words: Iterable[str]) -> dict[str, str]:
    """Phrases that stand for themselves."""
    return {word: word for word in words}

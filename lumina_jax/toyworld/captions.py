"""Captions: the text for a scene, the claims it makes, and whether those claims are true of a scene."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from lumina_jax.errors import InputError
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

SIZE_SHARE, REGION_SHARE, BACKGROUND_SHARE = 0.5, 0.6, 0.6
"""Probabilities that a caption mentions each optional fact."""


@dataclass(frozen=True)
class Thing:
    """Claim: the scene has such an object, of any size if ``size`` is None. Also the phrase that names an object."""

    colour: str
    shape: str
    size: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, ("a", self.size, self.colour, self.shape)))

    def matches(self, thing: Object) -> bool:
        """Whether an object has this colour, shape and size."""
        return (thing.colour, thing.shape) == (self.colour, self.shape) and self.size in (None, thing.size)


@dataclass(frozen=True)
class Relation:
    """Claim: the first thing stands in this relation to the second."""

    word: str

    def __str__(self) -> str:
        return self.word


@dataclass(frozen=True)
class Region:
    """Claim: the only thing lies in this ninth of the canvas."""

    word: str

    def __str__(self) -> str:
        return REGION_PHRASES[self.word]


@dataclass(frozen=True)
class Background:
    """Claim: the background has this colour."""

    colour: str

    def __str__(self) -> str:
        return f"on {self.colour}"


@dataclass(frozen=True)
class Count:
    """Claim: the picture shows at most this many objects, and nothing else."""

    number: int

    def __str__(self) -> str:
        return "nothing else"


Claim = Thing | Relation | Region | Background | Count

EDGES = ("top", "bottom", "left", "right")
REGION_PHRASES = {word: f"{'at' if word in EDGES else 'in'} the {word}" for row in REGIONS for word in row}


@dataclass(frozen=True)
class Caption:
    """A text and its claims in order: the things and their relation or region, the background if mentioned, the count."""

    text: str
    claims: tuple[Claim, ...]


def random_caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """A caption for a scene of one or two objects, such as "a small red circle left of a blue square on white".

    The first object is the subject; ``rng`` decides whether sizes, region and background are mentioned.
    """
    things = [Thing(o.colour, o.shape, o.size if rng.random() < SIZE_SHARE else None) for o in scene.objects]
    claims: list[Claim] = [things[0]]
    if len(things) == 2:
        claims += [Relation(relation(*scene.objects)), things[1]]
    elif rng.random() < REGION_SHARE:
        claims.append(Region(region(scene.objects[0], scene.canvas)))
    if rng.random() < BACKGROUND_SHARE:
        claims.append(Background(scene.background))
    return Caption(" ".join(str(claim) for claim in claims), (*claims, Count(len(things))))


def describe(scene: Scene) -> Caption:
    """The complete caption of a scene, the same for either order of its objects: the one further left or up comes first."""
    first, *rest = scene.objects
    if rest and relation(first, rest[0]) not in ("left of", "above"):
        first, rest = rest[0], [first]
    things = [Thing(o.colour, o.shape, o.size) for o in (first, *rest)]
    location = Relation(relation(first, rest[0])) if rest else Region(region(first, scene.canvas))
    claims = (things[0], location, *things[1:], Background(scene.background))
    return Caption(" ".join(str(claim) for claim in claims), (*claims, Count(len(things))))


def parse(text: str) -> Caption:
    """The claims of a prompt in the wording of :func:`random_caption`; "on a white background" is understood as well.

    Raises InputError naming the first word that is not understood and the phrases expected in its place.
    """
    words = _PhraseReader(text)
    claims: list[Claim] = [_read_thing(words)]
    count = 1
    if word := words.take(RELATIONS):
        claims += [Relation(word), _read_thing(words)]
        count = 2
    elif phrase := words.take(regions := {phrase: word for word, phrase in REGION_PHRASES.items()}):
        claims.append(Region(regions[phrase]))
    backgrounds = {form.format(name): name for form in ("on {}", "on a {} background") for name in BACKGROUNDS}
    if phrase := words.take(backgrounds):
        claims.append(Background(backgrounds[phrase]))
    words.expect_end()
    return Caption(text, (*claims, Count(count)))


def facts_true(scene: Scene, claims: tuple[Claim, ...]) -> bool:
    """Whether all claims are true of a scene."""
    return all(grade(scene, claims))


def grade(scene: Scene, claims: tuple[Claim, ...]) -> tuple[bool, ...]:
    """One truth value per claim, under the assignment of objects to things that makes most claims true.

    Each :class:`Thing` is assigned a different object, or None when there are too few.
    """
    count = sum(isinstance(claim, Thing) for claim in claims)
    candidates = (*scene.objects, *[None] * (count - len(scene.objects)))
    return max((_truth(scene, claims, assigned) for assigned in permutations(candidates, count)), key=sum)


def _truth(scene: Scene, claims: tuple[Claim, ...], assigned: tuple[Object | None, ...]) -> tuple[bool, ...]:
    """The truth value of each claim when the things, in order, are these objects; None is a missing one."""
    objects = iter(assigned)
    truth = []
    for claim in claims:
        match claim:
            case Thing():
                thing = next(objects)
                truth.append(thing is not None and claim.matches(thing))
            case Relation(word):
                truth.append(None not in assigned and relation(*assigned) == word)
            case Region(word):
                truth.append(assigned[0] is not None and region(assigned[0], scene.canvas) == word)
            case Background(colour):
                truth.append(scene.background == colour)
            case Count(number):
                truth.append(len(scene.objects) <= number)
    return tuple(truth)


class _PhraseReader:
    """Consumes a prompt phrase by phrase from its beginning."""

    def __init__(self, text: str):
        self.text = text
        self.remaining = text.lower().strip(" .\n").split()
        self.expected: list[str] = []

    def take(self, options: Iterable[str]) -> str | None:
        """Consumes the next phrase if it is one of ``options`` and returns it; None otherwise."""
        for phrase in options:
            words = phrase.split()
            if self.remaining[: len(words)] == words:
                del self.remaining[: len(words)]
                self.expected = []
                return phrase
        self.expected += options
        return None

    def require(self, options: Iterable[str]) -> str:
        if (phrase := self.take(options)) is None:
            raise self.error()
        return phrase

    def expect_end(self) -> None:
        if self.remaining:
            raise self.error()

    def error(self) -> InputError:
        word = repr(self.remaining[0]) if self.remaining else "the end"
        return InputError(f"in the prompt {self.text!r}: expected one of {self.expected}, not {word}")


def _read_thing(words: _PhraseReader) -> Thing:
    words.require(["a"])
    size, colour = words.take(SIZES), words.require(COLOURS)
    return Thing(colour, words.require(ALL_SHAPES), size)

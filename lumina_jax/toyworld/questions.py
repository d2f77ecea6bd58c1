"""Questions with one right answer: about a scene, about two of them, and about nothing but the words."""

from collections.abc import Callable

import numpy as np

from lumina_jax.toyworld.captions import REGION_PHRASES, Thing
from lumina_jax.toyworld.edits import called, name
from lumina_jax.toyworld.scenes import RELATIONS, Object, Scene, World, pick, region, relation

Asked = tuple[str, str]
"""A question and its answer."""

ABOUT_SHOWN = 0.6
"""How often a count asks for a kind of object that is there at least once."""
MOST_WORDS = 4


def several(draw: Callable[[], Asked], count: int) -> tuple[Asked, ...]:
    """So many questions, none of them twice."""
    found: dict[str, str] = {}
    while len(found) < count:
        question, answer = draw()
        found[question] = answer
    return tuple(found.items())


def ask(scene: Scene, world: World, rng: np.random.Generator) -> Asked:
    """A question about a scene of one or two objects: how many, what colour, where, or whether it is there."""
    kinds: tuple[Callable[[Scene, World, np.random.Generator], Asked | None], ...] = (_count, _colour, _where, _whether)
    while True:
        if (asked := pick(rng, kinds)(scene, world, rng)) is not None:
            return asked


def compare(first: Scene, second: Scene, world: World, rng: np.random.Generator) -> Asked:
    """A question about two pictures: which of them shows something, or more."""
    if rng.random() < 0.5:
        counts = len(first.objects), len(second.objects)
        answer = "neither" if counts[0] == counts[1] else "the first" if counts[0] > counts[1] else "the second"
        return "Which image shows more objects?", answer
    thing = _some_thing(pick(rng, (first, second)), world, rng)
    shown = tuple(any(map(thing.fits, scene.objects)) for scene in (first, second))
    answers = {(True, False): "the first", (False, True): "the second", (True, True): "both", (False, False): "neither"}
    return f"Which image shows {thing}?", answers[shown]


def text_task(world: World, rng: np.random.Generator) -> Asked:
    """A sum, a difference, or words to repeat."""
    first, second = sorted(rng.integers(0, 10, 2).tolist(), reverse=True)
    match pick(rng, ("plus", "minus", "repeat")):
        case "plus":
            return f"What is {second} plus {first}?", str(first + second)
        case "minus":
            return f"What is {first} minus {second}?", str(first - second)
    words = (*world.colours, *world.shapes, *world.backgrounds)
    said = " ".join(pick(rng, words) for _ in range(int(rng.integers(2, MOST_WORDS + 1))))
    return f"Repeat: {said}.", said


def _count(scene: Scene, world: World, rng: np.random.Generator) -> Asked:
    thing = _some_thing(scene, world, rng)
    asked: dict[str, Callable[[Object], bool]] = {
        f"{thing.shape}s": lambda other: other.shape == thing.shape,
        f"{thing.colour} objects": lambda other: other.colour == thing.colour,
        "objects": lambda other: True,
    }
    words = pick(rng, tuple(asked))
    return f"How many {words} are there?", str(sum(map(asked[words], scene.objects)))


def _colour(scene: Scene, world: World, rng: np.random.Generator) -> Asked | None:
    shape, colour = pick(rng, [("background", scene.background), *((one.shape, one.colour) for one in scene.objects)])
    if sum(thing.shape == shape for thing in scene.objects) > 1:
        return None
    return f"What colour is the {shape}?", colour


def _where(scene: Scene, world: World, rng: np.random.Generator) -> Asked | None:
    thing = pick(rng, scene.objects)
    if (said := name(thing, scene)) is None:
        return None
    if len(scene.objects) == 1:
        return f"Where is {called(said)}?", REGION_PHRASES[region(thing, scene.canvas)]
    other = next(one for one in scene.objects if one is not thing)
    return f"Where is {called(said)}?", f"{relation(thing, other)} {called(name(other, scene))}"


def _whether(scene: Scene, world: World, rng: np.random.Generator) -> Asked | None:
    if len(scene.objects) == 1 or None in (names := [name(thing, scene) for thing in scene.objects]):
        return None
    true = relation(*scene.objects)
    word = true if rng.random() < 0.5 else pick(rng, [word for word in RELATIONS if word != true])
    return f"Is {called(names[0])} {word} {called(names[1])}?", "yes" if word == true else "no"


def _some_thing(scene: Scene, world: World, rng: np.random.Generator) -> Thing:
    """A kind of object, that is there more often than chance would have it."""
    if rng.random() < ABOUT_SHOWN:
        thing = pick(rng, scene.objects)
        return Thing(thing.colour, thing.shape)
    return Thing(pick(rng, world.colours), pick(rng, world.shapes))

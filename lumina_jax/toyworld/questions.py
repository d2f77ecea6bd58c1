"""Questions with one right answer: about one scene, about two scenes, and text-only tasks."""

from collections.abc import Callable, Sequence

import numpy as np

from lumina_jax.toyworld.captions import REGION_PHRASES, Thing
from lumina_jax.toyworld.edits import definite, unique_phrase
from lumina_jax.toyworld.scenes import RELATIONS, Object, Scene, World, pick, region, relation

QuestionAnswer = tuple[str, str]

PRESENT_SHARE = 0.6
"""Probability that the kind of object in a question is drawn from those in the scene instead of from all."""
MAX_WORDS = 4


def distinct(draw: Callable[[], QuestionAnswer], count: int) -> tuple[QuestionAnswer, ...]:
    """Calls ``draw`` until it has returned ``count`` different questions."""
    answers: dict[str, str] = {}
    while len(answers) < count:
        question, answer = draw()
        answers[question] = answer
    return tuple(answers.items())


def ask(scene: Scene, world: World, rng: np.random.Generator) -> QuestionAnswer:
    """A random question about a scene of one or two objects: how many, what colour, where, or whether a relation holds."""
    draws: Sequence[Callable[[Scene, World, np.random.Generator], QuestionAnswer | None]]
    draws = (_count, _colour, _where, _whether)
    while True:
        if (drawn := pick(rng, draws)(scene, world, rng)) is not None:
            return drawn


def compare(first: Scene, second: Scene, world: World, rng: np.random.Generator) -> QuestionAnswer:
    """A random question about two pictures: which of them shows more objects, or a certain one."""
    if rng.random() < 0.5:
        counts = len(first.objects), len(second.objects)
        answer = "neither" if counts[0] == counts[1] else "the first" if counts[0] > counts[1] else "the second"
        return "Which image shows more objects?", answer
    thing = _random_kind(pick(rng, (first, second)), world, rng)
    present = tuple(any(map(thing.matches, scene.objects)) for scene in (first, second))
    answers = {(True, False): "the first", (False, True): "the second", (True, True): "both", (False, False): "neither"}
    return f"Which image shows {thing}?", answers[present]


def text_task(world: World, rng: np.random.Generator) -> QuestionAnswer:
    """A random text-only task: a sum, a difference, or words to repeat."""
    first, second = sorted(rng.integers(0, 10, 2).tolist(), reverse=True)
    match pick(rng, ("plus", "minus", "repeat")):
        case "plus":
            return f"What is {second} plus {first}?", str(first + second)
        case "minus":
            return f"What is {first} minus {second}?", str(first - second)
    words = (*world.colours, *world.shapes, *world.backgrounds)
    text = " ".join(pick(rng, words) for _ in range(int(rng.integers(2, MAX_WORDS + 1))))
    return f"Repeat: {text}.", text


def _count(scene: Scene, world: World, rng: np.random.Generator) -> QuestionAnswer:
    kind = _random_kind(scene, world, rng)
    filters: dict[str, Callable[[Object], bool]] = {
        f"{kind.shape}s": lambda thing: thing.shape == kind.shape,
        f"{kind.colour} objects": lambda thing: thing.colour == kind.colour,
        "objects": lambda thing: True,
    }
    words = pick(rng, tuple(filters))
    return f"How many {words} are there?", str(sum(map(filters[words], scene.objects)))


def _colour(scene: Scene, world: World, rng: np.random.Generator) -> QuestionAnswer | None:
    shape, colour = pick(rng, [("background", scene.background), *((o.shape, o.colour) for o in scene.objects)])
    if sum(thing.shape == shape for thing in scene.objects) > 1:
        return None
    return f"What colour is the {shape}?", colour


def _where(scene: Scene, world: World, rng: np.random.Generator) -> QuestionAnswer | None:
    thing = pick(rng, scene.objects)
    if (phrase := unique_phrase(thing, scene)) is None:
        return None
    if len(scene.objects) == 1:
        return f"Where is {definite(phrase)}?", REGION_PHRASES[region(thing, scene.canvas)]
    other = next(other for other in scene.objects if other is not thing)
    return f"Where is {definite(phrase)}?", f"{relation(thing, other)} {definite(unique_phrase(other, scene))}"


def _whether(scene: Scene, world: World, rng: np.random.Generator) -> QuestionAnswer | None:
    if len(scene.objects) == 1 or None in (phrases := [unique_phrase(thing, scene) for thing in scene.objects]):
        return None
    true = relation(*scene.objects)
    word = true if rng.random() < 0.5 else pick(rng, [word for word in RELATIONS if word != true])
    return f"Is {definite(phrases[0])} {word} {definite(phrases[1])}?", "yes" if word == true else "no"


def _random_kind(scene: Scene, world: World, rng: np.random.Generator) -> Thing:
    """A random colour and shape, with PRESENT_SHARE those of an object of the scene."""
    if rng.random() < PRESENT_SHARE:
        thing = pick(rng, scene.objects)
        return Thing(thing.colour, thing.shape)
    return Thing(pick(rng, world.colours), pick(rng, world.shapes))

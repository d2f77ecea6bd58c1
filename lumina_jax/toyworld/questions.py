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
ORDINALS = ("first", "second")


def distinct(draw: Callable[[], QuestionAnswer], count: int) -> tuple[QuestionAnswer, ...]:
    """Calls ``draw`` until it has returned ``count`` different questions."""
    answers: dict[str, str] = {}
    while len(answers) < count:
        question, answer = draw()
        answers[question] = answer
    return tuple(answers.items())


def ask(scene: Scene, world: World, rng: np.random.Generator) -> QuestionAnswer:
    """A random question about a scene of one or two objects: how many, what colour, where, or whether a relation holds."""
    draws: Sequence[Callable[[Scene, World, np.random.Generator], str | None]]
    draws = (_count, _colour, _where, _whether)
    while True:
        question = pick(rng, draws)(scene, world, rng)
        if question is not None and (answer := true_answer(question, (scene,))) is not None:
            return question, answer


def ask_of_two(first: Scene, second: Scene, world: World, rng: np.random.Generator) -> QuestionAnswer:
    """A random question about one of two pictures, which it names by its number."""
    number = int(rng.integers(2))
    question, answer = ask((first, second)[number], world, rng)
    return f"{question.removesuffix('?')} in the {ORDINALS[number]} image?", answer


def compare(first: Scene, second: Scene, world: World, rng: np.random.Generator) -> QuestionAnswer:
    """A random question about two pictures: which of them shows more objects, or a certain one."""
    if rng.random() < 0.5:
        question = "Which image shows more objects?"
    else:
        question = f"Which image shows {_random_kind(pick(rng, (first, second)), world, rng)}?"
    return question, true_answer(question, (first, second))


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


def true_answer(question: str, scenes: Sequence[Scene]) -> str | None:
    """The right answer to a question of :func:`ask`, :func:`ask_of_two` or :func:`compare` about pictures of ``scenes``.

    None when the question does not suit them: it is about an object that is not there, or not the only one of its kind.
    """
    for number, ordinal in enumerate(ORDINALS):
        if question.endswith(end := f" in the {ordinal} image?"):
            return true_answer(f"{question.removesuffix(end)}?", scenes[number : number + 1])
    words = question.removesuffix("?")
    for beginning, answer in ANSWERS.items():
        if words.startswith(beginning):
            return answer(words.removeprefix(beginning), *scenes)
    return None


def _answer_count(words: str, scene: Scene) -> str:
    kind = words.removesuffix(" are there")
    names = (("objects", f"{thing.colour} objects", f"{thing.shape}s") for thing in scene.objects)
    return str(sum(kind in named for named in names))


def _answer_colour(shape: str, scene: Scene) -> str | None:
    colours = [thing.colour for thing in scene.objects if thing.shape == shape]
    return scene.background if shape == "background" else colours[0] if len(colours) == 1 else None


def _answer_where(phrase: str, scene: Scene) -> str | None:
    if (thing := _only(phrase, scene)) is None or len(scene.objects) > 2:
        return None
    if len(scene.objects) == 1:
        return REGION_PHRASES[region(thing, scene.canvas)]
    other = next(other for other in scene.objects if other is not thing)
    return f"{relation(thing, other)} {definite(unique_phrase(other, scene))}"


def _answer_whether(words: str, scene: Scene) -> str | None:
    word = next(word for word in RELATIONS if f" {word} the " in words)
    things = [_only(phrase, scene) for phrase in words.split(f" {word} the ")]
    return None if None in things else "yes" if relation(*things) == word else "no"


def _answer_which(phrase: str, first: Scene, second: Scene) -> str:
    if phrase == "more objects":
        difference = len(first.objects) - len(second.objects)
        return "neither" if not difference else f"the {ORDINALS[difference < 0]}"
    present = tuple(any(phrase == f"a {thing.colour} {thing.shape}" for thing in s.objects) for s in (first, second))
    return {(True, False): "the first", (False, True): "the second", (True, True): "both", (False, False): "neither"}[
        present
    ]


ANSWERS: dict[str, Callable[..., str | None]] = {
    "How many ": _answer_count,
    "What colour is the ": _answer_colour,
    "Where is the ": _answer_where,
    "Is the ": _answer_whether,
    "Which image shows ": _answer_which,
}
"""The beginning of a question -> the function that answers it from the rest of its words and the scenes."""


def _only(phrase: str, scene: Scene) -> Object | None:
    """The object that "red circle" or "small red circle" names; None if there is none or another one."""
    named = [o for o in scene.objects if f" {o.size} {o.colour} {o.shape}".endswith(f" {phrase}")]
    return named[0] if len(named) == 1 else None


def _count(scene: Scene, world: World, rng: np.random.Generator) -> str:
    kind = _random_kind(scene, world, rng)
    return f"How many {pick(rng, (f'{kind.shape}s', f'{kind.colour} objects', 'objects'))} are there?"


def _colour(scene: Scene, world: World, rng: np.random.Generator) -> str:
    return f"What colour is the {pick(rng, ('background', *(thing.shape for thing in scene.objects)))}?"


def _where(scene: Scene, world: World, rng: np.random.Generator) -> str | None:
    phrase = unique_phrase(pick(rng, scene.objects), scene)
    return phrase and f"Where is {definite(phrase)}?"


def _whether(scene: Scene, world: World, rng: np.random.Generator) -> str | None:
    if len(scene.objects) == 1 or None in (phrases := [unique_phrase(thing, scene) for thing in scene.objects]):
        return None
    true = relation(*scene.objects)
    word = true if rng.random() < 0.5 else pick(rng, [word for word in RELATIONS if word != true])
    return f"Is {definite(phrases[0])} {word} {definite(phrases[1])}?"


def _random_kind(scene: Scene, world: World, rng: np.random.Generator) -> Thing:
    """A random colour and shape, with PRESENT_SHARE those of an object of the scene."""
    if rng.random() < PRESENT_SHARE:
        thing = pick(rng, scene.objects)
        return Thing(thing.colour, thing.shape)
    return Thing(pick(rng, world.colours), pick(rng, world.shapes))

"""Put a model through the exercises of every task, as it would serve them, and score what it replies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.conversation import served, tokenize
from lumina_jax.layout import TOKENS_AROUND, grid_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import encode_image
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample import generate
from lumina_jax.sample.picture import pictures, text
from lumina_jax.toyworld.exercises import (
    Answer,
    Change,
    Condition,
    Describe,
    Detect,
    Exercise,
    Look,
    Paint,
    Reply,
    dialog,
)
from lumina_jax.toyworld.omni import MIX, exercises
from lumina_jax.toyworld.omni_judge import Scores, mean_scores, score
from lumina_jax.toyworld.scenes import Pixels
from lumina_jax.vocab import IMAGE_SYMBOL, Vocab

SERVED_AS = {
    Paint: "generate",
    Detect: "detect",
    Condition: "condition",
    Change: "edit",
    Describe: "describe",
    Answer: "question",
}
"""Which of conversation.TASKS an exercise is; to look is named by what is shown."""


@dataclass(frozen=True)
class Result:
    """What a task came to: exercises, the replies to each, one for a turn, and their scores."""

    task: str
    made: tuple[Exercise, ...]
    given: tuple[tuple[Reply, ...], ...]
    scores: tuple[Scores, ...]

    @property
    def mean(self) -> Scores:
        return mean_scores(self.scores)


def evaluate_tasks(
    model: Chameleon,
    vq: PatchVQ,
    vocab: Vocab,
    cfg: SampleConfig,
    sizes: Sequence[Pixels],
    count: int,
    seed: int,
    tasks: Sequence[str] = tuple(MIX),
) -> Iterator[Result]:
    """Each task in turn, on ``count`` exercises that no training record comes from, on canvases of ``sizes`` in turn."""
    for number, task in enumerate(tasks):
        made = exercises(task, sizes, count, seed)
        key = jax.random.fold_in(jax.random.key(seed), number)
        given = reply(model, vq, vocab, made, cfg, key)
        scores = tuple(score(*pair) for pair in zip(made, given, strict=True))
        yield Result(task, tuple(made), tuple(map(tuple, given)), scores)


def reply(
    model: Chameleon, vq: PatchVQ, vocab: Vocab, made: Sequence[Exercise], cfg: SampleConfig, key: jax.Array
) -> list[list[Reply]]:
    """The model's replies to each exercise of one task, a turn at a time: a later one is asked about its own earlier ones.

    ``cfg`` takes the guidance and the image top-k that the task is served with. Where a picture should have come and did not,
    the dialog ends, and the rest of its replies are None.
    """
    cfg = served(_served_as(made[0]), cfg)
    given: list[list[Reply]] = [[] for _ in made]
    for turn in range(max(len(one.turns) for one in made)):
        asked = [i for i, one in enumerate(made) if turn < len(one.turns) and _is_whole(given[i])]
        if asked:
            parts = [dialog(made[i], given[i]) for i in asked]
            prompts = [tokenize(turns, _grids(shown, vq), vocab)[0] for turns, shown in parts]
            room = replace(cfg, max_new_tokens=min(cfg.max_new_tokens, _longest([made[i] for i in asked], vq.stride)))
            answers = generate(model, prompts, jax.random.fold_in(key, turn), room, vocab)
            for i, answer in zip(asked, answers, strict=True):
                given[i].append(_read(answer, made[i].turns[turn][1], vq, vocab))
    return [one + [None] * (len(ex.turns) - len(one)) for one, ex in zip(given, made, strict=True)]


def _is_whole(given: Sequence[Reply]) -> bool:
    return all(one is not None for one in given)


def _served_as(made: Exercise) -> str:
    return made.view if isinstance(made, Look) else SERVED_AS[type(made)]


def _longest(made: Sequence[Exercise], stride: int) -> int:
    """Tokens of the longest picture among the true answers, and some: those are all that a text has."""
    painted = [shown for one in made for shown in one.pictures]
    grids = (grid_tokens(shown.shape[0] // stride, shown.shape[1] // stride) for shown in painted)
    return max(grids, default=0) + TOKENS_AROUND


def _grids(shown: Sequence[np.ndarray], vq: PatchVQ) -> list[np.ndarray]:
    """Pictures u8[Y X 3] -> codes i32[R C], each."""
    return [encode_image(vq, Image.fromarray(picture)) for picture in shown]


def _read(answer: np.ndarray, wanted: str, vq: PatchVQ, vocab: Vocab) -> Reply:
    """An answer i32[n] as what the turn asks for: one picture, or text."""
    if wanted != IMAGE_SYMBOL:
        return text(answer, vocab)
    painted = pictures(answer, vq, vocab)
    return np.asarray(painted[0]) if len(painted) == 1 else None

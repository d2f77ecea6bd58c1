"""Samples a model's replies to exercises of every task, with the settings each task is served with, and scores them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.conversation import served, tokenize
from lumina_jax.layout import answer_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import encode_image
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample import generate
from lumina_jax.sample.picture import pictures, text
from lumina_jax.toyworld.exercises import (
    AnswerQuestions,
    ApplyEdits,
    Describe,
    Detect,
    Exercise,
    Paint,
    PaintFromView,
    PredictView,
    Reply,
    next_prompt,
)
from lumina_jax.toyworld.omni import MIX, evaluation_exercises
from lumina_jax.toyworld.omni_judge import Scores, mean_scores, score
from lumina_jax.toyworld.scenes import Pixels
from lumina_jax.vocab import IMAGE_SYMBOL, Vocab

SERVED_AS = {
    Paint: "generate",
    Detect: "detect",
    PaintFromView: "condition",
    ApplyEdits: "edit",
    Describe: "describe",
    AnswerQuestions: "question",
}
"""The name in conversation.TASKS of each kind of exercise; that of PredictView is its view."""


@dataclass(frozen=True)
class TaskResult:
    """The exercises of a task, the replies to each, one per turn, and the scores of each."""

    task: str
    exercises: tuple[Exercise, ...]
    replies: tuple[tuple[Reply, ...], ...]
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
) -> Iterator[TaskResult]:
    """Evaluates task after task on ``count`` exercises that training never uses; canvases of ``sizes`` take turns."""
    for number, task in enumerate(tasks):
        exercises = evaluation_exercises(task, sizes, count, seed)
        key = jax.random.fold_in(jax.random.key(seed), number)
        replies = sample_replies(model, vq, vocab, exercises, cfg, key)
        scores = tuple(score(*pair) for pair in zip(exercises, replies, strict=True))
        yield TaskResult(task, tuple(exercises), tuple(map(tuple, replies)), scores)


def sample_replies(
    model: Chameleon, vq: PatchVQ, vocab: Vocab, exercises: Sequence[Exercise], cfg: SampleConfig, key: jax.Array
) -> list[list[Reply]]:
    """The model's replies to exercises of one task, turn by turn; later prompts contain the model's own earlier replies.

    ``cfg`` is used with the guidance and image top-k of the task. A dialog stops at a reply that lacks its picture, and all
    later replies are None.
    """
    cfg = served(_task_name(exercises[0]), cfg)
    replies: list[list[Reply]] = [[] for _ in exercises]
    for turn in range(max(len(exercise.turns) for exercise in exercises)):
        complete = [all(reply is not None for reply in row) for row in replies]
        active = [i for i, exercise in enumerate(exercises) if turn < len(exercise.turns) and complete[i]]
        if active:
            contents = [next_prompt(exercises[i], replies[i]) for i in active]
            prompts = [tokenize(turns, _grids(images, vq), vocab)[0] for turns, images in contents]
            max_tokens = _max_answer_tokens([exercises[i] for i in active], vq.stride)
            limited = replace(cfg, max_new_tokens=min(cfg.max_new_tokens, max_tokens))
            answers = generate(model, prompts, jax.random.fold_in(key, turn), limited, vocab)
            for i, answer in zip(active, answers, strict=True):
                replies[i].append(_to_reply(answer, exercises[i].turns[turn][1], vq, vocab))
    return [row + [None] * (len(exercise.turns) - len(row)) for row, exercise in zip(replies, exercises, strict=True)]


def _task_name(exercise: Exercise) -> str:
    return exercise.view if isinstance(exercise, PredictView) else SERVED_AS[type(exercise)]


def _max_answer_tokens(exercises: Sequence[Exercise], stride: int) -> int:
    """The limit for the answers of these exercises: room for their largest picture; a text is shorter than TOKENS_AROUND."""
    shapes = (image.shape for exercise in exercises for image in exercise.pictures)
    return answer_tokens((height // stride, width // stride) for height, width, _ in shapes)


def _grids(images: Sequence[np.ndarray], vq: PatchVQ) -> list[np.ndarray]:
    """Pictures u8[Y X 3] -> codes i32[R C] of each."""
    return [encode_image(vq, Image.fromarray(image)) for image in images]


def _to_reply(answer: np.ndarray, expected: str, vq: PatchVQ, vocab: Vocab) -> Reply:
    """An answer i32[n] -> the kind of reply that is ``expected``: one picture for the image symbol, otherwise text."""
    if expected != IMAGE_SYMBOL:
        return text(answer, vocab)
    images = pictures(answer, vq, vocab)
    return np.asarray(images[0]) if len(images) == 1 else None

"""Samples a model's pictures of prompts, and its replies to exercises of every task as each task is served, and scores them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import jax
import numpy as np
from PIL import Image

from lumina_jax.config import SampleConfig
from lumina_jax.conversation import image_prompt, served, tokenize
from lumina_jax.layout import answer_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.image_tokenizer import encode_image
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.progress import waiting
from lumina_jax.sample import generate
from lumina_jax.sample.job import seed_key
from lumina_jax.sample.picture import pictures, text
from lumina_jax.toyworld.captions import Caption
from lumina_jax.toyworld.exercises import Exercise, Reply, next_prompt, true_turns
from lumina_jax.toyworld.judge import judge
from lumina_jax.toyworld.omni import MIX, evaluation_exercises
from lumina_jax.toyworld.omni_judge import Scores, mean_scores, score
from lumina_jax.toyworld.report import JudgedSample, Score
from lumina_jax.toyworld.scenes import MINI, Pixels
from lumina_jax.toyworld.source import prompts, stage_sizes
from lumina_jax.vocab import IMAGE_SYMBOL, Vocab


def paint(
    model: Chameleon,
    vq: PatchVQ,
    vocab: Vocab,
    captions: Sequence[tuple[Caption, Pixels]],
    cfg: SampleConfig,
    key: jax.Array,
) -> list[JudgedSample]:
    """One sample per caption and requested canvas (width, height); the model itself writes height and width."""
    ids = [tokenize([(image_prompt(*size, caption.text), None)], [], vocab)[0] for caption, size in captions]
    max_tokens = answer_tokens((height // vq.stride, width // vq.stride) for _, (width, height) in captions)
    answers = generate(model, ids, key, replace(cfg, max_new_tokens=max_tokens), vocab)
    samples = []
    for (caption, size), answer in zip(captions, answers, strict=True):
        image = _picture(answer, vq, vocab)
        facts = () if image is None else judge(image, caption, size).facts
        samples.append(JudgedSample(caption.text, size, image, tuple((fact.name, fact.right) for fact in facts)))
    return samples


def score_samples(samples: Sequence[JudgedSample]) -> Score:
    """The shares of samples with every fact right, and of the requested size."""
    obeyed = [s.image is not None and (s.image.shape[1], s.image.shape[0]) == tuple(s.size) for s in samples]
    return Score(len(samples), float(np.mean([s.all_right for s in samples])), float(np.mean(obeyed)))


def score_table(
    model: Chameleon, vq: PatchVQ, vocab: Vocab, cfg: SampleConfig, target: int, count: int, seed: int
) -> dict[str, dict[str, float]]:
    """Scores on ``count`` fresh prompts, and on as many with held-out compositions, on the canvases of the stage ``target``."""
    table = {}
    for name, held_out in (("fresh", False), ("held_out", True)):
        captions = prompts(MINI, stage_sizes(target), count, seed, held_out)
        table[name] = asdict(score_samples(paint(model, vq, vocab, captions, cfg, seed_key(seed))))
    return table


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
    """Evaluates task after task on ``count`` exercises that training never uses; canvases of ``sizes`` take turns.

    The replies in one task do not depend on which others are asked for.
    """
    for task in tasks:
        exercises = evaluation_exercises(task, sizes, count, seed)
        key = jax.random.fold_in(seed_key(seed), list(MIX).index(task))
        with waiting(f"{task}: {count} exercises"):
            replies = sample_replies(model, vq, vocab, exercises, cfg, key)
        scores = tuple(score(*pair) for pair in zip(exercises, replies, strict=True))
        yield TaskResult(task, tuple(exercises), tuple(map(tuple, replies)), scores)


def sample_replies(
    model: Chameleon, vq: PatchVQ, vocab: Vocab, exercises: Sequence[Exercise], cfg: SampleConfig, key: jax.Array
) -> list[list[Reply]]:
    """The model's replies to exercises of one task, turn by turn; later prompts contain the model's own earlier replies.

    ``cfg`` is used with the guidance and image top-k of each turn's task. A dialog stops at a reply that lacks its picture, and
    all later replies are None.
    """
    replies: list[list[Reply]] = [[] for _ in exercises]
    turns = [true_turns(exercise) for exercise in exercises]
    for turn in range(max(map(len, turns))):
        complete = [all(reply is not None for reply in row) for row in replies]
        active = [i for i in range(len(exercises)) if turn < len(turns[i]) and complete[i]]
        for task in dict.fromkeys(turns[i][turn].task for i in active):
            same = [i for i in active if turns[i][turn].task == task]
            contents = [next_prompt(exercises[i], replies[i]) for i in same]
            ids = [tokenize(messages, _grids(images, vq), vocab)[0] for messages, images in contents]
            limit = min(cfg.max_new_tokens, _max_answer_tokens([exercises[i] for i in same], vq.stride))
            settings = replace(served(task, cfg), max_new_tokens=limit)
            answers = generate(model, ids, jax.random.fold_in(key, turn), settings, vocab)
            for i, answer in zip(same, answers, strict=True):
                replies[i].append(_to_reply(answer, exercises[i].turns[turn][1], vq, vocab))
    return [row + [None] * (len(own) - len(row)) for row, own in zip(replies, turns, strict=True)]


def _max_answer_tokens(exercises: Sequence[Exercise], stride: int) -> int:
    """The limit for the answers of these exercises: room for their largest picture; a text is shorter than TOKENS_AROUND."""
    shapes = (image.shape for exercise in exercises for image in exercise.pictures)
    return answer_tokens((height // stride, width // stride) for height, width, _ in shapes)


def _grids(images: Sequence[np.ndarray], vq: PatchVQ) -> list[np.ndarray]:
    """Pictures u8[Y X 3] -> codes i32[R C] of each."""
    return [encode_image(vq, Image.fromarray(image)) for image in images]


def _to_reply(answer: np.ndarray, expected: str, vq: PatchVQ, vocab: Vocab) -> Reply:
    """An answer i32[n] -> the kind of reply that is ``expected``: one picture for the image symbol, otherwise text."""
    return _picture(answer, vq, vocab) if expected == IMAGE_SYMBOL else text(answer, vocab)


def _picture(answer: np.ndarray, vq: PatchVQ, vocab: Vocab) -> np.ndarray | None:
    """The picture u8[Y X 3] of an answer i32[n] that holds exactly one; otherwise None."""
    images = pictures(answer, vq, vocab)
    return np.asarray(images[0]) if len(images) == 1 else None

"""Samples prompts of the embedded world from a model and scores the pictures with the pixel judge."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import jax
import numpy as np

from lumina_jax.config import SampleConfig
from lumina_jax.conversation import image_prompt, tokenize
from lumina_jax.layout import answer_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample import generate
from lumina_jax.sample.picture import pictures
from lumina_jax.toyworld.captions import Caption
from lumina_jax.toyworld.judge import judge
from lumina_jax.toyworld.report import JudgedSample, Score
from lumina_jax.toyworld.scenes import MINI, Pixels
from lumina_jax.toyworld.source import prompts, stage_sizes
from lumina_jax.vocab import Vocab


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
        images = pictures(answer, vq, vocab)
        image = np.asarray(images[0]) if len(images) == 1 else None
        facts = () if image is None else judge(image, caption, size).facts
        samples.append(JudgedSample(caption.text, size, image, tuple((fact.name, fact.right) for fact in facts)))
    return samples


def score(samples: Sequence[JudgedSample]) -> Score:
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
        table[name] = asdict(score(paint(model, vq, vocab, captions, cfg, jax.random.key(seed))))
    return table

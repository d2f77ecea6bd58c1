"""Paint prompts of the embedded world with a model and let the judge count."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import jax
import numpy as np

from lumina_jax.config import SampleConfig
from lumina_jax.conversation import image_prompt, tokenize
from lumina_jax.layout import TOKENS_AROUND, grid_tokens
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample import generate
from lumina_jax.sample.picture import pictures
from lumina_jax.toyworld.captions import Caption
from lumina_jax.toyworld.judge import judge
from lumina_jax.toyworld.report import Painted, Score
from lumina_jax.toyworld.scenes import MINI, Pixels
from lumina_jax.toyworld.source import prompts, stage_sizes
from lumina_jax.vocab import Vocab


def paint(
    model: Chameleon,
    vq: PatchVQ,
    vocab: Vocab,
    asked: Sequence[tuple[Caption, Pixels]],
    cfg: SampleConfig,
    key: jax.Array,
) -> list[Painted]:
    """One picture for each caption and canvas (width, height); the model chooses height and width itself."""
    ids = [tokenize([(image_prompt(*size, said.text), None)], [], vocab)[0] for said, size in asked]
    longest = max(grid_tokens(size[1] // vq.stride, size[0] // vq.stride) for _, size in asked)
    answers = generate(model, ids, key, replace(cfg, max_new_tokens=longest + TOKENS_AROUND), vocab)
    painted = []
    for (said, size), answer in zip(asked, answers, strict=True):
        images = pictures(answer, vq, vocab)
        image = np.asarray(images[0]) if len(images) == 1 else None
        verdict = () if image is None else judge(image, said, size).facts
        painted.append(Painted(said.text, size, image, tuple((fact.name, fact.right) for fact in verdict)))
    return painted


def score(painted: Sequence[Painted]) -> Score:
    """The shares of pictures with every fact right, and of the size that was asked for."""
    obeyed = [p.image is not None and (p.image.shape[1], p.image.shape[0]) == tuple(p.size) for p in painted]
    return Score(len(painted), float(np.mean([p.all_right for p in painted])), float(np.mean(obeyed)))


def score_table(
    model: Chameleon, vq: PatchVQ, vocab: Vocab, cfg: SampleConfig, target: int, count: int, seed: int
) -> dict[str, dict[str, float]]:
    """Scores on ``count`` fresh prompts, and on as many whose compositions were held out of training."""
    table = {}
    for name, held_out in (("fresh", False), ("held_out", True)):
        asked = prompts(MINI, stage_sizes(target), count, seed, held_out)
        table[name] = asdict(score(paint(model, vq, vocab, asked, cfg, jax.random.key(seed))))
    return table

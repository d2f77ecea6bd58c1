"""How well a model knows tokens it is shown: loss and accuracy under the true context, and greedy painting from it."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.config import SampleConfig
from lumina_jax.data.pipeline import collate
from lumina_jax.data.shards import Shards, check_made_with
from lumina_jax.errors import InputError
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.sample import generate
from lumina_jax.train.loss import token_loss
from lumina_jax.vocab import Vocab

ROWS = 8
LENGTH_STEP = 64
SLACK_TOKENS = 16


def held_out(model: Chameleon, vocab: Vocab, path: str, most: int = 4096, vq: str | None = None) -> dict[str, float]:
    """Mean cross-entropy (nats) and greedy accuracy over the learned tokens of a pretokenized folder.

    Looks at ``most`` records at the most, spread over the folder. The context is always whole. Raises ValueError when the
    folder was made with another tokenizer, or with another VQ model than that of fingerprint ``vq``.
    """
    shards = Shards(path)
    check_made_with(shards.manifest, vocab, vq, path)

    @jax.jit
    def measure(model, batch):
        hidden = model(batch.inputs, batch.positions, batch.segments)
        sums = token_loss(hidden, model.head[...], batch.targets, batch.learn)
        right = (jnp.argmax(model.logits(hidden), axis=-1) == batch.targets) & batch.learn
        return sums, right.sum()

    xent = tokens = right = 0.0
    for samples in _groups(shards, most):
        longest = max(len(ids) for ids, _ in samples)
        batch = collate(samples, range(len(samples)), (len(samples), -(-longest // LENGTH_STEP) * LENGTH_STEP))
        sums, hits = measure(model, batch)
        xent, tokens, right = xent + float(sums.xent), tokens + float(sums.tokens), right + float(hits)
    if not tokens:
        raise InputError(f"{path} holds no learned token; there is nothing to measure")
    return {"tokens": tokens, "xent": xent / tokens, "accuracy": right / tokens}


def greedy_match(model: Chameleon, vocab: Vocab, path: str, most: int = 256, vq: str | None = None) -> dict[str, float]:
    """The share of each answer's own tokens that greedy decoding, without guidance, returns from its prompt alone.

    Token by token at the same place in the answer; ``worst`` and ``mean`` over records, ``exact`` the share without a miss.
    Raises as :func:`held_out` does.
    """
    shards = Shards(path)
    check_made_with(shards.manifest, vocab, vq, path)
    cfg = SampleConfig(guidance=1.0, image_top_k=1, text_top_k=1)
    shares = []
    for samples in _groups(shards, most):
        cut = [int(np.argmax(learn)) for _, learn in samples]
        truths = [ids[start:] for (ids, _), start in zip(samples, cut, strict=True)]
        longest = max(len(truth) for truth in truths)
        prompts = [ids[:start] for (ids, _), start in zip(samples, cut, strict=True)]
        answers = generate(
            model, prompts, jax.random.key(0), replace(cfg, max_new_tokens=longest + SLACK_TOKENS), vocab
        )
        for truth, answer in zip(truths, answers, strict=True):
            wanted = truth[truth != vocab.end_of_turn]
            got = np.full(len(wanted), -1)
            got[: len(answer)] = answer[: len(wanted)]
            shares.append(float(np.mean(got == wanted)))
    return {
        "records": len(shares),
        "worst": min(shares),
        "mean": float(np.mean(shares)),
        "exact": float(np.mean([share == 1 for share in shares])),
    }


def _groups(shards: Shards, most: int) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Up to ``most`` records spread over the folder, ROWS at a time, of like length so that little is padding."""
    chosen = np.unique(np.linspace(0, len(shards) - 1, min(most, len(shards))).astype(int))
    chosen = chosen[np.argsort(np.asarray(shards.lengths)[chosen], kind="stable")]
    for start in range(0, len(chosen), ROWS):
        yield shards.__getitems__([int(index) for index in chosen[start : start + ROWS]])

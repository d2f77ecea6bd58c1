"""Held-out data: loss and accuracy under the true context, and how much of each answer greedy decoding returns."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.batch import Batch
from lumina_jax.config import SampleConfig
from lumina_jax.data.pipeline import collate
from lumina_jax.data.shards import Shards, check_made_with
from lumina_jax.errors import InputError
from lumina_jax.model.backend import DeviceJit
from lumina_jax.model.chameleon import Chameleon
from lumina_jax.progress import ProgressDisplay, waiting
from lumina_jax.sample import generate
from lumina_jax.train.loss import LossSums, token_loss
from lumina_jax.vocab import Vocab

ROWS = 8
"""Records of one batch."""
LENGTH_STEP = 64
"""Batches are padded to a multiple of this many tokens, so that few lengths are compiled."""
SLACK_TOKENS = 16
"""New tokens that greedy decoding may use beyond the longest answer of its batch."""
GREEDY = SampleConfig(guidance=1.0, image_top_k=1, text_top_k=1)


def held_out(model: Chameleon, vocab: Vocab, path: str, limit: int = 4096, vq: str | None = None) -> dict[str, float]:
    """Mean cross-entropy (nats a token) and next-token accuracy over the learned tokens of a pretokenized folder.

    At most ``limit`` records are read, spread evenly over the folder; each is a row of its own with its whole context, and
    each learned token counts once. Raises InputError when the folder was made with another tokenizer, or with another VQ
    model than that of fingerprint ``vq``, or when it holds no learned token.
    """
    shards = _open(path, vocab, vq)
    xent = tokens = correct = 0.0
    for records in _batches(shards, limit, "loss"):
        longest = max(len(ids) for ids, _ in records)
        batch = collate(records, range(len(records)), (len(records), -(-longest // LENGTH_STEP) * LENGTH_STEP))
        with waiting("compiling for {} rows of {:,} tokens".format(*batch.inputs.shape)):
            sums, batch_correct = _measure(model, batch)
        xent, tokens, correct = xent + float(sums.xent), tokens + float(sums.tokens), correct + float(batch_correct)
    return {"tokens": int(tokens), "xent": xent / tokens, "accuracy": correct / tokens}


@DeviceJit
def _measure(model: Chameleon, batch: Batch) -> tuple[LossSums, jax.Array]:
    """Sums of the loss, and how many learned tokens are the likeliest of all, i32[]."""
    hidden = model(batch.inputs, batch.positions, batch.segments)
    sums = token_loss(hidden, model.head[...], batch.targets, batch.learn)
    correct = (jnp.argmax(model.logits(hidden), axis=-1) == batch.targets) & batch.learn
    return sums, correct.sum()


def greedy_match(
    model: Chameleon, vocab: Vocab, path: str, limit: int = 256, vq: str | None = None
) -> dict[str, float]:
    """The share of each record's first answer that greedy decoding, without guidance, returns from the prompt alone.

    The prompt is what precedes the first learned token, the answer what is learned from there on without a gap, but for the
    end of turn. Tokens are compared index by index. ``worst`` and ``mean`` are over records; ``exact`` is the share of records
    without a difference. At most ``limit`` records are read; raises InputError as :func:`held_out` does.
    """
    shards = _open(path, vocab, vq)
    shares = []
    for records in _batches(shards, limit, "greedy"):
        prompts, truths = zip(*(_first_answer(ids, learn) for ids, learn in records), strict=True)
        cfg = replace(GREEDY, max_new_tokens=max(map(len, truths)) + SLACK_TOKENS)
        answers = generate(model, prompts, jax.random.key(0), cfg, vocab)
        pairs = zip(truths, answers, strict=True)
        shares += [_equal_share(truth[truth != vocab.end_of_turn], answer) for truth, answer in pairs]
    return {
        "records": len(shares),
        "worst": min(shares),
        "mean": float(np.mean(shares)),
        "exact": float(np.mean([share == 1 for share in shares])),
    }


def _first_answer(ids: np.ndarray, learn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A record's tokens before its first learned one, and the learned tokens that follow without a gap."""
    start = int(np.argmax(learn))
    length = int(np.argmin(np.append(learn[start:], False)))
    return ids[:start], ids[start : start + length]


def _equal_share(truth: np.ndarray, answer: np.ndarray) -> float:
    """The share of ``truth`` i32[n] that ``answer`` i32[m] repeats at the same index."""
    compared = min(len(truth), len(answer))
    return float(np.sum(truth[:compared] == answer[:compared]) / len(truth))


def _open(path: str, vocab: Vocab, vq: str | None) -> Shards:
    shards = Shards(path)
    check_made_with(shards.manifest, vocab, vq, path)
    if not shards.manifest.learned:
        raise InputError(f"{path} holds no learned token, so there is nothing to measure; give a folder with answers")
    return shards


def _batches(shards: Shards, limit: int, title: str) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """ROWS records at a time, at most ``limit`` spread over the folder: (tokens i32[n], learn bool[n]) of similar length.

    Shows how many were used up, under ``title``.
    """
    indices = np.unique(np.linspace(0, len(shards) - 1, min(limit, len(shards))).astype(int))
    indices = indices[np.argsort(np.asarray(shards.lengths)[indices], kind="stable")]
    with ProgressDisplay(title, len(indices)) as progress:
        for start in range(0, len(indices), ROWS):
            chosen = indices[start : start + ROWS]
            yield shards.read(chosen.tolist())
            progress.advance(len(chosen))

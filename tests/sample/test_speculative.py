"""Laws of parallel decoding: whatever the drafts, answers follow the model's distribution."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2
from tiny import tiny_model, tiny_vocab

from lumina_jax.config import SampleConfig
from lumina_jax.layout import encode_grid
from lumina_jax.sample import decode, drafters, generate, speculative
from lumina_jax.sample.guidance import DynamicConfig, scores
from lumina_jax.sample.position import ImagePosition, position_after

VOCAB = tiny_vocab()
IMAGE = encode_grid(np.zeros((2, 4), int), VOCAB)
PROMPT = np.array([0, 22, 23, *IMAGE[:3]])
CHOICES = SampleConfig(temperature=1.5, image_top_k=2, text_top_k=2, max_new_tokens=len(IMAGE) - 3 + 1, window=4)
ROWS, CALLS = 4096, 4
LARGEST_Z, LEAST_P = 4.2, 1e-4


def vivid_model():
    """The random model with louder logits, so that a token depends on those before it as much as a trained model's does."""
    model = tiny_model()
    for weight in (model.head, model.embedding):
        weight[...] = weight[...] * 2
    return model


VIVID = vivid_model()


@jax.jit
def probabilities(tokens, last, position, config):
    """f32[B V] of the token behind i32[B T], of which those up to index ``last`` are known."""
    cond, uncond = (VIVID.logits(VIVID(ids))[:, index] for ids, index in ((tokens, last), (tokens[:, 3:], last - 3)))
    return jax.nn.softmax(scores(cond, uncond, position, config, VOCAB).kept / config.temperature)


def truth(guidance: float) -> dict[tuple[int, ...], np.ndarray]:
    """Each possible beginning of an answer to PROMPT -> probabilities f64[V] of the next token.

    Answers are all images of IMAGE's size and one token of text.
    """
    cfg = replace(CHOICES, guidance=guidance)
    length = len(PROMPT) + cfg.max_new_tokens

    true, beginnings = {}, [()]
    for step in range(cfg.max_new_tokens):
        known = len(PROMPT) + step
        tokens = np.zeros((256, length), np.int32)
        tokens[: len(beginnings), :known] = [[*PROMPT, *beginning] for beginning in beginnings]
        position = ImagePosition(*(jnp.full(256, value) for value in position_after(tokens[0, :known], VOCAB)))
        p = np.asarray(probabilities(tokens, known - 1, position, DynamicConfig.of(cfg)), np.float64)[: len(beginnings)]
        true |= dict(zip(beginnings, p / p.sum(axis=1, keepdims=True), strict=True))
        beginnings = [(*start, int(token)) for start in beginnings for token in np.flatnonzero(true[start])]
    return true


@pytest.fixture(scope="module")
def truths():
    return {guidance: truth(guidance) for guidance in (1.0, 3.0, 7.0)}


def deviations(answers: np.ndarray, true: dict[tuple[int, ...], np.ndarray]) -> tuple[float, float]:
    """(largest z over indices of the count of the likeliest token, p-value of all answers together), for answers i32[n T]."""
    expected, z, counts = {(): 1.0}, [], {}
    for step in range(answers.shape[1]):
        p = np.stack([true[tuple(answer[:step])] for answer in answers.tolist()])
        best = p.max(axis=1)
        if (best < 1).any():
            z.append(((answers[:, step] == p.argmax(axis=1)) - best).sum() / np.sqrt((best * (1 - best)).sum()))
        expected = {
            (*start, t): share * true[start][t]
            for start, share in expected.items()
            for t in np.flatnonzero(true[start])
        }
    for answer in answers.tolist():
        counts[tuple(answer)] = counts.get(tuple(answer), 0) + 1
    # Rare answers are one class: few hits each say nothing.
    classes = [
        (counts.pop(answer, 0), share * len(answers)) for answer, share in expected.items() if share * len(answers) >= 8
    ]
    classes.append((sum(counts.values()), len(answers) - sum(share for _, share in classes)))
    square = sum((hits - share) ** 2 / max(share, 1e-9) for hits, share in classes)
    return float(np.abs(z).max()), float(chi2.sf(square, len(classes) - 1))


def answers(cfg: SampleConfig, calls: int = CALLS) -> np.ndarray:
    rows = [row for call in range(calls) for row in generate(VIVID, [PROMPT] * ROWS, jax.random.key(call), cfg, VOCAB)]
    return np.stack(
        [np.pad(row, (0, cfg.max_new_tokens - len(row)), constant_values=VOCAB.end_of_turn) for row in rows]
    )


@pytest.mark.parametrize(
    ("method", "guidance", "tree"),
    [("off", 7.0, 0), ("sjd", 1.0, 0), ("continued", 1.0, 0), ("coupled", 3.0, 0), ("matched", 3.0, 5)],
)
def test_answers_follow_the_model_s_distribution(method, guidance, tree, truths):
    """The answers of "matched" are those of "off" (test_parallel.py, test_tree.py)."""
    z, p = deviations(answers(replace(CHOICES, guidance=guidance, parallel=method, tree=tree)), truths[guidance])
    assert z < LARGEST_Z and p > LEAST_P


def test_a_distortion_of_two_percent_is_caught(truths):
    true, rng = truths[3.0], np.random.default_rng(0)

    def drawn(step_to_distort):
        rows = [()] * (ROWS * CALLS)
        for step in range(CHOICES.max_new_tokens):
            p = {start: true[start].copy() for start in set(rows)}
            if step == step_to_distort:
                for share in p.values():
                    low, high = np.argsort(share)[-2:]
                    share[[low, high]] += np.array([0.02, -0.02]) * (share[high] > 0.52)
            totals = {start: share.cumsum() for start, share in p.items()}
            rows = [(*start, int(np.searchsorted(totals[start], rng.random()))) for start in rows]
        return np.array(rows)

    z, p = deviations(drawn(None), true)
    assert z < LARGEST_Z and p > LEAST_P
    assert all(deviations(drawn(step), true)[0] > LARGEST_Z for step in (0, 7))


def old_q(monkeypatch) -> None:
    """Drafts that survive a pass keep the q that they were first drawn from."""
    correct = speculative.rejection_sample

    def wrong(method, logp, drafts, *rest):
        kept, after = correct(method, logp, drafts, *rest)
        survived = (after.codes == drafts.codes)[..., None] & (drafts.q.sum(axis=2, keepdims=True) > 0)
        return kept, after._replace(q=jnp.where(survived, drafts.q, after.q))

    monkeypatch.setattr(drafters, "rejection_sample", wrong)


def one_noise(monkeypatch) -> None:
    """The noise that drew a draft also decides whether it is kept and draws its replacement."""
    correct = speculative.Noise.of

    class SharedNoise(speculative.Noise):
        @classmethod
        def of(cls, keys, indices, passes):
            noise = correct(keys, indices, passes)
            return noise._replace(coin=noise.token, again=noise.token)

    monkeypatch.setattr(drafters, "Noise", SharedNoise)


@pytest.mark.parametrize(("method", "break_it", "calls"), [("continued", old_q, 4), ("coupled", one_noise, 10)])
def test_a_wrong_method_is_caught(method, break_it, calls, truths, monkeypatch):
    # A window that holds the whole image: its drafts live through many passes.
    cfg = replace(CHOICES, guidance=1.0, parallel=method, window=8)
    break_it(monkeypatch)
    decode.decode.jitted().clear_cache()
    z, p = deviations(answers(cfg, calls), truths[1.0])
    decode.decode.jitted().clear_cache()
    assert z > LARGEST_Z or p < LEAST_P

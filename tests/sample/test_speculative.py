"""Laws of parallel decoding: whatever the drafts, answers are distributed as the model says."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2
from tiny import tiny_model, tiny_vocab

from lumina_jax.config import SampleConfig
from lumina_jax.layout import encode_grid
from lumina_jax.sample import decode, generate, loop, speculative
from lumina_jax.sample.guidance import Knobs, Place, place_of, scores

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
def shares(tokens, at, place, knobs):
    """f32[B V] of the token behind i32[B T], of which those up to ``at`` are known."""
    cond, uncond = (VIVID.logits(VIVID(part))[:, index] for part, index in ((tokens, at), (tokens[:, 3:], at - 3)))
    return jax.nn.softmax(scores(cond, uncond, place, knobs, VOCAB).kept / knobs.temperature)


def truth(guidance: float) -> dict[tuple[int, ...], np.ndarray]:
    """What has followed PROMPT -> probabilities f64[V] of the next token: all images of IMAGE's size and one token of text."""
    cfg = replace(CHOICES, guidance=guidance)
    length = len(PROMPT) + cfg.max_new_tokens

    found, ways = {}, [()]
    for step in range(cfg.max_new_tokens):
        tokens = np.zeros((256, length), np.int32)
        tokens[: len(ways), : len(PROMPT) + step] = [[*PROMPT, *way] for way in ways]
        place = Place(*(jnp.full(256, part) for part in place_of(tokens[0, : len(PROMPT) + step], VOCAB)))
        p = np.asarray(shares(tokens, len(PROMPT) + step - 1, place, Knobs.of(cfg)), np.float64)[: len(ways)]
        found |= dict(zip(ways, p / p.sum(axis=1, keepdims=True), strict=True))
        ways = [(*way, int(token)) for way in ways for token in np.flatnonzero(found[way])]
    return found


@pytest.fixture(scope="module")
def truths():
    return {guidance: truth(guidance) for guidance in (1.0, 3.0, 7.0)}


def deviations(answers: np.ndarray, true: dict[tuple[int, ...], np.ndarray]) -> tuple[float, float]:
    """(largest z over places of how often the likeliest token came, p-value of all answers together), for answers i32[n T]."""
    expected, z, seen = {(): 1.0}, [], {}
    for step in range(answers.shape[1]):
        p = np.stack([true[tuple(answer[:step])] for answer in answers.tolist()])
        best = p.max(axis=1)
        if (best < 1).any():
            z.append(((answers[:, step] == p.argmax(axis=1)) - best).sum() / np.sqrt((best * (1 - best)).sum()))
        expected = {
            (*way, t): share * true[way][t] for way, share in expected.items() for t in np.flatnonzero(true[way])
        }
    for answer in answers.tolist():
        seen[tuple(answer)] = seen.get(tuple(answer), 0) + 1
    # Rare answers are one class: few hits each say nothing.
    classes = [(seen.pop(way, 0), share * len(answers)) for way, share in expected.items() if share * len(answers) >= 8]
    classes.append((sum(seen.values()), len(answers) - sum(share for _, share in classes)))
    square = sum((hits - share) ** 2 / max(share, 1e-9) for hits, share in classes)
    return float(np.abs(z).max()), float(chi2.sf(square, len(classes) - 1))


def answers(cfg: SampleConfig, calls: int = CALLS) -> np.ndarray:
    rows = [row for call in range(calls) for row in generate(VIVID, [PROMPT] * ROWS, jax.random.key(call), cfg, VOCAB)]
    return np.stack(
        [np.pad(row, (0, cfg.max_new_tokens - len(row)), constant_values=VOCAB.end_of_turn) for row in rows]
    )


@pytest.mark.parametrize(("method", "guidance"), [("off", 7.0), ("sjd", 1.0), ("continued", 1.0), ("coupled", 3.0)])
def test_answers_are_distributed_as_the_model_says(method, guidance, truths):
    """The answers of "matched" are those of "off" (test_parallel.py)."""
    z, p = deviations(answers(replace(CHOICES, guidance=guidance, parallel=method)), truths[guidance])
    assert z < LARGEST_Z and p > LEAST_P


def test_a_distortion_of_two_percent_is_caught(truths):
    true, rng = truths[3.0], np.random.default_rng(0)

    def drawn(step_to_distort):
        rows = [()] * (ROWS * CALLS)
        for step in range(CHOICES.max_new_tokens):
            p = {way: true[way].copy() for way in set(rows)}
            if step == step_to_distort:
                for share in p.values():
                    low, high = np.argsort(share)[-2:]
                    share[[low, high]] += np.array([0.02, -0.02]) * (share[high] > 0.52)
            totals = {way: share.cumsum() for way, share in p.items()}
            rows = [(*way, int(np.searchsorted(totals[way], rng.random()))) for way in rows]
        return np.array(rows)

    z, p = deviations(drawn(None), true)
    assert z < LARGEST_Z and p > LEAST_P
    assert all(deviations(drawn(step), true)[0] > LARGEST_Z for step in (0, 7))


def old_q(monkeypatch) -> None:
    """Drafts that survive a pass keep the q that they were drawn from."""
    right = speculative.judge

    def wrong(method, logp, drafts, *rest):
        kept, after = right(method, logp, drafts, *rest)
        survived = (after.codes == drafts.codes)[..., None] & (drafts.q.sum(axis=2, keepdims=True) > 0)
        return kept, after._replace(q=jnp.where(survived, drafts.q, after.q))

    monkeypatch.setattr(loop, "judge", wrong)


def one_noise(monkeypatch) -> None:
    """What decides about a draft, and what is drawn in its place, has the noise that drew it."""
    right = speculative.Noise.of

    class Wrong(speculative.Noise):
        @classmethod
        def of(cls, keys, places, passes):
            noise = right(keys, places, passes)
            return noise._replace(coin=noise.token, again=noise.token)

    monkeypatch.setattr(loop, "Noise", Wrong)


@pytest.mark.parametrize(("method", "break_it", "calls"), [("continued", old_q, 4), ("coupled", one_noise, 10)])
def test_a_wrong_method_is_caught(method, break_it, calls, truths, monkeypatch):
    # A window that holds the whole image: its drafts live through many passes.
    cfg = replace(CHOICES, guidance=1.0, parallel=method, window=8)
    break_it(monkeypatch)
    decode.decode.clear_cache()
    z, p = deviations(answers(cfg, calls), truths[1.0])
    decode.decode.clear_cache()
    assert z > LARGEST_Z or p < LEAST_P

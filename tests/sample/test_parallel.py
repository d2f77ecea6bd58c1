"""Laws of passes with many tokens: greedy and matched answers equal those of one-by-one decoding, in fewer passes."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import answers, tiny_model, tiny_vocab

from convert import load_model
from convert.metadata import EXPERIMENT_FILE
from lumina_jax.config import PARALLEL, Experiment, SampleConfig, from_dict
from lumina_jax.conversation import image_prompt, tokenize
from lumina_jax.errors import InputError
from lumina_jax.layout import decode_grid, encode_grid
from lumina_jax.sample import decode, drafters, generate
from lumina_jax.sample.position import ImagePosition, allowed
from lumina_jax.sample.request import lay_out
from lumina_jax.sample.stream import stream
from lumina_jax.toyworld.scenes import MINI
from lumina_jax.toyworld.source import prompts, stage_sizes
from lumina_jax.vocab import CHAMELEON, Vocab

VOCAB = tiny_vocab()
MODEL = tiny_model()
KEY = jax.random.key(0)
METHODS = [method for method in PARALLEL if method != "off"]
EXACT = ["matched"]
"""Methods whose sampled answers, too, are those of one-by-one decoding, token for token."""
GREEDY = SampleConfig(guidance=3.0, image_top_k=1, text_top_k=1, max_new_tokens=120, parallel="off", window=6)
SAMPLED = replace(GREEDY, temperature=1.3, image_top_k=6, text_top_k=40)
HEAD = (VOCAB.boi, VOCAB.size_id(2), VOCAB.size_id(1))
PROMPTS = [
    np.array([0, 22, 23, 24, *HEAD, *VOCAB.code_ids[:2], VOCAB.newline]),
    np.array([0, 25]),
    np.array([0, 26, 27, *encode_grid(np.ones((2, 2), int), VOCAB), 28, VOCAB.boi]),
    np.array(HEAD),
] * 2
SIZES = [None, None, None, None, None, (4, 6), (4, 6), None]


def equal(some, others) -> bool:
    return all(len(a) == len(b) and (a == b).all() for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_greedy_answers_are_those_of_one_by_one_decoding(method):
    parallel = replace(GREEDY, parallel=method)
    for guidance in (3.0, 7.0):
        expected, slow = answers(MODEL, PROMPTS, KEY, replace(GREEDY, guidance=guidance), VOCAB, sizes=SIZES)
        got, fast = answers(MODEL, PROMPTS, KEY, replace(parallel, guidance=guidance), VOCAB, sizes=SIZES)
        assert equal(got, expected)
        assert fast.sum() < slow.sum()


def test_chameleon_s_pictures_are_drawn_alike_by_every_kind_of_decoding():
    vocab = VOCAB.with_images(replace(CHAMELEON, shape=(3, 5)))
    image = encode_grid(np.arange(15).reshape(3, 5) % 12, vocab)
    prompts = [np.array([0, 22, *image, 23, *image[:6]]), np.array([0, 25, vocab.boi]), np.array([0, 26])]
    opens = [False, False, True]
    for cfg, method in ((SAMPLED, "matched"), (GREEDY, "coupled")):
        cfg = replace(cfg, max_new_tokens=24)
        keys = [jax.random.fold_in(KEY, row) for row in range(3)]
        options = dict(keys=keys, opens=opens)
        expected, got = (
            {
                part.index: part.tokens
                for part in stream(MODEL, prompts, KEY, replace(cfg, parallel=name), vocab, **options)
            }
            for name in ("off", method)
        )
        assert equal([got[row] for row in range(3)], [expected[row] for row in range(3)])
        whole = np.concatenate([prompts[1], expected[1]])[2:]
        assert decode_grid(whole[: len(image)], vocab).shape == (3, 5)
        assert decode_grid(np.concatenate([image[:6], expected[0]])[: len(image)], vocab).shape == (3, 5)
        assert decode_grid(expected[2][: len(image)], vocab).shape == (3, 5)


def test_words_hold_no_codes_in_chameleon_s_layout_and_no_pictures_where_none_are_painted():
    vocab = VOCAB.with_images(replace(CHAMELEON, shape=(3, 5), no_pictures="no head"))
    in_text = ImagePosition(*(np.array([value]) for value in (-1, 0, 0)))
    assert np.flatnonzero(~np.asarray(allowed(in_text, 40, vocab))[0]).tolist() == [vocab.boi, *vocab.code_ids]
    assert np.asarray(allowed(in_text, 40, VOCAB)).all()
    for prompt, opens in ((np.array([0, 25]), [True]), (np.array([0, 25, vocab.boi]), None)):
        with pytest.raises(InputError, match="paints no pictures: no head"):
            next(stream(MODEL, [prompt], KEY, GREEDY, vocab, opens=opens))
    with pytest.raises(InputError, match="2 x 2 codes; every image of this model has 3 x 5"):
        generate(MODEL, [np.array([0, 25])], KEY, GREEDY, vocab, sizes=[(2, 2)])


def test_every_method_has_its_drafter():
    assert set(drafters.DRAFTERS) == set(PARALLEL)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.0])
def test_exact_answers_are_those_of_one_by_one_decoding(method, guidance):
    """Text and pictures, several in a row, drawn and greedy: token for token, so they are distributed alike."""
    for cfg, keys in ((SAMPLED, 4), (GREEDY, 1)):
        cfg = replace(cfg, guidance=guidance)
        for key in jax.random.split(KEY, keys):
            expected, slow = answers(MODEL, PROMPTS, key, cfg, VOCAB, sizes=SIZES)
            got, fast = answers(MODEL, PROMPTS, key, replace(cfg, parallel=method), VOCAB, sizes=SIZES)
            assert equal(got, expected)
            assert fast.sum() < slow.sum()


def test_a_drafter_that_keeps_two_percent_of_wrong_drafts_is_caught(monkeypatch):
    correct = drafters.match

    def lucky(scored, drafts, forced, noise, ids):
        u = jax.vmap(jax.vmap(jax.random.uniform))(noise)
        return correct(scored, drafts, forced | (u < 0.02), noise, ids)

    expected = generate(MODEL, PROMPTS, KEY, SAMPLED, VOCAB, sizes=SIZES)
    monkeypatch.setattr(drafters, "match", lucky)
    decode.decode.jitted().clear_cache()
    assert not equal(generate(MODEL, PROMPTS, KEY, replace(SAMPLED, parallel="matched"), VOCAB, sizes=SIZES), expected)
    decode.decode.jitted().clear_cache()


def test_a_prompt_has_the_same_answer_alone_and_in_a_batch():
    cfg = replace(SAMPLED, parallel="matched")
    together, passes = answers(MODEL, PROMPTS, KEY, cfg, VOCAB)
    for row in (0, 1, 6):
        alone, alone_passes = answers(
            MODEL, PROMPTS[row : row + 1], KEY, cfg, VOCAB, keys=[jax.random.fold_in(KEY, row)]
        )
        assert equal(alone, together[row : row + 1]) and alone_passes[0] == passes[row]


def test_a_trained_model_gives_the_same_answers_in_a_third_of_the_passes():
    folder = Path(__file__).resolve().parents[2] / "assets" / "toy"
    experiment = from_dict(Experiment, json.loads((folder / EXPERIMENT_FILE).read_text()))
    model, vocab = load_model(folder)[0], Vocab.load(folder)
    requests = prompts(MINI, stage_sizes(128), 16, 0)
    ids = [tokenize([(image_prompt(*size, caption.text), None)], [], vocab)[0] for caption, size in requests]
    for changes in ({}, {"guidance": 3.0, "min_p": 0.0, "temperature": 0.9}, {"guidance": 7.0, "image_top_k": 1}):
        cfg = replace(experiment.sample, max_new_tokens=96, parallel="off", **changes)
        expected, slow = answers(model, ids, KEY, cfg, vocab)
        default = SampleConfig()
        got, fast = answers(model, ids, KEY, replace(cfg, parallel=default.parallel, window=default.window), vocab)
        assert equal(got, expected)
        if not changes:
            assert 3 * fast.sum() < slow.sum()


def test_generate_gives_the_tokens_of_one_by_one_sampling():
    for row in (0, 1, 2):
        tokens, _ = decode.trace(MODEL, PROMPTS[row], KEY, SAMPLED, VOCAB)
        ends = np.flatnonzero(tokens == VOCAB.end_of_turn)
        expected = tokens[: ends[0]] if len(ends) else tokens
        assert (generate(MODEL, [PROMPTS[row]], KEY, SAMPLED, VOCAB)[0] == expected).all()


def test_known_tokens_take_no_pass():
    image = encode_grid(np.zeros((4, 6), int), VOCAB)
    cfg = replace(GREEDY, max_new_tokens=len(image) - 1)
    (answer,), passes = answers(MODEL, [np.array([0, VOCAB.boi])], KEY, cfg, VOCAB, sizes=[(4, 6)])
    assert len(answer) == len(image) - 1 and answer[-1] == VOCAB.eoi
    # Of 30 tokens 24 are codes; what follows the last end-of-line is drawn together with end-image.
    assert passes.tolist() == [25]


def test_a_prompt_is_fed_once_for_all_its_answers():
    prompts = [PROMPTS[0], PROMPTS[1]] * 4
    request, copies, rows = lay_out(prompts, KEY, VOCAB, 40)
    assert copies == 4
    assert (request.ids[::4][np.repeat([0, 1], 4)] == request.ids).all()
    assert all((request.ids[row][-len(prompt) :] == prompt).all() for row, prompt in zip(rows, prompts, strict=True))
    assert lay_out(prompts, KEY, VOCAB, 40, groups=4).copies == 2
    assert lay_out([*prompts, PROMPTS[2]], KEY, VOCAB, 40).copies == 1
    separate = [
        generate(MODEL, prompts[:1], KEY, SAMPLED, VOCAB, keys=[jax.random.fold_in(KEY, row)])[0] for row in (0, 2)
    ]
    assert equal([generate(MODEL, prompts, KEY, SAMPLED, VOCAB)[row] for row in (0, 2)], separate)


@pytest.mark.parametrize(("field", "value"), [("parallel", "eagle"), ("window", 1)])
def test_unknown_methods_and_windows_are_refused(field, value):
    with pytest.raises(ValueError, match=f"sample.{field}="):
        SampleConfig(**{field: value})

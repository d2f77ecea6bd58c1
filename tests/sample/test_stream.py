"""Continuous batching: every answer is the one its prompt gets alone, whatever else was sampled with it."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import tiny_model, tiny_vocab

from lumina_jax.config import MeshConfig, SampleConfig
from lumina_jax.conversation import tokenize
from lumina_jax.layout import decode_grid, grid_tokens
from lumina_jax.sample import generate
from lumina_jax.sample.decode import trace
from lumina_jax.sample.stream import stream
from lumina_jax.sharding import make_mesh, shardings

VOCAB = tiny_vocab()
CFG = SampleConfig(max_new_tokens=24, image_top_k=12, text_top_k=10)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def requests(count: int) -> tuple[list[np.ndarray], list[tuple[int, int] | None]]:
    """Prompts of many lengths and forced sizes; some prompts end with begin-image."""
    prompts = [tokenize([(f"w{number % 5} " * (1 + number % 4), None)], [], VOCAB)[0] for number in range(count)]
    begun = [np.append(prompt, VOCAB.boi) if number % 3 else prompt for number, prompt in enumerate(prompts)]
    return begun, [(2, 2 + 2 * (number % 2)) if number % 3 else None for number in range(count)]


@pytest.mark.parametrize(
    ("cfg", "rows"), [(replace(CFG, guidance=1.0), 1), (replace(CFG, parallel="coupled", window=6), 2)]
)
def test_answers_are_those_of_generate(model, cfg, rows):
    prompts, sizes = requests(7)
    key = jax.random.key(3)
    alone = generate(model, prompts, key, cfg, VOCAB, sizes=sizes)
    partials = list(stream(model, prompts, key, cfg, VOCAB, sizes=sizes, rows=rows))
    assert sorted(partial.index for partial in partials) == list(range(7)) and all(partial.done for partial in partials)
    for partial in partials:
        np.testing.assert_array_equal(partial.tokens, alone[partial.index])


def test_equal_prompts_and_a_mesh_change_nothing(model):
    prompts, sizes = requests(3)
    prompts, sizes = [prompts[1]] * 4 + [prompts[2]] * 5, [sizes[1]] * 4 + [sizes[2]] * 5
    key = jax.random.key(4)
    alone = generate(model, prompts, key, CFG, VOCAB, sizes=sizes)
    mesh = make_mesh(MeshConfig(replica=2, fsdp=1, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = jax.device_put(model, shardings(model, mesh))
        partials = list(stream(placed, prompts, key, CFG, VOCAB, sizes=sizes, rows=3))
    assert sorted(partial.index for partial in partials) == list(range(9))
    for partial in partials:
        np.testing.assert_array_equal(partial.tokens, alone[partial.index])


def test_partial_answers_are_beginnings_of_the_answers(model):
    prompts, sizes = requests(4)
    key = jax.random.key(5)
    alone = generate(model, prompts, key, CFG, VOCAB, sizes=sizes)
    growing: dict[int, list] = {index: [] for index in range(4)}
    for partial in stream(model, prompts, key, CFG, VOCAB, sizes=sizes, rows=2, every=2):
        growing[partial.index].append(partial)
    for index, partials in growing.items():
        assert [partial.done for partial in partials] == [False] * (len(partials) - 1) + [True]
        lengths = [len(partial.tokens) for partial in partials]
        assert lengths == sorted(lengths)
        for partial in partials:
            np.testing.assert_array_equal(partial.tokens, alone[index][: len(partial.tokens)])
    assert max(map(len, growing.values())) > 3


@pytest.mark.parametrize(
    "cfg", [CFG, replace(CFG, guidance=1.0, parallel="off"), replace(CFG, parallel="coupled", window=6)]
)
def test_an_answer_that_must_open_a_picture_is_that_of_a_model_which_opens_one(model, cfg):
    prompts = [tokenize([(text, None)], [], VOCAB)[0] for text in ("w1", "w2", "w3")]
    begun, size = np.append(prompts[2], VOCAB.boi), (2, 4)
    key = jax.random.key(6)
    keys = [jax.random.fold_in(key, row) for row in range(4)]
    every, opens = [*prompts, begun], [True, False, True, True]
    options = dict(sizes=[size] * 4, keys=keys, rows=2)
    answers = {
        partial.index: partial.tokens for partial in stream(model, every, key, cfg, VOCAB, opens=opens, **options)
    }
    free = {partial.index: partial.tokens for partial in stream(model, every, key, cfg, VOCAB, **options)}
    for row, tokens in answers.items():
        if row in (1, 3):  # not asked to, or inside one already
            np.testing.assert_array_equal(tokens, free[row])
            continue
        assert tokens[0] == VOCAB.boi and tokens[1:3].tolist() == [VOCAB.size_id(1), VOCAB.size_id(2)]
        assert decode_grid(tokens[: grid_tokens(*size)], VOCAB).shape == size
    assert answers[1][0] != VOCAB.boi
    # The first token that a model draws itself stands at index 0 of the answer too: what follows has the same noise.
    planned, _ = trace(
        model,
        prompts[0],
        key,
        replace(cfg, parallel="off"),
        VOCAB,
        {0: VOCAB.boi, 1: VOCAB.size_id(1), 2: VOCAB.size_id(2)},
    )
    if cfg.parallel != "coupled":
        end = grid_tokens(*size)
        np.testing.assert_array_equal(answers[0][:end], planned[:end])


@pytest.mark.parametrize("wrong", [dict(rows=0), dict(every=0), dict(sizes=[(3, 3)] * 2)])
def test_wrong_arguments_are_refused_before_the_first_answer(model, wrong):
    prompts, _ = requests(2)
    with pytest.raises(ValueError, match=r"at least 1|must be even"):
        stream(model, prompts, jax.random.key(0), CFG, VOCAB, **wrong)

"""Continuous batching: every answer is the one its prompt gets alone, whatever else was sampled with it."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import tiny_model, tiny_vocab

from lumina_jax.config import MeshConfig, SampleConfig
from lumina_jax.conversation import tokenize
from lumina_jax.sample import generate
from lumina_jax.sample.stream import stream
from lumina_jax.sharding import make_mesh, shardings

VOCAB = tiny_vocab()
CFG = SampleConfig(max_new_tokens=24, image_top_k=12, text_top_k=10)

pytestmark = pytest.mark.usefixtures("plain_code")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def requests(count: int) -> tuple[list[np.ndarray], list[tuple[int, int] | None]]:
    """Prompts of many lengths and forced sizes; some prompts end with begin-image."""
    prompts = [tokenize([(f"w{number % 5} " * (1 + number % 4), None)], [], VOCAB)[0] for number in range(count)]
    begun = [np.append(prompt, VOCAB.boi) if number % 3 else prompt for number, prompt in enumerate(prompts)]
    return begun, [(2, 2 + 2 * (number % 2)) if number % 3 else None for number in range(count)]


@pytest.mark.parametrize(
    ("cfg", "rows"), [(replace(CFG, guidance=1.0), 1), (replace(CFG, parallel="coupled", window=6), 3)]
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


@pytest.mark.parametrize("wrong", [dict(rows=0), dict(every=0), dict(sizes=[(3, 3)] * 2)])
def test_wrong_arguments_are_refused_before_the_first_answer(model, wrong):
    prompts, _ = requests(2)
    with pytest.raises(ValueError, match=r"at least 1|must be even"):
        stream(model, prompts, jax.random.key(0), CFG, VOCAB, **wrong)

"""Laws of the word tokenizer, with the embedded world's words, and of that world's records."""

import numpy as np
import pytest

from lumina_jax.conversation import image_prompt, tokenize
from lumina_jax.data.word_tokenizer import SIZE_UNITS, TEMPLATES, build, save
from lumina_jax.layout import decode_grid, encode_grid
from lumina_jax.toyworld.scenes import FULL, MINI
from lumina_jax.toyworld.source import LEAST_SHARE, ToySource, prompts, stage_sizes
from lumina_jax.toyworld.words import world_words
from lumina_jax.vocab import Vocab, size_name

CODES = 40


@pytest.fixture(scope="module")
def vocab():
    return Vocab(build(CODES, words=world_words()))


@pytest.mark.smoke
def test_prompts_round_trip_with_one_token_per_word(vocab):
    for prompt, (width, height) in prompts(FULL, stage_sizes(64) + stage_sizes(128), 500, 0):
        text = image_prompt(width, height, prompt.text)
        ids = vocab.encode(text)
        assert vocab.decode(ids) == text
        assert len(ids) == len(TEMPLATES) + len(f"{width}x{height}") + len(prompt.text.split())


@pytest.mark.parametrize(
    "text", ["Héllo  wörld,\n\tdon't — 12.5% 日本\n", " a  red\u00a0circles ", "<|image|> Depth estimation."]
)
def test_any_text_round_trips(vocab, text):
    assert vocab.decode(vocab.encode(text)) == text


def test_token_names_are_chameleon_s_and_few(vocab):
    assert len(vocab.code_ids) == CODES and len(set(vocab.code_ids.tolist())) == CODES
    assert [vocab.has(size_name(units)) for units in (1, SIZE_UNITS, SIZE_UNITS + 1)] == [True, True, False]
    assert len({vocab.bos, vocab.boi, vocab.eoi, vocab.end_of_turn, vocab.newline, vocab.image_symbol}) == 6
    assert len(vocab) - CODES <= 450


def test_a_conversation_of_the_world_holds_its_image(vocab):
    codes = np.arange(24, dtype=np.int32).reshape(4, 6)
    tokens, learn = tokenize([(image_prompt(96, 64, "a red circle"), "<|image|>")], [codes], vocab)
    image = encode_grid(codes, vocab)
    np.testing.assert_array_equal(tokens[-len(image) - 1 : -1], image)
    np.testing.assert_array_equal(decode_grid(image, vocab), codes)
    assert learn.sum() == len(image) + 1


def test_saving_and_loading_changes_nothing(vocab, tmp_path):
    loaded = Vocab.load(save(build(CODES, words=world_words()), tmp_path / "made").parent)
    text = image_prompt(64, 64, "a red circle left of a blue square on white")
    assert loaded.encode(text) == vocab.encode(text) and len(loaded) == len(vocab)


def test_the_words_of_other_texts_become_tokens_most_frequent_first():
    texts = ["a cat on a mat", "the cat sat", "a cat"]
    assert len(Vocab(build(CODES, texts)).encode(" cat sat mat")) == 3
    few = Vocab(build(CODES, texts, limit=2))
    assert len(few.encode(" cat")) == 1 and len(few.encode(" mat")) == 4


def test_a_tokenizer_without_image_codes_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        build(0)


@pytest.mark.smoke
def test_records_are_reproducible_pictures_with_their_captions():
    sizes = stage_sizes(64)
    source = ToySource(MINI, sizes, 20, seed=1)
    assert len(source) == len(list(source)) == 20
    for index, record in enumerate(source):
        size = sizes[index % len(sizes)]
        assert record.images[0].size == size
        assert record.conversation([size]) == [(image_prompt(*size, record.caption), "<|image|>")]
        again = ToySource(MINI, sizes, 20, seed=1)[index]
        assert again.caption == record.caption
        assert again.images[0].tobytes() == record.images[0].tobytes()
    with pytest.raises(IndexError, match="20"):
        source[20]


def test_the_fingerprint_changes_with_the_records():
    sizes = stage_sizes(64)
    sources = [
        ToySource(MINI, sizes, 20, seed=1),
        ToySource(MINI, sizes, 20, seed=2),
        ToySource(MINI, sizes, 21, seed=1),
        ToySource(FULL, sizes, 20, seed=1),
        ToySource(MINI, sizes, 20, seed=1, held_out=True),
        ToySource(MINI, sizes[:2], 20, seed=1),
    ]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert sources[0].fingerprint == ToySource(MINI, sizes, 20, seed=1).fingerprint


def test_evaluation_and_training_draw_from_different_streams():
    sizes = stage_sizes(128)
    evaluated = prompts(MINI, sizes, 200, seed=0)
    assert [size for _, size in evaluated] == [sizes[index % len(sizes)] for index in range(200)]
    trained = [record.caption for record in ToySource(MINI, sizes, 200, seed=0)]
    assert sum(prompt.text == text for (prompt, _), text in zip(evaluated, trained, strict=True)) < 20


@pytest.mark.parametrize(("target", "count"), [(64, 5), (96, 5), (128, 11)])
def test_canvases_of_a_stage_have_about_the_same_area(target, count):
    sizes = stage_sizes(target)
    assert len(sizes) == count
    assert all(LEAST_SHARE * target**2 <= width * height <= target**2 for width, height in sizes)

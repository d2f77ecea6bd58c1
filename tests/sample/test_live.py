"""What is seen of an answer while it grows is what it comes to."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import CODES, tiny_model, tiny_vocab

from lumina_jax.config import DataConfig, SampleConfig
from lumina_jax.conversation import tokenize
from lumina_jax.layout import decode_lines, encode_grid
from lumina_jax.model.patchvq import PatchVQ
from lumina_jax.sample import generate
from lumina_jax.sample.live import BLANK, Chat, Growing, Preview, Words, watch
from lumina_jax.sample.picture import pictures
from lumina_jax.sample.prompt import Desk

VOCAB = tiny_vocab()
VQ = PatchVQ(np.random.default_rng(0).integers(0, 200, (CODES, 16, 16, 3), np.uint8))
CFG = SampleConfig(image_top_k=12, text_top_k=10, max_new_tokens=48, guidance=1.0)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_previews_grow_into_the_picture(model):
    key = jax.random.key(2)
    prompt = np.append(tokenize([("w1 w2", None)], [], VOCAB)[0], VOCAB.boi)
    (answer,) = generate(model, [prompt], key, CFG, VOCAB, sizes=[(4, 2)], keys=[key])
    (truth,) = pictures(np.append(VOCAB.boi, answer), VQ, VOCAB)[:1]
    growing, seen = Growing(VQ, VOCAB), []
    for length in range(len(answer) + 1):
        seen += growing.grow(np.append(VOCAB.boi, answer[:length]), length == len(answer))
    seen = [one for one in seen if isinstance(one, Preview) and one.number == 0]
    assert [one.lines for one in seen] == [1, 2, 3, 4] and {one.of for one in seen} == {4}
    for one in seen:
        above, below = np.split(np.asarray(one.picture), [one.lines * 16])
        assert (above == np.asarray(truth)[: one.lines * 16]).all() and (below == BLANK).all()


def test_words_join_to_the_text_and_pictures_are_the_answer_s(model):
    key, cfg = jax.random.key(7), replace(CFG, max_new_tokens=30)
    prompt = tokenize([("w1", None)], [], VOCAB)[0]
    (answer,) = generate(model, [prompt], key, cfg, VOCAB, keys=[key], sizes=[(2, 2)])
    seen = list(watch(model, VQ, VOCAB, prompt, key, cfg, size=(2, 2), every=3))
    words = [one.text for one in seen if isinstance(one, Words)]
    assert len(words) > 2
    growing = Growing(VQ, VOCAB)
    assert "".join(words) == "".join(one.text for one in growing.grow(answer, True) if isinstance(one, Words))
    last = {one.number: one.picture for one in seen if isinstance(one, Preview) and one.lines == one.of}
    assert [last[number].tobytes() for number in sorted(last)] == [p.tobytes() for p in pictures(answer, VQ, VOCAB)]


def test_a_turn_is_answered_in_sight_of_those_before(model):
    desk, key, cfg = Desk(VQ, VOCAB, DataConfig(size=64, patch=32)), jax.random.key(1), replace(CFG, max_new_tokens=6)
    chat = Chat(model, desk, key, cfg)
    picture = Image.new("RGB", (64, 64), "red")
    said = [
        "".join(one.text for one in chat.say(*turn) if isinstance(one, Words))
        for turn in [("w1 <|image|>", [picture]), ("w2",)]
    ]
    told = desk.talk("w1 <|image|>", [picture], cfg).ids
    for number, (message, words) in enumerate(zip(("", "w2"), said, strict=True)):
        told = np.concatenate([told, desk.talk(message, [], cfg).ids[1:]]) if number else told
        turn = jax.random.fold_in(key, number)
        (answer,) = generate(model, [told], turn, cfg, VOCAB, keys=[turn])
        assert "".join(one.text for one in Growing(VQ, VOCAB).grow(answer, True) if isinstance(one, Words)) == words
        told = np.concatenate([told, answer, [VOCAB.end_of_turn]])


@pytest.mark.smoke
def test_the_beginning_of_an_image_is_read_in_whole_lines():
    codes = np.random.default_rng(1).integers(0, CODES, (4, 2))
    ids = encode_grid(codes, VOCAB)
    for length in range(1, len(ids) + 1):
        found, rows = decode_lines(ids[:length], VOCAB)
        assert rows == (4 if length > 2 else 0) and found.tolist() == codes[: max(0, length - 3) // 3].tolist()
    ids[4] = VOCAB.newline
    with pytest.raises(ValueError, match="has no place there"):
        decode_lines(ids, VOCAB)

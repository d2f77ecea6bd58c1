"""What is shown of an answer while it is sampled adds up to the answer."""

import json
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
from lumina_jax.sample.dialog import Dialog
from lumina_jax.sample.live import BLANK, Growing, LiveChat, Preview, Words, watch
from lumina_jax.sample.picture import pictures
from lumina_jax.sample.prompt import PromptBuilder
from lumina_jax.sample.transcript import TRANSCRIPT, Transcript

VOCAB = tiny_vocab()
VQ = PatchVQ(np.random.default_rng(0).integers(0, 200, (CODES, 16, 16, 3), np.uint8))
CFG = SampleConfig(image_top_k=12, text_top_k=10, max_new_tokens=48, guidance=1.0)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def joined(events) -> str:
    """The text of all events."""
    return "".join(event.text for event in events if isinstance(event, Words))


def test_previews_grow_into_the_picture(model):
    key = jax.random.key(2)
    prompt = np.append(tokenize([("w1 w2", None)], [], VOCAB)[0], VOCAB.boi)
    (answer,) = generate(model, [prompt], key, CFG, VOCAB, sizes=[(4, 2)], keys=[key])
    (truth,) = pictures(np.append(VOCAB.boi, answer), VQ, VOCAB)[:1]
    growing, events = Growing(VQ, VOCAB), []
    for length in range(len(answer) + 1):
        events += growing.grow(np.append(VOCAB.boi, answer[:length]), length == len(answer))
    previews = [event for event in events if isinstance(event, Preview) and event.number == 0]
    assert [preview.lines for preview in previews] == [1, 2, 3, 4]
    assert {preview.total for preview in previews} == {4}
    for preview in previews:
        above, below = np.split(np.asarray(preview.picture), [preview.lines * 16])
        assert (above == np.asarray(truth)[: preview.lines * 16]).all() and (below == BLANK).all()


def test_words_join_to_the_text_and_last_previews_are_the_pictures(model):
    key, cfg = jax.random.key(7), replace(CFG, max_new_tokens=30)
    prompt = tokenize([("w1", None)], [], VOCAB)[0]
    (answer,) = generate(model, [prompt], key, cfg, VOCAB, keys=[key], sizes=[(2, 2)])
    events = list(watch(model, VQ, VOCAB, prompt, key, cfg, size=(2, 2), every=3))
    words = [event.text for event in events if isinstance(event, Words)]
    assert len(words) > 2
    assert "".join(words) == joined(Growing(VQ, VOCAB).grow(answer, True))
    last = {
        event.number: event.picture for event in events if isinstance(event, Preview) and event.lines == event.total
    }
    assert [last[number].tobytes() for number in sorted(last)] == [p.tobytes() for p in pictures(answer, VQ, VOCAB)]


def test_a_dialog_is_one_prompt_of_all_its_turns(model, tmp_path):
    """Turn by turn, gone on with from what was kept, and asked for as one line of a file: the same answers."""
    builder, key = PromptBuilder(VQ, VOCAB, DataConfig(size=64, patch=32)), jax.random.key(1)
    chat, picture = LiveChat(model, builder, key, replace(CFG, max_new_tokens=18)), Image.new("RGB", (64, 64), "red")
    transcript, files = Transcript(tmp_path), ["a.png", "b.png"]
    list(chat.say("w1", size=(64, 32)))
    begun = chat.dialog
    assert begun.turns[0][1].startswith("<|image|>") and begun.pictures[0].image.size == (64, 32)
    text = joined(chat.say("w2", [picture]))
    for shown, name in zip(chat.dialog.pictures, files, strict=False):
        shown.image.save(tmp_path / name)
    transcript.keep(chat.dialog, [tmp_path / name for name in files])
    record = json.loads((tmp_path / TRANSCRIPT).read_text())
    kept = builder.dialog(record, tmp_path)
    assert kept.turns == chat.dialog.turns and [*map(str, kept.grids)] == [*map(str, chat.dialog.grids)]
    assert joined(LiveChat(model, builder, key, chat._cfg, begun).say("w2", [picture])) == text
    record["conversations"].pop()
    prompt = builder.from_record(record, tmp_path, lambda task: chat._cfg)
    expected, _ = tokenize([*begun.turns, ("<|image|> w2", None)], kept.grids, VOCAB)
    assert prompt.ids.tolist() == expected.tolist() and prompt.size is None
    assert joined(watch(model, VQ, VOCAB, prompt.ids, jax.random.fold_in(key, 1), prompt.cfg)) == text
    chat.begin()
    assert chat.tokens == 0 and chat.dialog.turns == ()
    with pytest.raises(ValueError, match="the last message of the dialog has no answer"):
        chat.begin(Dialog((("w1", None),)))


@pytest.mark.smoke
def test_an_unfinished_image_is_read_in_complete_lines():
    codes = np.random.default_rng(1).integers(0, CODES, (4, 2))
    ids = encode_grid(codes, VOCAB)
    for length in range(1, len(ids) + 1):
        lines, rows = decode_lines(ids[:length], VOCAB)
        assert rows == (4 if length > 2 else 0) and lines.tolist() == codes[: max(0, length - 3) // 3].tolist()
    ids[4] = VOCAB.newline
    with pytest.raises(ValueError, match="has no place there"):
        decode_lines(ids, VOCAB)

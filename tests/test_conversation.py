"""Conversations are packed as the original does, and wrong ones are refused."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from goldens_at import on_goldens
from PIL import Image

from lumina_jax import layout
from lumina_jax.config import SampleConfig
from lumina_jax.conversation import (
    OWN_SETTINGS,
    TASKS,
    drop_context,
    image_prompt,
    literal,
    served,
    task_prompt,
    texts,
    tokenize,
)
from lumina_jax.pictures import pixels
from lumina_jax.vocab import Vocab


def grid(vocab, seed=0, rows=2, cols=4):
    return np.random.default_rng(seed).integers(len(vocab.code_ids), size=(rows, cols), dtype=np.int32)


def turns_of(item):
    messages = [message["value"] for message in item["conversations"]]
    return list(zip(messages[::2], messages[1::2], strict=True))


def share(draw):
    """The offset share that makes crop() take the recorded value out of low..high inclusive."""
    _, high, value = draw
    return (value + 0.5) / (high + 1)


def encoder(vqvae, folder: Path):
    """A cached function (picture name, target size, recorded draws of left and upper) -> codes i32[R C]."""

    @functools.cache
    def encode(name, target, left, upper):
        image = Image.open(folder / "images" / f"{name}.png")
        size = layout.best_crop(image.size, layout.crop_sizes(target))
        picture = pixels.to_pixels(pixels.crop(image, size, (share(left), share(upper))))
        return np.asarray(vqvae.encode(picture[None]))[0]

    return encode


@on_goldens("packing")
def test_packing_equals_the_originals(goldens):
    pytest.importorskip("torch")
    from convert.vqvae import load_vqvae

    vocab, folder = Vocab.load(goldens / "tokenizer" / "hf_tokenizer"), goldens / "packing"
    encode = encoder(load_vqvae(goldens / "vq" / "small"), folder)
    for case in json.loads((folder / "cases.json").read_text()):
        names, turns = case["item"].get("image", []), turns_of(case["item"])
        for mode in {"train", "infer"} & set(case):
            recorded = case[mode]
            draws = [tuple(draw) for draw in recorded.get("randint_low_high_value", [])] or [(0, 0, 0)] * 2 * len(names)
            crops = zip(names, draws[::2], draws[1::2], strict=True)
            grids = [encode(name, case["target_size"], left, upper) for name, left, upper in crops]
            if recorded.get("error") == "AssertionError":
                with pytest.raises(ValueError, match=r"2 <\|image\|>, but 1 image"):
                    tokenize(turns, grids, vocab)
                continue
            tokens, learn = tokenize(turns, grids, vocab)
            if recorded.get("error") == "LabelAllZeroError":
                assert not learn.any()
                continue
            assert tokens.tolist() == recorded["tokens"], case["name"]
            if mode == "train":
                assert np.where(learn, tokens, -100).tolist() == recorded["labels"], case["name"]


@on_goldens("packing")
def test_unpacking_equals_the_originals(goldens):
    pytest.importorskip("torch")
    from convert.vqvae import load_vqvae

    vocab, vqvae = Vocab.load(goldens / "tokenizer" / "hf_tokenizer"), load_vqvae(goldens / "vq" / "small")
    for case in json.loads((goldens / "packing" / "decode_ids.json").read_text()):
        ids = np.array(case["tokens"], np.int32)
        images = layout.images_in(ids, vocab)
        assert len(images) == len(case["images"])
        for image, name in zip(images, case["images"], strict=True):
            codes = layout.decode_grid(ids[image], vocab)
            decoded = np.asarray(pixels.to_image(np.asarray(vqvae.decode(codes[None]))[0])).astype(int)
            expected = np.asarray(Image.open(goldens / "packing" / name).convert("RGB"))
            assert np.abs(decoded - expected).max() <= 1
        edges = [0, *(edge for image in images for edge in (image.start, image.stop)), len(ids)]
        texts = [vocab.decode(ids[start:stop]) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
        if vocab.boi not in ids[edges[-2] :]:
            assert "<|image|>".join(texts) == case["text"]


@pytest.mark.smoke
def test_answers_with_their_images_and_ends_of_turn_are_learned(vocab):
    codes = grid(vocab)
    turns = [("What?", "That."), ("Draw <|image|> so", "Here: <|image|>!")]
    tokens, learn = tokenize(turns, [codes, codes + 1], vocab)
    answer = [*vocab.encode("Here: "), *layout.encode_grid(codes + 1, vocab), *vocab.encode("!"), vocab.end_of_turn]
    assert tokens[0] == vocab.bos and tokens.dtype == np.int32 and learn.dtype == bool and len(tokens) == len(learn)
    assert tokens[learn].tolist() == [*vocab.encode("That."), vocab.end_of_turn, *answer]
    assert (tokens == vocab.end_of_turn).sum() == 4
    first, second = layout.images_in(tokens, vocab)
    assert not learn[first].any() and learn[second].all()
    assert (layout.decode_grid(tokens[first], vocab) == codes).all()
    assert (layout.decode_grid(tokens[second], vocab) == codes + 1).all()


def test_images_without_a_symbol_go_before_the_first_human_message(vocab):
    codes = [grid(vocab, 1), grid(vocab, 2)]
    implicit = tokenize([("Compare.", "Yes."), ("Sure?", "No.")], codes, vocab)
    explicit = tokenize([("<|image|> <|image|> Compare.", "Yes."), ("Sure?", "No.")], codes, vocab)
    assert all((a == b).all() for a, b in zip(implicit, explicit, strict=True))


@pytest.mark.parametrize(
    ("turns", "images"),
    [
        ([("Hi <|image|> there", "<|image|>")], 2),
        ([("Compare.", "Yes."), ("Compare.", None)], 1),
        ([(literal("the letters <|image|> in <s>"), "Yes.")], 0),
    ],
)
def test_texts_are_exactly_what_tokenize_encodes(turns, images, vocab):
    grids = [grid(vocab, seed) for seed in range(images)]
    ids_by_text = vocab.encode_all(texts(turns, images))
    plain, cached = tokenize(turns, grids, vocab), tokenize(turns, grids, vocab, ids_by_text.__getitem__)
    assert all((a == b).all() for a, b in zip(plain, cached, strict=True))
    assert all(ids == vocab.encode_literally(text) for text, ids in ids_by_text.items())


def test_without_an_answer_the_sequence_is_a_prompt(vocab):
    tokens, learn = tokenize([("Hi", "Hello"), ("Draw", None)], [], vocab)
    answered, _ = tokenize([("Hi", "Hello"), ("Draw", "no")], [], vocab)
    assert tokens[-1] == vocab.end_of_turn and (answered[: len(tokens)] == tokens).all() and not learn[-2:].any()
    assert tokenize([("", "")], [], vocab)[0].tolist() == [vocab.bos, vocab.end_of_turn, vocab.end_of_turn]


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        ([("a <|image|>", "b")], 0, r"1 <\|image\|>, but 0 images"),
        ([("a <|image|>", "<|image|>")], 3, r"2 <\|image\|>, but 3 images"),
        ([("a", None), ("b", "c")], 0, "turn 1 of 2 has no answer"),
        ([], 0, "no turns"),
    ],
)
def test_a_wrong_conversation_is_refused(turns, images, message, vocab):
    with pytest.raises(ValueError, match=message):
        tokenize(turns, [grid(vocab)] * images, vocab)


def test_image_prompt_is_the_published_wording():
    assert image_prompt(768, 512, "a cat") == "Generate an image of 768x512 according to the following prompt:\na cat"


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("task", "text", "wording"),
    [
        ("segmentation", "", "Semantic segmentation. <|image|>"),
        ("segmentation_as_served", "", "Segmentic segmentation. <|image|>"),
        ("depth", "", "Depth estimation. <|image|>"),
        ("normal", "", "Surface normal estimation. <|image|>"),
        ("pose", "", "Human pose estimation. <|image|>"),
        ("detect", "a {cat}", "Detect: a {cat}. <|image|>"),
        (
            "condition",
            "a cat",
            "Generate an image according to the provided image, and according to the following caption:\na cat <|image|>",
        ),
        ("edit", "Remove the cup.", "Remove the cup. <|image|>"),
        ("refine", "", "No edit. <|image|>"),
        ("describe", "", "Describe this image in detail.<|image|>"),
        ("question", "Who?", "Who?<|image|>"),
    ],
)
def test_task_prompts_are_the_published_wordings(task, text, wording):
    assert task_prompt(task, text) == wording
    assert task_prompt(task, text, images=1) == wording


def test_every_task_but_generate_has_its_prompt():
    for task in set(TASKS) - {"generate"}:
        pictures = 0 if task in ("text", "chat") else 1
        assert task_prompt(task, "a cat" if "{text}" in TASKS[task].request else "").count("<|image|>") == pictures


@pytest.mark.parametrize(
    "text", ["The red apple.", "The red apple. ", "Who?", "Look!", "红苹果。", "红苹果！", '"Mine."', "(Who?)"]
)
def test_a_full_stop_is_not_doubled(text):
    assert task_prompt("detect", text) == f"Detect: {text.strip()} <|image|>"
    assert task_prompt("edit", text).startswith(text)


def test_a_full_stop_stands_right_behind_the_text():
    assert task_prompt("detect", "a cat \n") == "Detect: a cat. <|image|>"


def test_questions_and_edits_take_any_number_of_images():
    assert task_prompt("question", "Same?", images=2) == "Same?<|image|> <|image|>"
    assert task_prompt("question", "2 + 2 =", images=0) == "2 + 2 ="
    assert task_prompt("edit", "Now blue.", images=0) == "Now blue."


def test_the_image_symbol_in_user_text_is_no_image(vocab):
    message = task_prompt("detect", "the letters <|image|>")
    tokens, _ = tokenize([(message, None)], [grid(vocab)], vocab)
    assert len(layout.images_in(tokens, vocab)) == 1


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("dance", "", "'dance'; the tasks are segmentation"),
        ("generate", "a cat", "'generate'"),
        ("depth", "a cat", "takes no text, not 'a cat'"),
        ("detect", " ", "takes a text, not ' '"),
    ],
)
def test_a_wrong_task_prompt_is_refused(task, text, message):
    with pytest.raises(ValueError, match=message):
        task_prompt(task, text)


def test_tasks_have_their_served_sampling_settings():
    cfg = SampleConfig(temperature=0.5)
    for task in ("segmentation", "depth", "normal", "pose", "detect", "condition"):
        assert served(task, cfg) == SampleConfig(guidance=1.0, image_top_k=200)
    for task in ("edit", "refine"):
        assert served(task, cfg).guidance > 3 and 2000 <= served(task, cfg).image_top_k <= 4000
    assert all(served(task, cfg).guidance == 1 for task in ("describe", "question", "text"))


def test_generate_and_chat_are_sampled_by_the_model_s_own_settings_which_are_the_table_s_by_default():
    own = SampleConfig(guidance=2.0, temperature=0.5, image_top_k=9, text_top_k=1, min_p=0.1)
    for task in OWN_SETTINGS:
        row, default = TASKS[task], SampleConfig()
        assert served(task, own) == own
        for name in ("guidance", "temperature", "image_top_k", "text_top_k"):
            assert getattr(row, name) == getattr(default, name)
    assert served("edit", own).min_p == 0.1


def test_every_number_of_the_table_has_a_source():
    assert all("original" in task.source or "authors" in task.source for task in TASKS.values())


@pytest.mark.smoke
@pytest.mark.parametrize("answer", ["<|image|>", "Sure, here it is: <|image|>"])
def test_drop_context_leaves_the_bare_image(answer, vocab):
    codes = grid(vocab)
    tokens, learn = drop_context(*tokenize([("Hi", "Hello"), ("Draw", answer)], [codes], vocab), vocab)
    assert (tokens == layout.encode_grid(codes, vocab)).all()
    assert learn.all() and learn.shape == tokens.shape and learn.dtype == bool


@pytest.mark.parametrize(
    ("turns", "images"),
    [
        ([("Hi", "Hello")], 0),
        ([("What is <|image|>?", "A cat")], 1),
        ([("Draw", "<|image|> there")], 1),
        ([("Edit <|image|>", "<|image|>")], 2),
        ([("Draw", "<|image|>"), ("Good", "Thanks")], 1),
        ([("Look: <|image|>", None)], 1),
    ],
)
def test_drop_context_leaves_other_samples_alone(turns, images, vocab):
    before = tokenize(turns, [grid(vocab)] * images, vocab)
    after = drop_context(*before, vocab)
    assert all((a == b).all() for a, b in zip(before, after, strict=True)) and len(after[0]) == len(before[0])

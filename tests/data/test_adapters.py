"""Every published form of records reads like Lumina's own form."""

import csv
import json

import numpy as np
import pytest
from data_parts import noise

from lumina_jax import layout
from lumina_jax.conversation import tokenize
from lumina_jax.data.sources import open_source
from lumina_jax.errors import InputError
from lumina_jax.vocab import IMAGE_SYMBOL

OPENHERMES = [
    {
        "custom_instruction": None,
        "topic": None,
        "model_name": "gpt-4",
        "system_prompt": None,
        "source": "glaive",
        "conversations": [
            {"from": "system", "value": "You are a calculator.", "weight": None},
            {"from": "human", "value": "2+2?", "weight": None},
            {"from": "gpt", "value": "4", "weight": None},
            {"from": "human", "value": "And <|image|>?", "weight": None},
            {"from": "gpt", "value": "That is no number.", "weight": None},
        ],
    },
    {"source": "airoboros2.2", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {
        "conversations": [
            {"from": "system", "value": " "},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Yo"},
        ]
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "system", "value": "x"}]},
    {"conversations": [{"from": "system", "value": "alone"}]},
    {"conversations": "none"},
]
MINI_GEMINI = [
    {
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
            {"from": "gpt", "value": "White and red. In HTML one writes <image>, or <|image|>."},
            {"from": "human", "value": "Where is it?"},
            {"from": "gpt", "value": "On the road."},
        ],
    },
    {
        "id": "wgByO4Y_0",
        "conversations": [{"from": "human", "value": "What is <image>?"}, {"from": "gpt", "value": "A tag."}],
    },
    {
        "id": "end",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": [
            {"from": "human", "value": "Describe <|image|>.\n<image>"},
            {"from": "gpt", "value": "A bus."},
        ],
    },
    {
        "id": "unplaced",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": "A bus."}],
    },
    {
        "id": "two places",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "A bus."}],
    },
]


def picture(path, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(size, 0).save(path)


@pytest.mark.parametrize("lines", [False, True])
def test_openhermes(tmp_path, lines, vocab):
    path = tmp_path / "openhermes2_5.json"
    path.write_text("\n".join(map(json.dumps, OPENHERMES)) if lines else json.dumps(OPENHERMES, indent=2))
    source = open_source(f"openhermes:{path}")
    turns = source[0].turns
    assert turns[0] == ("You are a calculator.\n\n2+2?", "4") and turns[1][1] == "That is no number."
    text = vocab.decode(tokenize(turns, [], vocab)[0])
    assert "And <|image|>?" in text
    assert [source[i].turns for i in (1, 2)] == [[("Hi", "Hello")], [("Hi", "Yo")]]
    for index, reason in {3: "message 1 is from 'system'", 4: "at least one message", 5: "not a list"}.items():
        with pytest.raises(ValueError, match=reason):
            source[index]


def test_mini_gemini_puts_each_image_where_its_symbol_is(tmp_path, vocab):
    picture(tmp_path / "MGM-Finetune" / "coco" / "train2017" / "000000033471.jpg")
    path = tmp_path / "mgm_instruction.json"
    path.write_text(json.dumps(MINI_GEMINI))
    source = open_source(f"mini-gemini:{path}@{tmp_path / 'MGM-Finetune'}")
    grid = np.zeros((2, 2), np.int32)
    image = layout.encode_grid(grid, vocab).tolist()
    ends = [vocab.end_of_turn]

    tokens, learn = tokenize(source[0].turns, [grid], vocab)
    answer = vocab.encode_literally("White and red. In HTML one writes <image>, or <|image|>.")
    assert tokens[learn].tolist() == [*answer, *ends, *vocab.encode("On the road."), *ends]
    question = vocab.encode("\nWhat are the colors of the bus?")
    assert tokens[1 : 1 + len(image) + len(question)].tolist() == [*image, *question]

    assert not source[1].images and source[1].turns == [("What is <image>?", "A tag.")]
    tokens, learn = tokenize(source[2].turns, [grid], vocab)
    assert tokens[~learn].tolist() == [vocab.bos, *vocab.encode_literally("Describe <|image|>.\n"), *image, *ends]
    assert len(source[3].images) == 1 and source[3].turns == [("Describe it.", "A bus.")]
    with pytest.raises(ValueError, match=r"2 <\|image\|>, but 1 image"):
        source[4]


def test_mini_gemini_without_a_folder_of_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="mini-gemini:FILE@IMAGES"):
        open_source(f"mini-gemini:{tmp_path}/x.json")


@pytest.mark.parametrize(
    "item",
    [
        {"id": "004539375", "image": "x/a.png", "caption": "a dog", "url": "http://none"},
        {"img_path": "./x/a.png", "prompt": "a dog", "Task2": {"Caption": "other"}},
        {"URL": "x/a.png", "TEXT": "a dog", "WIDTH": 5},
        {"image_path": "x/a.png", "captions": ["a dog", "a cat"]},
    ],
)
def test_pairs_have_any_of_many_key_names(tmp_path, item):
    picture(tmp_path / "images" / "x" / "a.png")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(item) + "\n")
    (record,) = [open_source(f"pairs:{tmp_path}/pairs.jsonl@{tmp_path}/images")[0]]
    assert record.caption == "a dog" and record.images[0].size == (12, 8)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"image": "a.png", "Image": "b.png", "caption": "x"}, "the key 'image' stands twice"),
        ({"url": "a.png", "Image Path": 5, "caption": "x"}, "JSON int, neither a path"),
        ({"image": "a.png", "caption": [["x"]]}, "JSON list, not a text"),
        ({"image": "a.png", "caption": []}, "JSON list, not a text"),
        ({"image": "a.png", "caption": None, "title": None}, "neither 'conversations' nor 'caption'"),
        ({"conversations": [{"from": {}, "value": "x"}]}, "message 0 is from {}"),
        (7, "the record is a JSON int"),
    ],
)
def test_a_pair_of_an_odd_form_is_refused_with_a_reason(tmp_path, item, reason):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(item))
    with pytest.raises(InputError, match=rf"pairs\.jsonl, record 0: .*{reason}"):
        open_source(f"pairs:{tmp_path}/pairs.jsonl")[0]


def test_null_counts_as_absent(tmp_path):
    picture(tmp_path / "a.png")
    items = [
        {"conversations": None, "image": "a.png", "caption": "x"},
        {"image": "a.png", "caption": None, "text": "x"},
        {"image": None, "url": "a.png", "caption": None, "prompt": "x"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, items)))
    assert [open_source(f"pairs:{tmp_path}/a.jsonl")[index].caption for index in range(3)] == ["x"] * 3
    assert [open_source(f"{tmp_path}/a.jsonl")[index].caption for index in range(2)] == ["x"] * 2


def test_a_system_message_that_is_no_text_is_not_dropped(tmp_path):
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
    systems = [5, ["Be brief."], {"text": "Be brief."}]
    items = [{"conversations": [{"from": "system", "value": system}, *talk]} for system in systems]
    (tmp_path / "a.json").write_text(json.dumps(items))
    source = open_source(f"openhermes:{tmp_path}/a.json")
    for index in range(len(source)):
        with pytest.raises(InputError, match="message 0 is from 'system'"):
            source[index]


@pytest.mark.parametrize(("suffix", "header"), [("csv", True), ("tsv", True), ("tsv", False)])
def test_pairs_in_tables(tmp_path, suffix, header):
    picture(tmp_path / "a.png")
    path = tmp_path / f"pairs.{suffix}"
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
        rows.writerows(
            [["Caption", "URL"]] * header + [['a "dög",\nsitting', "a.png"], ["b", "none.png"], ["", "a.png"]]
        )
    with open(path, "ab") as file:
        separator = b"\t" if suffix == "tsv" else b","
        file.write(b"\xff" + separator + b"a.png\nshort\n")
    source = open_source(f"pairs:{path}@quoted=yes")
    assert len(source) == 5 and source[0].caption == 'a "dög",\nsitting' and source[0].images[0].size == (12, 8)
    reasons = {
        1: r"none\.png: No such file",
        2: "the caption is empty",
        3: "byte 0xff at offset .* is no UTF-8",
        4: "1 fields, the header 2",
    }
    for index, reason in reasons.items():
        with pytest.raises((ValueError, OSError), match=reason):
            source[index]


def test_a_table_must_name_its_image_and_caption_columns(tmp_path):
    (tmp_path / "a.csv").write_text("image,size,colour\n")
    with pytest.raises(ValueError, match=r"a\.csv: the header image, size, colour must name"):
        open_source(f"{tmp_path}/a.csv")


@pytest.mark.parametrize("spec", ["nothing", "s3x:abc", "x.parquet"])
def test_an_unknown_kind_is_an_error_that_lists_the_known_ones(spec):
    with pytest.raises(
        ValueError, match=r"\.jsonl.*folder:\.\.\., tfds:\.\.\., webdataset:\.\.\., parquet:\.\.\., pairs"
    ):
        open_source(spec)


def test_a_kind_without_a_path_is_an_error_that_shows_its_form():
    with pytest.raises(ValueError, match=r"webdataset: names no file or folder; .* as webdataset:PATH"):
        open_source("webdataset:")


def test_a_bare_folder_is_an_error_that_shows_its_spec(tmp_path):
    with pytest.raises(ValueError, match=rf"folder:{tmp_path}"):
        open_source(str(tmp_path))


def test_lumina_s_own_files_need_no_kind(tmp_path):
    picture(tmp_path / "a.png")
    item = {
        "conversations": [{"from": "human", "value": IMAGE_SYMBOL}, {"from": "gpt", "value": "x"}],
        "image": "a.png",
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(item))
    assert open_source(f"{tmp_path}/a.jsonl")[0].turns == [(IMAGE_SYMBOL, "x")]

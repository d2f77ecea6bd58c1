"""Laws of JSON records: every published form reads alike, every bad record has a reason."""

import json

import pytest
from data_parts import noise
from PIL import Image

from lumina_jax.conversation import image_prompt
from lumina_jax.data.sources import JsonSource, Record
from lumina_jax.data.sources.json_spans import index_lines
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.vocab import IMAGE_SYMBOL

TURNS = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A dög."}]


@pytest.fixture
def folder(tmp_path):
    noise((12, 8), 0).save(tmp_path / "a.png")
    noise((6, 10), 1).save(tmp_path / "b.png")
    return tmp_path


def write(path, items, lines=True):
    text = "".join(json.dumps(item) + "\n" for item in items) if lines else json.dumps(items, indent=1)
    path.write_text(text)
    return JsonSource(path)


@pytest.mark.smoke
@pytest.mark.parametrize("lines", [True, False])
def test_a_list_and_lines_hold_the_same_records(folder, lines):
    items = [
        {"conversations": TURNS, "image": "a.png"},
        {"conversations": TURNS, IMAGE_SYMBOL: ["a.png", str(folder / "b.png")]},
        {"conversations": [TURNS[0], {"from": "assistant", "value": "Yes."}, TURNS[0]], "image": None},
        {"image": "b.png", "caption": "two"},
        {"image": "b.png", "text": "three"},
    ]
    source = write(folder / "data", items, lines)
    records = [source[i] for i in range(len(source))]
    assert [r.turns for r in records] == [
        [("What is it?", "A dög.")],
        [("What is it?", "A dög.")],
        [("What is it?", "Yes."), ("What is it?", None)],
        [],
        [],
    ]
    assert [[image.size for image in r.images] for r in records] == [
        [(12, 8)],
        [(12, 8), (6, 10)],
        [],
        [(6, 10)],
        [(6, 10)],
    ]
    assert [r.caption for r in records] == [None, None, None, "two", "three"]


def test_a_caption_asks_for_the_size_of_its_crop():
    record = Record([], [noise((50, 50), 0)], caption="a dog")
    assert record.conversation([(32, 16)]) == [(image_prompt(32, 16, "a dog"), IMAGE_SYMBOL)]


def test_a_caption_needs_exactly_one_image():
    with pytest.raises(ValueError, match="one image and no turns, not 0 and 0"):
        Record([], [], caption="a dog")


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("text", ["{}\n{ }\n", "{}\n \n\t\r\n\n{ }\n ", '\ufeff{}\r\n{"a": "b"}\r\n'])
def test_lines_with_any_line_ending_are_found(tmp_path, text, chunk):
    path = tmp_path / "lines.jsonl"
    path.write_text(text, encoding="utf-8", newline="")
    file = TextFile(str(path))
    spans, _ = index_lines(file, chunk)
    assert [json.loads(file.read(a, b)) for a, b in spans] == [
        json.loads(line) for line in text.removeprefix("\ufeff").splitlines() if line.strip()
    ]


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    assert len(JsonSource(tmp_path / "empty.jsonl")) == 0


def test_the_fingerprint_follows_the_content(folder):
    first = write(folder / "1.jsonl", [{"image": "a.png", "caption": "x"}]).fingerprint
    assert write(folder / "2.jsonl", [{"image": "a.png", "caption": "x"}]).fingerprint == first
    assert write(folder / "2.jsonl", [{"image": "a.png", "caption": "y"}]).fingerprint != first


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (7, "JSON int, not an object"),
        ({"image": "a.png"}, "neither 'conversations' nor 'caption'"),
        ({"image": "a.png", "caption": None}, "neither 'conversations' nor 'caption', only"),
        ({"image": "a.png", "caption": "\ud83d"}, "half a surrogate pair"),
        ({"image": "none.png", "caption": "x"}, "none.png: No such file"),
        ({"image": "data", "caption": "x"}, r"data: no image that Pillow can read; its first bytes are 7b 22"),
        ({"image": [3], "caption": "x"}, "neither a path nor a list of paths"),
        ({"image": "a.png", IMAGE_SYMBOL: "a.png", "caption": "x"}, "both 'image' and"),
        ({"conversations": []}, "at least one message"),
        ({"conversations": ["hi"]}, "message 0 of the conversation is not an object"),
        ({"conversations": [TURNS[1]]}, "message 0 is from 'gpt'"),
        ({"conversations": [TURNS[0], TURNS[0]]}, "message 1 is from 'human'"),
        ({"conversations": [{"from": "human"}]}, "the value of message 0"),
        ({"conversations": [TURNS[0], {"from": "gpt", "value": None}, *TURNS]}, "the value of message 1"),
    ],
)
def test_a_bad_record_has_a_reason_and_spares_the_others(folder, item, reason):
    source = write(folder / "data", [item, {"image": "a.png", "caption": "good"}])
    with pytest.raises((ValueError, OSError), match=reason):
        source[0]
    assert source[1].caption == "good"


def test_text_that_is_no_json_is_a_bad_record(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(b'{"caption": \n{"caption": "\xff"}\n')
    source = JsonSource(tmp_path / "data.jsonl")
    for index in range(2):
        with pytest.raises(ValueError):
            source[index]


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp", "tiff"])
def test_images_are_whole_or_an_error(tmp_path, kind):
    path = tmp_path / f"image.{kind}"
    noise((64, 64), 0).save(path)
    source = write(tmp_path / "data.jsonl", [{"image": path.name, "caption": "x"}])
    assert source[0].images[0].resize((8, 8)).size == (8, 8)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((ValueError, OSError), match="image"):
        source[0]


def test_a_decompression_bomb_is_a_bad_record(tmp_path, monkeypatch):
    noise((64, 64), 0).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="decompression bomb"):
        write(tmp_path / "data.jsonl", [{"image": "a.png", "caption": "x"}])[0]


def test_a_broken_list_or_a_missing_file_fails_at_once(tmp_path):
    (tmp_path / "data.json").write_text('[{"caption": ')
    with pytest.raises(ValueError, match="begins like a JSON list"):
        JsonSource(tmp_path / "data.json")
    with pytest.raises(FileNotFoundError, match="a JSON list or a JSONL file"):
        JsonSource(tmp_path / "none.json")

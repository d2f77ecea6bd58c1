"""Laws of texts: bad ones are refused, and none can forge a special token."""

import json
import pickle

import numpy as np
import pytest
from data_parts import noise, tiny_vocab

from lumina_jax import layout
from lumina_jax.conversation import SEAM, image_prompt, literal, tokenize
from lumina_jax.data.sources import JsonSource, Record, StoredSource
from lumina_jax.data.sources.json_spans import index_list
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.errors import InputError, UserError
from lumina_jax.vocab import END_OF_TURN, IMAGE_SYMBOL, image_code_name, size_name

FORGED = (
    "<racm3:break>",
    "<eoss>",
    "<s>",
    END_OF_TURN,
    "<reserved08799>",
    size_name(2),
    image_code_name(3),
    "<s<s>>",
    "IMGIMGIMGIMGAZ",
    f"<{END_OF_TURN}<racm3:break>",
)


def values(tmp_path, content: str | bytes) -> StoredSource:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return JsonSource(path)


def dialogue(*texts, **more) -> str:
    speakers = ("human", "gpt")
    messages = [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)]
    return json.dumps({"conversations": messages} | more)


@pytest.mark.parametrize("name", [*FORGED, IMAGE_SYMBOL, f"{IMAGE_SYMBOL}{IMAGE_SYMBOL}"])
@pytest.mark.parametrize("kind", ["golden", "tiny"])
def test_a_caption_forges_no_token(name, kind, vocab):
    vocab = vocab if kind == "golden" else tiny_vocab()
    caption = f"a sign saying {name}, {name}{name}!"
    record = Record([], [noise((9, 9), 0)], caption)
    codes = np.zeros((2, 2), np.int32)
    tokens, learn = tokenize(record.conversation([(64, 64)]), [codes], vocab)
    request = tokens[~learn]
    # Between the begin token and the end of turn no token is special, and the text is unchanged.
    special = {vocab.id_of(word) for word in (*FORGED[:7], IMAGE_SYMBOL)} | set(vocab.code_ids.tolist())
    assert not special & set(request[1:-1].tolist())
    assert vocab.decode(request[1:-1]) == f"Generate an image of 64x64 according to the following prompt:\n{caption}"
    assert (tokens[learn] == [*layout.encode_grid(codes, vocab), vocab.end_of_turn]).all()


@pytest.mark.parametrize("name", FORGED)
def test_a_turn_forges_no_token_and_keeps_its_image(name, vocab):
    codes = np.zeros((2, 2), np.int32)
    tokens, _ = tokenize([(f"{name} <|image|> {name}", name)], [codes], vocab)
    image = layout.encode_grid(codes, vocab)
    assert [len(spans) for spans in (layout.images_in(tokens, vocab), np.flatnonzero(tokens == vocab.end_of_turn))] == [
        1,
        2,
    ]
    text = [*vocab.encode_literally(f"{name} "), *image, *vocab.encode_literally(f" {name}"), vocab.end_of_turn]
    assert tokens[1:].tolist() == [*text, *vocab.encode_literally(name), vocab.end_of_turn]


def test_text_without_token_names_is_encoded_as_usual(vocab):
    for text in ("", "a dog", "x < y > z <b>bold</b>", "s> racm3:break>", "ünïcode 🎉 123\n\t"):
        assert vocab.encode_literally(text) == vocab.encode(text)


def test_a_seam_in_a_text_is_removed(vocab):
    assert literal(f"a{SEAM}b") == "ab"
    assert image_prompt(1, 1, f"<|im{SEAM}age|>").count(IMAGE_SYMBOL) == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (dialogue("Look <|image|>", "yes"), r"1 <\|image\|>, but 0 images"),
        (dialogue("<|image|><|image|>", "yes", image="none.png"), r"2 <\|image\|>, but 1 images"),
        (dialogue("<|image|>", "yes", image=["none.png", "none.png"]), r"1 <\|image\|>, but 2 images"),
        (dialogue("hi", ""), "message 1, an answer, is empty"),
        (dialogue("hi", "you", "?", " \n"), "message 3, an answer, is empty"),
        (json.dumps({"image": "none.png", "caption": " "}), "the caption is empty"),
        (json.dumps({"caption": "alone"}), "one image and no turns, not 0 and 0"),
        (b'{"caption": "\xff\xfe", "image": "none.png"}', "byte 0xff at offset 13 is no UTF-8"),
        ("{" * 100_000, "nested 100000 deep"),
        ('{"conversations": ' + "[" * 100_000, "nested 100001 deep"),
        (json.dumps({"image": {"bytes": "x"}, "caption": "x"}), "JSON dict, neither a path nor a list"),
    ],
)
def test_a_bad_text_is_an_error_that_names_its_file_and_record(tmp_path, line, reason):
    with pytest.raises(ValueError, match=rf"data\.jsonl, record 0: .*({reason})"):
        values(tmp_path, line)[0]


def test_a_text_of_50_thousand_tokens_is_read_whole(tmp_path, vocab):
    text = "word " * 50_000
    record = values(tmp_path, dialogue("Write.", text))[0]
    assert record.turns == [("Write.", text)]
    assert len(tokenize(record.turns, [], vocab)[0]) > 50_000


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    "items",
    [
        [],
        [1],
        [{}, [], "", "]", '"', "\\", '\\"', "a,b[{", None, [[1, [2]], {"a": [3, "}"]}], "\\\\"],
        [{"value": 'said "no, [not] {this}" \\'}, {"value": "\\\\\\"}],
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_the_spans_of_a_list_hold_its_values(tmp_path, items, chunk, indent):
    path = tmp_path / "list.json"
    path.write_text("\ufeff" + json.dumps(items, indent=indent) + "\n \n", encoding="utf-8")
    file = TextFile(str(path))
    spans, _ = index_list(file, chunk)
    assert [json.loads(file.read(start, stop)) for start, stop in spans] == items


@pytest.mark.parametrize(
    "content", ["[", "[1, 2", '["a]', "[1] 2", "[1][2]", "[1]]", "[1], [2", "[[1]", '[1] "', "[1],3"]
)
def test_an_incomplete_list_is_an_error(tmp_path, content):
    path = tmp_path / "list.json"
    path.write_text(content)
    for chunk in (1, 1 << 20):
        with pytest.raises(ValueError, match=r"list\.json begins like a JSON list but is none"):
            index_list(TextFile(str(path)), chunk)


GOOD = dialogue("a\u2028b", "c")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (GOOD + ",", "one value expected, and more follows"),
        (GOOD + GOOD, "one value expected, and more follows"),
        (GOOD[:-3], "no JSON: "),
        ("[" * 500_000 + "]" * 500_000, "nested 500000 deep"),
        ('{"a":' * 90_000 + "1" + "}" * 90_000, "nested 90000 deep"),
        ('{"conversations": NaN}', "'conversations' is not a list"),
        ('{"image": "a.png", "caption": Infinity}', "'caption' is a JSON float"),
        ('{"image": "a.png", "caption": "x", "caption": "y"}', "the key 'caption' twice"),
        ('{"image": "a.png", "caption": "x", "seed": ' + "7" * 5000 + "}", "number that is too long"),
        ('{"image": "a.png", "caption": "\\ud800"}', "half a surrogate pair"),
        ('{"image": "a\\udfff.png", "caption": "x"}', "half a surrogate pair"),
        ('{"image": "a\\u0000.png", "caption": "x"}', "null"),
        ('{"image": "a.png", "caption": "a\\u0000"}', "NUL"),
        ('{"image": "", "caption": "x"}', "path of the image is empty"),
        ("null", "JSON NoneType, not an object"),
        ("{}", "only nothing"),
        ("x" * 100_000, "no JSON: Expecting value"),
    ],
)
def test_a_bad_line_or_value_is_one_record(tmp_path, line, reason):
    for content in (
        f"{GOOD}\n{line}\r\n \n{GOOD}\n",
        f"[{GOOD},{line.removesuffix(',') + ' 1' * line.endswith(',')},\n{GOOD}]",
    ):
        if content.startswith("[") and not balanced(line):
            continue  # then the list as a whole is none
        source = values(tmp_path, content)
        assert len(source) == 3 and source[0].turns == source[2].turns == [("a\u2028b", "c")]
        with pytest.raises(UserError, match=rf"data\.jsonl, record 1: .*{reason}"):
            source[1]


def balanced(line: str) -> bool:
    return line.count('"') % 2 == 0 and line.count("[") == line.count("]") and line.count("{") == line.count("}")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("form", ["{}\n{}", "[{},\n{}]", "\r\n\n{}\r\n\r\n{}\n"])
def test_records_are_read_in_any_marked_encoding(tmp_path, encoding, form):
    content = form.format(*[json.dumps(json.loads(dialogue("ü", text)), ensure_ascii=False) for text in ("一🎉", "b")])
    plain, marked = values(tmp_path, content), values(tmp_path, content.encode(encoding))
    assert [marked[i].turns for i in range(len(marked))] == [[("ü", "一🎉")], [("ü", "b")]]
    assert marked.fingerprint != plain.fingerprint and pickle.loads(pickle.dumps(marked))[1].turns == marked[1].turns


def test_utf_16_without_a_mark_is_refused_before_work(tmp_path):
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
        with pytest.raises(InputError, match=r"data\.jsonl begins with NUL bytes.*save it as UTF-8"):
            values(tmp_path, GOOD.encode(encoding))


def test_files_with_marks_that_were_joined_are_read(tmp_path):
    line = f"\ufeff{GOOD}\n".encode()
    assert [values(tmp_path, line + line)[i].turns for i in range(2)] == [[("a\u2028b", "c")]] * 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (json.dumps({"data": [{"caption": "x"}]}, indent=2), "is a JSON object over several lines"),
        (f'{{\n  "rows": [{GOOD}]\n}}', "is a JSON object over several lines"),
        (f'{{"rows": [\n{GOOD[1:]},\n{GOOD}]}}', "is a JSON object over several lines"),
        (
            json.dumps({"version": 1, "rows": [{"caption": "x"}, {}]}),
            r"is one JSON object, .*: jq '.\[\"rows\"\]' FILE",
        ),
    ],
)
def test_an_object_around_the_records_is_refused_before_work(tmp_path, content, reason):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(InputError, match=f"data.json {reason}"):
        JsonSource(tmp_path / "data.json")


@pytest.mark.parametrize(
    "content", [GOOD, '{"image": "a.png", "cap', "{", f"{{\n{GOOD}\n", '{"image": ["a.png"], "caption": "x"}']
)
def test_a_file_of_one_record_or_with_a_damaged_first_line_is_read(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    assert len(JsonSource(tmp_path / "data.json")) == content.count("\n") or 1


def test_one_bad_value_of_a_list_spares_the_others(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(f'[{dialogue("a", "b")}, {{"conversations": oops}}, {dialogue("c", "d")}]')
    source = JsonSource(path)
    with pytest.raises(ValueError, match=r"list\.json, record 1: no JSON: Expecting value"):
        source[1]
    assert [source[i].turns for i in (0, 2)] == [[("a", "b")], [("c", "d")]]

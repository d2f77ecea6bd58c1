"""The corpus of records in text: 1,600 seeded records of every text source, each with its right answer, none of them wrong."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from data_parts import noise
from record_corpus import PICTURE, SEED, Answer, Kept, Rejected, caption, wrong_answers

from lumina_jax.conversation import literal
from lumina_jax.data.sources import open_source
from lumina_jax.vocab import IMAGE_SYMBOL

RECORDS = 200
"""Of each kind of source."""
Written = tuple[str, Answer]
"""A record as it stands in the file, and what reading it must give."""


def dumps(value: object, rng: np.random.Generator) -> str:
    return json.dumps(value, ensure_ascii=bool(rng.integers(2)))


def messages(*texts: object) -> list[dict[str, object]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def plain(rng: np.random.Generator) -> str:
    """A caption without the symbols of an image."""
    return caption(rng).replace(IMAGE_SYMBOL, "it").replace("<image>", "it")


def good_pair(rng: np.random.Generator, keys: Sequence[tuple[str, str]] = (("image", "caption"),)) -> Written:
    (image, text), seed, words = keys[rng.integers(len(keys))], int(rng.integers(8)), caption(rng)
    item = {image: f"{seed}.png", text: words, "width": 5, "note": [None, {"a": 2**70}]}
    return dumps(item, rng), Kept(words, pictures=(seed,))


def good_dialogue(rng: np.random.Generator) -> Written:
    texts = [plain(rng) for _ in range(2 * rng.integers(1, 4))]
    seeds = tuple(map(int, rng.integers(8, size=rng.integers(3))))
    texts[0] += IMAGE_SYMBOL * len(seeds) * int(rng.integers(2))
    item = {"conversations": messages(*texts)} | ({"image": [f"{seed}.png" for seed in seeds]} if seeds else {})
    return dumps(item, rng), Kept(turns=tuple(zip(texts[::2], texts[1::2], strict=True)), pictures=seeds)


def bad_value(rng: np.random.Generator) -> Written:
    """A JSON value that is no record of any kind."""
    picture = {"image": f"{rng.integers(8)}.png"}
    values = [
        (7, "JSON int, not an object"),
        (None, "JSON NoneType, not an object"),
        ([picture], "JSON list, not an object"),
        (picture, "neither 'conversations' nor 'caption'"),
        (picture | {"caption": " \n"}, "caption is empty"),
        (picture | {"caption": 3.5}, "JSON float, not a text"),
        (picture | {"caption": {"en": "a"}}, "JSON dict, not a text"),
        (picture | {"caption": "a\0b"}, "NUL"),
        (picture | {"caption": "a\ud83d"}, "half a surrogate pair"),
        ({"image": "none.png", "caption": "x"}, "No such file"),
        ({"image": "", "caption": "x"}, "path of the image is empty"),
        ({"image": {"bytes": "x"}, "caption": "x"}, "neither a path nor a list of paths"),
        ({"image": [], "caption": "x"}, "one image and no turns, not 0"),
        ({"caption": "x"}, "one image and no turns, not 0"),
        ({"image": ["0.png", "1.png"], "caption": "x"}, "one image and no turns, not 2"),
        ({"image": "broken.png", "caption": "x"}, "broken.png"),
    ]
    value, reason = values[rng.integers(len(values))]
    return json.dumps(value), Rejected(reason)


def bad_dialogue(rng: np.random.Generator) -> Written:
    words = plain(rng)
    values = [
        ({"conversations": messages(words, " ")}, "message 1, an answer, is empty"),
        ({"conversations": messages(words, None, words)}, "value of message 1"),
        ({"conversations": messages(words, 5)}, "JSON int, not a text"),
        ({"conversations": []}, "at least one message"),
        ({"conversations": {"from": "human"}}, "not a list"),
        ({"conversations": [words]}, "message 0 of the conversation is not an object"),
        ({"conversations": messages(words, words)[1:]}, "message 0 is from 'gpt'"),
        ({"conversations": messages(words) * 2}, "message 1 is from 'human'"),
        ({"conversations": [{"from": ["human"], "value": words}]}, "message 0 is from"),
        (
            {"conversations": [{"from": "system", "value": ["x"]}, *messages(words, words)]},
            "message 0 is from 'system'",
        ),
    ]
    value, reason = values[rng.integers(len(values))]
    return json.dumps(value), Rejected(reason)


def bad_json(rng: np.random.Generator) -> Written:
    """A line that is no JSON value."""
    good, _ = good_pair(rng)
    lines = [
        (good + ",", "more follows"),
        (good + good, "more follows"),
        (good[: rng.integers(1, len(good))], "no JSON"),
        (good[:-1] + ', "width": 6}', "the key 'width' twice"),
        ('{"a":' * 2000, "nested 2000 deep"),
        ("9" * 5000, "number that is too long"),
        ("NaN", "JSON float, not an object"),
        (caption(rng).replace('"', ""), "no JSON|JSON int"),
    ]
    line, reason = lines[rng.integers(len(lines))]
    return line, Rejected(reason)


def drawn(rng: np.random.Generator, *makers: Callable[[np.random.Generator], Written]) -> list[Written]:
    return [makers[rng.integers(len(makers))](rng) for _ in range(RECORDS)]


def write_lines(path: Path, written: list[Written], rng: np.random.Generator) -> None:
    """JSON Lines with blank lines and both line ends among them, in one of the encodings that have a mark, or in UTF-8."""
    ends = rng.choice(["\n", "\r\n", "\n\n", "\n \t\r\n"], len(written))
    text = "".join(line + end for (line, _), end in zip(written, ends, strict=True))
    path.write_bytes(text.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32"])))


def write_list(path: Path, written: list[Written], rng: np.random.Generator) -> None:
    path.write_text("[" + ",\n ".join(line for line, _ in written) + "]\n", "utf-8", newline="")


def json_list(path: Path, rng: np.random.Generator) -> list[Written]:
    written = drawn(rng, good_pair, good_dialogue, bad_value, bad_dialogue)
    write_list(path / "t.json", written, rng)
    return written


def json_lines(path: Path, rng: np.random.Generator) -> list[Written]:
    written = drawn(rng, good_pair, good_dialogue, bad_value, bad_dialogue, bad_json)
    write_lines(path / "t.jsonl", written, rng)
    return written


def pairs(path: Path, rng: np.random.Generator) -> list[Written]:
    keys = [("img_path", "prompt"), ("URL", "TEXT"), ("file_name", "caption"), ("Image Path", "Title"), ("jpg", "txt")]
    written = drawn(rng, lambda rng: good_pair(rng, keys), good_dialogue, bad_value, bad_json)
    write_lines(path / "t.jsonl", written, rng)
    return written


def openhermes(path: Path, rng: np.random.Generator) -> list[Written]:
    def good(rng: np.random.Generator) -> Written:
        system, *texts = [caption(rng) for _ in range(5)]
        first = {"from": "system", "value": rng.choice([system, "", " "])} if rng.integers(2) else None
        item = {"conversations": [first] * (first is not None) + messages(*texts), "source": None}
        turns = [literal(text) for text in texts]
        if first and first["value"].strip():
            turns[0] = f"{literal(system)}\n\n{turns[0]}"
        return dumps(item, rng), Kept(turns=tuple(zip(turns[::2], turns[1::2], strict=True)))

    written = drawn(rng, good, bad_dialogue, bad_json)
    write_lines(path / "t.json", written, rng)
    return written


def llava(path: Path, rng: np.random.Generator) -> list[Written]:
    def good(rng: np.random.Generator) -> Written:
        question, answer, seed = caption(rng).replace("<image>", "it"), caption(rng), int(rng.integers(8))
        item = {"id": 1, "image": f"{seed}.png", "conversations": messages(f"<image>\n{question}", answer)}
        turns = ((f"{IMAGE_SYMBOL}\n{literal(question)}", literal(answer)),)
        return dumps(item, rng), Kept(turns=turns, pictures=(seed,))

    def two_places(rng: np.random.Generator) -> Written:
        item = {"image": "1.png", "conversations": messages("<image><image>", "x")}
        return dumps(item, rng), Rejected("2 <|image|>, but 1 images".replace("|", r"\|"))

    written = drawn(rng, good, two_places, bad_dialogue)
    write_list(path / "t.json", written, rng)
    return written


def row(rng: np.random.Generator, delimiter: str, quoted: bool) -> Written:
    """A row of image, caption and a number; the caption of a plain row has no delimiter."""
    seed, words = int(rng.integers(8)), caption(rng, "" if quoted else delimiter)
    if quoted:
        words = words.replace(" ", rng.choice([" ", "\n", "\r\n", ", "]), 1)
        file = io.StringIO()
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerow([f"{seed}.png", words, 5])
        line = file.getvalue().removesuffix("\n")
    else:
        line = delimiter.join([f"{seed}.png", words, "5"])
    rows = [
        (line, Kept(words, pictures=(seed,))),
        (line, Kept(words, pictures=(seed,))),
        (f"{seed}.png", Rejected("1 fields, the header 3")),
        (f"{line}{delimiter}x{delimiter}y", Rejected("5 fields, the header 3")),
        (delimiter.join([f"{seed}.png", " ", "5"]), Rejected("caption is empty")),
        (delimiter.join(["", "a", "5"]), Rejected("path of the image is empty")),
        (delimiter.join(["none.png", "a", "5"]), Rejected("none.png: No such file")),
        (delimiter.join([f"{seed}.png", "a\0", "5"]), Rejected("NUL")),
        (delimiter.join([f"{seed}.png", "\udcfc", "5"]), Rejected("byte 0xfc .* is no UTF-8")),
    ]
    if quoted:
        rows += [
            (f'{seed}.png{delimiter}"never closed{delimiter}5', Rejected("quotation mark")),
            (f'{seed}.png{delimiter}"closed" too soon{delimiter}5', Rejected("quotation mark")),
            (f'{seed}.png{delimiter}a 5" nail{delimiter}5', Kept('a 5" nail', pictures=(seed,))),
        ]
    else:
        rows.append((f'{seed}.png{delimiter}"a{delimiter}5', Kept('"a', pictures=(seed,))))
    return rows[rng.integers(len(rows))]


def table(path: Path, rng: np.random.Generator, suffix: str, delimiter: str) -> list[Written]:
    written = [row(rng, delimiter, suffix == "csv") for _ in range(RECORDS)]
    text = delimiter.join(["Image", "caption", "n"]) + "\n" + "".join(f"{line}\n" for line, _ in written)
    (path / f"t.{suffix}").write_bytes(text.encode("utf-8", "surrogateescape"))
    return written


@pytest.mark.parametrize(
    ("spec", "make"),
    [
        ("{}/t.json", json_list),
        ("{}/t.jsonl", json_lines),
        ("pairs:{}/t.jsonl", pairs),
        ("openhermes:{}/t.json", openhermes),
        ("mini-gemini:{0}/t.json@{0}", llava),
        ("{}/t.csv", lambda path, rng: table(path, rng, "csv", ",")),
        ("pairs:{0}/t.csv@{0}", lambda path, rng: table(path, rng, "csv", ";")),
        ("{}/t.tsv", lambda path, rng: table(path, rng, "tsv", "\t")),
    ],
)
def test_no_answer_is_wrong(tmp_path, spec, make):
    for seed in range(8):
        noise(PICTURE, seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    written = make(tmp_path, np.random.default_rng(SEED))
    wrong = wrong_answers(open_source(spec.format(tmp_path)), [answer for _, answer in written])
    assert not wrong, "\n".join(wrong)

"""Laws of the reader of text: encodings, line ends, and JSON that is refused with a reason."""

import codecs
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_jax.errors import InputError, cause_of
from lumina_jax.text import MAX_DEPTH, checked_text, decode_text, parse_json, split_lines

TEXT = "a dög 🎉\r\nsaid \u2028 “no”\x85\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_text_is_read_in_any_encoding_with_its_mark(mark, encoding):
    assert decode_text(mark + TEXT.encode(encoding), "a.txt") == TEXT
    assert parse_json(mark + json.dumps(TEXT, ensure_ascii=False).encode(encoding)) == TEXT


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a dög".encode("latin-1"), r"a\.txt: byte 0xf6 at offset 3 is no UTF-8; save it as UTF-8"),
        (b"\xef\xbb\xbfab\xff", r"byte 0xff at offset 5 is no UTF-8"),
        ("a dog".encode("utf-16-le"), r"a\.txt begins with NUL .*UTF-16 without a byte-order mark; save it as UTF-8"),
        ("a dog".encode("utf-32-be"), r"UTF-16 without"),
        (codecs.BOM_UTF16_LE + b"a\0b", "byte 0x62 at offset 4 is no UTF-16-LE"),
        ("\ud800".encode("utf-8", "surrogatepass"), "byte 0xed at offset 0"),
    ],
)
def test_bytes_of_another_encoding_are_named(content, reason):
    with pytest.raises(InputError, match=reason) as error:
        decode_text(content, "a.txt")
    assert cause_of(error.value) == "no UTF-8"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\r\nb\n\nc", ["a", "b", "", "c"]),
        ("a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg\rh\n", ["a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg\rh"]),
    ],
)
def test_only_line_ends_end_a_line(text, lines):
    assert split_lines(text) == lines


@given(st.lists(st.text(st.characters(exclude_characters="\n"), min_size=1).filter(lambda line: line[-1] != "\r")))
@settings(max_examples=200, deadline=None)
def test_lines_joined_are_split_again(lines):
    for end in ("\n", "\r\n"):
        assert split_lines("".join(line + end for line in lines)) == lines


@pytest.mark.parametrize(
    ("text", "reason", "cause"),
    [
        ("", r"no JSON: Expecting value \(letter 0: its end\)", "no JSON"),
        ('{"a": 1},', r"one value expected, and more follows \(letter 8: ','\)", "no JSON"),
        ('{"a": 1} {"b": 2}', "more follows", "no JSON"),
        ('{"a": "b', "Unterminated string", "no JSON"),
        ('"a\0b"', "Invalid control character", "no JSON"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' twice", "a JSON key twice"),
        (r'["\ud83d"]', r"half a surrogate pair, \\ud83d", "half a surrogate pair"),
        (r'{"\uDE00": 1}', "half a surrogate pair", "half a surrogate pair"),
        ('"\udc80"', "half a surrogate pair", "half a surrogate pair"),
        ("9" * 5000, "number that is too long", "a number too long"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested {MAX_DEPTH + 1} deep", "JSON nested too deep"),
        ('{"a":' * 1_000_000, "nested 1000000 deep", "JSON nested too deep"),
    ],
)
def test_what_is_no_json_is_refused_with_a_reason(text, reason, cause):
    with pytest.raises(InputError, match=reason) as error:
        parse_json(text)
    assert cause_of(error.value) == cause


def test_json_is_read_as_the_world_writes_it():
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deepest) == json.loads(deepest)
    assert parse_json(json.dumps(["[{" * 500, '\\"[', {}])) == ["[{" * 500, '\\"[', {}]
    assert parse_json(str(2**100)) == 2**100 and parse_json("NaN") != parse_json("NaN")
    assert parse_json(r'"\ud83c\udf89"') == "🎉"
    assert parse_json(b' \r\n{"a": "\xe2\x80\xa8"}\n') == {"a": "\u2028"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)


@given(JSON, st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_value_is_read_back(value, ascii_only):
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize(("value", "reason"), [(1, "JSON int"), (None, "NoneType"), ("a\0", "NUL"), ("\ud800", "half")])
def test_a_text_that_no_tokenizer_takes_is_refused(value, reason):
    with pytest.raises(InputError, match=f"the caption .*{reason}"):
        checked_text(value, "the caption")
    assert checked_text(TEXT, "the caption") is TEXT


def test_reading_does_not_change_the_limits_of_python():
    limit = sys.getrecursionlimit(), sys.get_int_max_str_digits()
    with pytest.raises(InputError):
        parse_json("[" * 10_000)
    assert (sys.getrecursionlimit(), sys.get_int_max_str_digits()) == limit

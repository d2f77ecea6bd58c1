"""Properties of the record parsers, with Python's json and csv as the oracles.

3,000 examples; LUMINA_EXAMPLES=1000000 in the environment draws so many.
"""

import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from lumina_jax.data.sources import JsonSource, adapters
from lumina_jax.data.sources.csv_rows import RowFormat
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.data.sources.json_spans import BLANK, begins_list, index_lines, index_list
from lumina_jax.data.sources.record import StoredRecord, stored_record
from lumina_jax.data.sources.table import TableSource
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.errors import InputError, UserError
from lumina_jax.text import decode_text, parse_json

EXAMPLES = int(os.environ.get("LUMINA_EXAMPLES", "3000"))
PROPERTIES = 10
"""Tests in this file, which share the EXAMPLES."""
CHUNKS = st.sampled_from([7, 1 << 20])
LETTERS = st.characters(codec="utf-8")
TEXT = st.text(LETTERS, max_size=8)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=4
)
KEYS = st.sampled_from(
    [
        "image",
        "<|image|>",
        "caption",
        "text",
        "conversations",
        "from",
        "value",
        "file_name",
        "URL",
        "Caption",
        "images",
        "",
    ]
)
WORDS = st.sampled_from(
    ["human", "gpt", "assistant", "system", "<image>", "<|image|>", "a.png", " ", "a dog", "\ufdd0", "\0"]
)
RECORD = st.recursive(
    WORDS | SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
SPEECH = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system"]), "value": WORDS | RECORD})
DIALOGUE = st.fixed_dictionaries({"conversations": st.lists(SPEECH, max_size=4)}, optional={"image": WORDS | RECORD})
ITEM = RECORD | DIALOGUE | st.dictionaries(KEYS, WORDS, max_size=3)
ADAPTERS = (
    *(adapters.openhermes, adapters.mini_gemini, adapters.dialogue, adapters.pair, adapters.imagefolder),
    lambda item: item,
)


def many(test: Callable) -> Callable:
    """Runs a property on its share of the EXAMPLES."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
    return settings(max_examples=EXAMPLES // PROPERTIES, deadline=None, database=None, suppress_health_check=checks)(
        test
    )


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    """A file that every example overwrites, in memory where the system has such a folder."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder, "data")


def text_file(path: Path, content: str) -> TextFile:
    path.write_bytes(content.encode())
    return TextFile(str(path))


def pieces(text: TextFile, spans) -> list[str]:
    return [text.text(start, stop) for start, stop in spans.tolist()]


def value_or_none(content: str) -> object:
    """What Python's json reads, where :func:`parse_json` must read the same; None where it is no JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


@given(
    values=st.lists(VALUE, max_size=3),
    end=st.sampled_from(["\n", "\r\n", "\n \n", "\n\r\n\t\n"]),
    mark=st.booleans(),
    ascii_only=st.booleans(),
    chunk=CHUNKS,
)
@many
def test_lines_hold_the_values_written_to_them(path, values, end, mark, ascii_only, chunk):
    content = "\ufeff" * mark + "".join(json.dumps(value, ensure_ascii=ascii_only) + end for value in values)
    assume(ascii_only or not content.startswith("\0"))
    text = text_file(path, content)
    assert list(map(parse_json, pieces(text, index_lines(text, chunk)[0]))) == values


@given(content=st.text('{}[]",:\\ \n\r\ta1\u2028é\x85\x0b', min_size=4), chunk=CHUNKS)
@many
def test_every_line_with_a_letter_is_one_piece(path, content, chunk):
    text = text_file(path, content)
    lines = [line for line in content.split("\n") if line.strip(BLANK.decode())]
    assert pieces(text, index_lines(text, chunk)[0]) == lines


@given(values=st.lists(VALUE, max_size=3), indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans(), chunk=CHUNKS)
@many
def test_the_pieces_of_a_list_are_its_values(path, values, indent, ascii_only, chunk):
    text = text_file(path, json.dumps(values, indent=indent, ensure_ascii=ascii_only))
    assert begins_list(text) and list(map(parse_json, pieces(text, index_list(text, chunk)[0]))) == values


@given(content=st.text('[]{},":\\ \n1a', max_size=20).map("[{}]".format), chunk=CHUNKS)
@example(content='["\\\\",1]', chunk=1)
@many
def test_what_is_a_list_for_json_is_one_here(path, content, chunk):
    text = text_file(path, content)
    expected = value_or_none(content)
    try:
        found = pieces(text, index_list(text, chunk)[0])
    except InputError:
        assert expected is None
    else:
        assert expected is None or list(map(value_or_none, found)) == expected


NEXT_FIELD, NEXT_ROW = "\x1e", "\x1d"


def table_of(letters: str, columns: int) -> st.SearchStrategy[list[list[str]]]:
    """Rows of at least ``columns`` fields of ``letters``, drawn as one text, which is much faster than lists of lists."""
    text = st.text(letters + NEXT_FIELD + NEXT_ROW, max_size=16)
    rows = text.map(lambda text: [row.split(NEXT_FIELD) for row in text.split(NEXT_ROW)])
    return rows.map(lambda rows: [row + [""] * (columns - len(row)) for row in rows])


@given(
    rows=table_of(',;\t|"\n\ra é🎉\u2028\x85\x0b\0', 2),
    delimiter=st.sampled_from(",;|"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    chunk=CHUNKS,
)
@many
def test_rows_written_by_csv_are_read_back(path, rows, delimiter, end, quoting, chunk):
    if end == "\n":  # then a carriage return is not quoted by csv, and is part of the line end when it comes last
        rows = [[field.replace("\r", "") for field in row] for row in rows]
    file, form = io.StringIO(), RowFormat(delimiter, quoted=True)
    csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    assume("\0" not in file.getvalue()[:4])
    text = text_file(path, file.getvalue())
    assert [form.fields(row) for row in pieces(text, form.index(text, chunk)[0])] == rows


@given(parts=st.lists(st.sampled_from([",", '"', '""', "\n", "\r\n", "a", " ", "é"]), max_size=16), chunk=CHUNKS)
@example(parts=['"', "\n", ",", '"', "a", "\n"], chunk=1)
@many
def test_no_line_of_a_table_vanishes(path, parts, chunk):
    content, form = "".join(parts), RowFormat(",", quoted=True)
    text = text_file(path, content)
    rows = pieces(text, form.index(text, chunk)[0])
    lines = [line for line in content.split("\n") if line.strip(BLANK.decode())]
    assert [line for row in rows for line in row.split("\n") if line.strip(BLANK.decode())] == lines
    read = []
    for row in rows:
        try:
            read.append(form.fields(row))
        except InputError:
            assert "\n" not in row
            read.append(None)
    try:
        expected = list(csv.reader(io.StringIO(content, newline=""), strict=True))
    except csv.Error:
        return
    assert list(filter(has_fields, read)) == list(filter(has_fields, expected))


def has_fields(row: list[str]) -> bool:
    """Whether a row is more than one blank field, as which Python's csv reads a blank line."""
    return len(row) > 1 or bool("".join(row).strip())


@given(lines=table_of('"ab é\u2028\x85\x0c,', 1), chunk=CHUNKS)
@many
def test_a_line_of_a_tsv_is_a_row(path, lines, chunk):
    form = RowFormat("\t", quoted=False)
    text = text_file(path, "".join("\t".join(line) + "\r\n" for line in lines))
    rows = [form.fields(row) for row in pieces(text, form.index(text, chunk)[0])]
    assert rows == [line for line in lines if "".join(line).strip(" ")]


@given(item=ITEM, adapt=st.sampled_from(ADAPTERS))
@many
def test_a_value_of_any_form_is_a_record_or_refused(item, adapt):
    try:
        record = stored_record(adapt(item), lambda image: ImageFile(str(image), b""))
    except InputError as error:
        assert str(error)
        return
    check(record)


def check(record: StoredRecord) -> None:
    """The laws of a record that is kept."""
    if record.caption is not None:
        assert record.caption.strip() and len(record.files) == 1 and not record.turns
        return
    messages = [message for turn in record.turns for message in turn]
    assert record.turns and all(isinstance(message, str) for message in messages[:-1])
    symbols = sum((message or "").count("<|image|>") for message in messages)
    assert symbols in (0, len(record.files))
    assert not any(re.search("[\0\ud800-\udfff]", message or "") for message in messages)


@given(content=st.binary(max_size=40) | st.text(max_size=20).map(lambda text: json.dumps(text).encode()))
@example(content=b"\xff\xfe\x00\x00")
@many
def test_any_bytes_are_a_text_and_json_or_refused(content):
    try:
        text = decode_text(content, "it")
    except InputError as error:
        assert str(error).startswith("it")
        with pytest.raises(InputError):
            parse_json(content)
        return
    expected = value_or_none(text)
    try:
        assert parse_json(content) == expected or expected != expected
    except InputError:
        assert expected is None or re.search(r"\\u[dD]|\"", text)


@given(
    content=st.lists(ITEM.map(json.dumps) | TEXT, max_size=4),
    damage=st.binary(max_size=3),
    place=st.integers(0, 200),
    kind=st.sampled_from([JsonSource, TableSource]),
)
@many
def test_a_file_with_any_damage_gives_records_or_reasons(path, content, damage, place, kind):
    whole = ("image,caption\n" * (kind is TableSource) + "\n".join(content)).encode()
    path.write_bytes(whole[:place] + damage + whole[place:])
    try:
        source = kind(str(path))
    except InputError as error:
        assert str(path) in str(error)
        return
    for index in range(len(source)):
        try:
            check(source.stored(index))
        except UserError as error:
            assert str(error)

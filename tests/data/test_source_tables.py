"""Laws of tables: each row of a CSV or TSV file is one record, kept or refused, and none takes others with it."""

import codecs
import csv
import io

import pytest
from data_parts import noise

from lumina_jax.data.sources import Source, csv_rows, open_source
from lumina_jax.data.sources.csv_rows import RowFormat
from lumina_jax.data.sources.text_file import TextFile
from lumina_jax.errors import InputError, UserError

CSV = RowFormat(",", quoted=True)


@pytest.fixture
def table(tmp_path):
    noise((12, 8), 0).save(tmp_path / "a.png")

    def write(content: str | bytes, name: str = "t.csv", spec: str = "{}") -> Source:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return open_source(spec.format(tmp_path / name))

    return write


def read(source: Source) -> list[str]:
    """The caption of each record, or "! " and why it is refused."""
    answers = []
    for index in range(len(source)):
        try:
            answers.append(source[index].caption)
        except UserError as error:
            answers.append(f"! {str(error).rpartition(', record ')[2]}")
    return answers


def matches(answers: list[str], expected: list[str]) -> bool:
    """An expected "! x" stands for any reason that holds x."""
    return len(answers) == len(expected) and all(
        answer.startswith("!") and text[2:] in answer if text.startswith("!") else answer == text
        for answer, text in zip(answers, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ('"a, ""b""\nc",a.png\nd,a.png\n', ['a, "b"\nc', "d"]),
        ('"never closed,a.png\nb,a.png\nc,a.png', ["! quotation mark", "b", "c"]),
        ('a,a.png\n"never closed,a.png\n"b, c",a.png\n', ["a", "! quotation mark", "b, c"]),
        ('"closed" and more,a.png\nb,a.png\n', ["! quotation mark", "b"]),
        ('"say \\"hi\\"",a.png\nb,a.png\n', ["! quotation mark", "b"]),
        ('5" nails,a.png\nthe "best",a.png\nb,a.png\n', ['5" nails', 'the "best"', "b"]),
        ("a,a.png\r\n\r\n   \r\nb,a.png\r\n", ["a", "b"]),
        ("a\u2028b\x85c\x0cd,a.png\nb,a.png\n", ["a\u2028b\x85c\x0cd", "b"]),
        ("a,a.png\na,a.png\na,a.png\n", ["a", "a", "a"]),
        ("a\na,a.png,x\na,a.png\n", ["! 1 fields, the header 2", "! 3 fields, the header 2", "a"]),
        ("a\0b,a.png\nb,a.png\n", ["! NUL", "b"]),
        ("a,a\0.png\nb,a.png\n", ["! null", "b"]),
        (",a.png\nb,\nc,a.png", ["! the caption is empty", "! path of the image is empty", "c"]),
        ("[/red] {x} %s <b> @ #,a.png\n", ["[/red] {x} %s <b> @ #"]),
        ("word " * 40_000 + ",a.png\nb,a.png\n", ["word " * 40_000, "b"]),
    ],
)
def test_a_row_is_one_record_whatever_is_in_it(table, rows, expected):
    assert matches(read(table("caption,image\n" + rows)), expected)


def test_a_tsv_is_plain_text_between_tabs(table):
    rows = '"Hello" she said\ta.png\n"An unclosed quotation\ta.png\n"a, b"\ta.png\nc\ta.png\textra\n"d"\ta.png\r\n'
    expected = ['"Hello" she said', '"An unclosed quotation', '"a, b"', "! 3 fields", '"d"']
    assert matches(read(table(rows, "t.tsv")), expected)
    assert matches(read(table("caption\turl\n" + rows, "t.TSV")), expected)
    assert matches(
        read(table(rows, "t.tsv", "pairs:{}@quoted=yes")), ["! quotation mark", "! quotation mark", "a, b", "! 3", "d"]
    )
    assert matches(read(table('caption,url\n"x",a.png\n', "t.csv", "pairs:{}@quoted=no")), ['"x"'])


def test_a_quoted_tsv_is_told_how_to_be_read(table):
    with pytest.raises(InputError, match=r"its fields are quoted: write pairs:FILE@quoted=yes"):
        table('"image"\t"caption"\n"a.png"\t"x"\n', "t.tsv")
    with pytest.raises(InputError, match="quoted=maybe; choose yes or no"):
        table("x\ta.png\n", "t.tsv", "pairs:{}@quoted=maybe")
    with pytest.raises(InputError, match=r"is about \.csv and \.tsv files"):
        table("{}", "t.jsonl", "pairs:{}@quoted=yes")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_a_table_is_read_in_any_marked_encoding(table, encoding, name):
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    rows = "image\tcaption\r\na.png\tein Hündchen 🎉\r\na.png\tb\r\n".replace("\t", "\t" if name == "t.tsv" else ",")
    source = table(mark + rows.encode(encoding), name)
    assert read(source) == ["ein Hündchen 🎉", "b"]


def test_bytes_of_another_encoding_reject_their_row_alone(table):
    source = table("caption,image\na,a.png\nein Hündchen,a.png\nb,a.png\n".encode("latin-1"))
    assert matches(read(source), ["a", "! byte 0xfc at offset 27 is no UTF-8; save the file as UTF-8", "b"])
    assert matches(read(table(b"\xff\xfea,a.png\nb,a.png\n".replace(b"\xff\xfe", b"x\xff\xfe"))), ["! byte 0xff", "b"])
    with pytest.raises(InputError, match=r"t\.csv begins with NUL bytes, .*save it as UTF-8"):
        table("image,caption\na.png,x\n".encode("utf-16-le"))
    for content in (b"PK\x03\x04\x14\0", b"\x1f\x8b\x08\0"):
        with pytest.raises(InputError, match="is no text but"):
            table(content)


@pytest.mark.parametrize(
    "content",
    [
        "sep=;\ncaption;image\na;a.png\n",
        '"sep=;"\r\ncaption;image\r\na;a.png\r\n',
        "sep=,\na,a.png\n",
        "caption;image\na;a.png\n",
        '"image"\t"caption"\na.png\t"a"\n',
        "image_name| comment_number| comment\na.png| 0|a\n",
        " File Name ,TEXT,x\na.png,a,\n",
        ",image,caption\n0,a.png,a\n",
        "\n\r\ncaption,image\na,a.png\n",
        "x,x,caption,image\n1,2,a,a.png\n",
        "\ufeffcaption,url\na,a.png",
    ],
)
def test_delimiters_and_headers_of_the_world(table, content):
    assert read(table(content)) == ["a"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", r"the header \(none\) must name"),
        ("caption,image,caption\n", "the header names 'caption' twice"),
        ("name,kind\n1,2\n", "the header name, kind must name"),
        ("image,caption\ra.png,x\ra.png,y\r", "lines end with a carriage return alone"),
        ("image,kind\n1,2\n", "the header image, kind must name"),
    ],
)
def test_a_table_without_known_columns_is_an_error_before_work(table, content, reason):
    with pytest.raises(InputError, match=rf"t\.csv: {reason}"):
        table(content)


def test_a_damaged_first_row_of_a_table_without_header_is_one_record(table):
    assert matches(read(table(b"\xff\ta.png\nb\ta.png\n", "t.tsv")), ["! byte 0xff", "b"])
    assert matches(read(table("a\tb\ta.png\nb\ta.png\n", "t.tsv")), ["! 3 fields", "b"])
    assert matches(read(table('"a,a.png\nb,a.png\n')), ["! quotation mark", "b"])


def rows_of(tmp_path, content: bytes, chunk: int) -> list[str]:
    (tmp_path / "t").write_bytes(content)
    text = TextFile(str(tmp_path / "t"))
    spans, _ = CSV.index(text, chunk)
    return [text.text(*span) for span in spans.tolist()]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 1 << 20])
def test_rows_are_the_same_in_blocks_of_any_length(tmp_path, chunk):
    content = b'a,"b\n""c"\r\n"x\n\n"d",e\n"",""\n\n"open,f\n"",g\nh,"i\n'
    expected = ['a,"b\n""c"\r', '"x', '"d",e', '"",""', '"open,f', '"",g', 'h,"i']
    assert rows_of(tmp_path, content, chunk) == expected


def test_a_field_that_is_open_for_very_long_is_never_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "LONGEST", 100)
    content = b'"' + b"x\n" * 200 + b'"\n'
    assert rows_of(tmp_path, content, 16) == ['"x', *["x"] * 199, '"']
    assert rows_of(tmp_path, b'"' + b"x\n" * 40 + b'"\n', 16) == ['"' + "x\n" * 40 + '"']


def test_what_python_writes_is_read_back(tmp_path):
    rows = [["a", 'b"c', "d,e"], ["", "f\ng", "\r\n"], ["1", '""', " "]]
    for dialect in ("excel", "unix"):
        file = io.StringIO()
        csv.writer(file, dialect).writerows(rows)
        assert [CSV.fields(row) for row in rows_of(tmp_path, file.getvalue().encode(), 7)] == rows

"""Parquet as data sets are published: other columns, types and damage reject their own rows and no others."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_parts import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_jax.data.sources import open_source
from lumina_jax.data.sources.parquet import ParquetSource
from lumina_jax.errors import UserError


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    noise((12, 8), seed).save(file, "PNG")
    return file.getvalue()


TALK = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "Yes."}]
SCHEMA = {"image": [png()], "text": ["a"]}


def check(source, expected: list[str]) -> None:
    """Every record is the caption expected, or is rejected for a reason that holds the words behind ``!``."""
    assert len(source) == len(expected)
    for index, answer in enumerate(expected):
        try:
            found = source[index].caption
        except UserError as error:
            found = f"!{error}"
        assert found == answer or (answer.startswith("!") and found.startswith("!") and answer[1:] in found), found


def written(path, columns: dict | pa.Table, group: int = 2, **options) -> None:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, row_group_size=group, **options)


OTHER_FILES = {
    "another name": (
        {"image": [png()] * 3, "caption": ["x"] * 3},
        ["!'text', a column of the other files, not once"] * 3,
    ),
    "another type of text": ({"image": [png()], "text": [5]}, ["!'caption' is a JSON int, not a text"]),
    "another type of image": ({"image": [{"x": 1}], "text": ["x"]}, ["!the image is neither {bytes, path} nor bytes"]),
    "the image as a struct": ({"image": [{"bytes": png(), "path": None, "height": 8}], "text": ["b"]}, ["b"]),
    "the image as a path": ({"image": ["a.png", "none.png"], "text": ["b", "c"]}, ["b", "!none.png: No such file"]),
    "more columns": ({"id": [1], "text": ["b"], "x": [None], "image": [png()]}, ["b"]),
    "no rows": ({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}, []),
    "only nulls": ({"image": [None], "text": [None]}, ["!column 'text' is null"]),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_a_file_of_another_form_rejects_its_own_rows(tmp_path, case):
    (tmp_path / "a.png").write_bytes(png())
    written(tmp_path / "p1.parquet", {"image": [png(), png()], "text": ["p", "q"]})
    columns, expected = OTHER_FILES[case]
    written(tmp_path / "p2.parquet", columns)
    written(tmp_path / "p3.parquet", {"image": [png()], "text": ["r"]})
    check(open_source(f"parquet:{tmp_path}/p*.parquet"), ["p", "q", *expected, "r"])


def test_columns_follow_from_the_first_file_that_has_fitting_ones(tmp_path):
    written(tmp_path / "p1.parquet", {"id": [1, 2]})
    written(tmp_path / "p2.parquet", SCHEMA)
    check(open_source(f"parquet:{tmp_path}/p*.parquet"), ["!has columns id, but 'image'"] * 2 + ["a"])
    with pytest.raises(ValueError, match=r"p1.parquet has no column 'photo', only id"):
        open_source(f"parquet:{tmp_path}/p*.parquet@image=photo")


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"<html>" * 9, b"version https://git-lfs.github.com/spec/v1\n", b"\xff\xff\xff\x7fPAR1"]
)
def test_a_damaged_file_is_one_bad_record_among_others(tmp_path, content):
    (tmp_path / "p1.parquet").write_bytes(content)
    written(tmp_path / "p2.parquet", SCHEMA)
    check(open_source(f"parquet:{tmp_path}/p*.parquet"), ["!p1.parquet is no Parquet file, or is cut short", "a"])
    with pytest.raises(ValueError, match=r"p1\.parquet is no Parquet file, or is cut short"):
        open_source(f"parquet:{tmp_path}/p1.parquet")


def test_a_footer_that_is_damaged_is_one_bad_record(tmp_path):
    written(tmp_path / "p1.parquet", SCHEMA)
    content = bytearray((tmp_path / "p1.parquet").read_bytes())
    content[-60:-8] = b"\xff" * 52
    (tmp_path / "p2.parquet").write_bytes(content)
    check(open_source(f"parquet:{tmp_path}/p*.parquet"), ["a", "!p2.parquet: "])


def test_a_damaged_row_group_is_read_once_and_rejects_its_rows_alone(tmp_path, monkeypatch):
    rows = 12
    written(
        tmp_path / "a.parquet",
        {"image": [png(i) for i in range(rows)], "text": [f"t{i}" for i in range(rows)]},
        group=4,
    )
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    start = metadata.row_group(1).column(0).data_page_offset
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[start : start + 200] = b"\xff" * 200
    (tmp_path / "a.parquet").write_bytes(content)
    source, reads = open_source(f"parquet:{tmp_path}/a.parquet"), []
    read = ParquetSource._read_group
    monkeypatch.setattr(ParquetSource, "_read_group", lambda self, group: reads.append(group) or read(self, group))
    damaged = ["!row group 1, row "] * 4
    check(source, [*(f"t{i}" for i in range(4)), *damaged, *(f"t{i}" for i in range(8, 12))])
    assert reads == [0, 1, 2]


def test_a_changed_byte_is_found_by_the_checksum_of_its_page(tmp_path):
    plain = {"compression": "none", "use_dictionary": False, "write_page_checksum": True, "write_statistics": False}
    written(tmp_path / "a.parquet", {"image": [png()] * 2, "text": ["a dog", "a cat"]}, group=1, **plain)
    content = (tmp_path / "a.parquet").read_bytes()
    at = content.index(b"a dog")
    (tmp_path / "a.parquet").write_bytes(content[:at] + b"a god" + content[at + 5 :])
    check(open_source(f"parquet:{tmp_path}/a.parquet"), ["!the row group cannot be read", "a cat"])


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())),
        *(pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 2), pa.list_view(pa.string())),
    ],
    ids=str,
)
@pytest.mark.parametrize("picture", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.list_(pa.binary())], ids=str)
def test_every_type_of_column_is_read(tmp_path, kind, picture):
    texts = [["a", "x"], ["b", "y"]] if "list" in str(kind) else ["a", "b"]
    text = pa.array(texts).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(texts, kind)
    images = [[png(1)], [png(2)]] if "list" in str(picture) else [png(1), png(2)]
    written(tmp_path / "a.parquet", {"image": pa.array(images, picture), "text": text})
    check(open_source(f"parquet:{tmp_path}/a.parquet"), ["a", "b"])


ROWS = {
    "no picture": (None, "a", "!one image and no turns, not 0"),
    "an empty picture": (b"", "a", "!empty"),
    "a struct of an empty picture": ({"bytes": b"", "path": "a.png"}, "a", "!a.png: no picture; it is empty"),
    "a struct of nothing": ({"bytes": None, "path": None}, "a", "!the image is neither"),
    "two pictures": ([png(), png()], "a", "!one image and no turns, not 2"),
    "a list of nothing": ([], "a", "!one image and no turns, not 0"),
    "a list in a list": ([[png()]], "a", "!the image is neither"),
    "a list of a null": ([None], "a", "!the image is neither"),
    "no captions": (png(), [], "!is a JSON list, not a text"),
    "an object": (png(), {"en": "a"}, "!is a JSON dict, not a text"),
    "no store": ("nowhere://x/a.png", "a", "!nowhere://x/a.png: Protocol not known"),
    "a path with NUL": ("a\0.png", "a", "!null byte"),
}


@pytest.mark.parametrize("case", ROWS)
def test_an_odd_row_is_rejected_by_its_reason(tmp_path, case):
    image, text, expected = ROWS[case]
    written(tmp_path / "a.parquet", {"image": [image], "text": [text]})
    check(open_source(f"parquet:{tmp_path}/a.parquet"), [expected])


def test_conversations_may_be_json(tmp_path):
    texts = [json.dumps(TALK), "hello", '{"a": 1}']
    written(tmp_path / "a.parquet", {"image": [png()] * 3, "conversations": texts})
    source = open_source(f"parquet:{tmp_path}/a.parquet")
    assert source[0].turns == [("<|image|>?", "Yes.")]
    for index, words in ((1, "no JSON"), (2, "not a list of at least one message")):
        with pytest.raises(ValueError, match=words):
            source[index]


@pytest.mark.parametrize(
    "features", [b"{", b"[1]", b'{"info": 3}', b'{"info": {"features": []}}', b"\xff\xfe", b"[" * 9999]
)
def test_broken_features_leave_the_usual_names(tmp_path, features):
    table = pa.table(SCHEMA).replace_schema_metadata({"huggingface": features, b"\xff": b"\xfe"})
    written(tmp_path / "a.parquet", table)
    check(open_source(f"parquet:{tmp_path}/a.parquet"), ["a"])


@pytest.mark.parametrize("name", ["a,b", "a=b", "a.b", "my text", "[b]", "@c", "日本", "a'b\"", "image", "%"])
def test_letters_in_names_of_columns_mean_nothing(tmp_path, name):
    written(tmp_path / "a.parquet", {"text": ["no"], "p.q": [png(3)], "p": [{"q": 5}], name: ["a"]})
    check(open_source(f"parquet:{tmp_path}/a.parquet@image=p.q,text={name}"), ["a"])
    check(open_source(f"parquet:{tmp_path}/a.parquet@text={name},image=p.q"), ["a"])


def test_a_column_that_is_there_twice_rejects_its_rows(tmp_path):
    arrays = [pa.array([png()]), pa.array(["a"]), pa.array(["b"])]
    written(tmp_path / "a.parquet", pa.Table.from_arrays(arrays, names=["image", "text", "text"]))
    check(open_source(f"parquet:{tmp_path}/a.parquet"), ["!'text'"])


def test_text_that_is_no_utf8_rejects_its_row(tmp_path):
    raw = pa.array([b"\xff\xfe", b"ok"])
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    written(tmp_path / "a.parquet", {"image": [png()] * 2, "text": text})
    check(open_source(f"parquet:{tmp_path}/a.parquet"), ["!row 0: the row cannot be read: 'utf-8'", "ok"])


PICTURES = (png(), b"broken", b"", None)
TEXTS = ("a", "b\u2028c", "", " ", None)


@settings(max_examples=150, deadline=None)
@given(
    files=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a", "b\u2028c", "", " ", None])), max_size=6),
        min_size=1,
        max_size=3,
    ),
    group=st.integers(1, 4),
)
def test_every_row_is_kept_or_rejected_in_its_place(tmp_path_factory, files, group):
    folder = tmp_path_factory.mktemp("rows")
    expected = []
    for number, rows in enumerate(files):
        images = pa.array([PICTURES[image] for image, _ in rows], pa.binary())
        written(
            folder / f"{number}.parquet",
            {"image": images, "text": pa.array([text for _, text in rows], pa.string())},
            group,
        )
        expected += [text if image == 0 and text and text.strip() else None for image, text in rows]
    source = open_source(f"parquet:{folder}/*.parquet")
    assert len(source) == len(expected)
    for index in np.random.default_rng(len(expected)).permutation(len(expected)):
        try:
            assert source[int(index)].caption == expected[index]
        except UserError:
            assert expected[index] is None

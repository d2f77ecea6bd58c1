"""Folders of pictures as people keep them: splits, links, metadata, odd names; no picture is passed over in silence."""

import io
import json
import os
import posixpath
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_parts import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_jax.data.omni.depth import vkitti2
from lumina_jax.data.sources import files, open_source
from lumina_jax.data.sources.folder import TEXTS, FolderSource
from lumina_jax.data.sources.names import is_picture, is_visible
from lumina_jax.errors import UserError


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    noise((12, 8), seed).save(file, "PNG")
    return file.getvalue()


def fill(folder, contents: dict[str, bytes | str]) -> None:
    """Writes files; those of pictures without content are pictures."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def outcome(folder) -> list[str]:
    """What each record of a folder is: its caption, or ``!`` and why it is rejected."""
    source, found = open_source(f"folder:{folder}"), []
    for index in range(len(source)):
        try:
            found.append(source[index].caption)
        except UserError as error:
            found.append(f"!{error}".replace(f"{folder}/", ""))
    return found


def check(folder, expected: list[str]) -> None:
    found = outcome(folder)
    assert len(found) == len(expected), found
    for a, b in zip(found, expected, strict=True):
        assert a == b or (b.startswith("!") and a.startswith("!") and b[1:] in a), found


def rows(*pairs: tuple[str, str]) -> list[dict]:
    return [{"file_name": name, "text": text} for name, text in pairs]


def metadata(kind: str, items: list[dict]) -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps(item) + "\n" for item in items).encode()
    if kind == "csv":
        lines = [items[0].keys(), *(item.values() for item in items)]
        return "\n".join(",".join(line) for line in lines).encode()
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(items), file)
    return file.getvalue()


KINDS = ("jsonl", "csv", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_splits_with_metadata_of_their_own(tmp_path, kind):
    fill(tmp_path, {f"{split}/{number}.png": png(number) for split in ("train", "test") for number in range(2)})
    fill(tmp_path, {f"train/metadata.{kind}": metadata(kind, rows(("0.png", "a"), ("./1.png", "b")))})
    fill(tmp_path, {"test/metadata.jsonl": metadata("jsonl", rows(("1.png", "c"), ("2.png", "d")))})
    check(tmp_path, ["c", "!2.png: No such file", "a", "b", "!test/0.png: no caption beside it"])


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_at_the_top_of_splits(tmp_path, kind):
    fill(tmp_path, {f"{split}/0.png": png() for split in ("train", "test", "x/y")})
    fill(tmp_path, {f"metadata.{kind}": metadata(kind, rows(("train/0.png", "a"), ("x/y/../y/0.png", "b")))})
    fill(tmp_path, {"train/0.txt": "not the row's", "more.png": png(), "more.txt": "m", "notes.txt": "n"})
    expected = ["a", "b", "m", "!notes.txt: a record with a caption has one image", "!test/0.png: no caption beside it"]
    check(tmp_path, expected)


def test_several_images_of_one_row_are_named_by_it(tmp_path):
    talk = [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "Yes."}]
    fill(tmp_path, {"a.png": png(0), "b.png": png(1)})
    fill(tmp_path, {"metadata.jsonl": json.dumps({"file_names": ["a.png", "b.png"], "conversations": talk})})
    source = open_source(f"folder:{tmp_path}")
    assert len(source) == 1 and len(source[0].images) == 2


def test_rows_that_say_the_same_stay_records_and_bad_rows_are_rejected(tmp_path):
    fill(
        tmp_path,
        {"a.png": png(), "metadata.jsonl": metadata("jsonl", rows(("a.png", "a"), ("a.png", "a"))) + b"{]\n[1]\n"},
    )
    check(tmp_path, ["a", "a", "!record 2", "!record 3"])


@pytest.mark.parametrize("content", [b"", b"file_name,label\na.png,1\n", b"\0\0\0", None])
def test_metadata_that_cannot_be_read_are_one_bad_record(tmp_path, content):
    fill(
        tmp_path,
        {"test/a.png": png(), "train/a.png": png(), "train/metadata.jsonl": metadata("jsonl", rows(("a.png", "a")))},
    )
    if content is None:
        (tmp_path / "test" / "metadata.csv").symlink_to("none")
    else:
        fill(tmp_path, {"test/metadata.csv": content})
    check(tmp_path, ["!test/metadata.csv", "a", "!test/a.png: no caption beside it"])
    with pytest.raises(UserError, match=r"test/metadata\.csv"):
        open_source(f"folder:{tmp_path}/test")


def test_an_image_may_be_named_by_its_whole_path(tmp_path):
    fill(tmp_path, {"a.png": png(), "metadata.jsonl": metadata("jsonl", rows((f"{tmp_path}/a.png", "a")))})
    check(tmp_path, ["a"])


def test_two_metadata_files_of_one_folder_are_an_error(tmp_path):
    fill(
        tmp_path,
        {"s/a.png": png()} | {f"s/metadata.{kind}": metadata(kind, rows(("a.png", "a"))) for kind in KINDS[:2]},
    )
    with pytest.raises(ValueError, match=r"holds s/metadata.csv and s/metadata.jsonl, .* keep one"):
        open_source(f"folder:{tmp_path}")


def test_one_metadata_file_of_all_images_has_its_own_fingerprint(tmp_path):
    fill(tmp_path, {"a.png": png(), "metadata.jsonl": metadata("jsonl", rows(("a.png", "a")))})
    assert open_source(f"folder:{tmp_path}").fingerprint == open_source(f"{tmp_path}/metadata.jsonl").fingerprint


def test_a_folder_of_labels_lists_every_picture(tmp_path):
    fill(tmp_path, {f"{label}/{number}.png": png() for label in ("cat", "dog") for number in range(2)})
    check(tmp_path, ["!no caption beside it"] * 4)


HIDDEN = (
    ".a.png",
    "._a.png",
    ".git/a.png",
    "__MACOSX/a.png",
    "x/@eaDir/a.png/SYNOPHOTO.jpg",
    "Thumbs.db",
    "x/.DS_Store",
)


def test_hidden_files_and_litter_are_no_records(tmp_path):
    fill(tmp_path / ".set", dict.fromkeys(HIDDEN, png()) | {"a.png": png(), "a.txt": "a", "._a.txt": b"\0\5\26\7"})
    check(tmp_path / ".set", ["a"])


def test_a_folder_of_litter_alone_is_an_error(tmp_path):
    fill(tmp_path, dict.fromkeys(HIDDEN, png()))
    with pytest.raises(ValueError, match="holds no image"):
        open_source(f"folder:{tmp_path}")


def test_pictures_without_a_decoder_are_listed_by_name(tmp_path):
    fill(tmp_path, {"a.svg": "<svg/>", "a.txt": "a", "b.CR2": b"II*\0", "b.txt": "b", "c.jpe": png(), "c.txt": "c"})
    check(tmp_path, ["!a.svg: no decoder for SVG", "!b.CR2: no decoder for a camera's raw format", "c"])


def test_links_are_followed_but_not_in_circles(tmp_path):
    fill(tmp_path, {"store/deep/a.png": png(), "store/deep/a.txt": "a", "set/b.png": png(), "set/b.txt": "b"})
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "set" / "c.png").symlink_to(tmp_path / "store" / "deep" / "a.png")
    (tmp_path / "set" / "c.txt").symlink_to("b.txt")
    (tmp_path / "store" / "back").symlink_to(tmp_path / "set")
    (tmp_path / "store" / "itself").symlink_to("itself")
    check(tmp_path / "set", ["b", "b", "a"])
    (tmp_path / "link").symlink_to("set")
    check(tmp_path / "link", ["b", "b", "a"])


def test_links_to_nothing_are_rejected(tmp_path):
    fill(tmp_path, {"a.txt": "a", "b.png": png(), "c.png": png(), "c.txt": "c"})
    (tmp_path / "a.png").symlink_to(tmp_path / "none.png")
    (tmp_path / "b.txt").symlink_to("none.txt")
    check(tmp_path, ["!a.png: No such file", "!b.txt: No such file", "c"])


def test_a_subfolder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    fill(tmp_path, {"a.png": png(), "a.txt": "a", "lost+found/x.png": png()})
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("lost+found/"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    check(tmp_path, ["a", "!lost+found/: the folder cannot be read"])
    with pytest.raises(OSError, match=r"lost\+found/: the folder cannot be read"):
        vkitti2(str(tmp_path), "*")
    monkeypatch.setattr(os, "scandir", lambda path: refuse("lost+found/"))
    with pytest.raises(OSError, match="Permission denied"):
        open_source(f"folder:{tmp_path}")


def test_pipes_and_sockets_are_not_waited_for(tmp_path):
    fill(tmp_path, {"a.png": png(), "a.txt": "a"})
    os.mkfifo(tmp_path / "b.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "c.png"))
        check(tmp_path, ["a"])


NAMES = (
    "a b",
    "[x]",
    "{0..9}",
    "*",
    "?",
    "%20",
    "#1",
    "@x=y",
    "it's",
    '"q"',
    "<b>",
    "a\nb",
    "日本",
    "🎉",
    "a.b.c",
    "caf\udce9",
    "~",
    "$HOME",
)


@pytest.mark.parametrize("name", NAMES)
def test_letters_in_names_mean_nothing(tmp_path, name):
    folder = tmp_path / name
    fill(folder, {f"{name}/{name}.png": png(3), f"{name}/{name}.txt": "a"})
    expected = ["a"]
    if "\udce9" not in name:  # JSON and Parquet hold no half surrogates
        fill(folder, {f"m/{name}.png": png(3), "m/metadata.jsonl": metadata("jsonl", rows((f"{name}.png", "b")))})
        fill(folder, {f"p/{name}.png": png(3), "p/metadata.parquet": metadata("parquet", rows((f"{name}.png", "c")))})
        expected = ["b", "c", "a"]
    check(folder, expected)


def test_captions_in_the_encodings_of_windows(tmp_path):
    texts = {
        "a": "ä".encode("utf-8-sig"),
        "b": "ä".encode("utf-16"),
        "c": "ä".encode("latin-1"),
        "d": b"",
        "e": b" \r\n",
    }
    fill(tmp_path, {f"{name}.png": png() for name in texts} | {f"{name}.txt": text for name, text in texts.items()})
    fill(tmp_path, {"f.png": png(), "f.JSON": b"\xff\xfe" + '{"text": "ä"}'.encode("utf-16-le")})
    empty = "!the caption is empty"
    check(tmp_path, ["ä", "ä", "!c.txt: byte 0xe4 at offset 0 is no UTF-8", empty, empty, "ä"])


def test_which_caption_belongs_to_which_image(tmp_path):
    fill(
        tmp_path,
        {
            name: png()
            for name in ("a.b.png", "a.png", "c.JPG", "c.png", "d.png", "e.png", "E.png", "f.png", "f.png.png")
        },
    )
    texts = ("a.b.txt", "a.txt", "c.TXT", "d.png.txt", "e.txt", "f.png.txt", "g.caption", "d.png.json")
    fill(tmp_path, {name: name for name in texts})
    fill(tmp_path, {"h.png": png(), "h.txt": "x", "h.TXT": "y", "i.png": png(), "i.text": "i.text"})
    expected = [
        "!E.png: no caption",
        "a.txt",
        "a.b.txt",
        "c.TXT",
        "c.TXT",
        "d.png.txt",
        "e.txt",
        "!f.png: no caption",
        "f.png.txt",
    ]
    check(tmp_path, [*expected, "!g.caption: a record with", "!h.png: h.TXT and h.txt are captions", "i.text"])


def test_a_deep_json_is_a_bad_record(tmp_path):
    deep = '{"caption":' + "[" * 100_000 + "]" * 100_000 + "}"
    fill(tmp_path, {"a.png": png(), "a.json": deep, "b.png": png(), "b.txt": "b"})
    check(tmp_path, ["!a.png: JSON nested 100001 deep", "b"])


PARTS = [
    f"{folder}{stem}{suffix}"
    for folder in ("", "x/", ".y/")
    for stem in ("a", "A", "a.png", "._a")
    for suffix in (".png", ".JPG", ".svg", ".txt", ".TXT", ".json", ".md")
]


@settings(max_examples=1000, deadline=None)
@given(st.sets(st.sampled_from(PARTS), max_size=10), st.sets(st.sampled_from(PARTS), max_size=3))
def test_every_picture_is_one_record_and_every_text_belongs_to_one(paths, named):
    records = FolderSource("/none", [(path, 0) for path in sorted(paths)], named)._records
    pictures = [path for path in paths if is_picture(path)]
    assert sorted(image for image, _ in records if image) == sorted(set(pictures) - named)
    stems = {posixpath.splitext(path)[0] for path in pictures}
    for path in paths:
        stem, suffix = posixpath.splitext(path)
        if suffix.lower() in TEXTS:
            beside = [
                image
                for image in pictures
                if posixpath.splitext(image)[0] == stem or (image == stem and stem not in stems)
            ]
            alone = [texts for image, texts in records if not image and posixpath.splitext(texts[0])[0] == stem]
            assert bool(alone) != bool(beside) and len(alone) <= 1
    for image, texts in records:
        assert all(posixpath.splitext(text)[0] in (image, posixpath.splitext(image or text)[0]) for text in texts)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", ".b", "__MACOSX", "._c", "Thumbs.db", "d.png", "@eadir", "e~"]), min_size=1, max_size=4
    )
)
def test_a_path_is_hidden_by_any_of_its_parts(parts):
    assert is_visible("/".join(parts)) == all(part in ("a", "d.png", "e~") for part in parts)


def test_a_listing_names_every_file_once(tmp_path):
    fill(tmp_path, {"b/c": "1", "a": "22", "b.c": "", "b/d/e": "333"})
    (tmp_path / "z").symlink_to("none")
    assert files.listing(str(tmp_path)) == [("a", 2), ("b.c", 0), ("b/c", 1), ("b/d/e", 3), ("z", 0)]

"""Laws of source specs: what exists under a name is that file or folder, whatever letters its name has."""

import json

import pytest
from data_parts import noise

from lumina_jax.data.sources import open_source
from lumina_jax.data.sources.options import parse, split_at
from lumina_jax.errors import InputError, MissingFileError

ODD = [
    *(
        "a@b",
        "@",
        "a@images=b",
        "a@quoted=yes",
        "a#b",
        "50%",
        "%s%41",
        "what?",
        "a?v=1&w=2",
        "pairs:a",
        "C:",
        "a:b:c",
        "a=b",
    ),
    *(
        "a,b",
        " a b ",
        "[a]",
        "[!a]",
        "{1,2}",
        "{1..3}",
        "{",
        "*",
        "🎉一",
        "a\nb",
        "a\tb",
        "'a'",
        '"a"',
        "\\",
        "--x",
        "~",
        "$HOME",
        "é",
        "e\u0301",
    ),
]
DIALOGUE = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
PAIR = {"image": "a.png", "caption": "a dog"}


@pytest.mark.parametrize("name", ODD)
def test_every_kind_takes_any_name_of_a_file_or_folder(tmp_path, name, monkeypatch):
    folder = tmp_path / name
    folder.mkdir()
    noise((12, 8), 0).save(folder / "a.png")
    (folder / "a.txt").write_text("a dog")
    (folder / f"{name}.jsonl").write_text(json.dumps(PAIR) + "\n")
    (folder / f"{name}.json").write_text(json.dumps([DIALOGUE]))
    (folder / f"{name}.csv").write_text("image,caption\na.png,a dog\n")
    (folder / f"{name}.tsv").write_text("a dog\ta.png\n")
    image_folder = tmp_path / "images" / name
    image_folder.mkdir(parents=True)
    noise((12, 8), 0).save(image_folder / "a.png")
    monkeypatch.chdir(folder)
    for place in (f"{folder}/", "./", ""):
        for spec in (f"{name}.jsonl", f"{name}.csv", f"{name}.tsv"):
            assert open_source(place + spec)[0].caption == "a dog", spec
            assert open_source(f"pairs:{place}{spec}")[0].caption == "a dog", spec
            assert open_source(f"pairs:{place}{spec}@{image_folder}")[0].caption == "a dog", spec
        (mini,) = [open_source(f"mini-gemini:{place}{name}.json@{image_folder}")[0]]
        assert mini.turns == open_source(f"openhermes:{place}{name}.json")[0].turns == [("Hi", "Yo")]
    (folder / f"{name}.json").unlink()
    for suffix in ("jsonl", "csv", "tsv"):
        (folder / f"{name}.{suffix}").unlink()
    assert [open_source(f"folder:{folder}")[0].caption, open_source("folder:.")[0].caption] == ["a dog", "a dog"]


@pytest.mark.parametrize(
    ("rest", "path", "suffix"),
    [
        ("x.jsonl", "x.jsonl", None),
        ("x.jsonl@imgs", "x.jsonl", "imgs"),
        ("x.jsonl@imgs@2", "x.jsonl", "imgs@2"),
        ("a@b.jsonl", "a@b.jsonl", None),
        ("a@b.jsonl@imgs", "a@b.jsonl", "imgs"),
        ("https://host/@me/x.jsonl?key=a", "https://host/@me/x.jsonl?key=a", None),
        ("https://host/@me/x.csv?key=a@gs://b/c", "https://host/@me/x.csv?key=a", "gs://b/c"),
        ("https://host/@me/x.jsonl@https://cdn/@me", "https://host/@me/x.jsonl", "https://cdn/@me"),
        ("plain@imgs", "plain", "imgs"),
    ],
)
def test_a_pairs_file_ends_where_its_name_does(rest, path, suffix, monkeypatch, tmp_path):
    from lumina_jax.data.sources import _with_images

    monkeypatch.chdir(tmp_path)
    assert _with_images(rest) == (path, suffix)


def test_a_path_that_exists_comes_first(tmp_path):
    (tmp_path / "a@b").touch()
    (tmp_path / "a@b@c").touch()
    assert split_at(f"{tmp_path}/a@b@c", lambda *_: True) == (f"{tmp_path}/a@b@c", None)
    assert split_at(f"{tmp_path}/a@b@d@e", lambda *_: True) == (f"{tmp_path}/a@b", "d@e")
    assert split_at(f"{tmp_path}/x@d@e", lambda *_: True) == (f"{tmp_path}/x@d", "e")


@pytest.mark.parametrize(
    ("rest", "path", "images"),
    [
        ("x@images=a,b@c/d", "x", "a,b@c/d"),
        ("x/date=1@2/*.parquet", "x/date=1@2/*.parquet", ""),
        ("gs://b/t@date=2024/*.parquet", "gs://b/t@date=2024/*.parquet", ""),
        ("a@b@images=c", "a@b", "c"),
    ],
)
def test_a_value_may_hold_what_separates_options(rest, path, images):
    assert parse(rest, {"images": "", "turns": "0"}) == (path, {"images": images, "turns": "0"})
    assert (
        parse(f"{rest}@turns=3" if not images else f"{rest},turns=3", {"images": "", "turns": "0"})[1]["turns"] == "3"
    )


def test_a_folder_may_be_called_like_an_option(tmp_path):
    (tmp_path / "x@turns=1").mkdir()
    assert parse(f"{tmp_path}/x@turns=1", {"turns": "0"}) == (f"{tmp_path}/x@turns=1", {"turns": "0"})
    with pytest.raises(InputError, match="no option 'turn'; there are turns"):
        parse(f"{tmp_path}/x@turn=1", {"turns": "0"})


@pytest.mark.parametrize(
    ("spec", "guess"),
    [
        ("webdatset:x.tar", "webdataset:x.tar"),
        ("Folder:x", "folder:x"),
        ("pair:x.txt", "pairs:x.txt"),
        ("minigemini:x@y", "mini-gemini:x@y"),
    ],
)
def test_an_unknown_kind_is_guessed(spec, guess):
    with pytest.raises(InputError, match=rf"{spec} is no known kind of source; did you mean {guess}\?"):
        open_source(spec)


def test_a_file_that_is_missing_is_named_whole(tmp_path):
    for spec in ("pairs:{}/a@b.jsonl", "pairs:{}/a?.csv", "openhermes:{}/a:b.json"):
        spec = spec.format(tmp_path)
        with pytest.raises(MissingFileError) as error:
            open_source(spec)
        assert spec.partition(":")[2] in str(error.value)

"""Laws of patterns: braces expand as in a shell and within bounds, and what exists under a name is that name."""

import os

import pytest

from lumina_jax.data.sources import files
from lumina_jax.data.sources.patterns import expand_braces
from lumina_jax.errors import InputError, MissingFileError


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{09..11}", "09 10 11"),
        ("{8..011}", "008 009 010 011"),
        ("{3..1}", "3 2 1"),
        ("{0..10..5}", "0 5 10"),
        ("{-1..1}", "-1 0 1"),
        ("{c..a}", "c b a"),
        ("{a,{b,c}x}", "a bx cx"),
        ("{{1..2},x}y", "1y 2y xy"),
        ("a{,b}", "a ab"),
        ("{a}", "{a}"),
        ("{a}-{b,c}", "{a}-b {a}-c"),
        ("a{b,c", "a{b,c"),
        ("a}b{c,d}", "a}bc a}bd"),
        ("{a,{b,c}", "{a,b {a,c"),
        ("[{]a,b}", "[{]a,b}"),
        ("{a..bc}", "{a..bc}"),
    ],
)
def test_braces_expand_as_in_a_shell(pattern, words):
    assert expand_braces(pattern) == words.split(" ")


@pytest.mark.parametrize(
    "pattern",
    ["s-{0..99999999999}.tar", "{1..9}" * 9, "{0..9" + "9" * 500 + "}", "{0..1000000}", "{" * 200 + "}" * 200],
)
def test_braces_of_too_many_words_are_refused_before_they_take_memory(pattern):
    with pytest.raises(InputError, match=r"more than (1,000,000 files; shorten|50 braces; write)"):
        files.expand(pattern)


@pytest.mark.parametrize(
    "name", ["a[1].tar", "b?.tar", "c*.tar", "{d,e}.tar", "{1..3}", "x[!a]{b,c}*.tar", "a b#%@.tar", "\udcff.tar", "{"]
)
@pytest.mark.parametrize("folder", ["", "photos [2020]/", "{old,new}/", "**/"])
def test_the_name_of_a_file_is_that_file(tmp_path, monkeypatch, folder, name):
    monkeypatch.chdir(tmp_path)
    os.makedirs(folder or ".", exist_ok=True)
    for other in (name, "a1.tar", "b1.tar", "c1.tar", "d.tar", "e.tar", "1", "xbb.tar"):
        open(folder + other, "w").close()
    assert files.expand(folder + name) == [folder + name]
    assert files.expand(os.path.join(tmp_path, folder + name)) == [os.path.join(tmp_path, folder + name)]


def test_patterns_work_below_folders_whose_names_look_like_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("photos [2020]/sub", "photos 2/sub", "{a,b}", "deep/photos [2020]", ".hidden"):
        os.makedirs(folder)
        for name in ("x-0.tar", "x-1.tar", "._x-0.tar"):
            open(f"{folder}/{name}", "w").close()
    assert files.expand("photos [2020]/*/x-{1,0}.tar") == [f"photos [2020]/sub/x-{n}.tar" for n in (1, 0)]
    assert files.expand("{a,b}/x-*") == ["{a,b}/x-0.tar", "{a,b}/x-1.tar"]
    assert files.expand("*/photos [2020]/x-?.tar") == [f"deep/photos [2020]/x-{n}.tar" for n in (0, 1)]
    assert len(files.expand("**/x-*.tar")) == len(files.expand(f"{tmp_path}/**")) == 8
    os.symlink(tmp_path, tmp_path / "deep/up")
    assert len(files.expand("**/x-*.tar")) == 8
    os.symlink("nowhere", tmp_path / "x-2.tar")
    assert files.expand("x-*.tar") == ["x-2.tar"]


def test_a_word_without_files_is_named(tmp_path):
    (tmp_path / "a-1.tar").touch()
    os.makedirs(tmp_path / "b-1.tar")
    for pattern, word in (("{a,c}-*.tar", "c-*.tar"), ("b-*.tar", "b-*.tar"), ("*/", "*/"), ("c-?", "c-?")):
        with pytest.raises(MissingFileError) as caught:
            files.expand(f"{tmp_path}/{pattern}")
        assert f"{tmp_path}/{word}" in str(caught.value)

"""Tar shards as the world packs them: no member vanishes, no two samples become one."""

import io
import itertools
import json
import posixpath
import re
import tarfile

import numpy as np
import pytest
from data_parts import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_jax.data.sources import open_source
from lumina_jax.data.sources.names import is_picture
from lumina_jax.data.sources.webdataset import is_junk, sample_key, sample_starts
from lumina_jax.errors import UserError


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    noise((12, 8), seed).save(file, "PNG")
    return file.getvalue()


def tar(members: list, end: bool = True, **options) -> bytes:
    """A shard of (name, content), or (name, link type, target)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        for name, *what in members:
            member = tarfile.TarInfo(name)
            if len(what) == 2:
                member.type, member.linkname = what
                archive.addfile(member)
            else:
                member.size = len(what[0])
                archive.addfile(member, io.BytesIO(what[0]))
        size = archive.offset
    return file.getvalue() if end else file.getvalue()[:size]


def outcome(tmp_path, content: bytes) -> list[str]:
    """What each record of a shard is: its caption, or ``!`` and why it is rejected."""
    (tmp_path / "a.tar").write_bytes(content)
    source = open_source(f"webdataset:{tmp_path}/a.tar")
    found = []
    for index in range(len(source)):
        try:
            found.append(source[index].caption)
        except UserError as error:
            found.append(f"!{error}".replace(str(tmp_path), ""))
    return found


def pair(key: str, caption: str) -> list:
    return [(f"{key}.png", png()), (f"{key}.txt", caption.encode())]


def is_like(found: list[str], expected: list[str]) -> bool:
    """Whether each outcome is the caption expected, or a rejection whose reason holds the words behind ``!``."""
    same = [
        a == b or (b.startswith("!") and a.startswith("!") and b[1:] in a) for a, b in zip(found, expected, strict=True)
    ]
    return all(same)


def twins(members: list) -> list:
    """Members with the twins that macOS packs before them."""
    named = [(*posixpath.split(name), content) for name, content in members]
    return [
        each
        for folder, name, content in named
        for each in ((f"{folder}/._{name}", b"\0\5\26\7" + bytes(60)), (f"{folder}/{name}", content))
    ]


LINK = ("2.png", tarfile.SYMTYPE, "1.png")
CASES = {
    "a twin before every member": ([*twins(pair("x/0", "a")), *twins(pair("x/1", "b"))], ["a", "b"]),
    "a folder of twins": ([*pair("0", "a"), ("__MACOSX/._0.png", b"\0\5\26\7"), ("__MACOSX/x/._1.txt", b"")], ["a"]),
    "what Finder and Explorer leave": (
        [(".DS_Store", b"x"), *pair("d/0", "a"), ("d/.DS_Store", b"x"), ("d/Thumbs.db", b"x"), *pair("d/1", "b")],
        ["a", "b"],
    ),
    "PaxHeader written as files": (
        [("PaxHeader/0.png", b"30 mtime=1"), ("PaxHeaders.7/0.txt", b"x"), *pair("0", "a")],
        ["a"],
    ),
    "paths that begin with ./": ([("./", tarfile.DIRTYPE, ""), *pair("./0", "a"), *pair("./1", "b")], ["a", "b"]),
    "one key twice": (pair("0", "a") + pair("0", "b") + pair("1", "c"), ["a", "b", "c"]),
    "one suffix twice": ([("0.png", png()), *pair("0", "a"), ("0.TXT", b"b")], ["!no caption", "a", "!has one image"]),
    "one key in two folders": (pair("x/0", "a") + pair("y/0", "b") + pair("0", "c"), ["a", "b", "c"]),
    "keys with dots": (pair("a.1", "a") + pair("a.2", "b") + pair("a.2.x", "c"), ["a", "b", "c"]),
    "a key and the same with a dot": (pair("a", "a") + pair("a.1", "b"), ["a", "b"]),
    "a dotted key without a text": (
        [*pair("a.1", "a"), ("a.2.png", png())],
        ["a", "!no caption: the sample holds a.2.png"],
    ),
    "numbers behind a dot": ([("a.1.txt", b"a"), ("a.2.png", png())], ["!holds a.1.txt", "!holds a.2.png"]),
    "fields behind a dot": (
        [("1.image.png", png()), ("1.caption.txt", b"a"), ("2.x.png", png())],
        ["a", "!holds 2.x.png"],
    ),
    "two pictures of one sample": (
        [("0.png", png()), ("0.seg.png", png()), ("0.txt", b"a")],
        ["!one image and no turns, not 2"],
    ),
    "two texts of one sample": (
        [("0.a.txt", b"a"), ("0.b.txt", b"b"), ("0.png", png())],
        ["!0.a.txt and 0.b.txt are texts"],
    ),
    "a text beside the caption": ([("0.ocr.txt", b"x"), ("0.png", png()), ("0.txt", b"a")], ["a"]),
    "members that do not follow each other": (
        [("0.png", png()), ("1.png", png()), ("0.txt", b"a"), ("1.txt", b"b")],
        ["!no caption", "!no caption", "!the sample holds 0.txt", "!the sample holds 1.txt"],
    ),
    "large letters": (
        [("0.PNG", png()), ("0.TXT", b"a"), ("1.Png", png()), ("1.JSON", b'{"caption": "b"}')],
        ["a", "b"],
    ),
    "metadata that are a list": ([*pair("0", "a"), ("0.json", b"[1, 2]")], ["a"]),
    "empty members": (
        [("0.png", b""), ("0.txt", b"a"), ("1.png", png()), ("1.txt", b"")],
        ["!empty", "!the caption is empty"],
    ),
    "pictures without a decoder": (
        [("0.svg", b"<svg/>"), ("0.txt", b"a"), ("1.cr2", b"II"), ("1.txt", b"b"), ("2.png.gz", b"x"), ("2.txt", b"c")],
        ["!0.svg: no decoder for SVG", "!1.cr2: no decoder for", "!the sample holds 2.png.gz, 2.txt"],
    ),
    "no suffix": ([*pair("0", "a"), ("README", b"x"), *pair("1", "b")], ["a", "!holds README", "b"]),
    "a hard link": ([*pair("0", "a"), ("1.png", tarfile.LNKTYPE, "0.png"), ("1.txt", b"b")], ["a", "b"]),
    "a symbolic link to a later file": (
        [("x/1.png", tarfile.SYMTYPE, "../y/0.png"), ("x/1.txt", b"b"), *pair("y/0", "a")],
        ["b", "a"],
    ),
    "a link of a link": (
        [
            *pair("0", "a"),
            ("1.png", tarfile.SYMTYPE, "0.png"),
            ("1.txt", tarfile.LNKTYPE, "./0.txt"),
            LINK,
            ("2.txt", b"c"),
        ],
        ["a", "a", "c"],
    ),
    "links to nothing": (
        [
            ("0.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("0.txt", b"a"),
            ("1.png", tarfile.SYMTYPE, "1.png"),
            ("1.txt", b"b"),
        ],
        ["!0.png is a link to /etc/passwd, which leads to no file of the shard", "!1.png is a link to 1.png"],
    ),
    "letters that are syntax": (
        pair("[red]{0..9}*?", "a") + pair("a b/%s#1@x=y,z", "b") + pair("q'\"<b>&\n\t", "c") + pair("🎉/日本", "d"),
        ["a", "b", "c", "d"],
    ),
    "no members": ([], []),
    "only folders": ([("x", tarfile.DIRTYPE, ""), ("y", tarfile.DIRTYPE, "")], []),
}


@pytest.mark.parametrize("case", CASES)
def test_every_member_is_kept_or_listed(tmp_path, case):
    members, expected = CASES[case]
    for options in ({"format": tarfile.GNU_FORMAT}, {"format": tarfile.PAX_FORMAT}):
        found = outcome(tmp_path, tar(members, **options))
        assert len(found) == len(expected) and is_like(found, expected), found


def test_names_that_are_no_utf8_are_read(tmp_path):
    members = [(f"caf\udce9.{kind}", content) for kind, content in (("png", png()), ("txt", b"a"))]
    assert outcome(tmp_path, tar(members, format=tarfile.GNU_FORMAT)) == ["a"]


def test_sparse_members_are_read(tmp_path):
    # Of a sparse file only what is not zero is stored: here a picture in front of 4096 zeros, which a viewer passes over.
    member = tarfile.TarInfo("0.png")
    member.size, member.type = len(png()), tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, len(png()))
    header[483:495] = b"%011o\0" % (len(png()) + 4096)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    sparse = bytes(header) + png() + bytes(-len(png()) % tarfile.BLOCKSIZE)
    assert outcome(tmp_path, sparse + tar([("0.txt", b"a"), *pair("1", "b")])) == ["a", "b"]


def test_archives_that_follow_one_another_are_read(tmp_path):
    assert outcome(tmp_path, tar(pair("0", "a")) + tar(pair("0", "b")) + tar(pair("1", "c"))) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda content, at: content[:at], 2),  # cut between two samples
        (lambda content, at: content[: at + 300], 2),
        (lambda content, at: content[: at + 700], 2),
        (lambda content, at: content[: at + 512 + 512 * -(-len(png()) // 512) - 1], 2),  # only padding is missing
        (lambda content, at: content + b"<html>" * 100, 4),
        (lambda content, at: content[: len(content) - 300] + b"x" * 300, 4),
        (lambda content, at: content[:at] + b"\xff" * 512 + content[at + 512 :], 2),
        # A size below zero would lead back to the member before.
        (lambda content, at: content[: at + 124] + b"\xff" * 12 + content[at + 136 :], 2),
        (lambda content, at: b"\x1f\x8b\x08\0" + content, 0),
        (lambda content, at: b"", 0),
    ],
)
def test_what_is_lost_behind_a_damage_is_listed_once(tmp_path, damage, kept):
    captions = ["a", "b", "c", "d"]
    content = tar([member for number, caption in enumerate(captions) for member in pair(str(number), caption)])
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        third = archive.getmember("2.png").offset
    found = outcome(tmp_path, damage(content, third))
    assert found[:kept] == captions[:kept] and len(found) == kept + 1
    assert "the archive breaks off here" in found[kept]


def test_an_index_of_another_rule_is_made_again(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar(pair("0", "a") + pair("0", "b")))
    spec = f"webdataset:{tmp_path}/a.tar@{tmp_path}/i.npz"
    fingerprint = open_source(spec).fingerprint
    with np.load(tmp_path / "i.npz") as arrays:
        old = dict(arrays) | {
            "made_of": str(arrays["made_of"]).partition("\n")[2],
            "starts": [0],
            "stops": [1024],
            "shards": [0],
        }
    np.savez(tmp_path / "i.npz", **old)
    assert len(open_source(spec)) == 2 and open_source(spec).fingerprint == fingerprint


# The rule of samples, against webdataset's own rule of keys and plain words

KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
NAMES = [
    "".join(parts)
    for parts in itertools.product(
        ("", "x/", "x.y/"),
        ("0", "1"),
        (".", ".a.", ".b.", ".A.", ".1.", ".2."),
        ("png", "txt", "json", "JPG", "cls", "svg"),
    )
]


def plain_samples(members: list[str]) -> list[list[str]]:
    samples: list[list[str]] = []
    for key, run in itertools.groupby(members, lambda name: KEY.fullmatch(name)[1]):
        run = list(run)
        by_stem = {}
        for name in run:
            kind = "picture" if is_picture(name) else "text" if name.endswith(("txt", "json")) else None
            by_stem.setdefault(name.rpartition(".")[0], set()).add(kind)
        dotted = {stem: kinds - {None} for stem, kinds in by_stem.items() if stem != key and kinds - {None}}
        numbers = bool(dotted) and all(stem[-1] in "12" for stem in dotted) and len(set().union(*dotted.values())) == 2
        own = by_stem.get(key, set()) - {None}
        split = (any(len(kinds) == 2 for kinds in dotted.values()) or numbers) and len(own) != 1
        before = None
        for name in run:
            suffixes = {KEY.fullmatch(other)[2].lower() for other in samples[-1]} if before else set()
            stem = name.rpartition(".")[0]
            if not before or KEY.fullmatch(name)[2].lower() in suffixes or (split and stem != before):
                samples.append([])
            samples[-1].append(name)
            before = stem
    return samples


def cut(members: list[str]) -> list[list[str]]:
    """Members cut into samples."""
    samples = []
    for key, run in itertools.groupby(members, sample_key):
        run = list(run)
        samples += [run[first:end] for first, end in itertools.pairwise([*sample_starts(run, key), len(run)])]
    return samples


@settings(max_examples=2000, deadline=None)
@given(st.binary(max_size=8))
def test_samples_are_those_of_the_plain_rule(letters):
    members = [NAMES[letter % len(NAMES)] for letter in letters]
    assert cut(members) == plain_samples(members)
    assert list(itertools.chain(*cut(members))) == members


ODD_NAMES = ["._0.png", ".DS_Store", "x/", "__MACOSX/._0.txt", "README", "x/.hidden.png", "0.tar"]


@settings(max_examples=100, deadline=None)
@given(
    members=st.lists(st.sampled_from(NAMES[:24] + ODD_NAMES), max_size=8),
    joined=st.integers(0, 8),
    marked=st.booleans(),
)
def test_an_index_counts_every_member_that_is_no_junk(tmp_path_factory, members, joined, marked):
    path = tmp_path_factory.getbasetemp() / "random.tar"
    content = {name: json.dumps({"name": name}).encode() for name in members}
    parts = [
        [(name, tarfile.DIRTYPE, "") if name.endswith("/") else (name, content[name]) for name in part]
        for part in (members[:joined], members[joined:])
    ]
    path.write_bytes(tar(parts[0]) + tar(parts[1], end=marked))
    source = open_source(f"webdataset:{path}")
    expected = cut([name for name in members if not name.endswith("/") and not is_junk(name)])
    assert len(source) == len(expected) + (not marked and bool(members[joined:]))

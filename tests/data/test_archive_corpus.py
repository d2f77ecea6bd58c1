"""A generated corpus of 1,000 records in tar shards, folders and Parquet: each is kept, or rejected for its reason."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_parts import noise
from record_corpus import PICTURE, SEED, Answer, Kept, Rejected, caption, wrong_answers

from lumina_jax.data.sources import open_source

SAMPLES = 240
KEYS = ("a", "b c", "[x]", "{0..9}", "*", "日本", "🎉", "it's", "#1", "50%", "@x=y", "<b>", "a\nb", "caf\udce9")
"""What names of files begin with."""
DEEP = b'{"caption":' + b"[" * 500 + b"]" * 500 + b"}"
TWIN = b"\0\5\26\7" + bytes(60)

Sample = tuple[dict[str, bytes], Answer]
"""Suffix -> content of the files of a record, and its right answer."""


def png(seed: int) -> bytes:
    file = io.BytesIO()
    noise(PICTURE, seed).save(file, "PNG")
    return file.getvalue()


def talk(rng: np.random.Generator) -> tuple[list[dict], tuple[tuple[str, str], ...]]:
    """The messages of a dialogue about one picture, and its turns."""
    texts = [caption(rng, "<\ufeff") for _ in range(2 * int(rng.integers(1, 4)))]
    texts[0] = f"<|image|>\n{texts[0]}"
    speakers = ("human", "gpt") * (len(texts) // 2)
    messages = [{"from": speaker, "value": text} for speaker, text in zip(speakers, texts, strict=True)]
    return messages, tuple(zip(texts[::2], texts[1::2], strict=True))


def good(rng: np.random.Generator) -> Sample:
    """A record that is kept."""
    text, seed = caption(rng, "\ufeff"), int(rng.integers(8))
    messages, turns = talk(rng)
    files, answer = [
        ({"png": png(seed), "txt": text.encode()}, text),
        ({"PNG": png(seed), "TXT": f"{text}\r\n".encode()}, text),
        ({"png": png(seed), "caption": text.encode("utf-8-sig")}, text),
        ({"png": png(seed), "text": text.encode("utf-16")}, text),
        ({"png": png(seed), "json": json.dumps({"caption": text}).encode()}, text),
        ({"png": png(seed), "json": json.dumps({"text": text, "x": [1e400]}).encode()}, text),
        ({"txt": text.encode(), "png": png(seed), "json": b'{"caption": "other", "url": null}'}, text),
        ({"jpg": png(seed), "txt": text.encode()}, text),  # the content decides what a picture is
        ({"png": png(seed), "json": json.dumps({"conversations": messages}).encode()}, turns),
    ][rng.integers(9)]
    return files, Kept(answer, (), (seed,)) if isinstance(answer, str) else Kept(None, answer, (seed,))


def bad(rng: np.random.Generator) -> Sample:
    """A record that is rejected."""
    text, picture = caption(rng).encode(), png(int(rng.integers(8)))
    files, reason = [
        ({"png": picture}, "no caption"),
        ({"svg": b"<svg/>", "txt": text}, "no decoder for SVG"),
        ({"png": picture, "txt": b"\xff" + text}, "is no UTF-8"),
        ({"png": picture, "txt": b"a\0b"}, "NUL"),
        ({"png": picture, "txt": b" \n"}, "caption is empty"),
        ({"png": picture, "json": DEEP}, "nested 501 deep"),
        ({"png": picture, "json": b'{"caption": "\\ud83d"}'}, "half a surrogate"),
        ({"png": picture, "json": b'{"caption": 5}'}, "JSON int, not a text"),
        ({"png": picture, "json": b"[]"}, "JSON list, not an object"),
        ({"png": picture, "json": b'{"caption": "a"'}, "no JSON"),
        ({"png": picture[:60], "txt": text}, r"\.png: "),
        ({"png": b"", "txt": text}, "it is empty"),
        ({"png": b"<html>", "txt": text}, "no image that Pillow can read"),
        ({"png": picture, "json": b'{"conversations": [{"from": "gpt", "value": "a"}]}'}, "message 0 is from 'gpt'"),
        ({"png": picture, "json": b'{"conversations": []}'}, "not a list of at least one message"),
    ][rng.integers(15)]
    return files, Rejected(reason)


def samples(rng: np.random.Generator) -> list[Sample]:
    return [good(rng) if rng.random() < 0.6 else bad(rng) for _ in range(SAMPLES)]


# Tar shards


class Shard:
    """A shard that is written, and the right answers of its records."""

    def __init__(self, rng: np.random.Generator, options: dict):
        self._rng, self._file = rng, io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", **options)
        self.answers: list[Answer] = []

    def add(self, name: str, content: bytes = b"", **fields: object) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        for field, value in fields.items():
            setattr(member, field, value)
        self._tar.addfile(member, io.BytesIO(content))

    def sample(self, key: str, sample: Sample) -> None:
        files, answer = sample
        twins = self._rng.random() < 0.2
        for suffix in self._rng.permutation(list(files)):
            name = f"{key}.{suffix}"
            if twins:
                folder, _, base = name.rpartition("/")
                self.add(f"{folder}/._{base}" if folder else f"._{base}", TWIN)
            self.add(name, files[suffix])
        self.answers.append(answer)

    def odd(self, key: str) -> None:
        """Members that are no sample, one that is not whole, or two that share a name."""
        first, second = good(self._rng), good(self._rng)
        kind = self._rng.integers(9)
        if kind == 0:
            self.add(f"{key}/.DS_Store", b"x")
            self.add(f"__MACOSX/{key}/._0.png", TWIN)
        elif kind == 1:
            self.add(f"{key}/", type=tarfile.DIRTYPE)
        elif kind == 2:
            self.sample(key, first)
            self.sample(key, ({suffix: first[0][suffix] for suffix in first[0]}, first[1]))
        elif kind == 3 and "." not in key:
            for number, sample in enumerate((first, second)):
                self.sample(f"{key}.{number}", sample)
        elif kind == 4:
            self.add(f"{key}-0.png", png(3))
            self.add(f"{key}-1.png", type=tarfile.LNKTYPE, linkname=f"{key}-0.png")
            self.add(f"{key}-1.txt", b"linked")
            self.answers += [Rejected("no caption"), Kept("linked", (), (3,))]
        elif kind == 5:
            self.add(f"{key}.png", type=tarfile.SYMTYPE, linkname="/dev/null")
            self.add(f"{key}.txt", b"x")
            self.answers.append(Rejected("leads to no file of the shard"))
        elif kind == 6:
            self.add(f"{key}-text.txt", b"alone")
            self.answers.append(Rejected("has one image; the sample holds"))
        elif kind == 7:
            for name in (f"{key}.0.png", f"{key}.1.png", f"{key}.txt"):
                self.add(name, png(1) if name.endswith("png") else b"two")
            self.answers.append(Rejected("one image and no turns, not 2"))
        else:
            self.add(f"{key}-README", b"x")
            self.answers.append(Rejected("no caption: the sample holds"))

    def content(self) -> bytes:
        self._tar.close()
        return self._file.getvalue()


def shards(rng: np.random.Generator, folder) -> tuple[str, list[Answer]]:
    answers, number, todo = [], 0, samples(rng)
    for shard_number in range(6):
        form = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[shard_number % 2]
        shard = Shard(rng, {"format": form})
        for sample in todo[shard_number::6]:
            key = f"{'x.y/' * int(rng.integers(2))}{rng.choice(KEYS).replace('.', '-')}{'long' * int(rng.integers(2)) * 40}{number}"
            shard.sample(key, sample)
            if rng.random() < 0.2:
                shard.odd(f"{key}-odd")
            number += 1
        content = shard.content()
        if shard_number == 4:
            content += content
            shard.answers *= 2
        elif shard_number == 5:
            content += b"<html>" * 100
            shard.answers.append(Rejected("the archive breaks off here"))
        (folder / f"{shard_number}.tar").write_bytes(content)
        answers += shard.answers
    return f"webdataset:{folder}/*.tar", answers


# Folders


def captioned_folder(rng: np.random.Generator, folder) -> tuple[str, list[Answer]]:
    answers: dict[tuple[str, str], Answer] = {}
    for number, (files, answer) in enumerate(samples(rng)):
        stem = f"{rng.choice(['', 'x/', 'x/y.z/', '🎉/'])}{rng.choice(KEYS)}{number}{rng.choice(['', '.v1'])}"
        for suffix, content in files.items():
            path = folder / f"{stem}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if rng.random() < 0.1:
                (path.parent / f"._{path.name}").write_bytes(TWIN)
        answers[stem, ""] = answer
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "z.png").symlink_to("nothing.png")
    (folder / "z.txt").write_text("z")
    answers["z", ""] = Rejected("z.png: No such file")
    (folder / "zz.txt").write_text("no picture")
    answers["zz", ""] = Rejected("one image and no turns, not 0")
    return f"folder:{folder}", [answers[key] for key in sorted(answers)]


def described_folder(rng: np.random.Generator, folder) -> tuple[str, list[Answer]]:
    """Splits with metadata of every form, and pictures that no row names."""
    answers: list[Answer] = []
    loose: list[str] = []
    for split, form in (("a", "csv"), ("b", "jsonl"), ("c", "parquet")):
        (folder / split / "img").mkdir(parents=True)
        rows = []
        for number in range(SAMPLES // 4):
            seed, text = int(rng.integers(8)), caption(rng, "\ufeff")
            name, kind = f"img/{rng.choice(KEYS[:-2])}{number}.png", rng.integers(6)
            if kind > 1:
                (folder / split / name).write_bytes(png(seed))
            if kind > 0:
                rows.append((name, text))
                answers.append(Kept(text, (), (seed,)) if kind > 1 else Rejected("No such file"))
            if kind == 5:
                (folder / split / f"{name}-more.png").write_bytes(png(seed))
                loose.append(f"{split}/{name}-more.png")
        _write_metadata(folder / split / f"metadata.{form}", rows)
    return f"folder:{folder}", answers + [Rejected("no caption beside it")] * len(loose)


def _write_metadata(path, rows: list[tuple[str, str]]) -> None:
    if path.suffix == ".csv":
        quoted = ['"{}","{}"'.format(*(field.replace('"', '""') for field in row)) for row in rows]
        path.write_text("\n".join(["file_name,text", *quoted]), encoding="utf-8", newline="")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in rows), encoding="utf-8")
    else:
        pq.write_table(pa.table({"file_name": [n for n, _ in rows], "text": [t for _, t in rows]}), path)


# Parquet


def tables(rng: np.random.Generator, folder) -> tuple[str, list[Answer]]:
    (folder / "far.png").write_bytes(png(5))
    answers: list[Answer] = []
    for number in range(8):
        images, texts, expected = [], [], []
        for _ in range(SAMPLES // 8):
            text, seed = caption(rng), int(rng.integers(8))
            image, answer = [
                ({"bytes": png(seed), "path": "x.png"}, Kept(text, (), (seed,))),
                ({"bytes": None, "path": "far.png"}, Kept(text, (), (5,))),
                ({"bytes": None, "path": "none.png"}, Rejected("No such file")),
                ({"bytes": b"", "path": None}, Rejected("it is empty")),
                ({"bytes": png(seed)[:70], "path": None}, Rejected("row group")),
                (None, Rejected("one image and no turns, not 0")),
            ][int(rng.choice(6, p=[0.5, *[0.1] * 5]))]
            if image and rng.random() < 0.1:
                text, answer = [(None, Rejected("is null")), ("", Rejected("caption is empty"))][rng.integers(2)]
            images.append(image)
            texts.append(text)
            expected.append(answer)
        kind = (pa.string(), pa.large_string(), pa.string_view(), pa.list_(pa.string()))[number % 4]
        texts = [text if text is None else [text, "second"] for text in texts] if number % 4 == 3 else texts
        columns = {"image": pa.array(images), "text": pa.array(texts, kind), "id": list(range(len(images)))}
        if number == 6:
            columns["caption"] = columns.pop("text")
            expected = [Rejected("'text', a column of the other files")] * len(images)
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=int(rng.integers(1, 9)))
        answers += expected
    (folder / "9.parquet").write_bytes(b"version https://git-lfs")
    return f"parquet:{folder}/*.parquet", [*answers, Rejected("9.parquet is no Parquet file")]


@pytest.mark.parametrize("make", [shards, captioned_folder, described_folder, tables])
def test_every_record_is_kept_as_it_is_or_rejected_for_its_reason(tmp_path, make: Callable):
    spec, answers = make(np.random.default_rng(SEED), tmp_path)
    source = pickle.loads(pickle.dumps(open_source(spec)))
    assert not wrong_answers(source, answers)
    kept = sum(isinstance(answer, Kept) for answer in answers)
    assert len(answers) > 150 and 0.3 < kept / len(answers) < 0.9

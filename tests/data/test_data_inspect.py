"""Laws of data inspect: its numbers equal those of folders and plan; its sheet shows what samples hold and learn."""

import base64
import io
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from data.data_parts import CONFIG, NoiseSource, tiny_vocab, tiny_vq
from PIL import Image

from lumina_jax.conversation import tokenize
from lumina_jax.data.batch_plan import BatchPlan
from lumina_jax.data.inspect import as_text, sheet, tables
from lumina_jax.data.pretokenize import pretokenize
from lumina_jax.data.shards import Shards
from lumina_jax.data.sheet import card, pieces, readable
from lumina_jax.errors import InputError
from lumina_jax.layout import encode_grid
from lumina_jax.pictures.html import percent
from lumina_jax.pictures.pixels import to_image

BAD = (3, 7)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Shards]:
    base = tmp_path_factory.mktemp("tokens")
    for name, records, bad in (("a", 40, BAD), ("b", 15, ())):
        pretokenize(NoiseSource(records, bad), tiny_vq(), tiny_vocab(), base / name, CONFIG, seed=0, progress=False)
    return [Shards(base / name) for name in ("a", "b")]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "132")


def by_title(folders, cfg=None):
    return {table.title: table for table in tables(folders, cfg)}


def test_the_numbers_equal_those_of_the_folders(folders):
    report = by_title(folders)
    for row, folder in zip(report["Folders"].rows, folders, strict=True):
        tokens = sum(len(folder[i][0]) for i in range(len(folder)))
        learned = sum(int(folder[i][1].sum()) for i in range(len(folder)))
        assert row[:4] == (str(folder.path), f"{len(folder)}", f"{folder.manifest.rejected}", f"{tokens:,}")
        assert row[-1] == pytest.approx(learned / tokens)
    assert sum(int(row[1]) for row in report["Lengths"].rows) == sum(map(len, folders))
    assert sum(row[2] for row in report["Images"].rows) == pytest.approx(1)
    assert {(row[0], row[1]) for row in report["Rejected"].rows} == {(str(i), f"record {i} is bad") for i in BAD}
    (cause,) = report["Why records were rejected"].rows
    assert cause[1:3] == ("2", 1.0) and cause[3] == f"record 3 of {folders[0].path}: record 3 is bad"
    assert "Batches" not in report and "Mixture" not in report


def test_batches_and_mixture_equal_those_of_training(folders):
    cfg = replace(CONFIG, path=",".join(str(folder.path) for folder in folders), weights=(3.0, 1.0), mix_by="records")
    report = by_title(folders, cfg)
    plan = BatchPlan([folder.lengths for folder in folders], cfg, 0)
    assert f"{plan.steps} steps" in report["Batches"].caption and percent(plan.padding) in report["Batches"].caption
    assert [row[0] for row in report["Batches"].rows] == [str(bucket.length) for bucket in plan.buckets]
    shares = [row[2] for row in report["Mixture"].rows]
    assert shares == pytest.approx([0.75, 0.25], abs=0.02)
    text = as_text(list(report.values()))
    assert all(table.title in text for table in report.values()) and "█" in text


def test_a_sample_is_split_where_learning_begins_and_ends():
    vocab, codes = tiny_vocab(), np.arange(8, dtype=np.int32).reshape(2, 4)
    tokens, learn = tokenize([("paint <|image|> now", "a <b> answer")], [codes], vocab)
    sample = list(pieces(tokens, learn, vocab))
    assert [(piece.learned, piece.codes is not None) for piece in sample] == [
        (False, False),
        (False, True),
        (False, False),
        (True, False),
    ]
    assert sample[-1].text.startswith("a <b> answer") and np.array_equal(sample[1].codes, codes)
    html = card("title", sample, tiny_vq())
    assert "a &lt;b&gt; answer" in html and 'class="learned"' in html
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])))
    assert np.array_equal(np.asarray(picture), np.asarray(to_image(tiny_vq().decode(codes[None])[0])))
    tokens[tokens == vocab.newline] = vocab.bos
    assert any(piece.broken for piece in pieces(tokens, learn, vocab))


def test_the_sheet_holds_the_requested_number_of_samples(folders):
    page = sheet(folders, list(tables(folders, None)), tiny_vocab(), tiny_vq(), samples=7)
    assert page.count('class="sample"') == 7 and "http" not in page
    assert {"a, record", "b, record"} <= set(re.findall(r"[ab], record", page))


class Odd(NoiseSource):
    """Records that are rejected for reasons of all kinds of letters."""

    REASONS = ("[red]no.png: gone", "two\nlines and \x1b[2J: broken", "half \udcff: damaged", "a " + "very long " * 200)

    def __getitem__(self, index):
        if index < 3 * len(self.REASONS):
            raise InputError(self.REASONS[index % len(self.REASONS)])
        return super().__getitem__(index)


def pretokenized(out, source, **changes):
    return pretokenize(source, tiny_vq(), tiny_vocab(), out, CONFIG, seed=0, progress=False, **changes)


def test_rejects_are_summed_up_by_cause_and_shown_letter_by_letter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = "odd [bold] & <b>"
    pretokenized(out, Odd(40), name="[red]:smile:{x}")
    folders = [Shards(out)]
    report = list(tables(folders, None))
    causes = {table.title: table for table in report}["Why records were rejected"]
    assert sorted(row[1] for row in causes.rows) == ["3"] * 4 and sum(row[2] for row in causes.rows) == pytest.approx(1)
    text = as_text(report)
    assert "\x1b" not in text and not re.search("[\ud800-\udfff]", text)
    for shown in (
        "odd [bold] & <b>",
        "[red]:smile:{x}",
        "[red]no.png: gone",
        r"two\nlines and \x1b[2J",
        r"half \udcff",
    ):
        assert shown in text, shown
    page = sheet(folders, report, None, None, samples=3)
    page.encode()
    assert "\x1b" not in page and "odd [bold] &amp; &lt;b&gt;" in page and r"half \udcff" in page
    assert all(table.title in page for table in report) and 'class="sample"' not in page


def test_many_causes_are_counted_whole_although_few_are_shown(tmp_path):
    class Many(NoiseSource):
        def __getitem__(self, index):
            if index < 60:
                raise InputError("x", cause=f"cause {'abcdefghijklmnopqrst'[index % 20]}")
            return super().__getitem__(index)

    pretokenized(tmp_path / "many", Many(80))
    report = by_title([Shards(tmp_path / "many")])
    causes = report["Why records were rejected"]
    assert (
        len(causes.rows) == 16 and "60 records" in causes.caption and "20 causes, here the first 16" in causes.caption
    )


def test_a_folder_of_an_older_version_and_several_folders_are_summed_up(tmp_path):
    for name, bad in (("a", (1, 2, 3)), ("b", (5,))):
        pretokenized(tmp_path / name, NoiseSource(20, bad))
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    del manifest["causes"]
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    lines = [{"index": i, "reason": f"x, record {i}: OSError: record {i} is bad"} for i in (1, 2, 3)]
    (tmp_path / "a" / "rejects.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    causes = by_title([Shards(tmp_path / name) for name in ("a", "b")])["Why records were rejected"]
    assert {row[0]: row[1] for row in causes.rows} == {"record N is bad": "3", "OSError: record N is bad": "1"}


@pytest.mark.parametrize("line", ["", "{}", "[1]", '{"index": "x", "reason": "y"}'])
def test_a_damaged_list_of_rejects_is_named_with_its_line(tmp_path, line):
    pretokenized(tmp_path / "a", NoiseSource(20, (1,)))
    (tmp_path / "a" / "rejects.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"rejects.jsonl, line 1 is damaged"):
        list(tables([Shards(tmp_path / "a")], None))
    (tmp_path / "a" / "rejects.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"rejects\.jsonl: no such file; copy the folder whole"):
        list(tables([Shards(tmp_path / "a")], None))


def test_a_folder_of_which_nothing_was_kept_shows_why(tmp_path, folders):
    pretokenized(tmp_path / "none", NoiseSource(3, bad=(0, 1, 2)))
    with pytest.raises(ValueError, match="holds no records"):
        Shards(tmp_path / "none")
    empty = Shards(tmp_path / "none", may_be_empty=True)
    report = by_title([empty], CONFIG)
    assert report["Folders"].rows[0][1:3] == ("0", "3") and "Lengths" not in report and "Batches" not in report
    assert as_text(list(report.values())).count("record N is bad") == 1
    page = sheet([empty, folders[1]], list(report.values()), tiny_vocab(), tiny_vq(), samples=4)
    assert page.count('class="sample"') == 4
    assert "Samples" not in sheet([empty], list(report.values()), tiny_vocab(), tiny_vq(), samples=4)


@pytest.mark.parametrize("token", [10**6, -5, "short"])
def test_a_damaged_record_is_a_card_that_says_so(tmp_path, token):
    pretokenized(tmp_path / "a", NoiseSource(20))
    data = Shards(tmp_path / "a")
    (file,) = (tmp_path / "a").glob("*.tokens")
    content = bytearray(file.read_bytes())
    if token == "short":
        content = content[: 4 * int(data.lengths[0])]
    else:
        content[40:44] = token.to_bytes(4, "little", signed=True)
    file.write_bytes(content)
    page = sheet([data], [], tiny_vocab(), tiny_vq(), samples=20)
    assert page.count('class="sample"') == 20
    assert page.count("a record that cannot be read") == (19 if token == "short" else 1)


def test_tokens_have_names_that_a_person_knows():
    vocab = tiny_vocab()
    image = encode_grid(np.arange(8, dtype=np.int32).reshape(2, 4), vocab)
    words = readable(np.array([vocab.bos, *image[:4], *image[-2:], vocab.end_of_turn, vocab.size_id(3)]), vocab)
    assert words == "<start><image><2 rows><4 columns><code 0><end of row><end of image><end of turn><size 3>"
    assert readable(np.array([99999, -1]), vocab) == "<no token 99999><no token -1>"
    literal = "a <reserved08706> of text"
    assert readable(np.array(vocab.encode_literally(literal)), vocab) == literal


def test_a_terminal_of_ascii_letters_gets_ascii_bars(folders, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    text = as_text(list(tables(folders, None)))
    assert text.isascii() and "#####" in text

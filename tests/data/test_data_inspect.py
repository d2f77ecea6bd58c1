"""Laws of data inspect: its numbers equal those of folders and plan; its sheet shows what samples hold and learn."""

import base64
import io
import re
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
from lumina_jax.data.sheet import card, pieces
from lumina_jax.pictures.html import percent
from lumina_jax.pictures.pixels import to_image

BAD = (3, 7)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Shards]:
    base = tmp_path_factory.mktemp("tokens")
    for name, records, bad in (("a", 40, BAD), ("b", 15, ())):
        pretokenize(NoiseSource(records, bad), tiny_vq(), tiny_vocab(), base / name, CONFIG, seed=0, progress=False)
    return [Shards(base / name) for name in ("a", "b")]


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

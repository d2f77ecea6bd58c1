"""Laws of data inspect: its numbers are those of the folders and of the plan, its sheet shows what a sample holds and learns."""

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
from lumina_jax.data.inspect import printed, sheet, tables
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


def test_the_numbers_are_those_of_the_folders(folders):
    found = by_title(folders)
    for row, part in zip(found["Folders"].rows, folders, strict=True):
        tokens = sum(len(part[i][0]) for i in range(len(part)))
        learned = sum(int(part[i][1].sum()) for i in range(len(part)))
        assert row[:4] == (str(part.path), f"{len(part)}", f"{part.manifest.rejected}", f"{tokens:,}")
        assert row[-1] == pytest.approx(learned / tokens)
    assert sum(int(row[1]) for row in found["Lengths"].rows) == sum(map(len, folders))
    assert sum(row[2] for row in found["Images"].rows) == pytest.approx(1)
    assert {(row[0], row[1]) for row in found["Rejected"].rows} == {(str(i), f"record {i} is bad") for i in BAD}
    assert "Batches" not in found and "Mixture" not in found


def test_batches_and_mixture_are_those_of_training(folders):
    cfg = replace(CONFIG, path=",".join(str(part.path) for part in folders), weights=(3.0, 1.0), mix_by="records")
    found = by_title(folders, cfg)
    plan = BatchPlan([folder.lengths for folder in folders], cfg, 0)
    assert f"{plan.steps} steps" in found["Batches"].words and percent(plan.padding) in found["Batches"].words
    assert [row[0] for row in found["Batches"].rows] == [str(bucket.length) for bucket in plan.buckets]
    shares = [row[2] for row in found["Mixture"].rows]
    assert shares == pytest.approx([0.75, 0.25], abs=0.02)
    text = printed(list(found.values()))
    assert all(table.title in text for table in found.values()) and "█" in text


def test_a_sample_is_cut_where_learning_begins_and_ends():
    vocab, codes = tiny_vocab(), np.arange(8, dtype=np.int32).reshape(2, 4)
    tokens, learn = tokenize([("paint <|image|> now", "a <b> answer")], [codes], vocab)
    found = list(pieces(tokens, learn, vocab))
    assert [(piece.learned, piece.codes is not None) for piece in found] == [
        (False, False),
        (False, True),
        (False, False),
        (True, False),
    ]
    assert found[-1].text.startswith("a <b> answer") and np.array_equal(found[1].codes, codes)
    shown = card("title", found, tiny_vq())
    assert "a &lt;b&gt; answer" in shown and 'class="learned"' in shown
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", shown)[1])))
    assert np.array_equal(np.asarray(picture), np.asarray(to_image(tiny_vq().decode(codes[None])[0])))
    tokens[tokens == vocab.newline] = vocab.bos
    assert any(piece.broken for piece in pieces(tokens, learn, vocab))


def test_the_sheet_holds_as_many_samples_as_asked_for(folders):
    page = sheet(folders, list(tables(folders, None)), tiny_vocab(), tiny_vq(), samples=7)
    assert page.count('class="sample"') == 7 and "http" not in page
    assert {"a, record", "b, record"} <= set(re.findall(r"[ab], record", page))

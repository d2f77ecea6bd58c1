"""Laws of the report: one self-contained file that shows all its data, with every text escaped."""

import base64
import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from lumina_jax.pictures.html import VOID_TAGS, duration, short
from lumina_jax.toyworld.drawings import curves
from lumina_jax.toyworld.report import JudgedSample, QuickstartReport, Score, StageResult, SweepCell, write_report

EVIL = '<script src="x">&'
PROMPTS = ("a red circle", EVIL + "1", EVIL + "2", "a blue square")


def image(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def sample(prompt, size=(32, 16), right=True):
    return JudgedSample(prompt, size, image(*size), (("a thing", True), (f"{prompt} fact", right)))


def stage(name, size, fresh, held_out):
    losses = tuple((step, 5 / step) for step in range(1, 40))
    return StageResult(name, size, 39, 123_456, ((size, size), (2 * size, size)), losses, fresh, held_out, 75.0)


MISSING = JudgedSample("a missing one", (16, 48), None, ())
REPORT = QuickstartReport(
    title="A & B",
    minutes=3.0,
    stages=(
        stage("one", 16, Score(96, 0.9375, 1.0), Score(64, 0.515625, 0.984375)),
        stage("two", 32, Score(80, 0.8125, 0.9875), Score(48, 0.4375, 0.8958)),
    ),
    samples=(sample(PROMPTS[0]), sample(PROMPTS[1], (16, 64), right=False), MISSING),
    progress=((sample(PROMPTS[2]), sample(PROMPTS[2], (64, 32))), (MISSING, sample("a missing one"))),
    sweep=(
        SweepCell(1.0, 1.0, 1, (sample(PROMPTS[3]), sample(PROMPTS[3], right=False))),
        SweepCell(4.0, 0.5, 2000, (sample(PROMPTS[3]), MISSING, sample(PROMPTS[3]), sample(PROMPTS[3]))),
    ),
    originals=(image(16, 32), image(32, 16)),
    rebuilt=(image(16, 32), image(32, 16, seed=1)),
    codebook={"pictures": 9, "psnr_db": 41.25, "exact": 0.5, "codes_used": 0.9, "perplexity": 12.34},
    timings=(("train & judge", 90.0), ("nothing", 0.0)),
    command="run --out '<here>'",
    machine="2 cores",
)


class Page(HTMLParser):
    """Checks that tags balance, and collects them with their attributes and the text between them."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def written(report, tmp_path):
    return write_report(report, tmp_path / "deep" / "report.html").read_text(encoding="utf-8")


@pytest.mark.smoke
def test_the_page_is_complete_escaped_and_self_contained(tmp_path):
    text = written(REPORT, tmp_path)
    page = Page(text)
    words = "\n".join(page.text)
    for prompt in (*PROMPTS, MISSING.prompt):
        assert prompt in words and html.escape(prompt) in text
    assert EVIL not in text and not page.named("script")
    assert not re.search(r"https?://|@import|url\(|<link", text)
    assert {a["src"].split(",")[0] for a in page.named("img")} == {"data:image/png;base64"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]
    for text in (REPORT.title, REPORT.command, REPORT.machine, "train & judge", "1 min 30 s"):
        assert text in words


@pytest.mark.smoke
def test_every_picture_is_embedded_once_bit_for_bit_at_one_of_two_scales(tmp_path):
    samples = [
        *REPORT.samples,
        *(p for row in REPORT.progress for p in row),
        *(p for cell in REPORT.sweep for p in cell.samples),
    ]
    pictures = [p.image for p in samples if p.image is not None]
    pictures += [side for pair in zip(REPORT.originals, REPORT.rebuilt, strict=True) for side in pair]
    page = Page(written(REPORT, tmp_path))
    tags = page.named("img")
    assert len(tags) == len(pictures)
    for attributes, pixels in zip(tags, pictures, strict=True):
        file = io.BytesIO(base64.b64decode(attributes["src"].split(",")[1]))
        np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels)
        scale = int(attributes["width"]) / pixels.shape[1]
        assert scale in (1.0, 1.5) and int(attributes["height"]) == scale * pixels.shape[0]
    missing = sum(p.image is None for p in samples)
    assert sum(a.get("class") == "gap" for a in page.named("div")) == missing


def test_the_scores_are_those_of_the_data(tmp_path):
    page = Page(written(REPORT, tmp_path))
    shares = [word for word in page.text if re.fullmatch(r"[\d.]+%", word)]
    scores = [score for stage in REPORT.stages for score in (stage.fresh, stage.held_out)]
    expected = [f"{100 * share:.1f}%" for score in scores for share in (score.all_right, score.size_obeyed)]
    assert shares == [*expected, "50.0%", "75.0%"]
    assert "65 of 80 fresh prompts" in page.text
    counts = [word for word in page.text if re.fullmatch(r"\d+ (fresh|held-out compositions)", word)]
    assert counts == ["96 fresh", "64 held-out compositions", "80 fresh", "48 held-out compositions"]
    assert any("PSNR 41.2 dB, 50.0% exact, 90.0% of the codes used, perplexity 12.3" in word for word in page.text)


def test_facts_and_frames_are_marked_right_or_wrong(tmp_path):
    page = Page(written(replace(REPORT, progress=(), sweep=()), tmp_path))
    marks = [attributes["class"] for attributes in page.named("li")]
    assert marks == ["right", "right", "right", "wrong", "wrong"]
    frames = [a["class"] for a in page.named("div") if a.get("class", "").startswith("frame")]
    assert frames == ["frame right", "frame wrong"]


def test_a_sample_is_right_if_it_has_a_picture_and_every_fact_is_right():
    assert sample("x").all_right
    assert not sample("x", right=False).all_right
    assert not MISSING.all_right


def test_empty_data_have_no_section(tmp_path):
    stages = tuple(replace(stage, losses=()) for stage in REPORT.stages)
    report = replace(
        REPORT, stages=stages, samples=(), progress=(), sweep=(), originals=(), rebuilt=(), codebook={}, timings=()
    )
    page = Page(written(report, tmp_path))
    assert len(page.named("h2")) == 2 and not page.named("img")
    with pytest.raises(ValueError, match="0 stages"):
        write_report(replace(REPORT, stages=()), tmp_path / "report.html")


def test_a_report_replaces_the_one_before(tmp_path):
    assert written(REPORT, tmp_path) != written(replace(REPORT, title="another"), tmp_path)
    assert "another" in (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "losses", [((1, 0.0),), ((5, 2.0), (10, 2.0)), tuple((s, 9 * 0.99**s) for s in range(1, 3000))]
)
def test_curves_stay_inside_the_plot_area_one_after_another(losses):
    page = Page(curves([("one", "hue0", losses), ("two", "hue1", losses)]))
    lines = [np.array([point.split(",") for point in a["points"].split()], float) for a in page.named("polyline")]
    assert len(lines) == 4
    for line in lines:
        assert (
            (np.diff(line[:, 0]) > 0).all()
            and line.min() >= 40
            and line[:, 0].max() <= 1104
            and line[:, 1].max() <= 324
        )
    assert lines[0][-1, 0] <= lines[2][0, 0] and lines[2][-1, 0] == 1104
    assert {"one", "two"} == {word.split(":")[0] for word in page.text if "nats" in word and ":" in word}


def test_numbers_in_words():
    assert [duration(s) for s in (0.04, 59.9, 60, 3599.6, 7260)] == [
        "0.0 s",
        "59.9 s",
        "1 min 0 s",
        "1 h 0 min",
        "2 h 1 min",
    ]
    assert [short(n) for n in (0, 999, 1000, 123_456, 3_400_000)] == ["0", "999", "1k", "123k", "3.4M"]

"""The quickstart's report: one HTML file that needs no other, with every score, picture, curve and timing of the run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lumina_jax.errors import InputError
from lumina_jax.pictures import html
from lumina_jax.pictures.html import Html, join, section, tag
from lumina_jax.storage import atomic_write_text
from lumina_jax.toyworld import drawings
from lumina_jax.toyworld.drawings import Pixels

STYLE = Path(__file__).with_name("report.css")
SCALE = 1.5
"""CSS px per pixel wherever pictures are compared; the same everywhere, so that their areas are."""
SMALL = 1.0
"""The same where many pictures share a cell."""


@dataclass(frozen=True)
class Painted:
    """What came of one prompt: ``size`` (width, height) was asked for, ``facts`` are claims in words and their truth.

    ``image`` is u8[Y X 3], or None where no whole picture came.
    """

    prompt: str
    size: Pixels
    image: np.ndarray | None
    facts: tuple[tuple[str, bool], ...]

    @property
    def all_right(self) -> bool:
        return self.image is not None and all(right for _, right in self.facts)


@dataclass(frozen=True)
class Score:
    """Shares 0..1 of ``count`` pictures: with every fact right, and of the size that was asked for."""

    count: int
    all_right: float
    size_obeyed: float


@dataclass(frozen=True)
class Stage:
    """One stage of training: canvases of about ``size``² px, tokens trained on, ``losses`` as (step, nats)."""

    name: str
    size: int
    steps: int
    tokens: int
    canvases: tuple[Pixels, ...]
    losses: tuple[tuple[int, float], ...]
    fresh: Score
    held_out: Score
    seconds: float


@dataclass(frozen=True)
class Knob:
    """Settings of sampling, and what the same prompts gave under them."""

    guidance: float
    temperature: float
    top_k: int
    painted: tuple[Painted, ...]


@dataclass(frozen=True)
class Report:
    """Everything the report shows.

    ``samples`` are of the last stage; ``progress`` has a row for each prompt and a column for each stage; ``rebuilt`` are
    the ``originals`` u8[Y X 3] encoded and decoded; ``codebook`` is PatchVQ.report's; ``timings`` are (what, seconds).
    """

    title: str
    minutes: float
    stages: tuple[Stage, ...]
    samples: tuple[Painted, ...]
    progress: tuple[tuple[Painted, ...], ...]
    knobs: tuple[Knob, ...]
    originals: tuple[np.ndarray, ...]
    rebuilt: tuple[np.ndarray, ...]
    codebook: dict[str, float]
    timings: tuple[tuple[str, float], ...]
    command: str
    machine: str


def write_report(report: Report, path: Path) -> Path:
    """Writes the page whole or not at all, and returns its path. Raises ValueError for a report without stages."""
    if not report.stages:
        raise InputError("a report of 0 stages; it needs at least 1 to have a score")
    atomic_write_text(path, _page(report))
    return path


def _page(report: Report) -> str:
    sections = (_scores, _samples, _progress, _knobs, _rebuilt, _losses, _timings, _again)
    content = (_top(report), *(show(report) for show in sections))
    return html.page(report.title, STYLE.read_text(encoding="utf-8"), *content)


def _top(report: Report) -> Html:
    last = report.stages[-1]
    right = round(last.fresh.all_right * last.fresh.count)
    claim = tag("strong", f"{right} of {last.fresh.count} fresh prompts")
    rest = (
        f" were painted with every stated fact right, on {len(last.canvases)} canvases of about {last.size} × {last.size} px, "
        f"by a model trained from nothing with a budget of {report.minutes:g} minutes."
    )
    drawing = drawings.canvases([stage.canvases for stage in report.stages])
    return tag("header", tag("div", tag("h1", report.title), tag("p", claim, rest)), drawing)


def _scores(report: Report) -> Html:
    words = (
        "Training is progressive, as the paper's FP-SFT: each stage starts from the weights of the one before and paints "
        "larger canvases, drawn here around one centre. A judge that sees only pixels checks every claim of a prompt. "
        "Held-out compositions are of a colour, shape and relation that no training picture shows together."
    )
    names = ("Stage", "Canvases", "Steps", "Tokens", "Trained in", "Prompts", "Every fact right", "Size obeyed")
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    bodies = (_score_rows(number, stage) for number, stage in enumerate(report.stages))
    return section("Score", words, tag("div", tag("table", head, *bodies, class_="scores"), class_="wide"))


def _score_rows(number: int, stage: Stage) -> Html:
    drawing = drawings.canvases([stage.canvases], number)
    about = f"{len(stage.canvases)} of about {stage.size} × {stage.size} px"
    cells = [tag("th", stage.name, rowspan=2, scope="rowgroup"), tag("td", drawing, about, rowspan=2, class_="shapes")]
    for value in (f"{stage.steps:,}", html.short(stage.tokens), html.duration(stage.seconds)):
        cells.append(tag("td", value, rowspan=2))
    rows = [_score_cells("fresh", stage.fresh), _score_cells("held-out compositions", stage.held_out)]
    return tag("tbody", tag("tr", *cells, rows[0]), tag("tr", rows[1]), class_=drawings.hue(number))


def _score_cells(name: str, score: Score) -> Html:
    shares = (tag("td", html.meter(share)) for share in (score.all_right, score.size_obeyed))
    return join(tag("td", f"{score.count} {name}"), *shares)


def _samples(report: Report) -> Html:
    if not report.samples:
        return Html()
    words = (
        "One area, many aspect ratios, all enlarged alike. The prompt asks for a size; the model itself writes height, width "
        "and the end of every row (Uni-Rep). With each picture stand the facts the judge looked for."
    )
    return section("Painted by the last stage", words, tag("div", *map(_sample, report.samples), class_="wall"))


def _sample(painted: Painted) -> Html:
    size = f"{painted.size[0]} × {painted.size[1]}"
    words = tag("figcaption", tag("b", painted.prompt), tag("small", size), _facts(painted))
    return tag("figure", _framed(painted, SCALE), words)


def _facts(painted: Painted, wrong_only: bool = False) -> Html:
    if painted.image is None:
        shown = (("no whole picture", False),)
    elif wrong_only:
        shown = [fact for fact in painted.facts if not fact[1]] or (("every fact", True),)
    else:
        shown = painted.facts
    return tag("ul", *(tag("li", name, class_="right" if right else "wrong") for name, right in shown), class_="facts")


def _framed(painted: Painted, scale: float) -> Html:
    """A picture in the colour of its verdict, or the gap it left."""
    if painted.image is None:
        return drawings.gap(painted.size, scale)
    verdict = "right" if painted.all_right else "wrong"
    return tag("div", html.picture(painted.image, f"{painted.prompt} ({verdict})", scale), class_=f"frame {verdict}")


def _progress(report: Report) -> Html:
    if not report.progress:
        return Html()
    words = "The same prompts after each stage, as in the paper's Figure 4. A picture with a fact wrong says which."
    heads = (
        tag(
            "th", stage.name, tag("small", f"about {stage.size} × {stage.size} px"), class_=drawings.hue(n), scope="col"
        )
        for n, stage in enumerate(report.stages)
    )
    rows = (
        (row[0].prompt, (tag("td", _framed(painted, SCALE), _facts(painted, True)) for painted in row))
        for row in report.progress
    )
    return section("After each stage", words, html.grid(heads, rows, "grid"))


def _knobs(report: Report) -> Html:
    if not report.knobs:
        return Html()
    words = (
        "The same prompts decoded with other settings, as in the paper's Figure 8. Guidance 1 is none at all; a top-k of 1 "
        "always takes the likeliest code. Below each cell stands its share of pictures with every fact right."
    )
    asked = dict.fromkeys(painted.prompt for knob in report.knobs for painted in knob.painted)
    columns = sorted({(knob.temperature, knob.top_k) for knob in report.knobs})
    heads = (tag("th", f"temperature {t:g}", tag("small", f"top-k {k:,}"), scope="col") for t, k in columns)
    cells = {(knob.guidance, knob.temperature, knob.top_k): _knob(knob) for knob in report.knobs}
    rows = (
        (f"guidance {g:g}", [cells.get((g, *column), tag("td")) for column in columns])
        for g in sorted({knob.guidance for knob in report.knobs})
    )
    prompts = tag("ol", *(tag("li", prompt) for prompt in asked), class_="prompts")
    return section("Guidance, temperature and top-k", words, prompts, html.grid(heads, rows, "grid knobs"))


def _knob(knob: Knob) -> Html:
    if not knob.painted:
        return tag("td")
    share = float(np.mean([painted.all_right for painted in knob.painted]))
    scale = SCALE if len(knob.painted) == 1 else SMALL
    pictures = tag("div", *(_framed(painted, scale) for painted in knob.painted), class_="few")
    return tag("td", pictures, html.meter(share))


def _rebuilt(report: Report) -> Html:
    if not report.originals:
        return Html()
    book = report.codebook
    words = (
        "What the codebook keeps is the most a model of its codes can paint: originals beside the same pictures encoded and "
        f"decoded. Over {book['pictures']:,.0f} unseen pictures: PSNR {book['psnr_db']:.1f} dB, "
        f"{html.percent(book['exact'])} exact, {html.percent(book['codes_used'])} of the codes used, "
        f"perplexity {book['perplexity']:,.1f}."
    )
    pairs = (drawings.pair(*pair, SMALL) for pair in zip(report.originals, report.rebuilt, strict=True))
    return section("Pictures through the codebook", words, tag("div", *pairs, class_="pairs"))


def _losses(report: Report) -> Html:
    lines = [(s.name, drawings.hue(n), s.losses) for n, s in enumerate(report.stages) if s.losses]
    if not lines:
        return Html()
    words = (
        "Faint: the loss as logged. Strong: smoothed. Each stage starts from the weights of the one before, on larger "
        "canvases; beside its name stands where it ended."
    )
    return section("Training loss", words, tag("div", drawings.curves(lines), class_="wide"))


def _timings(report: Report) -> Html:
    if not report.timings:
        return Html()
    total = html.duration(sum(seconds for _, seconds in report.timings))
    return section("Time", f"{total} in all, compilation included. {report.machine}.", html.bars(report.timings))


def _again(report: Report) -> Html:
    words = "On such a machine this command paints the same pictures again."
    return section("Run it again", words, tag("pre", tag("code", report.command)))

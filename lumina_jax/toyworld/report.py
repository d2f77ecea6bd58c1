"""The quickstart's report: one self-contained HTML file with the scores, pictures, loss curves and timings of the run."""

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
"""CSS px per pixel of all pictures that are compared, so that their areas are comparable too."""
SMALL = 1.0
"""The same for cells with several pictures."""


@dataclass(frozen=True)
class JudgedSample:
    """The sample of one prompt: ``size`` (width, height) was requested, ``facts`` are claims in words and their truth.

    ``image`` is u8[Y X 3], or None if the answer holds no complete picture.
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
    """Shares 0..1 of ``count`` samples: with every fact right, and of the requested size."""

    count: int
    all_right: float
    size_obeyed: float


@dataclass(frozen=True)
class StageResult:
    """Scores and losses of one training stage, on canvases of about ``size``² px; ``losses`` are (step, nats)."""

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
class SweepCell:
    """One combination of sampling settings, and the samples of the sweep's prompts under it."""

    guidance: float
    temperature: float
    top_k: int
    samples: tuple[JudgedSample, ...]


@dataclass(frozen=True)
class QuickstartReport:
    """All data of the report.

    ``samples`` are of the last stage; ``progress`` has a row per prompt and a column per stage; ``rebuilt`` are the
    ``originals`` u8[Y X 3] encoded and decoded; ``codebook`` is the result of PatchVQ.report; ``timings`` are (name, seconds).
    """

    title: str
    minutes: float
    stages: tuple[StageResult, ...]
    samples: tuple[JudgedSample, ...]
    progress: tuple[tuple[JudgedSample, ...], ...]
    sweep: tuple[SweepCell, ...]
    originals: tuple[np.ndarray, ...]
    rebuilt: tuple[np.ndarray, ...]
    codebook: dict[str, float]
    timings: tuple[tuple[str, float], ...]
    command: str
    machine: str


def write_report(report: QuickstartReport, path: Path) -> Path:
    """Writes the page atomically and returns its path. Raises InputError for a report without stages."""
    if not report.stages:
        raise InputError("a report of 0 stages; it needs at least 1 to have a score")
    atomic_write_text(path, _page(report))
    return path


def _page(report: QuickstartReport) -> str:
    sections = (_scores, _samples, _progress, _sweep, _rebuilt, _losses, _timings, _command)
    content = (_header(report), *(section_of(report) for section_of in sections))
    return html.page(report.title, STYLE.read_text(encoding="utf-8"), *content)


def _header(report: QuickstartReport) -> Html:
    last = report.stages[-1]
    right = round(last.fresh.all_right * last.fresh.count)
    claim = tag("strong", f"{right} of {last.fresh.count} fresh prompts")
    rest = (
        f" were painted with every stated fact right, on {len(last.canvases)} canvases of about {last.size} × {last.size} px, "
        f"by a model trained from nothing with a budget of {report.minutes:g} minutes."
    )
    drawing = drawings.canvases([stage.canvases for stage in report.stages])
    return tag("header", tag("div", tag("h1", report.title), tag("p", claim, rest)), drawing)


def _scores(report: QuickstartReport) -> Html:
    words = (
        "Training is progressive, as the paper's FP-SFT: each stage starts from the weights of the one before and paints "
        "larger canvases, drawn here around one centre. A judge that sees only pixels checks every claim of a prompt. "
        "Held-out compositions are of a colour, shape and relation that no training picture shows together."
    )
    names = ("Stage", "Canvases", "Steps", "Tokens", "Trained in", "Prompts", "Every fact right", "Size obeyed")
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    bodies = (_score_rows(number, stage) for number, stage in enumerate(report.stages))
    return section("Score", words, tag("div", tag("table", head, *bodies, class_="scores"), class_="wide"))


def _score_rows(number: int, stage: StageResult) -> Html:
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


def _samples(report: QuickstartReport) -> Html:
    if not report.samples:
        return Html()
    words = (
        "One area, many aspect ratios, all enlarged alike. The prompt asks for a size; the model itself writes height, width "
        "and the end of every row (Uni-Rep). With each picture stand the facts the judge looked for."
    )
    return section("Painted by the last stage", words, tag("div", *map(_sample, report.samples), class_="wall"))


def _sample(sample: JudgedSample) -> Html:
    size = f"{sample.size[0]} × {sample.size[1]}"
    caption = tag("figcaption", tag("b", sample.prompt), tag("small", size), _facts(sample))
    return tag("figure", _framed(sample, SCALE), caption)


def _facts(sample: JudgedSample, wrong_only: bool = False) -> Html:
    if sample.image is None:
        facts = (("no whole picture", False),)
    elif wrong_only:
        facts = [fact for fact in sample.facts if not fact[1]] or (("every fact", True),)
    else:
        facts = sample.facts
    return tag("ul", *(tag("li", name, class_="right" if right else "wrong") for name, right in facts), class_="facts")


def _framed(sample: JudgedSample, scale: float) -> Html:
    """A picture in a frame coloured by its verdict, or the placeholder of a missing one."""
    if sample.image is None:
        return drawings.gap(sample.size, scale)
    verdict = "right" if sample.all_right else "wrong"
    return tag("div", html.picture(sample.image, f"{sample.prompt} ({verdict})", scale), class_=f"frame {verdict}")


def _progress(report: QuickstartReport) -> Html:
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
        (row[0].prompt, (tag("td", _framed(sample, SCALE), _facts(sample, True)) for sample in row))
        for row in report.progress
    )
    return section("After each stage", words, html.grid(heads, rows, "grid"))


def _sweep(report: QuickstartReport) -> Html:
    if not report.sweep:
        return Html()
    words = (
        "The same prompts decoded with other settings, as in the paper's Figure 8. Guidance 1 is none at all; a top-k of 1 "
        "always takes the likeliest code. Below each cell stands its share of pictures with every fact right."
    )
    prompts = dict.fromkeys(sample.prompt for cell in report.sweep for sample in cell.samples)
    columns = sorted({(cell.temperature, cell.top_k) for cell in report.sweep})
    heads = (tag("th", f"temperature {t:g}", tag("small", f"top-k {k:,}"), scope="col") for t, k in columns)
    cells = {(cell.guidance, cell.temperature, cell.top_k): _sweep_cell(cell) for cell in report.sweep}
    rows = (
        (f"guidance {g:g}", [cells.get((g, *column), tag("td")) for column in columns])
        for g in sorted({cell.guidance for cell in report.sweep})
    )
    prompt_list = tag("ol", *(tag("li", prompt) for prompt in prompts), class_="prompts")
    return section("Guidance, temperature and top-k", words, prompt_list, html.grid(heads, rows, "grid knobs"))


def _sweep_cell(cell: SweepCell) -> Html:
    if not cell.samples:
        return tag("td")
    share = float(np.mean([sample.all_right for sample in cell.samples]))
    scale = SCALE if len(cell.samples) == 1 else SMALL
    pictures = tag("div", *(_framed(sample, scale) for sample in cell.samples), class_="few")
    return tag("td", pictures, html.meter(share))


def _rebuilt(report: QuickstartReport) -> Html:
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


def _losses(report: QuickstartReport) -> Html:
    lines = [(s.name, drawings.hue(n), s.losses) for n, s in enumerate(report.stages) if s.losses]
    if not lines:
        return Html()
    words = (
        "Faint: the loss as logged. Strong: smoothed. Each stage starts from the weights of the one before, on larger "
        "canvases; beside its name stands where it ended."
    )
    return section("Training loss", words, tag("div", drawings.curves(lines), class_="wide"))


def _timings(report: QuickstartReport) -> Html:
    if not report.timings:
        return Html()
    total = html.duration(sum(seconds for _, seconds in report.timings))
    return section("Time", f"{total} in all, compilation included. {report.machine}.", html.bars(report.timings))


def _command(report: QuickstartReport) -> Html:
    words = "On such a machine this command paints the same pictures again."
    return section("Run it again", words, tag("pre", tag("code", report.command)))

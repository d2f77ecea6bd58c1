"""What came of every task, to look at: input, output and truth side by side, as a page and as one picture."""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lumina_jax.pictures import html
from lumina_jax.pictures.html import Html, section, tag
from lumina_jax.toyworld import drawings
from lumina_jax.toyworld.exercises import Reply, replies
from lumina_jax.toyworld.omni_judge import Scores
from lumina_jax.toyworld.report import STYLE
from lumina_jax.toyworld.tasks import Result
from lumina_jax.vocab import IMAGE_SYMBOL

SCALE = 1.5
"""CSS px per pixel of a picture."""
SHOWN = 8
"""Exercises of a task on the page."""

MEASURES = {
    "right": "all right",
    "answers": "answers right",
    "inside": "edit done",
    "outside": "all else kept",
    "miou": "mIoU",
    "accuracy": "pixel accuracy",
    "delta": "depth within 1.25",
    "delta_objects": "the same on objects",
    "abs_rel": "AbsRel",
    "degrees": "mean angle in degrees",
    "pck": "PCK at 0.1",
    "iou": "box IoU",
    "kept": "all else kept",
    "psnr_db": "PSNR in dB",
    "exact": "pixels exact",
}
"""What scores are called. Those that are no share of 1 are in NUMBERS."""
NUMBERS = ("abs_rel", "degrees", "psnr_db")


class Step(NamedTuple):
    """A turn: what was shown and said, what came, and what should have come."""

    shown: tuple[np.ndarray, ...]
    words: str
    given: Reply
    truth: Reply


def steps(result: Result, index: int) -> list[Step]:
    """Exercise ``index`` of a result, turn by turn; the pictures of a later turn are the model's own."""
    made, given = result.made[index], result.given[index]
    symbols = [human.count(IMAGE_SYMBOL) for human, _ in made.turns]
    told = zip(made.turns, given, replies(made), strict=True)
    return [
        Step(
            tuple(made.pictures[sum(symbols[:turn]) : sum(symbols[: turn + 1])]),
            " ".join(human.replace(IMAGE_SYMBOL, " ").split()),
            *pair,
        )
        for turn, ((human, _), *pair) in enumerate(told)
    ]


def line(scores: Scores) -> str:
    """All scores in words."""
    return ", ".join(f"{MEASURES[name]} {_number(name, value)}" for name, value in scores.items())


def write_sheets(results: Sequence[Result], out: Path, **more: object) -> Path:
    """Writes tasks.html, tasks.png and tasks.json (the scores, and whatever ``more`` JSON holds) into ``out``; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    scores = {result.task: result.mean for result in results}
    (out / "tasks.json").write_text(json.dumps({"tasks": scores} | more, indent=2) + "\n", encoding="utf-8")
    draw_sheet(results).save(out / "tasks.png", optimize=True)
    (out / "tasks.html").write_text(_page(results), encoding="utf-8")
    return out / "tasks.html"


def _page(results: Sequence[Result]) -> str:
    words = (
        f"{len(results[0].made)} fresh exercises of each task, answered as the task is served, against the exact truth."
    )
    top = tag("header", tag("div", tag("h1", "One model, every task"), tag("p", words)))
    style = STYLE.read_text(encoding="utf-8") + STYLE.with_name("tasks.css").read_text(encoding="utf-8")
    return html.page("Tasks of the embedded world", style, top, _scores(results), *map(_task, results))


def _scores(results: Sequence[Result]) -> Html:
    heads = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in ("Task", "Exercises", "Scores"))))
    rows = (
        tag("tr", tag("th", _name(result.task), scope="row"), tag("td", str(len(result.made))), *_cells(result.mean))
        for result in results
    )
    shown = tag("div", tag("table", heads, tag("tbody", *rows), class_="scores tasks"), class_="wide")
    words = "Against the exact truth of every scene. An edit is right when it is done and no other pixel has changed."
    return section("Scores", words, shown)


def _cells(scores: Scores) -> list[Html]:
    return [
        tag("td", MEASURES[name], tag("b", _number(name, value)) if name in NUMBERS else html.meter(value))
        for name, value in scores.items()
    ]


def _task(result: Result) -> Html:
    cards = (_card(result, index) for index in range(min(SHOWN, len(result.made))))
    return section(_name(result.task), line(result.mean), tag("div", *cards, class_="cards"))


def _card(result: Result, index: int) -> Html:
    turns = (tag("div", tag("p", step.words), tag("div", *_turn(step), class_="turn")) for step in steps(result, index))
    return tag("figure", *turns, tag("small", line(result.scores[index])), class_="card")


def _turn(step: Step) -> list[Html]:
    size = step.truth.shape[1::-1] if isinstance(step.truth, np.ndarray) else (0, 0)
    shown = [html.picture(picture, "input", SCALE) for picture in step.shown]
    pair = (("output", step.given), ("truth", step.truth))
    return [tag("div", *shown, tag("small", "input"))] * bool(shown) + [
        tag("div", _shown(reply, name, size), tag("small", name)) for name, reply in pair
    ]


def _shown(reply: Reply, name: str, size: tuple[int, int]) -> Html:
    if isinstance(reply, np.ndarray):
        return html.picture(reply, name, SCALE)
    return drawings.gap(size, SCALE) if reply is None else tag("b", reply or "nothing")


def _name(task: str) -> str:
    return task.replace("_", " ").capitalize()


def _number(name: str, value: float) -> str:
    return f"{value:.3g}" if name in NUMBERS else html.percent(value)


EDGE = 96
"""Longest side of a picture on the sheet, in px."""
CARD, COLUMNS, EXAMPLES = 470, 3, 2
"""Width of a task's card in px, cards in a row, and exercises on a card."""
GAP, LINE, LETTERS = 12, 17, 66
"""Space between things and height of a line of text in px, and letters of a line."""
INK, SOFT, TRUE = (23, 26, 33), (93, 100, 114), (210, 102, 10)


def draw_sheet(results: Sequence[Result]) -> Image.Image:
    """Some exercises of every task on square canvases as one picture: input, arrow, output, and the truth in a frame.

    Which ones does not depend on what came of them.
    """
    cards = [_drawn(result, EXAMPLES * number) for number, result in enumerate(results)]
    columns: list[list[Image.Image]] = [[] for _ in range(COLUMNS)]
    for card in cards:
        min(columns, key=lambda column: sum(one.height for one in column)).append(card)
    height = max(sum(card.height for card in column) for column in columns)
    sheet = Image.new("RGB", (COLUMNS * CARD + GAP, height + GAP), "white")
    for number, column in enumerate(columns):
        top = GAP
        for card in column:
            sheet.paste(card, (GAP + number * CARD, top))
            top += card.height
    return sheet.quantize(256)


def _drawn(result: Result, first: int) -> Image.Image:
    """One task's card, with the exercises from number ``first`` of those there are."""
    square = [index for index, one in enumerate(result.made) if _is_square(one.pictures)] or range(len(result.made))
    chosen = (square[(first + number) % len(square)] for number in range(min(EXAMPLES, len(square))))
    rows = [_row(steps(result, index)) for index in chosen]
    card = Image.new("RGB", (CARD, 2 * LINE + sum(row.height for row in rows) + 2 * GAP), "white")
    pen, bold = ImageDraw.Draw(card), ImageFont.load_default(15)
    pen.text((0, 0), _name(result.task), INK, bold)
    pen.text((0, LINE + 2), line(result.mean), SOFT, ImageFont.load_default(12))
    top = 2 * LINE + 6
    for row in rows:
        card.paste(row, (0, top))
        top += row.height
    return card


def _is_square(shown: Sequence[np.ndarray]) -> bool:
    return all(picture.shape[0] == picture.shape[1] for picture in shown)


def _row(turns: Sequence[Step]) -> Image.Image:
    """An exercise: its words and what came of them."""
    in_words = all(isinstance(step.truth, str) for step in turns)
    return _conversation(turns) if in_words and len(turns) > 1 else _pictures(turns)


def _conversation(turns: Sequence[Step]) -> Image.Image:
    """Pictures, then a line for each question, its answer, and the truth in brackets."""
    font, top = ImageFont.load_default(12), EDGE + 6
    row = Image.new("RGB", (CARD, top + LINE * len(turns) + GAP), "white")
    pen, left = ImageDraw.Draw(row), 0
    for shown in turns[0].shown:
        left = _paste(row, left, 0, shown)
    for number, step in enumerate(turns):
        left, at = 0.0, top + LINE * number
        said = (f"{step.words}  > ", SOFT), (str(step.given).strip(), INK), (f"  [{step.truth}]", SOFT)
        for text, colour in said:
            pen.text((left, at), text, colour, font)
            left += font.getlength(text)
    return row


def _pictures(turns: Sequence[Step]) -> Image.Image:
    """The words, then pictures and texts from left to right, small enough for all."""
    font = ImageFont.load_default(12)
    words = textwrap.wrap(" / ".join(step.words for step in turns), LETTERS, max_lines=3, placeholder=" ...")
    parts = [part for step in turns for part in (*step.shown, step.given)] + [turns[-1].truth]
    pictured = any(isinstance(part, np.ndarray) for part in parts)
    edge = min(EDGE, (CARD - GAP) // len(parts) - GAP - 6)
    top = LINE * len(words) + 4
    row = Image.new("RGB", (CARD, top + (edge if pictured else 2 * LINE) + GAP), "white")
    pen, left = ImageDraw.Draw(row), 0
    for number, text in enumerate(words):
        pen.text((0, LINE * number), text, INK, font)
    for step in turns:
        for shown in step.shown:
            left = _paste(row, left, top, shown, edge)
        pen.text((left, top), ">", SOFT, font)
        left = _paste(row, left + GAP, top, step.given, edge)
    _paste(row, left + 4, top, turns[-1].truth, edge, frame=True)
    return row


def _paste(row: Image.Image, left: int, top: int, reply: Reply, edge: int = EDGE, frame: bool = False) -> int:
    """Puts a reply into ``row`` and returns where the next may stand; the truth wears a ``frame`` or stands in brackets."""
    pen, font = ImageDraw.Draw(row), ImageFont.load_default(12)
    if not isinstance(reply, np.ndarray):
        text = "no whole picture" if reply is None else reply.strip()
        for number, part in enumerate(textwrap.wrap(f"[{text}]" if frame else text, 24) or [""]):
            pen.text((left, top + LINE * number), part, SOFT if frame else INK, font)
        return left + 150
    image = Image.fromarray(reply)
    share = edge / max(image.size)
    image = image.resize([round(side * share) for side in image.size], Image.Resampling.LANCZOS)
    row.paste(image, (left, top))
    box = (left, top, left + image.width - 1, top + image.height - 1)
    pen.rectangle(box, outline=TRUE if frame else (200, 204, 212), width=2 if frame else 1)
    return left + image.width + 6

"""The results of every task to look at: input, output and truth side by side, as an HTML page and as one picture."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lumina_jax.pictures import html
from lumina_jax.pictures.html import Html, section, tag
from lumina_jax.places import Place
from lumina_jax.storage import atomic_write, atomic_write_text
from lumina_jax.toyworld import drawings
from lumina_jax.toyworld.exercises import Reply, true_turns
from lumina_jax.toyworld.omni_judge import LABELS, Scores
from lumina_jax.toyworld.report import STYLE
from lumina_jax.toyworld.tasks import TaskResult
from lumina_jax.vocab import IMAGE_SYMBOL

SCALE = 1.5
"""CSS px per pixel of a picture."""
EXERCISES = 8
"""Exercises of a task on the page."""

NUMBERS = ("abs_rel", "degrees", "psnr_db")
"""Scores that are not shares of 1."""


class TurnResult(NamedTuple):
    """One turn: the input pictures and text, the model's reply, and the true one."""

    inputs: tuple[np.ndarray, ...]
    words: str
    reply: Reply
    truth: Reply


def turn_results(result: TaskResult, index: int) -> list[TurnResult]:
    """The turns of exercise ``index``. A turn without input pictures is about pictures of the turns before it, or about none."""
    exercise = result.exercises[index]
    turns = zip(exercise.turns, true_turns(exercise), result.replies[index], strict=True)
    return [
        TurnResult(true.inputs, " ".join(human.replace(IMAGE_SYMBOL, " ").split()), reply, true.answer)
        for (human, _), true, reply in turns
    ]


def line(scores: Scores) -> str:
    """All scores in words."""
    return ", ".join(f"{LABELS[name]} {_number(name, value)}" for name, value in scores.items())


def print_each(results: Iterable[TaskResult]) -> list[TaskResult]:
    """The results as a list; prints the scores of each task as it ends."""
    finished = []
    for result in results:
        print(f"{result.task}: {line(result.mean)}", flush=True)
        finished.append(result)
    return finished


def write_sheets(results: Sequence[TaskResult], out: Place, **extra: object) -> Place:
    """Writes tasks.html, tasks.png and tasks.json into ``out`` and returns the path of the page.

    tasks.json holds the mean scores under "tasks" and the JSON values ``extra`` beside them.
    """
    scores = {result.task: result.mean for result in results}
    atomic_write_text(out / "tasks.json", json.dumps({"tasks": scores} | extra, indent=2) + "\n")
    with atomic_write(out / "tasks.png") as temporary:
        draw_sheet(results).save(temporary, format="PNG", optimize=True)
    atomic_write_text(out / "tasks.html", _page(results))
    return out / "tasks.html"


def _page(results: Sequence[TaskResult]) -> str:
    count = len(results[0].exercises)
    words = f"{count} fresh exercises of each task, answered as the task is served, against the exact truth."
    header = tag("header", tag("div", tag("h1", "One model, every task"), tag("p", words)))
    style = STYLE.read_text(encoding="utf-8") + STYLE.with_name("tasks.css").read_text(encoding="utf-8")
    return html.page("Tasks of the embedded world", style, header, _scores(results), *map(_task, results))


def _scores(results: Sequence[TaskResult]) -> Html:
    heads = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in ("Task", "Exercises", "Scores"))))
    rows = (
        tag("tr", tag("th", _name(r.task), scope="row"), tag("td", str(len(r.exercises))), *_cells(r.mean))
        for r in results
    )
    table = tag("div", tag("table", heads, tag("tbody", *rows), class_="scores tasks"), class_="wide")
    words = "Against the exact truth of every scene. An edit is right when it is done and no other pixel has changed."
    return section("Scores", words, table)


def _cells(scores: Scores) -> list[Html]:
    return [
        tag("td", LABELS[name], tag("b", _number(name, value)) if name in NUMBERS else html.meter(value))
        for name, value in scores.items()
    ]


def _task(result: TaskResult) -> Html:
    cards = (_html_card(result, index) for index in range(min(EXERCISES, len(result.exercises))))
    return section(_name(result.task), line(result.mean), tag("div", *cards, class_="cards"))


def _html_card(result: TaskResult, index: int) -> Html:
    turns = turn_results(result, index)
    rows = (tag("div", tag("p", turn.words), tag("div", *_html_turn(turn), class_="turn")) for turn in turns)
    return tag("figure", *rows, tag("small", line(result.scores[index])), class_="card")


def _html_turn(turn: TurnResult) -> list[Html]:
    size = turn.truth.shape[1::-1] if isinstance(turn.truth, np.ndarray) else (0, 0)
    inputs = [html.picture(picture, "input", SCALE) for picture in turn.inputs]
    pair = (("output", turn.reply), ("truth", turn.truth))
    return [tag("div", *inputs, tag("small", "input"))] * bool(inputs) + [
        tag("div", _html_reply(reply, name, size), tag("small", name)) for name, reply in pair
    ]


def _html_reply(reply: Reply, name: str, size: tuple[int, int]) -> Html:
    if isinstance(reply, np.ndarray):
        return html.picture(reply, name, SCALE)
    return drawings.gap(size, SCALE) if reply is None else tag("b", reply or "nothing")


def _name(task: str) -> str:
    return task.replace("_", " ").capitalize()


def _number(name: str, value: float) -> str:
    return f"{value:.3g}" if name in NUMBERS else html.percent(value)


EDGE = 96
"""Longest side in px of a picture on the sheet."""
CARD, COLUMNS, EXAMPLES = 470, 3, 2
"""Width of a task's card in px, number of columns, and exercises on a card."""
GAP, LINE, LETTERS = 12, 17, 66
"""Margin and line height in px, and letters per line."""
INK, SOFT, TRUE = (23, 26, 33), (93, 100, 114), (210, 102, 10)


def draw_sheet(results: Sequence[TaskResult]) -> Image.Image:
    """One picture with EXAMPLES exercises of every task, on square canvases if there are any: input, output, framed truth.

    The choice does not depend on the replies.
    """
    cards = [_card(result, EXAMPLES * number) for number, result in enumerate(results)]
    columns: list[list[Image.Image]] = [[] for _ in range(COLUMNS)]
    for card in cards:
        min(columns, key=lambda column: sum(other.height for other in column)).append(card)
    height = max(sum(card.height for card in column) for column in columns)
    sheet = Image.new("RGB", (COLUMNS * CARD + GAP, height + GAP), "white")
    for number, column in enumerate(columns):
        top = GAP
        for card in column:
            sheet.paste(card, (GAP + number * CARD, top))
            top += card.height
    return sheet.quantize(256)


def _card(result: TaskResult, first: int) -> Image.Image:
    """The card of a task with EXAMPLES of its square exercises from number ``first`` on, counted cyclically."""
    candidates = [index for index, exercise in enumerate(result.exercises) if _is_square(exercise.pictures)]
    candidates = candidates or range(len(result.exercises))
    chosen = (candidates[(first + number) % len(candidates)] for number in range(min(EXAMPLES, len(candidates))))
    rows = [_row(turn_results(result, index)) for index in chosen]
    card = Image.new("RGB", (CARD, 2 * LINE + sum(row.height for row in rows) + 2 * GAP), "white")
    pen, bold = ImageDraw.Draw(card), ImageFont.load_default(15)
    pen.text((0, 0), _name(result.task), INK, bold)
    pen.text((0, LINE + 2), line(result.mean), SOFT, ImageFont.load_default(12))
    top = 2 * LINE + 6
    for row in rows:
        card.paste(row, (0, top))
        top += row.height
    return card


def _is_square(pictures: Sequence[np.ndarray]) -> bool:
    return all(picture.shape[0] == picture.shape[1] for picture in pictures)


def _row(turns: Sequence[TurnResult]) -> Image.Image:
    """One exercise: a dialog of text answers, or a strip of pictures."""
    is_text = all(isinstance(turn.truth, str) for turn in turns)
    return _dialog(turns) if is_text and len(turns) > 1 else _strip(turns)


def _dialog(turns: Sequence[TurnResult]) -> Image.Image:
    """The input pictures, then one line per turn: question, reply, and the truth in brackets."""
    font, top = ImageFont.load_default(12), EDGE + 6
    row = Image.new("RGB", (CARD, top + LINE * len(turns) + GAP), "white")
    pen, left = ImageDraw.Draw(row), 0
    for picture in turns[0].inputs:
        left = _paste(row, left, 0, picture)
    for number, turn in enumerate(turns):
        left = 0.0
        spans = (f"{turn.words}  > ", SOFT), (str(turn.reply).strip(), INK), (f"  [{turn.truth}]", SOFT)
        for text, colour in spans:
            pen.text((left, top + LINE * number), text, colour, font)
            left += font.getlength(text)
    return row


def _strip(turns: Sequence[TurnResult]) -> Image.Image:
    """The words, then inputs, replies and the last truth from left to right, scaled to fit the card."""
    font = ImageFont.load_default(12)
    words = textwrap.wrap(" / ".join(turn.words for turn in turns), LETTERS, max_lines=3, placeholder=" ...")
    cells = [cell for turn in turns for cell in (*turn.inputs, turn.reply)] + [turns[-1].truth]
    has_picture = any(isinstance(cell, np.ndarray) for cell in cells)
    edge = min(EDGE, (CARD - GAP) // len(cells) - GAP - 6)
    top = LINE * len(words) + 4
    row = Image.new("RGB", (CARD, top + (edge if has_picture else 2 * LINE) + GAP), "white")
    pen, left = ImageDraw.Draw(row), 0
    for number, text in enumerate(words):
        pen.text((0, LINE * number), text, INK, font)
    for turn in turns:
        for picture in turn.inputs:
            left = _paste(row, left, top, picture, edge)
        pen.text((left, top), ">", SOFT, font)
        left = _paste(row, left + GAP, top, turn.reply, edge)
    _paste(row, left + 4, top, turns[-1].truth, edge, frame=True)
    return row


def _paste(row: Image.Image, left: int, top: int, reply: Reply, edge: int = EDGE, frame: bool = False) -> int:
    """Draws a reply into ``row`` and returns the left edge of the next; ``frame`` draws a frame, or brackets around text."""
    pen, font = ImageDraw.Draw(row), ImageFont.load_default(12)
    if not isinstance(reply, np.ndarray):
        text = "no whole picture" if reply is None else reply.strip()
        for number, text_line in enumerate(textwrap.wrap(f"[{text}]" if frame else text, 24) or [""]):
            pen.text((left, top + LINE * number), text_line, SOFT if frame else INK, font)
        return left + 150
    image = Image.fromarray(reply)
    share = edge / max(image.size)
    image = image.resize([round(side * share) for side in image.size], Image.Resampling.LANCZOS)
    row.paste(image, (left, top))
    box = (left, top, left + image.width - 1, top + image.height - 1)
    pen.rectangle(box, outline=TRUE if frame else (200, 204, 212), width=2 if frame else 1)
    return left + image.width + 6

"""Tables of pictures with labelled rows and columns, one below the other: as one picture, and as an HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lumina_jax.errors import InputError, printable
from lumina_jax.pictures import html
from lumina_jax.pictures.html import Html, tag
from lumina_jax.pictures.labels import wrapped

STYLE = Path(__file__).with_name("picture_table.css")
LARGEST, SMALLEST = 256, 112
"""The longest edge of a picture in px: a larger one is made smaller, a smaller one enlarged by a whole number."""
MARGIN, GAP, LABEL = 20, 10, 176
"""In px: around the sheet, between pictures, and the width of the labels of rows."""
CAPTION_LINES = 8
SMALL, LINE = 12, 15
"""Size of the small font and height of its lines, in px."""
INK, SOFT, RULE, EMPTY = (23, 26, 33), (93, 100, 114), (216, 220, 228), (238, 240, 244)
NO_PICTURE = "no whole picture"


@dataclass(frozen=True)
class PictureCell:
    """A picture, or None where there is none, and what stands below it."""

    image: Image.Image | None
    caption: str = ""


@dataclass(frozen=True)
class PictureTable:
    """``rows`` are (label, a cell for each of ``columns``, None for blank ones at the end)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[PictureCell | None, ...]], ...]

    def __post_init__(self):
        if not self.columns or any(len(cells) != len(self.columns) for _, cells in self.rows):
            raise InputError(f"a table of {len(self.columns)} columns; it needs one, and in each row a cell for each")


def draw_tables(title: str, note: str, tables: Sequence[PictureTable]) -> Image.Image:
    """All tables as one RGB picture on white. Letters that Pillow's own font lacks are boxes; :func:`tables_page` shows all."""
    drawn = [_drawn(table) for table in tables]
    width = max([420, *(table.width for table in drawn)]) + 2 * MARGIN
    lines = _wrapped(note, width - 2 * MARGIN, 6)
    top = MARGIN + 30 + LINE * len(lines) + 6
    height = top + sum(table.height + MARGIN for table in drawn)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 4), printable(title), INK, ImageFont.load_default(20))
    _write(pen, MARGIN, MARGIN + 26, lines, SOFT)
    for table in drawn:
        sheet.paste(table, (MARGIN, top))
        top += table.height + MARGIN
    return sheet


def _drawn(table: PictureTable) -> Image.Image:
    rows = [
        (label, [(_shown(cell.image), cell.caption) for cell in cells if cell is not None])
        for label, cells in table.rows
    ]
    images = [image for _, cells in rows for image, _ in cells if image]
    width = max([SMALLEST, *(image.width for image in images)])
    heads = [_wrapped(column, width, 2) for column in table.columns]
    top = 12 + 22 * bool(table.title) + LINE * max(map(len, heads)) + 4
    laid_out, bottom = [], top
    for label, cells in rows:
        captions = [_wrapped(caption, width, CAPTION_LINES) for _, caption in cells]
        words = _wrapped(label, LABEL - 14, 9)
        picture = max([image.height for image, _ in cells if image] or [SMALLEST])
        laid_out.append((bottom, picture, words, cells, captions))
        bottom += max(picture + 3 + LINE * max(map(len, captions)), LINE * len(words)) + GAP
    left = LABEL if any(label for label, _ in rows) else 1
    sheet = Image.new("RGB", (left + len(table.columns) * (width + GAP) - GAP + 1, bottom), "white")
    pen = ImageDraw.Draw(sheet)
    pen.line((0, 0, sheet.width, 0), RULE)
    pen.text((0, 8), printable(table.title), INK, ImageFont.load_default(15))
    for column, head in enumerate(heads):
        _write(pen, left + column * (width + GAP), 12 + 22 * bool(table.title), head, INK)
    for upper, picture, words, cells, captions in laid_out:
        _write(pen, 0, upper, words, SOFT)
        for column, ((image, _), caption) in enumerate(zip(cells, captions, strict=True)):
            x = left + column * (width + GAP)
            if image:
                sheet.paste(image, (x, upper))
                pen.rectangle((x - 1, upper - 1, x + image.width, upper + image.height), outline=RULE)
            else:
                pen.rectangle((x, upper, x + width - 1, upper + picture - 1), EMPTY)
                _write(pen, x + 8, upper + 8, [NO_PICTURE], SOFT)
            _write(pen, x, upper + picture + 3, caption, SOFT)
    return sheet


def _shown(image: Image.Image | None) -> Image.Image | None:
    """RGB, its longest edge from about SMALLEST to LARGEST."""
    if image is None:
        return None
    image, longest = image.convert("RGB"), max(image.size)
    if longest > LARGEST:
        size = [max(1, round(side * LARGEST / longest)) for side in image.size]
        return image.resize(size, Image.Resampling.LANCZOS)
    times = -(-SMALLEST // longest)
    return image.resize([side * times for side in image.size], Image.Resampling.NEAREST)


def _wrapped(text: str, width: int, lines: int) -> list[str]:
    return wrapped(text, width, lines, ImageFont.load_default(SMALL))


def _write(pen: ImageDraw.ImageDraw, left: float, top: float, lines: Sequence[str], colour: tuple) -> None:
    font = ImageFont.load_default(SMALL)
    for number, line in enumerate(lines):
        pen.text((left, top + LINE * number), line, colour, font)


def tables_page(title: str, note: str, tables: Sequence[PictureTable]) -> str:
    """All tables as a self-contained HTML page in UTF-8, the pictures as in :func:`draw_tables`."""
    sections = [tag("section", *[tag("h2", table.title)] * bool(table.title), _html(table)) for table in tables]
    header = tag("header", tag("div", tag("h1", title), tag("p", note)))
    return html.page(title, STYLE.read_text(encoding="utf-8"), header, *sections)


def _html(table: PictureTable) -> Html:
    heads = [tag("th", column, scope="col") for column in table.columns]
    rows = [
        (label, [tag("td", *_html_cell(cell)) for cell in cells if cell is not None]) for label, cells in table.rows
    ]
    return html.grid(heads, rows, "pictures")


def _html_cell(cell: PictureCell) -> list[Html]:
    image = _shown(cell.image)
    shown = html.picture(np.asarray(image), cell.caption, 1.0) if image else tag("small", NO_PICTURE)
    return [shown, tag("small", cell.caption)]

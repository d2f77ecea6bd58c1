"""Builds self-contained HTML pages: escaping tags, inline pictures, bars, and numbers in words."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

STYLE = Path(__file__).with_name("page.css")
VOID_TAGS = ("img", "meta")
"""Elements without children and closing tag."""


class Html(str):
    """Markup. :func:`tag` and :func:`join` escape every string that is not of this class."""


def page(title: str, style: str, *content: str) -> str:
    """A self-contained HTML file: ``content`` with the common style sheet, to which the CSS rules ``style`` are appended."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE.read_text(encoding="utf-8") + style)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", *content)), lang="en") + "\n"


def tag(kind: str, /, *children: str, **attributes: str | float) -> Html:
    """The element ``kind`` with its children; in attribute names "_" stands for "-", and ``class_`` for class."""
    pairs = (f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(v))}"' for key, v in attributes.items())
    start = f"<{kind}{''.join(pairs)}>"
    return Html(start if kind in VOID_TAGS else f"{start}{join(*children)}</{kind}>")


def join(*children: str) -> Html:
    """The children concatenated, plain strings escaped."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def section(title: str, words: str, *content: str) -> Html:
    return tag("section", tag("h2", title), tag("p", words), *content)


def grid(heads: Iterable[Html], rows: Iterable[tuple[str, Iterable[Html]]], class_: str) -> Html:
    """A table with the column headers ``heads`` (th), and rows of (header, cells (td))."""
    body = (tag("tr", tag("th", name, scope="row"), *cells) for name, cells in rows)
    table = tag("table", tag("thead", tag("tr", tag("td"), *heads)), tag("tbody", *body), class_=class_)
    return tag("div", table, class_="wide")


def picture(image: np.ndarray, alt: str, scale: float) -> Html:
    """A picture u8[Y X 3] as an inline PNG, shown at ``scale`` CSS px per pixel."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    height, width = image.shape[:2]
    return tag("img", src=source, alt=alt, width=round(width * scale), height=round(height * scale))


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def meter(share: float) -> Html:
    """A share 0..1 as a percentage and as a bar."""
    bar = tag("span", class_="bar", style=f"--share:{100 * share:.1f}%")
    return tag("div", tag("b", percent(share)), bar, class_="meter")


def bars(rows: Sequence[tuple[str, float]]) -> Html:
    """Bars for (name, seconds) rows; the longest has full width."""
    longest = max(seconds for _, seconds in rows) or 1.0
    cells = []
    for name, seconds in rows:
        bar = tag("span", class_="bar", style=f"--share:{100 * seconds / longest:.1f}%")
        cells += [tag("dt", name), tag("dd", bar, duration(seconds))]
    return tag("dl", *cells, class_="bars")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def short(number: int) -> str:
    """A count in three significant digits with a unit, such as 3.4M."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return str(number)

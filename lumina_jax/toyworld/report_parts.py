"""What the report is built of: tags that escape, pictures and drawings that need no other file, numbers in words."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
from PIL import Image
from scipy import ndimage

Pixels = tuple[int, int]
Points = Sequence[tuple[int, float]]

HUES = 4
"""Stages wear the classes hue0, hue1, ... of report.css in turn."""
LONE = ("img", "meta")
"""Tags without content or end."""
WIDTH, HEIGHT = 1120, 380
LEFT, TOP, RIGHT, BOTTOM = 68, 40, 1104, 324
"""The chart and its frame, in units of its view box."""
MOST_POINTS = 400
LEAST_LOSS = 1e-4
"""A logarithmic axis has no place for zero."""


class Html(str):
    """Markup. Every other string is text, and is escaped on its way into a tag."""


def tag(kind: str, /, *children: str, **attributes: str | float) -> Html:
    """An element around its children; attributes are written with "-" for "_", and ``class_`` for class."""
    written = (f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(v))}"' for key, v in attributes.items())
    start = f"<{kind}{''.join(written)}>"
    return Html(start if kind in LONE else f"{start}{join(*children)}</{kind}>")


def join(*children: str) -> Html:
    """Children one after another, texts escaped."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def hue(stage: int) -> str:
    """The class that colours what belongs to a stage."""
    return f"hue{stage % HUES}"


def section(title: str, words: str, *content: str) -> Html:
    return tag("section", tag("h2", title), tag("p", words), *content)


def grid(heads: Iterable[Html], rows: Iterable[tuple[str, Iterable[Html]]], class_: str) -> Html:
    """A table with ``heads`` (th) over its columns, and rows of (name, cells (td))."""
    body = (tag("tr", tag("th", name, scope="row"), *cells) for name, cells in rows)
    table = tag("table", tag("thead", tag("tr", tag("td"), *heads)), tag("tbody", *body), class_=class_)
    return tag("div", table, class_="wide")


def picture(image: np.ndarray, alt: str, scale: float) -> Html:
    """A picture u8[Y X 3] as an inline PNG, ``scale`` CSS px for each of its own."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    height, width = image.shape[:2]
    return tag("img", src=source, alt=alt, width=round(width * scale), height=round(height * scale))


def pair(original: np.ndarray, rebuilt: np.ndarray, scale: float) -> Html:
    """Two pictures u8[Y X 3] side by side, and how close the second comes to the first."""
    error = np.mean(np.square(original.astype(np.float64) - rebuilt))
    kept = f"PSNR {10 * np.log10(255**2 / error):.1f} dB" if error else "exact"
    sides = picture(original, "original", scale), picture(rebuilt, "encoded and decoded", scale)
    return tag("figure", tag("div", *sides), tag("figcaption", kept))


def gap(size: Pixels, scale: float) -> Html:
    """What stands where a picture of ``size`` (width, height) should have come."""
    style = f"width:{round(size[0] * scale)}px;aspect-ratio:{size[0]}/{size[1]}"
    return tag("div", "no whole picture", class_="gap", style=style)


def canvases(groups: Sequence[Sequence[Pixels]], stage: int = 0) -> Html:
    """Canvases (width, height) around one centre as SVG, a hue for each group from ``stage`` on, the first in front."""
    reach = max(max(size) for group in groups for size in group) / 2 + 2
    rects = [
        tag("rect", x=-width / 2, y=-height / 2, width=width, height=height, class_=class_)
        for number, group in reversed(list(enumerate(groups, stage)))
        for class_ in (hue(number), "outline")
        for width, height in group
    ]
    view = f"{-reach:g} {-reach:g} {2 * reach:g} {2 * reach:g}"
    return tag("svg", *rects, viewBox=view, class_="canvases", role="img", aria_label="canvas sizes, centred")


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def meter(share: float) -> Html:
    """A share 0..1 in words and as a bar."""
    bar = tag("span", class_="bar", style=f"--share:{100 * share:.1f}%")
    return tag("div", tag("b", percent(share)), bar, class_="meter")


def bars(rows: Sequence[tuple[str, float]]) -> Html:
    """Names with their seconds, as bars of which the longest is full."""
    most = max(seconds for _, seconds in rows) or 1.0
    cells = []
    for name, seconds in rows:
        bar = tag("span", class_="bar", style=f"--share:{100 * seconds / most:.1f}%")
        cells += [tag("dt", name), tag("dd", bar, duration(seconds))]
    return tag("dl", *cells, class_="bars")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def short(number: int) -> str:
    """A count in at most four signs, such as 3.4M."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return str(number)


def curves(lines: Sequence[tuple[str, str, Points]]) -> Html:
    """Losses as (name, class, (step, nats)...) on a logarithmic axis as SVG, each from where the one before ended."""
    starts = list(accumulate((points[-1][0] for *_, points in lines), initial=0))
    logs = [np.log10(np.maximum([value for _, value in points], LEAST_LOSS)) for *_, points in lines]
    low, high = (float(edge([edge(log) for log in logs])) for edge in (min, max))
    pad = 0.04 * (high - low) or 0.1

    def x(step: float) -> float:
        return LEFT + (RIGHT - LEFT) * step / starts[-1]

    def y(log: float) -> float:
        return TOP + (BOTTOM - TOP) * (high + pad - log) / (high - low + 2 * pad)

    drawn = [_rule(LEFT, y(np.log10(tick)), RIGHT, f"{tick:g}") for tick in _log_ticks(low - pad, high + pad)]
    drawn += [
        tag("text", f"{tick:,}", x=f"{x(tick):.1f}", y=BOTTOM + 20, class_="middle") for tick in _ticks(starts[-1])
    ]
    for start, (name, class_, points), log in zip(starts[:-1], lines, logs, strict=True):
        smooth = ndimage.uniform_filter1d(log, max(1, len(log) // 30))
        some = np.unique(np.linspace(0, len(log) - 1, MOST_POINTS).astype(int))
        across = [x(start + points[index][0]) for index in some]
        band = f"{x(start):.1f}"
        drawn += [
            tag("line", x1=band, x2=band, y1=TOP - 26, y2=BOTTOM, class_="band"),
            _path(across, [y(log[index]) for index in some], f"raw {class_}"),
            _path(across, [y(smooth[index]) for index in some], class_),
            tag("text", f"{name}: {10 ** smooth[-1]:.3g} nats", x=float(band) + 8, y=TOP - 14, class_=class_),
        ]
    middle = (TOP + BOTTOM) / 2
    turned = f"rotate(-90 16 {middle})"
    drawn += [
        tag("text", "training steps, one stage after another", x=(LEFT + RIGHT) / 2, y=HEIGHT - 10, class_="middle"),
        tag("text", "cross-entropy, nats per token", x=16, y=middle, transform=turned, class_="middle"),
    ]
    return tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="chart", role="img", aria_label="training loss")


def _path(across: Sequence[float], down: Sequence[float], class_: str) -> Html:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    return tag("polyline", points=points, class_=class_)


def _rule(left: float, y: float, right: float, text: str) -> Html:
    line = tag("line", x1=left, x2=right, y1=f"{y:.1f}", y2=f"{y:.1f}")
    return join(line, tag("text", text, x=left - 8, y=f"{y + 4:.1f}", class_="end"))


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers whose logarithms lie from ``low`` to ``high``: 1, 2, 5, 10 ..., and all digits where those are few."""
    decades = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    for digits in ((1, 2, 5), range(1, 10)):
        found = [d * 10.0**decade for decade in decades for d in digits if low <= np.log10(d) + decade <= high]
        if len(found) > 2:
            break
    return found


def _ticks(end: int) -> range:
    """About eight round steps from 0 to ``end``."""
    unit = 10 ** int(np.log10(max(end / 8, 1)))
    step = next(unit * digit for digit in (1, 2, 5, 10) if unit * digit * 8 >= end)
    return range(0, end + 1, step)

"""The figures of the report: canvas sizes, pairs of pictures, loss curves."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from scipy import ndimage

from lumina_jax.pictures.html import Html, join, picture, tag
from lumina_jax.pictures.metrics import psnr

Pixels = tuple[int, int]
Points = Sequence[tuple[int, float]]

HUES = 4
"""Stages cycle through the CSS classes hue0, hue1, ... of report.css."""
WIDTH, HEIGHT = 1120, 380
LEFT, TOP, RIGHT, BOTTOM = 68, 40, 1104, 324
"""Size of the chart and edges of its plot area, in units of the view box."""
MAX_POINTS = 400
MIN_LOSS = 1e-4
"""Losses are clipped from below, since the axis is logarithmic."""


def hue(stage: int) -> str:
    """The CSS class with the colour of a stage."""
    return f"hue{stage % HUES}"


def pair(original: np.ndarray, rebuilt: np.ndarray, scale: float) -> Html:
    """Two pictures u8[Y X 3] side by side, with the PSNR of the second."""
    caption = "exact" if np.array_equal(original, rebuilt) else f"PSNR {psnr(original, rebuilt):.1f} dB"
    sides = picture(original, "original", scale), picture(rebuilt, "encoded and decoded", scale)
    return tag("figure", tag("div", *sides), tag("figcaption", caption))


def gap(size: Pixels, scale: float) -> Html:
    """The placeholder for a missing picture of ``size`` (width, height)."""
    style = f"width:{round(size[0] * scale)}px;aspect-ratio:{size[0]}/{size[1]}"
    return tag("div", "no whole picture", class_="gap", style=style)


def canvases(groups: Sequence[Sequence[Pixels]], stage: int = 0) -> Html:
    """Concentric outlines of canvas sizes (width, height) as SVG, one hue per group from ``stage`` on, the first group in front."""
    extent = max(max(size) for group in groups for size in group) / 2 + 2
    rects = [
        tag("rect", x=-width / 2, y=-height / 2, width=width, height=height, class_=class_)
        for number, group in reversed(list(enumerate(groups, stage)))
        for class_ in (hue(number), "outline")
        for width, height in group
    ]
    view = f"{-extent:g} {-extent:g} {2 * extent:g} {2 * extent:g}"
    return tag("svg", *rects, viewBox=view, class_="canvases", role="img", aria_label="canvas sizes, centred")


def curves(lines: Sequence[tuple[str, str, Points]]) -> Html:
    """Loss curves (name, CSS class, (step, nats)...) as SVG, one after another on the x axis; the y axis is logarithmic."""
    starts = list(accumulate((points[-1][0] for *_, points in lines), initial=0))
    logs = [np.log10(np.maximum([value for _, value in points], MIN_LOSS)) for *_, points in lines]
    low, high = (float(edge([edge(log) for log in logs])) for edge in (min, max))
    pad = 0.04 * (high - low) or 0.1

    def x(step: float) -> float:
        return LEFT + (RIGHT - LEFT) * step / starts[-1]

    def y(log: float) -> float:
        return TOP + (BOTTOM - TOP) * (high + pad - log) / (high - low + 2 * pad)

    elements = [_gridline(LEFT, y(np.log10(tick)), RIGHT, f"{tick:g}") for tick in _log_ticks(low - pad, high + pad)]
    elements += [
        tag("text", f"{tick:,}", x=f"{x(tick):.1f}", y=BOTTOM + 20, class_="middle") for tick in _ticks(starts[-1])
    ]
    for start, (name, class_, points), log in zip(starts[:-1], lines, logs, strict=True):
        smooth = ndimage.uniform_filter1d(log, max(1, len(log) // 30))
        indices = np.unique(np.linspace(0, len(log) - 1, MAX_POINTS).astype(int))
        xs = [x(start + points[index][0]) for index in indices]
        left = f"{x(start):.1f}"
        elements += [
            tag("line", x1=left, x2=left, y1=TOP - 26, y2=BOTTOM, class_="band"),
            _polyline(xs, [y(log[index]) for index in indices], f"raw {class_}"),
            _polyline(xs, [y(smooth[index]) for index in indices], class_),
            tag("text", f"{name}: {10 ** smooth[-1]:.3g} nats", x=float(left) + 8, y=TOP - 14, class_=class_),
        ]
    middle = (TOP + BOTTOM) / 2
    rotation = f"rotate(-90 16 {middle})"
    elements += [
        tag("text", "training steps, one stage after another", x=(LEFT + RIGHT) / 2, y=HEIGHT - 10, class_="middle"),
        tag("text", "cross-entropy, nats per token", x=16, y=middle, transform=rotation, class_="middle"),
    ]
    view = f"0 0 {WIDTH} {HEIGHT}"
    return tag("svg", *elements, viewBox=view, class_="chart", role="img", aria_label="training loss")


def _polyline(xs: Sequence[float], ys: Sequence[float], class_: str) -> Html:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    return tag("polyline", points=points, class_=class_)


def _gridline(left: float, y: float, right: float, label: str) -> Html:
    line = tag("line", x1=left, x2=right, y1=f"{y:.1f}", y2=f"{y:.1f}")
    return join(line, tag("text", label, x=left - 8, y=f"{y + 4:.1f}", class_="end"))


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers with log10 from ``low`` to ``high``: 1, 2, 5, 10, ...; all digits when those give fewer than three."""
    decades = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    for digits in ((1, 2, 5), range(1, 10)):
        ticks = [d * 10.0**decade for decade in decades for d in digits if low <= np.log10(d) + decade <= high]
        if len(ticks) > 2:
            break
    return ticks


def _ticks(end: int) -> range:
    """About eight round steps from 0 to ``end``."""
    unit = 10 ** int(np.log10(max(end / 8, 1)))
    step = next(unit * digit for digit in (1, 2, 5, 10) if unit * digit * 8 >= end)
    return range(0, end + 1, step)

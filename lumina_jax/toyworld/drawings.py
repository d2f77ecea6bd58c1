"""The drawings of the report: canvases, pairs of pictures, curves of losses."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from scipy import ndimage

from lumina_jax.pictures.html import Html, join, picture, tag

Pixels = tuple[int, int]
Points = Sequence[tuple[int, float]]

HUES = 4
"""Stages wear the classes hue0, hue1, ... of report.css in turn."""
WIDTH, HEIGHT = 1120, 380
LEFT, TOP, RIGHT, BOTTOM = 68, 40, 1104, 324
"""The chart and its frame, in units of its view box."""
MOST_POINTS = 400
LEAST_LOSS = 1e-4
"""A logarithmic axis has no place for zero."""


def hue(stage: int) -> str:
    """The class that colours what belongs to a stage."""
    return f"hue{stage % HUES}"


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

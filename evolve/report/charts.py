"""The pictures of the report as SVG: the convergence curve, bars with intervals, parameters over depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from evolve.report import numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evolve.report.summary import Point

_WIDTH = 860
_HEIGHT = 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 170, 16, 40


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: Text at its left.
        value: Its length.
        low: Lower end of its 95 % interval, not finite where it is not known.
        high: Upper end.
        best: Whether it is the one to look at.
    """

    label: str
    value: float
    low: float
    high: float
    best: bool = False

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class _Scale:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, count: int = 5) -> list[float]:
        """Return round values inside the scale."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def _scale(values: Iterable[float], start: float, end: float) -> _Scale:
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.05
    return _Scale(low - margin, high + margin, start, end)


def convergence(points: Sequence[Point], lines: Sequence[tuple[str, float]]) -> str:
    """Return the curve of the best value so far, with every trial as a dot.

    Args:
        points: The complete trials in order.
        lines: ``(label, value)`` of what the best is compared with.
    """
    if not points:
        return ""
    values = [point.value for point in points] + [value for _, value in lines]
    y = _scale(values, _HEIGHT - _BOTTOM, _TOP)
    last = max(points[-1].number, 1)
    x = _Scale(0, last, _LEFT, _WIDTH - _RIGHT)
    parts = [_y_axis(y)]
    for number in dict.fromkeys(math.floor(tick) for tick in x.ticks(8)):
        parts.append(_text(x(number), _HEIGHT - _BOTTOM + 18, str(number), "middle"))
    parts.append(_text(x(last / 2), _HEIGHT - 6, "trial", "middle"))
    labels = []
    for label, value in lines:
        parts.append(f'<line class="rival" x1="{_LEFT}" x2="{x(last)}" y1="{y(value)}" y2="{y(value)}"/>')
        labels.append((y(value), label))
    for point in points:
        parts.append(f'<circle cx="{x(point.number)}" cy="{y(point.value)}" r="2.5"/>')
    path = f"M{x(points[0].number)} {y(points[0].best)}"
    for point in points[1:]:
        path += f"H{x(point.number)}V{y(point.best)}"
    parts.append(f'<path class="best" d="{path}"/>')
    labels.append((y(points[-1].best), "best so far"))
    parts += [_text(x(last) + 8, place + 4, _short(label, 25), "start") for place, label in _spread(labels)]
    return _svg(_HEIGHT, "The best value so far over the trials", parts)


def bars(rows: Sequence[Bar], title: str) -> str:
    """Return horizontal bars with 95 % intervals; the axis starts where the differences can be seen."""
    if not rows:
        return ""
    height = 34 * len(rows) + 44
    ends = [end for row in rows for end in (row.low, row.value, row.high)]
    x = _scale(ends, 220, _WIDTH - 190)
    parts = []
    for tick in x.ticks():
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="8" y2="{height - 34}"/>')
        parts.append(_text(x(tick), height - 16, f"{tick:.4g}", "middle"))
    for index, row in enumerate(rows):
        middle = 26 + 34 * index
        kind = "bar best" if row.best else "bar"
        width = round(x(row.value) - 220, 2)
        parts.append(_text(212, middle + 4, _short(row.label, 32), "end"))
        parts.append(f'<rect class="{kind}" x="220" y="{middle - 9}" width="{width}" height="18"/>')
        if row.known:
            low, high = x(row.low), x(row.high)
            path = f"M{low} {middle}H{high}M{low} {middle - 5}v10M{high} {middle - 5}v10"
            parts.append(f'<path class="whisker" d="{path}"/>')
        text = numbers.interval(row.value, row.low, row.high)
        parts.append(_text(_WIDTH - 182, middle + 4, text, "start"))
    return _svg(height, title, parts)


@dataclass(frozen=True)
class Dot:
    """A point of a scatter plot.

    Attributes:
        label: What it is.
        x: Where it is from left to right.
        y: Where it is from the bottom to the top.
        best: Whether it is on the front.
    """

    label: str
    x: float
    y: float
    best: bool = False


def scatter(dots: Sequence[Dot], title: str, x_label: str, y_label: str) -> str:
    """Return a scatter plot: those on the front are joined and named, the others say their name on hovering.

    Dots with a number that is not finite are left out.
    """
    known = [dot for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y)]
    if not known:
        return ""
    x = _scale([dot.x for dot in known], _LEFT, _WIDTH - _RIGHT)
    y = _scale([dot.y for dot in known], _HEIGHT - _BOTTOM, _TOP)
    parts = [_y_axis(y)]
    for tick in x.ticks():
        parts.append(_text(x(tick), _HEIGHT - _BOTTOM + 18, f"{tick:.4g}", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label, "middle"))
    parts.append(_text(_WIDTH - _RIGHT + 8, _TOP + 4, y_label, "start"))
    front = sorted((dot for dot in known if dot.best), key=lambda dot: (dot.x, dot.y))
    if front:
        path = " ".join(f"{'L' if index else 'M'}{x(dot.x)} {y(dot.y)}" for index, dot in enumerate(front))
        parts.append(f'<path class="best" d="{path}"/>')
    for dot in known:
        name = escape(f"{dot.label}: {dot.x:.4g}, {dot.y:.4g}")
        kind = ' class="best"' if dot.best else ""
        parts.append(
            f'<circle{kind} cx="{x(dot.x)}" cy="{y(dot.y)}" r="{4 if dot.best else 2.5}">'
            f"<title>{name}</title></circle>"
        )
    labels = _spread([(y(dot.y), dot.label) for dot in front])
    parts += [_text(_WIDTH - _RIGHT + 8, place + 22, _short(label, 25), "start") for place, label in labels]
    return _svg(_HEIGHT, title, parts)


def layers(rows: Sequence[tuple[str, Sequence[float]]], title: str) -> str:
    """Return a map of parameters over depth: a row a parameter, a cell a layer, stronger where larger.

    Each row has its own scale: its largest absolute value is the full colour, and stands at its right.
    """
    width = max((len(values) for _, values in rows), default=0)
    if not width:
        return ""
    start, end, top, height = 220, _WIDTH - 190, 8, 24
    step = (end - start) / width
    parts = []
    for index, (label, values) in enumerate(rows):
        y = top + height * index
        largest = max(abs(value) for value in values)
        parts.append(_text(start - 8, y + 15, _short(label, 32), "end"))
        for layer, value in enumerate(values):
            strength = round(abs(value) / largest, 3) if largest else 0
            kind = "plus" if value >= 0 else "minus"
            x = round(start + step * layer, 2)
            parts.append(
                f'<rect class="cell {kind}" x="{x}" y="{y}" width="{step:.2f}" height="{height - 3}" '
                f'fill-opacity="{strength}"><title>layer {layer}: {value:.4g}</title></rect>'
            )
        parts.append(_text(end + 8, y + 15, _span(values), "start"))
    bottom = top + height * len(rows)
    for layer in sorted({0, (width - 1) // 2, width - 1}):
        parts.append(_text(round(start + step * (layer + 0.5), 2), bottom + 14, str(layer), "middle"))
    parts.append(_text((start + end) / 2, bottom + 32, "layer", "middle"))
    return _svg(bottom + 40, title, parts)


def _span(values: Sequence[float]) -> str:
    """Return the one value of a row, or those of its first and last layer."""
    first, last = values[0], values[-1]
    return f"{first:.3g}" if min(values) == max(values) else f"{first:.3g} … {last:.3g}"


def _short(label: str, most: int) -> str:
    """Cut a label that would leave the picture; the tables have it whole."""
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _spread(labels: list[tuple[float, str]], gap: float = 15) -> list[tuple[float, str]]:
    """Move labels apart that would cover each other."""
    placed: list[tuple[float, str]] = []
    for place, label in sorted(labels):
        placed.append((max(place, placed[-1][0] + gap) if placed else place, label))
    return placed


def _y_axis(y: _Scale) -> str:
    parts = []
    for tick in y.ticks():
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>'
        )
        parts.append(_text(_LEFT - 8, y(tick) + 4, f"{tick:.4g}", "end"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: int, title: str, parts: Iterable[str]) -> str:
    head = f'<svg role="img" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"

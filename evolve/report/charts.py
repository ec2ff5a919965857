"""Pictures of numbers as SVG: the convergence curve, bars with intervals, loss curves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evolve.report import numbers
from evolve.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    picture,
    scale,
    short,
    spread,
    text,
    x_axis,
    y_axis,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.report.summary import Point

_CLOSE = 0.1
"""Where all ends of the intervals lie closer together than this share of the largest, 0 is not shown."""


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
class Line:
    """One line of a chart of curves.

    Attributes:
        label: Text at its right end.
        points: ``(x, y)``, finite, from left to right.
        best: Whether it is the one to look at.
    """

    label: str
    points: Sequence[tuple[float, float]]
    best: bool = False


def convergence(points: Sequence[Point], lines: Sequence[tuple[str, float]]) -> str:
    """Return the curve of the best value so far, with every trial as a dot.

    Args:
        points: The complete trials in order.
        lines: ``(label, value)`` of what the best is compared with.
    """
    if not points:
        return ""
    values = [point.value for point in points] + [value for _, value in lines]
    y = scale(values, HEIGHT - BOTTOM, TOP)
    last = max(points[-1].number, 1)
    x = Scale(0, last, LEFT, WIDTH - RIGHT)
    parts = [y_axis(y), x_axis(x, "trial", count=8, whole=True)]
    labels = []
    for label, value in lines:
        parts.append(f'<line class="rival" x1="{LEFT}" x2="{x(last)}" y1="{y(value)}" y2="{y(value)}"/>')
        labels.append((y(value), label))
    for point in points:
        parts.append(f'<circle cx="{x(point.number)}" cy="{y(point.value)}" r="3"/>')
    path = f"M{x(points[0].number)} {y(points[0].best)}"
    for point in points[1:]:
        path += f"H{x(point.number)}V{y(point.best)}"
    parts.append(f'<path class="best" d="{path}"/>')
    labels.append((y(points[-1].best), "best so far"))
    parts += [text(x(last) + 8, place + 4, short(label, 25), "start") for place, label in spread(labels)]
    return picture(HEIGHT, "The best value so far over the trials", parts)


def bars(rows: Sequence[Bar], title: str) -> str:
    """Return horizontal bars from 0 with 95 % intervals.

    Where all values lie close together and far from 0, bars would hide the differences and cut ones would
    lie about them: then each value is a dot on an axis that does not begin at 0.
    """
    if not rows:
        return ""
    height = 34 * len(rows) + 44
    ends = [end for row in rows for end in (row.low, row.value, row.high) if math.isfinite(end)]
    solid = max(ends) - min(ends) > _CLOSE * max(map(abs, ends))
    x = scale([*ends, 0.0] if solid else ends, 220, WIDTH - 190)
    if solid and min(ends) >= 0:
        x = Scale(0.0, x.high, x.start, x.end)
    parts = []
    for tick, label in x.ticks():
        parts.append(f'<line class="grid" x1="{x(tick)}" x2="{x(tick)}" y1="8" y2="{height - 34}"/>')
        parts.append(text(x(tick), height - 16, label))
    for index, row in enumerate(rows):
        middle = 26 + 34 * index
        kind = " best" if row.best else ""
        parts.append(text(212, middle + 4, short(row.label, 32), "end"))
        if solid:
            left, right = sorted((x(0.0), x(row.value)))
            width = round(right - left, 2)
            parts.append(f'<rect class="bar{kind}" x="{left}" y="{middle - 9}" width="{width}" height="18"/>')
        else:
            parts.append(f'<circle class="bar{kind}" cx="{x(row.value)}" cy="{middle}" r="5"/>')
        if row.known:
            low, high = x(row.low), x(row.high)
            path = f"M{low} {middle}H{high}M{low} {middle - 5}v10M{high} {middle - 5}v10"
            parts.append(f'<path class="whisker" d="{path}"/>')
        value = numbers.interval(row.value, row.low, row.high)
        parts.append(text(WIDTH - 182, middle + 4, value, "start"))
    return picture(height, title, parts)


def curves(lines: Sequence[Line], title: str, x_label: str, y_label: str) -> str:
    """Return lines over a common axis, each with its name at its right end.

    Lines without points are left out.

    Args:
        lines: At most a dozen.
        title: Of the picture.
        x_label: What the axis to the right is; whole numbers.
        y_label: What the axis upwards is.
    """
    known = [line for line in lines if line.points]
    if not known:
        return ""
    top = TOP + 14
    y = scale([value for line in known for _, value in line.points], HEIGHT - BOTTOM, top)
    last = max(max(place for line in known for place, _ in line.points), 1.0)
    x = Scale(0.0, last, LEFT, WIDTH - RIGHT)
    parts = [y_axis(y), x_axis(x, x_label, count=8, whole=True), text(LEFT, 14, y_label, "start")]
    labels = []
    for line in sorted(known, key=lambda one: one.best):
        path = " ".join(f"{'L' if index else 'M'}{x(a)} {y(b)}" for index, (a, b) in enumerate(line.points))
        parts.append(f'<path class="{"best" if line.best else "other"}" d="{path}"/>')
        if len(line.points) == 1:
            ((a, b),) = line.points
            parts.append(f'<circle cx="{x(a)}" cy="{y(b)}" r="3"/>')
        labels.append((y(line.points[-1][1]), line.label))
    parts += [text(x(last) + 8, place + 4, short(label, 25), "start") for place, label in spread(labels)]
    return picture(HEIGHT, title, parts)

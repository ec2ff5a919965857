"""A scatter plot as SVG: the front is joined, what matters has its name beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal, TypeAlias

from evolve.report.svg import (
    BOTTOM,
    CHARACTER,
    HEIGHT,
    LEFT,
    WIDTH,
    picture,
    scale,
    short,
    text,
    x_axis,
    y_axis,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evolve.report.svg import Scale

_RIGHT, _TOP = 24, 30
_LONGEST = 28
"""Characters of the longest name beside a dot."""

Ends: TypeAlias = tuple[float, float]
Shape: TypeAlias = Literal["dot", "mark", "chosen"]


@dataclass(frozen=True)
class Dot:
    """A point of a scatter plot.

    Attributes:
        label: What it is.
        x: Where it is from left to right.
        y: Where it is from the bottom to the top.
        best: Whether it is on the front.
        shape: ``mark``: a model that others are held against, a diamond; ``chosen``: the one to look at.
        x_ends: Its 95 % interval from left to right, drawn as a whisker; None: none is drawn.
        y_ends: The same upwards.
    """

    label: str
    x: float
    y: float
    best: bool = False
    shape: Shape = "dot"
    x_ends: Ends | None = None
    y_ends: Ends | None = None


def scatter(dots: Sequence[Dot], title: str, x_label: str, y_label: str) -> str:
    """Return a scatter plot. Where names would cover each other, some are told on hovering alone.

    Dots with a number that is not finite are left out.
    """
    known = [dot for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y)]
    if not known:
        return ""
    x = scale([end for dot in known for end in (dot.x, *(dot.x_ends or ()))], LEFT, WIDTH - _RIGHT)
    y = scale([end for dot in known for end in (dot.y, *(dot.y_ends or ()))], HEIGHT - BOTTOM, _TOP)
    parts = [y_axis(y, right=WIDTH - _RIGHT), x_axis(x, x_label), text(LEFT, 16, y_label, "start")]
    if x.low < 0 < x.high:
        parts.append(f'<line class="rival" x1="{x(0)}" x2="{x(0)}" y1="{_TOP}" y2="{HEIGHT - BOTTOM}"/>')
    if y.low < 0 < y.high:
        parts.append(f'<line class="rival" x1="{LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(0)}" y2="{y(0)}"/>')
    front = sorted((dot for dot in known if dot.best), key=lambda dot: (dot.x, dot.y))
    if front:
        path = " ".join(f"{'L' if index else 'M'}{x(dot.x)} {y(dot.y)}" for index, dot in enumerate(front))
        parts.append(f'<path class="best" d="{path}"/>')
    for dot in sorted(known, key=_importance, reverse=True):
        parts.append(_drawn(dot, x, y))
    parts += _names(sorted((dot for dot in known if _importance(dot) < _PLAIN), key=_importance), x, y)
    return picture(HEIGHT, title, parts)


_PLAIN = 3


def _importance(dot: Dot) -> int:
    """Return the place of a dot in the order in which names are given; plain ones get none."""
    if dot.shape == "chosen":
        return 0
    return 1 if dot.shape == "mark" else 2 if dot.best else _PLAIN


def _drawn(dot: Dot, x: Scale, y: Scale) -> str:
    at, height = x(dot.x), y(dot.y)
    name = f"<title>{escape(f'{dot.label}: {dot.x:.4g}, {dot.y:.4g}')}</title>"
    whiskers = ""
    if dot.x_ends is not None and all(map(math.isfinite, dot.x_ends)):
        whiskers += f"M{x(dot.x_ends[0])} {height}H{x(dot.x_ends[1])}"
    if dot.y_ends is not None and all(map(math.isfinite, dot.y_ends)):
        whiskers += f"M{at} {y(dot.y_ends[0])}V{y(dot.y_ends[1])}"
    drawn = f'<path class="whisker" d="{whiskers}"/>' if whiskers else ""
    if dot.shape == "mark":
        path = f"M{at} {round(height - 6, 2)}l6 6l-6 6l-6 -6z"
        return f'{drawn}<path class="mark" d="{path}">{name}</path>'
    kinds = [kind for kind, given in (("best", dot.best), ("chosen", dot.shape == "chosen")) if given]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    size = 6 if dot.shape == "chosen" else 4 if dot.best else 3
    return f'{drawn}<circle{kind} cx="{at}" cy="{height}" r="{size}">{name}</circle>'


def _names(dots: Sequence[Dot], x: Scale, y: Scale) -> Iterator[str]:
    """Yield names beside their dots, the most important first, as far as there is room."""
    taken = [(x(dot.x) - 6, y(dot.y) - 6, x(dot.x) + 6, y(dot.y) + 6) for dot in dots]
    for dot in dots:
        label = short(dot.label, _LONGEST)
        width = CHARACTER * len(label)
        at, height = x(dot.x), y(dot.y)
        beside = [
            (at + 9, height + 4, "start"),
            (at - 9 - width, height + 4, "end"),
            (at - width / 2, height - 10, "middle"),
            (at - width / 2, height + 19, "middle"),
        ]
        # Between the whiskers, not on them.
        corners = [
            (left, base, anchor)
            for base in (height - 9, height + 18)
            for left, anchor in ((at + 9, "start"), (at - 9 - width, "end"))
        ]
        for left, base, anchor in corners + beside if dot.x_ends else beside:
            box = (left, base - 10, left + width, base + 3)
            inside = left >= LEFT and box[2] < WIDTH and box[1] >= _TOP - 10 and base <= HEIGHT - BOTTOM
            if inside and not any(_cover(box, other) for other in taken):
                taken.append(box)
                place = {"start": left, "end": left + width, "middle": at}[anchor]
                yield text(round(place, 2), round(base, 2), label, anchor)
                break


def _cover(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

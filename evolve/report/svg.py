"""What all pictures of the report are made of: scales, texts, axes, and the frame around them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDTH = 860
HEIGHT = 320
LEFT, RIGHT, TOP, BOTTOM = 64, 170, 16, 40
CHARACTER = 6.6
"""Pixels of a character at 12 px, about: texts are placed without measuring them."""


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def step(self, count: int = 5) -> float:
        """Return a round distance of ticks, so that there are about ``count``."""
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Return round values inside the scale, each with its text: as many decimals as tell them apart."""
        step = self.step(count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        values = [index * step for index in range(first, last + 1)]
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        plain = decimals <= 6 and max(map(abs, values), default=0.0) < 1e6
        return [(value, f"{value:.{decimals}f}" if plain else f"{value:.4g}") for value in values]


def scale(values: Iterable[float], start: float, end: float) -> Scale:
    """Return the scale that shows all finite values, with a margin."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.05
    return Scale(low - margin, high + margin, start, end)


def y_axis(y: Scale, *, right: float = WIDTH - RIGHT) -> str:
    """Return lines across the picture with their values at the left."""
    parts = []
    for tick, label in y.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(text(LEFT - 8, y(tick) + 4, label, "end"))
    return "".join(parts)


def x_axis(x: Scale, label: str, *, count: int = 5, whole: bool = False) -> str:
    """Return values below the picture, and what they are.

    Args:
        x: The scale.
        label: What the values are.
        count: About so many.
        whole: Whether only whole numbers mean anything.
    """
    ticks = [(tick, name) for tick, name in x.ticks(count) if not whole or float(tick).is_integer()]
    parts = [text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:.0f}" if whole else name) for tick, name in ticks]
    parts.append(text((x.start + x.end) / 2, HEIGHT - 6, label))
    return "".join(parts)


def text(x: float, y: float, words: str, anchor: str = "middle", *, kind: str = "") -> str:
    """Return a text at a place; ``kind`` is its class."""
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def short(label: str, most: int) -> str:
    """Cut a label that would leave the picture; the tables have it whole."""
    return label if len(label) <= most else f"{label[: most - 1]}…"


def spread(
    labels: Iterable[tuple[float, str]], *, gap: float = 15, bottom: float = HEIGHT - 8
) -> list[tuple[float, str]]:
    """Move labels apart that would cover each other, and up again where they would leave the picture."""
    placed: list[tuple[float, str]] = []
    for place, label in sorted(labels):
        placed.append((max(place, placed[-1][0] + gap) if placed else place, label))
    limit = bottom
    for index in range(len(placed) - 1, -1, -1):
        place, label = placed[index]
        placed[index] = (min(place, limit), label)
        limit = placed[index][0] - gap
    return placed


def picture(height: int, title: str, parts: Iterable[str]) -> str:
    """Return the whole picture; its title is read out and shown on hovering."""
    head = f'<svg role="img" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"

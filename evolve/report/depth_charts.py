"""Pictures over the depth of a model as SVG: its parameters layer by layer, and where its layers are from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from evolve.report.svg import CHARACTER, WIDTH, picture, short, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.report.layers import Stacking

_START, _END, _ROW = 220, WIDTH - 190, 24
_SMALLEST = 8.0
"""Pixels of the smallest number that is written into a cell; narrower cells say theirs on hovering."""


def layers(rows: Sequence[tuple[str, Sequence[float]]], title: str) -> str:
    """Return a map of parameters over depth: a row a parameter, a cell a layer, stronger where larger.

    Each row has its own scale: its largest absolute value is the full colour. At its right stand the values
    of its first and last layer. A layer without a value (NaN) stays empty.
    """
    width = max((len(values) for _, values in rows), default=0)
    if not width:
        return ""
    top = 8
    step = (_END - _START) / width
    parts = []
    for index, (label, values) in enumerate(rows):
        y = top + _ROW * index
        largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
        parts.append(text(_START - 8, y + 15, short(label, 32), "end"))
        for layer, value in enumerate(values):
            if not math.isfinite(value):
                continue
            strength = round(abs(value) / largest, 3) if largest else 0
            kind = "plus" if value >= 0 else "minus"
            parts.append(_cell(_START + step * layer, y, step, kind, f"layer {layer}: {value:.4g}", strength))
        parts.append(text(_END + 8, y + 15, _span(values), "start"))
    return _with_axis(parts, top + _ROW * len(rows), width, "layer", title)


def stack(stacking: Stacking, title: str) -> str:
    """Return where the layers of a result are from: a row a model, a column a layer, its number there inside.

    Above a layer stands what the hidden state that enters it is multiplied by, where that is not 1.
    """
    count = len(stacking.layers)
    if not count:
        return ""
    step = (_END - _START) / count
    scaled = any(layer.scale != 1.0 for layer in stacking.layers)
    top = 34 if scaled else 8
    bottom = top + _ROW * len(stacking.models)
    parts = [text(_START - 8, 20, "hidden state times", "end")] if scaled else []
    size = min(12.0, step / 1.25)
    free = 0.0
    for place, layer in enumerate(stacking.layers):
        left = _START + step * place
        if layer.scale != 1.0:
            said = f"x {layer.scale:.3g}"
            x = round(left, 2)
            parts.append(
                f'<path class="whisker" d="M{x} 26V{bottom}"><title>layer {place}: {said}</title></path>'
            )
            if left >= free:
                parts.append(text(x, 20, said, "start"))
                free = left + CHARACTER * (len(said) + 1)
        for source in layer.sources:
            y = top + _ROW * stacking.models.index(source.model)
            hint = f"layer {place}: layer {source.layer} of {source.model}"
            parts.append(_cell(left, y, step, "plus", hint, 0.35))
            if size >= _SMALLEST:
                middle = round(left + step / 2, 2)
                parts.append(
                    f'<text x="{middle}" y="{y + 15}" text-anchor="middle" style="font-size:{size:.1f}px">'
                    f"{source.layer}</text>"
                )
    for index, model in enumerate(stacking.models):
        parts.append(text(_START - 8, top + _ROW * index + 15, short(model, 32), "end"))
        given = sum(model in {source.model for source in layer.sources} for layer in stacking.layers)
        parts.append(text(_END + 8, top + _ROW * index + 15, f"{given} of {count} layers", "start"))
    return _with_axis(parts, bottom, count, "layer of the result", title)


def _cell(x: float, y: float, width: float, kind: str, hint: str, strength: float) -> str:
    from html import escape

    return (
        f'<rect class="cell {kind}" x="{round(x, 2)}" y="{y}" width="{width:.2f}" height="{_ROW - 3}" '
        f'fill-opacity="{strength}"><title>{escape(hint)}</title></rect>'
    )


def _with_axis(parts: list[str], bottom: int, count: int, label: str, title: str) -> str:
    step = (_END - _START) / count
    for layer in sorted({0, (count - 1) // 2, count - 1}):
        parts.append(text(round(_START + step * (layer + 0.5), 2), bottom + 14, str(layer)))
    parts.append(text((_START + _END) / 2, bottom + 32, label))
    return picture(bottom + 40, title, parts)


def _span(values: Sequence[float]) -> str:
    """Return the one value of a row, or those of the first and last layer that have one."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    same = min(known) == max(known)
    return f"{known[0]:.3g}" if same else f"{known[0]:.3g} … {known[-1]:.3g}"

"""Prints what readers read: a table for people, JSON or CSV for programs."""

from __future__ import annotations

import csv
import json
import math
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

_PIPE_WIDTH = 200
"""Columns of a table that does not go to a terminal."""


def print_json(value: Any) -> None:
    """Print JSON, with NaN and infinity as null."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def print_csv(objects: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Print objects as CSV; nested keys are joined by dots.

    Args:
        objects: One a line.
        columns: Columns that come first and are there also when no object has them.
    """
    flat = [dict(_flatten(item)) for item in objects]
    # A column of an object that is null in one line and filled in another would appear twice.
    filled = {key.partition(".")[0] for item in flat for key in item if "." in key}
    names = dict.fromkeys(name for name in columns if name not in filled)
    for item in flat:
        names.update(dict.fromkeys(key for key in item if key not in filled))
    # csv writes through text mode: without this Windows would get \r\r\n, and Unix \r\n.
    writer = csv.DictWriter(sys.stdout, list(names), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)


def print_table(columns: Iterable[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print a table; columns of numbers are aligned to the right."""
    print_rich(table(columns, rows, title=title))


def table(columns: Iterable[str], rows: Iterable[Sequence[object]], *, title: str = "") -> RenderableType:
    """Return a table that shows texts as they are, without any markup; no header where all are empty."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    names = list(columns)
    result = Table(
        box=box.SIMPLE_HEAD,
        title=Text(title, "bold") if title else None,
        title_justify="left",
        show_header=any(names),
    )
    for index, name in enumerate(names):
        column = [row[index] for row in cells if row[index] not in ("", "-")]
        right = bool(column) and all(_numeric(cell) for cell in column)
        result.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for row in cells:
        result.add_row(*(Text(cell) for cell in row))
    return result


def print_rich(*renderables: RenderableType) -> None:
    """Print tables and texts on stdout, with colours on a terminal only."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)
    for renderable in renderables:
        console.print(renderable)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flatten(item, f"{prefix}{key}.")
        elif isinstance(item, list):
            yield prefix + key, json.dumps(_finite(item), ensure_ascii=False)
        else:
            yield prefix + key, None if item == {} else _finite(item)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or (cell[:1] in "+-" and cell[1:2].isdigit())

"""``evolve ls``: what there is to choose from."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from evolve.cli.options import format_option, run_names, runs_option
from evolve.cli.output import print_csv, print_json, print_rich, print_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evolve.registry import Registry


PARTS = {
    "losses": ("LOSSES", "loss"),
    "teachers": ("TEACHERS", "teacher"),
    "styles": ("STYLES", "style"),
    "verifiers": ("VERIFIERS", "verifier"),
    "filters": ("FILTERS", "filter"),
    "regularizers": ("REGULARIZERS", "regularizer"),
    "selectors": ("SELECTORS", "selector"),
    "initialisers": ("INITIALISERS", "initialiser"),
}
"""Parts of stages: the kind to its table in the registry, and what one of them is called."""


@click.command()
@click.argument(
    "kind",
    type=click.Choice(["methods", "stages", *PARTS, "samplers", "scorers", "engines", "spaces", "runs"]),
    default="runs",
)
@runs_option
@format_option
def ls(kind: str, runs: Path, style: str) -> None:
    """List methods, losses, samplers, spaces, runs and more."""
    if kind == "methods":
        _methods(style)
        return
    listers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "stages": lambda: _named("STAGES", "stage"),
        **{kind: partial(_named, table, one) for kind, (table, one) in PARTS.items()},
        "samplers": _samplers,
        "scorers": _scorers,
        "engines": _engines,
        "spaces": _spaces,
        "runs": lambda: _runs(runs),
    }
    rows = listers[kind]()
    if style == "json":
        print_json(rows)
    elif style == "csv":
        print_csv(rows)
    elif not rows:
        click.echo(f"no {kind}" + (f" in {runs}" if kind == "runs" else ""))
    else:
        print_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


def _methods(style: str) -> None:
    from evolve.cli.methods import described, flat, tables

    methods = described()
    if style == "json":
        print_json(methods)
    elif style == "csv":
        print_csv(list(flat(methods)))
    else:
        print_rich(*tables(methods))


def _named(table: str, one: str) -> list[dict[str, Any]]:
    """Return the names of a table of the registry, with what each is and where it is from."""
    import evolve.registry

    known: Registry[Any] = getattr(evolve.registry, table)
    rows = []
    for name in known.names():
        thing = known.load(name)
        row = {one: name, "about": _about(thing)}
        rows.append(row | ({"paper": thing.paper} if getattr(thing, "paper", None) else {}))
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def _samplers() -> list[dict[str, Any]]:
    from evolve.registry import SAMPLERS

    return [{"sampler": name, "about": _about(SAMPLERS.load(name))} for name in SAMPLERS.names()]


def _scorers() -> list[dict[str, Any]]:
    from evolve.registry import SCORERS

    return [{"scorer": name, "about": _about(SCORERS.load(name))} for name in SCORERS.names()]


def _engines() -> list[dict[str, Any]]:
    import importlib.util

    from evolve.registry import ENGINES

    packages = {"hf": "transformers"}
    rows = []
    for name in ENGINES.names():
        installed = importlib.util.find_spec(packages.get(name, name)) is not None
        rows.append({"engine": name, "installed": installed, "about": _about(ENGINES.load(name))})
    return rows


def _about(thing: object) -> str:
    """Return the first line of the docstring of the module that ``thing`` is from."""
    import sys

    module = sys.modules[getattr(thing, "__module__", "")]
    return (module.__doc__ or "").strip().partition("\n")[0]


def _spaces() -> list[dict[str, Any]]:
    from evolve.cli.spaces import purpose, shipped

    return [{"space": name, "for": purpose(file)} for name, file in shipped().items()]


def _runs(runs: Path) -> list[dict[str, Any]]:
    from evolve.cli.status import working
    from evolve.errors import RunError
    from evolve.store.rundir import RunDir

    rows: list[dict[str, Any]] = []
    for name in run_names(runs):
        try:
            run = RunDir.open(runs / name)
        except RunError as error:
            rows.append({"run": name, "phase": f"unreadable: {error}"})
            continue
        state = run.state()
        rows.append(
            {
                "run": name,
                "phase": state.get("phase"),
                "working": working(run) is not None,
                "complete": state.get("complete"),
                "trials": state.get("trials"),
                "best": state.get("best"),
                "best_parent": state.get("best_parent"),
                "average": state.get("average"),
                "created": run.meta.get("created"),
            }
        )
    keys = max(rows, key=len).keys() if rows else ()
    return [{key: row.get(key) for key in keys} for row in rows]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    return ", ".join(value) if isinstance(value, list) else str(value)

"""The report as one self-contained HTML file: no script, no request to anywhere."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from evolve import __version__
from evolve.report import charts, numbers, sources, text, variants

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evolve.report.summary import Summary
    from evolve.types import Split

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #d9dee7; --paper: #fff;
  --best: #0f766e; --other: #94a3b8; --code: #f4f6f9;
  --minus: #b45309; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e9f0; --soft: #98a2b3; --line: #384252;
  --paper: #151a22; --best: #2dd4bf; --other: #64748b; --code: #1e2530; --minus: #f59e0b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 920px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; font-size: 1.15rem; }
.verdict { font-size: 1.15rem; } .soft { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
tr.best td { font-weight: 600; color: var(--best); }
pre { background: var(--code); padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12px; }
svg circle { fill: var(--other); opacity: .75; } svg .grid { stroke: var(--line); }
svg .rival { stroke: var(--soft); stroke-dasharray: 5 4; }
svg path.best { stroke: var(--best); fill: none; stroke-width: 2; }
svg .bar { fill: var(--other); } svg .bar.best { fill: var(--best); }
svg .cell.plus { fill: var(--best); } svg .cell.minus { fill: var(--minus); }
svg .whisker { stroke: var(--ink); fill: none; stroke-width: 1.5; }
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(summary: Summary, *, recipe: str = "", commands: Sequence[str] = ()) -> str:
    """Return the report.

    Args:
        summary: What the run has found.
        recipe: YAML of the best recipe.
        commands: Shell commands that build the best again.
    """
    split: Split = "holdout" if summary.has_holdout else "search"
    sections = [
        _section("Best, parents and average", _comparison(summary, split)),
        _section("Models against results", _sources(summary, split)),
        _section("The last choice", _final(summary)),
        _section("Which stages pay", _stages(summary)),
        _section("How the search went", _search(summary)),
        _section("Best candidates", _top(summary)),
        _section("Failures", _failures(summary)),
        _section("The best recipe", _recipe(summary, recipe)),
        _section("Its parameters, layer by layer", _layers(summary)),
        _section("Build it again", _block("\n".join(commands))),
    ]
    title = escape(f"{summary.name}: evolve report")
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="evolve {escape(__version__)}">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(summary.name)}</h1>\n<p class="verdict">{escape(text.verdict(summary))}</p>\n'
        + "".join(sections)
        + "</body>\n</html>\n"
    )


def _comparison(summary: Summary, split: Split) -> str:
    shown = [(entry, entry.intervals.get(split)) for entry in summary.table]
    rows = [
        charts.Bar(entry.label, found.value, found.low, found.high, entry.role == "best")
        for entry, found in shown
        if found is not None and math.isfinite(found.value)
    ]
    header, cells = text.rows(summary, summary.table)
    best = [entry.role == "best" for entry in summary.table]
    picture = charts.bars(rows, f"Scores on {split} items with 95 % intervals")
    note = f'<p class="soft">{escape(text.footnote(summary))}</p>'
    return f'<div class="scroll">{picture}</div>{_table(header, cells, best=best)}{note}'


def _sources(summary: Summary, split: Split) -> str:
    if not summary.sources:
        return ""
    parts = [f'<p class="soft">On {split} items.</p>']
    parts.append(_table(*text.source_rows(summary), best=[row.best for row in summary.sources]))
    parts.append(f'<p class="soft">{escape(sources.NOTE)}</p>')
    for task, (metric, _) in summary.tasks.items():
        rows = [
            charts.Bar(row.label, found.value, found.low, found.high, row.best)
            for row in summary.sources
            if (found := row.tasks.get(task)) is not None and math.isfinite(found.value)
        ]
        picture = charts.bars(rows, f"{task}: {metric} with 95 % intervals")
        parts.append(f'<h3>{escape(task)} ({escape(metric)})</h3><div class="scroll">{picture}</div>')
    return "".join(parts)


def _final(summary: Summary) -> str:
    if summary.final is None:
        return ""
    count = len(summary.final.numbers)
    note = (
        f"The {count} best of the search were scored on the holdout. One half of its items chose the winner; "
        f"there the intervals hold for all {count} at once. The other half had no say, and is what every "
        "other table calls holdout."
    )
    header, cells = text.final_rows(summary)
    best = [row[0].endswith("(winner)") for row in cells]
    return f'<p class="soft">{escape(note)}</p>{_table(header, cells, best=best)}'


def _stages(summary: Summary) -> str:
    if not summary.variants.stages:
        return ""
    return f'{_table(*variants.rows(summary.variants))}<p class="soft">{escape(variants.NOTE)}</p>'


def _layers(summary: Summary) -> str:
    rows = [(f"{one.model}: {one.name}", one.values) for one in summary.profiles]
    picture = charts.layers(rows, "The value of each parameter at each layer")
    return f'<div class="scroll">{picture}</div>' if picture else ""


def _search(summary: Summary) -> str:
    rivals = [*summary.parents[:1], *([summary.average] if summary.average else [])]
    lines = [
        (f"plain {entry.name}" if entry.role == "average" else f"best parent: {entry.name}", scored.value)
        for entry, scored in ((entry, entry.scored("search")) for entry in rivals)
        if scored is not None
    ]
    picture = charts.convergence(summary.curve, lines)
    facts = _table(["", ""], [list(fact) for fact in text.facts(summary)])
    note = '<p class="soft">Search scores. Each dot is a candidate, the line the best so far.</p>'
    return f'<div class="scroll">{picture}</div>{note if picture else ""}{facts}'


def _top(summary: Summary) -> str:
    if not summary.top:
        return ""
    header, cells = text.rows(summary, summary.top)
    header.insert(1, "recipe")
    for entry, row in zip(summary.top, cells, strict=True):
        row.insert(1, entry.recipe)
    return _table(header, cells)


def _failures(summary: Summary) -> str:
    if not summary.failed:
        return "<p>None.</p>"
    cells = [[str(number), kind, message] for number, kind, message in summary.failed]
    counts = escape(numbers.failures(dict(summary.failures)))
    return f"<p>{counts}</p>{_table(['trial', 'kind', 'message'], cells)}"


def _recipe(summary: Summary, recipe: str) -> str:
    if summary.best is None:
        return ""
    params = [
        [name, f"{value:.6g}" if isinstance(value, float) else str(value)]
        for name, value in summary.best_params.items()
    ]
    table = _table(["parameter", "value"], params) if params else ""
    head = f"<p>Recipe <code>{escape(summary.best.recipe)}</code>, seed {summary.seed}.</p>"
    return f"{head}{table}{_block(recipe)}"


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def _block(code: str) -> str:
    return f"<pre><code>{escape(code)}</code></pre>" if code else ""


def _table(header: Sequence[str], cells: Iterable[Sequence[str]], *, best: Sequence[bool] = ()) -> str:
    rows = []
    for index, row in enumerate(cells):
        mark = ' class="best"' if index < len(best) and best[index] else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    thead = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f'<div class="scroll"><table>{thead}<tbody>{"".join(rows)}</tbody></table></div>'

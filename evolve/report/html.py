"""The report as one self-contained HTML file: no script, no request to anywhere."""

from __future__ import annotations

import math
import re
from html import escape
from typing import TYPE_CHECKING, cast

from evolve import __version__
from evolve.report import charts, depth_charts, layers, numbers, sources, switched, text, trade, variants
from evolve.report.scatter import Dot, scatter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evolve.report.scatter import Shape
    from evolve.report.summary import Summary
    from evolve.types import Split

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6577; --line: #d9dee7; --paper: #fff;
  --best: #0f766e; --other: #94a3b8; --code: #f4f6f9;
  --minus: #b45309; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e9f0; --soft: #a3adbd; --line: #384252;
  --paper: #151a22; --best: #2dd4bf; --other: #718096; --code: #1e2530; --minus: #f59e0b; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1200px; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; font-size: 1.15rem; } h3 { font-size: 1rem; }
.verdict { font-size: 1.15rem; } .soft { color: var(--soft); font-size: .9rem; max-width: 75ch; }
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 30%, transparent) 0 0 / 36px 100%,
  linear-gradient(to left, var(--paper) 30%, transparent) 100% 0 / 36px 100%,
  linear-gradient(to right, var(--line), transparent) 0 0 / 12px 100%,
  linear-gradient(to left, var(--line), transparent) 100% 0 / 12px 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; min-width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { min-width: 6.5rem; position: sticky; left: 0; background: var(--paper); }
.brief { white-space: nowrap; }
.ends { white-space: nowrap; color: var(--soft); font-size: .85rem; }
tr.best td, tr.best .ends { font-weight: 600; color: var(--best); }
pre { background: var(--code); padding: .8rem 1rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
svg { display: block; width: 100%; min-width: 640px; max-width: 860px; height: auto; }
svg text { fill: var(--ink); font-size: 12px; paint-order: stroke; stroke: var(--paper); stroke-width: 3px;
  stroke-linejoin: round; }
svg .cell ~ text { stroke: none; }
svg circle { fill: var(--other); opacity: .75; } svg .grid { stroke: var(--line); }
svg circle.best { fill: var(--best); opacity: 1; } svg circle.bar { fill: var(--ink); opacity: 1; }
svg circle.bar.best { fill: var(--best); }
svg circle.chosen { stroke: var(--ink); stroke-width: 2; opacity: 1; }
svg .mark { fill: var(--paper); stroke: var(--ink); stroke-width: 1.5; }
svg .rival { stroke: var(--soft); stroke-dasharray: 5 4; }
svg path.best { stroke: var(--best); fill: none; stroke-width: 2; }
svg path.other { stroke: var(--other); fill: none; stroke-width: 1.5; stroke-dasharray: 5 4; }
svg .bar { fill: var(--other); } svg .bar.best { fill: var(--best); }
svg .cell { stroke: var(--paper); stroke-width: .5; }
svg .cell.plus { fill: var(--best); } svg .cell.minus { fill: var(--minus); }
svg .whisker { stroke: var(--ink); fill: none; stroke-width: 1.5; }
"""

_BRIEF = 10
_MANY = 20
"""With more parameters than this, their table is folded up."""
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
        _section("Stages on and off in the search", _switched(summary)),
        _section("Gain against forgetting", _trade(summary)),
        _section("How the search went", _search(summary)),
        _section("Best candidates", _top(summary)),
        _section("Failures", _failures(summary)),
        _section("The best recipe", _recipe(summary, recipe)),
        _section("Where its layers are from", _stackings(summary)),
        _section("Its parameters, layer by layer", _layers(summary)),
        _section("How its training went", _training(summary)),
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
    return f"{_scroll(picture)}{_table(header, cells, best=best)}{_note(text.footnote(summary))}"


def _sources(summary: Summary, split: Split) -> str:
    if not summary.sources:
        return ""
    parts = [_note(f"On {split} items.")]
    parts.append(_table(*text.source_rows(summary), best=[row.best for row in summary.sources]))
    parts.append(_note(sources.note(summary.sources)))
    for task, (metric, _) in summary.tasks.items():
        rows = [
            charts.Bar(row.label, found.value, found.low, found.high, row.best)
            for row in summary.sources
            if (found := row.tasks.get(task)) is not None and math.isfinite(found.value)
        ]
        picture = charts.bars(rows, f"{task}: {metric} with 95 % intervals")
        parts.append(f"<h3>{escape(task)} ({escape(metric)})</h3>{_scroll(picture)}")
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
    return f"{_note(note)}{_table(header, cells, best=best)}"


def _switched(summary: Summary) -> str:
    if not summary.switched:
        return ""
    return f"{_table(*switched.cells(summary.switched))}{_note(switched.NOTE)}"


def _trade(summary: Summary) -> str:
    found = summary.trade
    if found is None:
        return ""
    marks = {"winner": "chosen", "candidate": "dot"}
    dots = []
    for point in found.points:
        gain, forgetting = point.search.gain, point.search.forgetting
        chosen = point.mark == "winner"
        dots.append(
            Dot(
                label=trade.named(point),
                x=gain.value,
                y=forgetting.value,
                best=point.front,
                shape=cast("Shape", marks.get(point.mark, "mark")),
                x_ends=(gain.low, gain.high) if chosen else None,
                y_ends=(forgetting.low, forgetting.high) if chosen else None,
            )
        )
    picture = scatter(
        dots,
        f"Gain against forgetting of all candidates, counted from {found.start}",
        f"gain: {found.about('gain')}, better than {found.start} by",
        f"forgetting: {found.about('retention')}, worse than {found.start} by",
    )
    legend = (
        "Right is more gained, up is more forgotten. The line is the front: no candidate has more gain and "
        "less forgetting at once. The ring is the winner, with its 95 % intervals; diamonds are models that "
        "were there before."
    )
    chart = _scroll(picture)
    return f"{chart}{_note(legend)}{_table(*trade.cells(found))}{_note(trade.NOTE)}"


def _stackings(summary: Summary) -> str:
    parts = []
    for one in summary.stackings:
        head = f"<h3>{escape(one.stage)}</h3>" if len(summary.stackings) > 1 else ""
        chart = _scroll(depth_charts.stack(one, f"Where the layers of {one.stage} are from"))
        parts.append(f"{head}{chart}{_table(*layers.cells(one))}")
    return "".join(parts)


def _stages(summary: Summary) -> str:
    found = summary.variants
    parts = []
    if found.stages:
        parts.append(f"{_table(*variants.rows(found))}{_note(variants.NOTE)}")
    if found.alone is not None:
        parts.append(f"{_table(*variants.alone_rows(found.alone))}{_note(variants.ALONE_NOTE)}")
    return "".join(parts)


def _layers(summary: Summary) -> str:
    rows = [(f"{one.model}: {one.name}", one.values) for one in summary.profiles]
    return _scroll(depth_charts.layers(rows, "The value of each parameter at each layer"))


def _training(summary: Summary) -> str:
    parts = []
    for one in summary.training:
        lines = [charts.Line("loss", one.curve(), best=True)]
        terms = [name for name in one.columns if name not in ("step", "loss")]
        # A loss of one term with weight 1 is that term: one line says it.
        lines += [charts.Line(name, one.curve(name)) for name in terms if one.curve(name) != one.curve()]
        title = f"The loss of {one.stage} over its steps"
        parts.append(f"<h3>{escape(one.stage)}</h3>")
        parts.append(_scroll(charts.curves(lines, title, "step", "nats per token")))
        parts.append(_note(text.trained(one)))
        if len(lines) > 1:
            parts.append(_note("Dashed: the terms of the loss without their weights."))
    return "".join(parts)


def _search(summary: Summary) -> str:
    rivals = [*summary.parents[:1], *([summary.average] if summary.average else [])]
    lines = [
        (f"plain {entry.name}" if entry.role == "average" else f"best parent: {entry.name}", scored.value)
        for entry, scored in ((entry, entry.scored("search")) for entry in rivals)
        if scored is not None
    ]
    picture = charts.convergence(summary.curve, lines)
    facts = _table(["", ""], [list(fact) for fact in text.facts(summary)])
    note = _note("Search scores. Each dot is a candidate, the line the best so far.")
    return f"{_scroll(picture)}{note if picture else ''}{facts}"


def _top(summary: Summary) -> str:
    if not summary.top:
        return ""
    header, cells = text.rows(summary, summary.top)
    header.insert(1, "recipe")
    for entry, row in zip(summary.top, cells, strict=True):
        row.insert(1, entry.recipe)
    winner = summary.best.recipe if summary.best else ""
    return _table(header, cells, best=[entry.recipe == winner for entry in summary.top])


def _failures(summary: Summary) -> str:
    if not summary.failed:
        return "<p>None.</p>"
    cells = [[str(number), kind, message] for number, kind, message in summary.failed]
    counts = escape(numbers.failures(dict(summary.failures)))
    return f"<p>{counts}</p>{_table(['trial', 'kind', 'message'], cells)}"


def _recipe(summary: Summary, recipe: str) -> str:
    if summary.best is None:
        return ""
    off = tuple(f"{one.stage}." for one in summary.switched if not one.on)
    params = [
        [name, f"{value:.6g}" if isinstance(value, float) else str(value)]
        for name, value in summary.best_params.items()
        if name.endswith(".enabled") or not name.startswith(off)
    ]
    table = _table(["parameter", "value"], params) if params else ""
    if len(params) > _MANY:
        table = f"<details>\n<summary>{len(params)} parameters</summary>\n{table}</details>\n"
    head = f"<p>Recipe <code>{escape(summary.best.recipe)}</code>, seed {summary.seed}.</p>"
    return f"{head}{table}{_block(recipe)}"


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def _scroll(picture: str) -> str:
    return f'<div class="scroll">{picture}</div>' if picture else ""


def _note(words: str) -> str:
    return f'<p class="soft">{escape(words)}</p>'


def _cell(words: str) -> str:
    """Return a cell's text; the ends of an interval stay together."""
    return re.sub(r" (\[[^\[\]]*\])$", r' <span class="ends">\1</span>', escape(words))


def _brief(words: str) -> str:
    """Return the attribute of a cell that is not to be broken: a number with its unit."""
    return ' class="brief"' if len(words) <= _BRIEF and words[:1].isdigit() else ""


def _block(code: str) -> str:
    return f"<pre><code>{escape(code)}</code></pre>" if code else ""


def _table(header: Sequence[str], cells: Iterable[Sequence[str]], *, best: Sequence[bool] = ()) -> str:
    rows = []
    for index, row in enumerate(cells):
        mark = ' class="best"' if index < len(best) and best[index] else ""
        rows.append(
            f"<tr{mark}>" + "".join(f"<td{_brief(cell)}>{_cell(cell)}</td>" for cell in row) + "</tr>"
        )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    thead = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f'<div class="scroll"><table>{thead}<tbody>{"".join(rows)}</tbody></table></div>'

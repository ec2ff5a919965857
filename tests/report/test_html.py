import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from evolve.cli.options import load_run_config
from evolve.report import charts
from evolve.report.collect import collect
from evolve.report.html import page
from evolve.report.summary import Point, summarise
from evolve.store.rundir import RunDir

VOID = {"meta", "br", "line", "circle", "path"}


class Checker(HTMLParser):
    """Balanced tags, and everything that could leave the file."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")
        ]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert checker.links == []
    assert "script" not in checker.tags
    assert not re.search(r"url\(|@import|https?://", html)
    return checker


@pytest.fixture(scope="module")
def summary(made):
    run = RunDir.open(made[1] / "small")
    return summarise(collect(run, load_run_config(run)), "läufe & <mehr>/small")


def test_the_page_is_whole_and_leaves_nothing(summary):
    commands = ["evolve build 'läufe & <mehr>/small/export/recipe.yaml' OUT"]
    checker = check(page(summary, recipe="models: {a: <b>}\n", commands=commands))
    text = "".join(checker.text)
    assert checker.tags.count("svg") == 4, "models, the task, the curve, the layers"
    assert checker.tags.count("html") == 1
    assert commands[0] in text
    assert "models: {a: <b>}" in text
    assert "slower than <1> s & more" in text
    assert "plain average" in text
    assert summary.best.recipe in text
    assert "better than the best parent (two)" in text


def test_names_cannot_break_out(summary):
    evil = replace(summary, name='</title><script>alert("1")</script>', best_params={"<img src=x>": "</pre>"})
    assert "<script" not in page(evil)
    check(page(evil, recipe="</code></pre><script>"))


def test_a_run_without_scores(summary):
    empty = replace(
        summary,
        best=None,
        best_recipe=None,
        best_params={},
        top=(),
        parents=(),
        average=None,
        curve=(),
        failed=(),
        final=None,
        sources=(),
        profiles=(),
    )
    checker = check(page(empty))
    assert "svg" not in checker.tags
    assert "no candidate has a score yet" in "".join(checker.text)


def coordinates(svg: str, *names: str) -> list[float]:
    return [float(value) for name in names for value in re.findall(rf'\b{name}="(-?[\d.]+)"', svg)]


@pytest.mark.parametrize(
    "values",
    [
        [0.5],
        [0.0],
        [0.5, 0.5, 0.5],
        [-3.0, 2.0, 1e6],
        [1e-9, 2e-9],
        [0.1 * i for i in range(300)],
        [-1.5, -1.5],
    ],
)
def test_the_curve_stays_in_its_picture_and_follows_the_values(values):
    points = [Point(i, value, math.nan, max(values[: i + 1])) for i, value in enumerate(values)]
    svg = charts.convergence(points, [("best parent: a & b", min(values))])
    assert "nan" not in svg
    assert "a &amp; b" in svg
    xs, ys = coordinates(svg, "cx"), coordinates(svg, "cy")
    assert len(xs) == len(values)
    assert all(0 <= x <= 860 for x in xs)
    assert all(0 <= y <= 320 for y in ys)
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert all(ys[a] >= ys[b] for a, b in pairwise(order)), "higher values stand higher"
    check(svg)


def test_labels_do_not_cover_each_other():
    points = [Point(0, 0.5, 0.1, 0.5), Point(1, 0.6, 0.1, 0.6)]
    svg = charts.convergence(points, [("a", 0.6), ("b", 0.6)])
    places = [float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="start"', svg)]
    assert len(places) == 3
    assert min(b - a for a, b in pairwise(sorted(places))) >= 14


def test_bars_show_intervals_only_where_they_are_known():
    rows = [charts.Bar("best", 0.7, 0.6, 0.8, best=True), charts.Bar("x<y", 0.5, -math.inf, math.inf)]
    svg = charts.bars(rows, "a title")
    assert svg.count("whisker") == 1
    assert "x&lt;y" in svg
    assert "0.5000 [?]" in svg
    assert all(width >= 0 for width in coordinates(svg, "width"))
    check(svg)


def test_long_names_stay_in_the_picture():
    svg = charts.bars([charts.Bar("x" * 300, 0.5, 0.4, 0.6)], "t")
    svg += charts.convergence([Point(0, 0.5, 0.1, 0.5)], [("y" * 300, 0.4)])
    assert max(len(text) for text in re.findall(r">([xy]+…)<", svg)) <= 32
    assert "…" in svg


def test_no_rows_no_picture():
    assert charts.bars([], "t") == charts.convergence([], []) == ""


def test_bars_begin_at_zero_or_are_no_bars():
    """Lengths are in the ratio of the values; where that would hide the differences there are dots."""
    rows = [charts.Bar("a", 0.8, 0.7, 0.9), charts.Bar("b", 0.4, 0.3, 0.5)]
    first, second = coordinates(charts.bars(rows, "t"), "width")[1:3]
    assert first == pytest.approx(2 * second, rel=1e-3)
    below = charts.bars([charts.Bar("a", 0.4, 0.3, 0.5), charts.Bar("b", -0.2, -0.4, 0.0)], "t")
    widths = coordinates(below, "width")[1:3]
    assert widths[0] == pytest.approx(2 * widths[1], rel=1e-3)
    close = charts.bars([charts.Bar("a", 1.402, 1.40, 1.404), charts.Bar("b", 1.406, 1.40, 1.41)], "t")
    assert "<rect" not in close and close.count("<circle") == 2
    labels = re.findall(r'text-anchor="middle">([\d.]+)<', close)
    assert len(set(labels)) == len(labels) > 2, "ticks that are close have texts of their own"
    assert charts.bars([charts.Bar("a", 0.0, 0.0, 0.0)], "t").count("<circle") == 1
    check(close)


def test_loss_curves_go_where_their_numbers_are():
    lines = [
        charts.Line("loss", [(5, 4.0), (10, 2.0), (20, 1.0)], best=True),
        charts.Line("kl <b>", [(5, 0.5), (20, 0.25)]),
        charts.Line("none", []),
    ]
    svg = charts.curves(lines, "a & b", "step", "nats")
    check(svg)
    paths = dict(re.findall(r'<path class="(\w+)" d="([^"]+)"', svg))
    assert paths.keys() == {"best", "other"}
    points = [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", paths["best"])]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x2 - x1 == pytest.approx(2 * (x1 - x0), abs=0.05)
    assert y1 - y0 == pytest.approx(2 * (y2 - y1), abs=0.05)
    assert y0 < y1 < y2, "more is higher"
    assert "none" not in svg and "kl &lt;b&gt;" in svg
    single = charts.curves([charts.Line("loss", [(1, 2.0)], best=True)], "t", "step", "nats")
    assert single.count("<circle") == 1
    assert charts.curves([charts.Line("loss", [])], "t", "step", "nats") == ""


def test_the_ends_of_an_interval_stay_together(summary):
    html = page(summary)
    cells = re.findall(r"<td[^>]*>([^<]*)<span class=\"ends\">(\[[^\]]*\])</span></td>", html)
    assert len(cells) > 20 and all(value.strip() for value, _ in cells)
    assert not re.search(r"<td[^>]*>[+-]?[\d.]+ \[", html), "one of them is not marked"


def test_many_parameters_are_folded_up(summary):
    many = replace(summary, best_params={f"gene {place}": 0.5 for place in range(21)})
    html = page(many)
    assert "<summary>21 parameters</summary>" in html and "gene 20" in html
    assert "<details>" not in page(replace(summary, best_params={"gene": 0.5}))
    check(html)

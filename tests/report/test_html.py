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

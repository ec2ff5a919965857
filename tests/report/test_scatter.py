from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from evolve.report.scatter import Dot, scatter


def drawn(dots: list[Dot]) -> ElementTree.Element:
    return ElementTree.fromstring(scatter(dots, "gain & loss", "gain", "forgetting"))


def test_dots_are_where_their_numbers_are() -> None:
    svg = drawn([Dot("a", 0.0, 1.0), Dot("b <b>", 1.0, 0.0, best=True), Dot("c", 0.5, 0.5)])
    places = {
        (circle.find("title") or circle[0]).text: (float(circle.get("cx", "")), float(circle.get("cy", "")))
        for circle in svg.findall("circle")
    }
    one, best, middle = (places[name] for name in ("a: 0, 1", "b <b>: 1, 0", "c: 0.5, 0.5"))
    assert one[0] < middle[0] < best[0]
    assert one[1] < middle[1] < best[1], "up is more"
    assert middle[0] == (one[0] + best[0]) / 2
    classes = {circle[0].text: circle.get("class") for circle in svg.findall("circle")}
    assert classes == {"a: 0, 1": None, "b <b>: 1, 0": "best", "c: 0.5, 0.5": None}


def test_the_front_is_joined_from_left_to_right() -> None:
    svg = drawn([Dot("r", 2.0, 2.0, best=True), Dot("l", 1.0, 1.0, best=True), Dot("m", 1.5, 1.2, best=True)])
    (path,) = svg.findall("path")
    at = [float(number) for number in re.findall(r"[ML]([\d.]+) ", path.get("d", ""))]
    assert at == sorted(at)
    assert len(at) == 3


def test_nothing_to_draw() -> None:
    assert scatter([], "t", "x", "y") == ""
    assert scatter([Dot("a", math.nan, 1.0)], "t", "x", "y") == ""
    assert len(drawn([Dot("a", 1.0, 1.0), Dot("b", 1.0, math.inf)]).findall("circle")) == 1

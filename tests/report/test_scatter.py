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


def names(svg: ElementTree.Element) -> list[tuple[str, float, float]]:
    """Return the names inside the picture with their places; numbers and axes left out."""
    found = [(one.text or "", float(one.get("x", "")), float(one.get("y", ""))) for one in svg.iter("text")]
    return [one for one in found if one[0].startswith("n")]


def test_what_matters_has_its_name_and_names_do_not_cover_each_other() -> None:
    front = [Dot(f"n{place}", 1 + place / 1000, 1 + place / 1000, best=True) for place in range(60)]
    marks = [Dot("n start", 0.0, 0.0, shape="mark"), Dot("n parent", 2.0, 2.0, shape="mark")]
    plain = [Dot("n plain", 0.5, 0.5)]
    chosen = Dot("n winner", 1.03, 1.02, shape="chosen", x_ends=(0.9, 1.2), y_ends=(0.8, 1.4))
    svg = drawn([*front, *marks, *plain, chosen])
    found = names(svg)
    assert {"n winner", "n start", "n parent"} <= {name for name, _, _ in found}
    assert "n plain" not in {name for name, _, _ in found}
    boxes = [
        (x - (6.6 * len(name) if anchor == "end" else 0), y - 8, 6.6 * len(name), 8)
        for (name, x, y), anchor in zip(
            found,
            [one.get("text-anchor") for one in svg.iter("text") if (one.text or "").startswith("n")],
            strict=True,
        )
    ]
    for index, (x, y, width, height) in enumerate(boxes):
        assert x >= 0 and x + width <= 860 and y >= 0 and y + height <= 320
        for x2, y2, width2, height2 in boxes[index + 1 :]:
            assert x + width <= x2 or x2 + width2 <= x or y + height <= y2 or y2 + height2 <= y
    whiskers = [path for path in svg.iter("path") if path.get("class") == "whisker"]
    assert len(whiskers) == 1 and len(re.findall("M", whiskers[0].get("d", ""))) == 2
    assert [path.get("class") for path in svg.iter("path")].count("mark") == 2

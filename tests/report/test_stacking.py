"""Where the layers of a stacked winner are from."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from evolve.cli.options import load_run_config
from evolve.report import depth_charts
from evolve.report.collect import Material, collect
from evolve.report.data import to_json
from evolve.report.html import page
from evolve.report.layers import Profile, Stacked, Stacking, cells, described, profiles, stackings
from evolve.report.summary import summarise
from evolve.stages.merge.block import MergeBlock
from evolve.stages.merge.layout import make_layout
from evolve.stages.merge.residual import factors
from evolve.store.rundir import RunDir
from evolve.types import Recipe
from evolve.weights.reader import open_model
from tests.report.test_summary import printed
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path


def piece(*sources: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    return {"sources": [{"model": name, "layer_range": [a, b]} for name, a, b in sources], **more}


SLICES = [
    piece(("deep", 0, 2)),
    piece(("deep", 2, 3), scale=1),
    piece(("wide", 1, 3), scale=0.5),
    piece(("wide", 1, 3), ("deep", 2, 4), scale=1.25),
    piece(("deep", 0, 1), enabled=False),
    piece(("deep", 3, 4)),
]


def recipe(slices: list[dict[str, Any]], **more: Any) -> Recipe:
    merge = {"merge_method": "linear", "slices": slices, "dtype": "float32", **more}
    return Recipe.make({"deep": "x", "wide": "y"}, [{"merge": merge}])


def test_each_layer_by_hand() -> None:
    (found,) = stackings(recipe(SLICES))
    assert found.stage == "merge" and found.models == ("deep", "wide")
    assert found.layers == (
        Stacked((("deep", 0),)),
        Stacked((("deep", 1),)),
        Stacked((("deep", 2),)),
        Stacked((("wide", 1),), 0.5),
        Stacked((("wide", 2),)),
        Stacked((("wide", 1), ("deep", 2)), 1.25),
        Stacked((("wide", 2), ("deep", 3))),
        Stacked((("deep", 3),)),
    )
    assert cells(found)[1] == [
        ["0-2", "deep 0-2", ""],
        ["3-4", "wide 1-2", "0.5"],
        ["5-6", "wide 1-2 + deep 2-3", "1.25"],
        ["7", "deep 3", ""],
    ]
    assert described(found) == "8: deep 0-2, x 0.5 wide 1-2, x 1.25 wide 1-2 + deep 2-3, deep 3"
    assert described(found, most=1) == "8: deep 0-2, and 3 more"


def test_the_merge_itself_takes_these_layers(tmp_path: Path) -> None:
    """The stage's own layout of its tensors, and what they are divided by, say the same."""
    models = {}
    for seed, (name, layers) in enumerate((("deep", 4), ("wide", 3))):
        make_model(tmp_path / name, seed=seed, layers=layers)
        models[name] = open_model(str(tmp_path / name))
    slices = [
        {**one, "sources": [{**source, "parameters": {"weight": 1.0}} for source in one["sources"]]}
        for one in SLICES
    ]
    block = MergeBlock.model_validate({"merge_method": "linear", "slices": slices})
    layout = make_layout(block, models)
    (found,) = stackings(recipe(slices))
    read = {}
    for place in layout.places.values():
        if place.tensor is not None:
            sources = {
                (model, int(re.search(r"layers\.(\d+)\.", name).group(1)))  # type: ignore[union-attr]
                for model, name in place.sources()
            }
            read.setdefault(place.tensor.layer, set()).update(sources)
    assert [read[layer] for layer in range(len(read))] == [set(layer.sources) for layer in found.layers]
    divided = factors(layout)
    product = 1.0
    for layer, one in enumerate(found.layers):
        product *= one.scale
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        assert (divided[name].factor if name in divided else 1.0) == pytest.approx(1 / product)


def test_parameters_of_a_stack() -> None:
    """Depth runs from 0 to 1 in each slice; a layer that a model does not give has no value."""
    slices = [piece(("deep", 0, 3)), piece(("deep", 1, 2), ("wide", 0, 1), parameters={"density": 0.5})]
    slices[0]["sources"][0]["parameters"] = {"weight": [0.0, 1.0]}
    slices[1]["sources"][1]["parameters"] = {"weight": 0.25}
    found = {(p.model, p.name): p.values for p in profiles(recipe(slices, parameters={"lambda": [2, 4]}), 99)}
    nan = math.nan
    expected = {
        ("deep", "weight"): (0, 0.5, 1, nan),
        ("wide", "weight"): (nan, nan, nan, 0.25),
        ("all (merge)", "lambda"): (2, 3, 4, 4),  # a single layer is at depth 1
        ("all (merge)", "density"): (nan, nan, nan, 0.5),
    }
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, nan_ok=True)
    svg = depth_charts.layers([(p[0], values) for p, values in found.items()], "t")
    assert svg.count("<rect") == 3 + 1 + 4 + 1 and "nan" not in svg
    assert depth_charts.layers([("none", (nan, nan))], "t").count("<rect") == 0


def test_a_module_and_several_stages() -> None:
    inside = {"merge_method": "passthrough", "modules": {"default": {"slices": SLICES[:1]}}}
    whole = {"merge_method": "linear", "models": [{"model": "deep", "parameters": {"weight": 1}}]}
    pipeline = [{"merge": {**inside, "name": "tall"}}, {"merge": whole}, {"merge": inside}]
    found = stackings(Recipe.make({"deep": "x"}, pipeline))
    assert [(one.stage, len(one.layers)) for one in found] == [("tall", 2), ("merge 3", 2)]
    assert stackings(Recipe.make({"deep": "x"}, [])) == []


def drawn(stacking: Stacking) -> ElementTree.Element:
    return ElementTree.fromstring(depth_charts.stack(stacking, "a & b"))


def test_the_picture() -> None:
    (found,) = stackings(recipe(SLICES))
    svg = drawn(found)
    rects = svg.findall("rect")
    assert len(rects) == 10
    hints = [rect[0].text for rect in rects]
    assert hints[3] == "layer 3: layer 1 of wide" and hints[6] == "layer 5: layer 2 of deep"
    columns = sorted({float(rect.get("x", "")) for rect in rects})
    rows = sorted({float(rect.get("y", "")) for rect in rects})
    assert len(columns) == 8 and len(rows) == 2, "a column a layer, a row a model"
    at = {hint: (float(r.get("x", "")), float(r.get("y", ""))) for hint, r in zip(hints, rects, strict=True)}
    assert at["layer 0: layer 0 of deep"] == (columns[0], rows[0])
    assert at["layer 3: layer 1 of wide"] == (columns[3], rows[1])
    texts = [one.text for one in svg.findall("text")]
    assert texts.count("x 0.5") == texts.count("x 1.25") == 1
    assert "6 of 8 layers" in texts and "4 of 8 layers" in texts


@pytest.mark.parametrize("count", [1, 40, 500])
def test_deep_stacks_stay_in_the_picture(count: int) -> None:
    layers = tuple(Stacked((("x<y>" * 20, place),), 1.01) for place in range(count))  # type: ignore[arg-type]
    svg = depth_charts.stack(Stacking("s", tuple(replace(one) for one in _sourced(layers))), "t")
    ElementTree.fromstring(svg)
    places = [float(x) for x in re.findall(r'\bx="(-?[\d.]+)"', svg)]
    assert all(0 <= x <= 860 for x in places)
    scales = [float(x) for x in re.findall(r'x="([\d.]+)" y="20" text-anchor="start"', svg)]
    assert all(b - a > 30 for a, b in pairwise(scales)), "they cover each other"
    assert len(re.findall(r"font-size", svg)) == (count if count < 45 else 0)
    assert depth_charts.stack(Stacking("s", ()), "t") == ""


def _sourced(layers: tuple[Stacked, ...]) -> list[Stacked]:
    from evolve.report.layers import Source

    return [replace(one, sources=tuple(Source(*source) for source in one.sources)) for one in layers]


@pytest.fixture(scope="module")
def material(made: tuple[Path, Path]) -> Material:
    run = RunDir.open(made[1] / "small")
    return collect(run, load_run_config(run))


def test_everywhere_it_is_shown(material: Material) -> None:
    summary = replace(
        summarise(material, "x"),
        stackings=tuple(stackings(recipe(SLICES))),
        profiles=(Profile("deep", "weight", (1.0, math.nan)),),
    )
    data = json.loads(json.dumps(to_json(summary), allow_nan=False))
    assert data["stackings"][0]["layers"][5] == {
        "sources": [{"model": "wide", "layer": 1}, {"model": "deep", "layer": 2}],
        "scale": 1.25,
    }
    assert data["profiles"][0]["values"] == [1.0, None]
    html = page(summary)
    assert "Where its layers are from" in html and "wide 1-2 + deep 2-3" in html
    assert any("8: deep 0-2, x 0.5 wide 1-2" in line for line in printed(summary))
    assert "Where its layers are from" not in page(summarise(material, "x"))

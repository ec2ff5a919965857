from __future__ import annotations

import io

import pytest

from evolve.cli.methods import described, tables
from evolve.registry import MERGE_METHODS
from tests.cli.kit import call, read_csv, read_json


def test_json_has_every_parameter_with_its_default_and_ranges():
    methods = {row["method"]: row for row in read_json("ls", "methods")}
    assert set(methods) == set(MERGE_METHODS.names())
    della = methods["della"]
    assert (della["base"], della["fewest_models"], della["most_models"]) == ("required", 1, None)
    assert "2406.11617" in della["paper"]
    parameters = {parameter["parameter"]: parameter for parameter in della["parameters"]}
    assert list(parameters) == ["weight", "density", "epsilon", "normalize", "rescale", "lambda"]
    assert parameters["weight"]["required"]
    assert parameters["epsilon"] == {
        "parameter": "epsilon",
        "of": "model",
        "kind": "float",
        "required": False,
        "default": 0.15,
        "low": 0.0,
        "high": 1.0,
        "suggest_low": 0.0,
        "suggest_high": 0.3,
        "doc": parameters["epsilon"]["doc"],
    }
    assert (parameters["normalize"]["of"], parameters["normalize"]["default"]) == ("merge", True)


def test_csv_has_one_line_a_parameter():
    lines = read_csv("ls", "methods")
    count = sum(max(1, len(method["parameters"])) for method in described())
    assert len(lines) == count
    (line,) = [line for line in lines if (line["method"], line["parameter"]) == ("nearswap", "t")]
    assert (line["required"], line["low"], line["high"]) == ("True", "0.0", "")
    (bare,) = [line for line in lines if line["method"] == "arcee_fusion"]
    assert bare["parameter"] == ""


def test_the_table_says_the_same():
    text = call("ls", "methods").stdout
    for method in described():
        assert method["method"] in text
        assert method["paper"] in text


@pytest.mark.parametrize("width", [100, 200])
def test_no_name_and_no_number_is_folded_on_a_terminal(width):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    parameters, papers = tables(described())
    console.print(parameters)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if " model " in line or " merge " in line or " - " in line]
    assert len(rows) == sum(max(1, len(method["parameters"])) for method in described())
    # A heading, its rule and empty lines apart, every line is a whole row.
    assert len([line for line in lines if line.strip()]) == len(rows) + 2
    assert papers

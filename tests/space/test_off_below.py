"""A range that is off below a bound: what it stands for, what a recipe has of it, what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evolve.config.dump import resolved_yaml, to_yaml
from evolve.config.json_schema import json_schema
from evolve.config.load import load_text
from evolve.config.values import IntRange, Range
from evolve.errors import ConfigError
from evolve.space.genes import Gene
from evolve.space.space import Space, derive, derive_recipe

if TYPE_CHECKING:
    from evolve.types import Recipe

CONTENT = "sha256:" + "0" * 64
EWC = {"low": 0.01, "high": 100.0, "log": True, "off_below": 0.02}
SHARE = {"low": 0.005, "high": 0.5, "log": True, "off_below": 0.01}


def config(share: Any = SHARE, weight: Any = EWC, pacing: Any = 1.0) -> dict[str, Any]:
    text = {"path": "t.jsonl", "content": CONTENT}
    block = {
        "model": "base",
        "dataset": text,
        "replay": {**text, "share": share},
        "curriculum": {"order": "length", "pacing": pacing},
        "regularizers": {"ewc": {**text, "weight": weight}},
    }
    return {"models": {"base": "x"}, "pipeline": [{"cpt": block}]}


def space_of(data: dict[str, Any]) -> Space:
    return derive(load_text(to_yaml(data), "c.yaml"))


def recipe_of(space: Space, share: float, weight: float) -> Recipe:
    values = {"cpt.replay.share": share, "cpt.regularizers.ewc.weight": weight}
    return space.recipe({gene.name: values[gene.name] for gene in space.genes}, {"base": CONTENT})


@given(
    low=st.floats(1e-6, 10.0),
    width=st.floats(1e-3, 100.0),
    share=st.floats(0.01, 0.99),
    at=st.floats(0, 1),
    log=st.booleans(),
)
def test_a_gene_is_off_below_its_bound(low: float, width: float, share: float, at: float, log: bool) -> None:
    high, off = low + width, low + share * width
    gene = Gene("g", low, high, log, off_below=off)
    value = min(max(low + at * width, low), high)
    assert gene.decode(value) == (value if value >= off else 0.0)
    assert gene.decode(off) == off
    plain = Gene("g", low, high, log)
    # The sampler sees the same coordinate, off or not.
    assert (gene.low, gene.high, gene.centre()) == (plain.low, plain.high, plain.centre())
    assert gene.as_plain() == {**plain.as_plain(), "off_below": off}


def test_a_gene_without_it_is_hashed_as_before() -> None:
    gene = Gene("g", 0.0, 1.0)
    assert gene.off_below is None and asdict(gene)["off_below"] is None
    assert gene.as_plain() == {
        "name": "g", "low": 0.0, "high": 1.0, "log": False, "step": None, "choices": None,
    }  # fmt: skip


@given(share=st.floats(0.005, 0.5), weight=st.floats(0.01, 100.0))
def test_what_is_off_is_not_in_the_recipe(share: float, weight: float) -> None:
    space = space_of(config())
    recipe = recipe_of(space, share, weight)
    block = recipe.pipeline[0]["cpt"]
    assert ("replay" in block) == (share >= 0.01)
    assert ("regularizers" in block) == (weight >= 0.02)
    if share < 0.01:
        assert recipe.hash == recipe_of(space, 0.0075, weight).hash
    if share >= 0.01:
        assert block["replay"].get("share", 0.05) == share, "a default is left out"
    # What is exported says 0 where it is off, and is the same recipe.
    document = space.document({"cpt.replay.share": share, "cpt.regularizers.ewc.weight": weight})
    exported = load_text(to_yaml(document), "e.yaml")
    assert derive_recipe(exported).recipe({}, {"base": CONTENT}) == recipe


def test_knots_and_steps_are_off_one_by_one() -> None:
    stepped = space_of(config(share={"low": 0.0, "high": 0.5, "step": 0.1, "off_below": 0.15}, weight=1.0))
    found = [recipe_of(stepped, value, 1.0).pipeline[0]["cpt"].get("replay") for value in (0.1, 0.2)]
    assert [entry and entry["share"] for entry in found] == [None, 0.2]
    knots = {"low": 0.0, "high": 1.0, "knots": 3, "off_below": 0.5}
    merge = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "math", "parameters": {"weight": knots}}],
    }
    space = space_of({"models": {"base": "x", "math": "y"}, "pipeline": [{"merge": merge}]})
    values = dict(zip([gene.name for gene in space.genes], (0.4, 0.5, 0.9), strict=True))
    (stage,) = space.recipe(values, {"base": CONTENT, "math": CONTENT}).pipeline
    assert stage["merge"]["models"][0]["parameters"]["weight"] == [0, 0.5, 0.9]


def test_it_is_written_and_read_again() -> None:
    loaded = load_text(to_yaml(config()), "c.yaml")
    text = resolved_yaml(loaded)
    assert "off_below: 0.01" in text
    assert load_text(text, "c.yaml").stages == loaded.stages
    schema = json_schema()
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(config())))
    assert "off_below" in schema["$defs"]["Range"]["properties"]


@pytest.mark.parametrize("bound", [0.005, 0.004, 0.5, 0.6, -1.0])
def test_a_bound_that_never_or_always_switches(bound: float) -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml:\d+:\d+.*off_below must lie between 0\.005 and 0\.5"):
        load_text(to_yaml(config(share={**SHARE, "off_below": bound})), "c.yaml")


def test_where_zero_has_no_meaning() -> None:
    """0 is a value of such a range, so a number that must be above 0 cannot have one."""
    with pytest.raises(ConfigError, match="pacing must be above 0"):
        load_text(to_yaml(config(pacing={"low": 0.1, "high": 1.0, "off_below": 0.2})), "c.yaml")
    with pytest.raises(ValidationError, match="whole numbers have no off_below"):
        IntRange(low=1, high=8, off_below=3)


@given(st.floats(-5, 5), st.floats(0.1, 5), st.floats(0.1, 0.9), st.floats(0, 1))
def test_the_ends_hold_every_value(low: float, width: float, share: float, at: float) -> None:
    values = Range(low=low, high=low + width, off_below=low + share * width)
    gene = Gene("g", values.low, values.high, off_below=values.off_below)
    least, most = values.ends
    assert least <= gene.decode(min(low + at * width, values.high)) <= most

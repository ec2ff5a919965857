from __future__ import annotations

import pickle
import time

import pytest
from pydantic import Field

from evolve.config.load import load_text
from evolve.config.messages import Complaint, complaints
from evolve.config.values import Block, SearchSwitch
from evolve.registry import MERGE_METHODS, STAGES, did_you_mean
from tests.config.text import MERGE


class Inner(Block):
    size: int = Field(default=1, ge=1)
    """How large. And more."""
    kind: str | int
    """What it is."""


class Outer(Block):
    inner: Inner | None = None
    many: list[Inner] = Field(default_factory=list, max_length=2)
    named: dict[str, Inner] = Field(default_factory=dict)
    on: SearchSwitch = True


def test_a_right_value_has_no_complaints() -> None:
    assert (
        complaints(Outer, {"inner": {"kind": "a"}, "many": [{"kind": 2}], "named": {"x": {"kind": "b"}}})
        == []
    )


def test_suggestions_come_from_the_block_that_was_meant() -> None:
    found = complaints(
        Outer,
        {
            "iner": {},
            "inner": {"sise": 1, "kind": "a"},
            "many": [{"kind": "a"}, {"knid": 1}],
            "named": {"x": {"kind": 1, "siz": 2}},
        },
    )
    assert set(found) == {
        Complaint(("iner",), "unknown key (did you mean 'inner'?)", True),
        Complaint(("inner", "sise"), "unknown key (did you mean 'size'?)", True),
        Complaint(("many", 1, "kind"), "missing: this key is needed (What it is)"),
        Complaint(("many", 1, "knid"), "unknown key (did you mean 'kind'?)", True),
        Complaint(("named", "x", "siz"), "unknown key (did you mean 'size'?)", True),
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inner": 5}, "expected a mapping (key: value), got 5"),
        ({"inner": {"kind": [1]}}, "expected text or a whole number, got a list of 1"),
        ({"inner": {"kind": "a", "size": True}}, "expected a whole number, got true"),
        (
            {"inner": {"kind": "a", "size": "7"}},
            "expected a whole number, got the text '7': write it without quotes",
        ),
        ({"inner": {"kind": "a", "size": 0}}, "must be at least 1, got 0"),
        ({"many": {"kind": 1}}, "expected a list, got a mapping (kind)"),
        ({"many": [{"kind": 1}] * 3}, "takes at most 2 entries, got 3"),
        ({"on": 1}, "expected true, false, or {choices: [false, true]}, got 1"),
        (
            {"on": "off"},
            "expected true, false, or {choices: [false, true]}, got the text 'off': write false, without",
        ),
        ([], "expected a mapping (key: value), got an empty list"),
    ],
)
def test_a_wrong_value_says_what_is_given_and_what_is_expected(data: object, message: str) -> None:
    found = complaints(Outer, data)
    assert len(found) == 1
    assert found[0].message.startswith(message)


def test_checks_of_a_block_run_beside_its_unknown_keys() -> None:
    text = MERGE.replace("weight: 1.0", "weight: {low: 2, high: 1, lgo: true}")
    with pytest.raises(Exception, match="low must be smaller") as caught:
        load_text(text, "c.yaml")
    assert "did you mean 'log'" in str(caught.value)


def test_suggestions_are_close_or_the_list() -> None:
    assert did_you_mean("tise", ["ties", "slerp"]) == " (did you mean 'ties'?)"
    assert did_you_mean("TIES", ["ties", "slerp"]) == " (did you mean 'ties'?)"
    assert did_you_mean("xyz", ["ties", "slerp"]) == " (known: slerp, ties)"
    assert did_you_mean("x", []) == ""
    assert len(did_you_mean("?", [f"name{number}" for number in range(1000)])) < 1000
    start = time.monotonic()
    did_you_mean("x" * 1_000_000, ["y" * 1_000_000, "ties"])
    assert time.monotonic() - start < 1


def test_every_name_of_the_tables_has_an_implementation() -> None:
    for name in STAGES.names():
        assert STAGES.load(name).block.model_fields
    for name in MERGE_METHODS.names():
        assert MERGE_METHODS.load(name).name == name


def test_a_loaded_config_travels_to_another_process() -> None:
    loaded = load_text(MERGE, "c.yaml")
    copy = pickle.loads(pickle.dumps(loaded))
    assert copy == loaded
    assert copy.where("models.math") == loaded.where("models.math")

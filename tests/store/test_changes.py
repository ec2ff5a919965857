from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.store.changes import difference


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"search": {"trials": 100}}, {"search": {"trials": 200}}, ["search.trials: 100 -> 200"]),
        ({"a": None}, {}, ["a: null -> (absent)"]),
        ({}, {"a": "ü"}, ['a: (absent) -> "ü"']),
        ({"a": [1, 2]}, {"a": [1, 3, 4]}, ["a.1: 2 -> 3", "a.2: (absent) -> 4"]),
        ({"a": [1]}, {"a": []}, ["a.0: 1 -> (absent)", "a: (absent) -> []"]),
        ({"a": {"b": 1}}, {"a": 1}, ["a.b: 1 -> (absent)", "a: (absent) -> 1"]),
        ({"a": True}, {"a": 1}, ["a: true -> 1"]),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({"a": {}}, {"a": {}}, []),
        ({"a": {}}, {"a": []}, ["a: {} -> []"]),
        ({"a.b": 1, "a": {"b": 2}}, {"a.b": 3, "a": {"b": 2}}, ["a.b: 1 -> 3"]),
        ({"a": "x" * 99}, {"a": 1}, ['a: "' + "x" * 56 + "... -> 1"]),
        ({"b": 1, "a": 1}, {"c": 1, "a": 2, "b": 2}, ["b: 1 -> 2", "a: 1 -> 2", "c: (absent) -> 1"]),
    ],
)
def test_lines(old: dict[str, Any], new: dict[str, Any], lines: list[str]) -> None:
    assert difference(old, new) == lines


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(-2, 2), st.text("ab.", max_size=3)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.text("ab.", max_size=2), VALUES, max_size=4)


def same(left: Any, right: Any) -> bool:
    """Oracle: equal as JSON, true not being 1, and [] not being {}."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, (dict, list, bool)) or isinstance(right, (dict, list, bool)):
        return type(left) is type(right) and left == right
    return bool(left == right)


@given(DOCUMENTS, DOCUMENTS)
def test_no_line_exactly_when_equal(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert (difference(old, new) == []) == same(old, new)
    assert difference(old, copy.deepcopy(old)) == []
    assert len(difference(old, new)) == len(difference(new, old))

from __future__ import annotations

import json
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evolve.config.yaml import MOST_NESTING, Place, YamlError, find, read_tree


def read(text: str) -> object:
    node, flaws = read_tree(text)
    assert flaws == []
    return None if node is None else node.plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("4_000_000", 4_000_000),
        ("1_000.5", 1000.5),
        ("-.5", -0.5),
        ("+3", 3),
        ("1.", 1.0),
        ("0x1f", 31),
        ("0o17", 15),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("1_", "1_"),
        ("1e", "1e"),
        ("0x", "0x"),
        ("-", None),
        ("1.2.3", "1.2.3"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("|-\n  5", "5"),
    ],
)
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = read(f"key: {text}\n")["key"] if text != "-" else read("key:\n")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", [".nan", ".inf", "-.Inf", "1e999", "9" * 200, "!!python/object:os.system x", "!x y"]
)
def test_values_without_a_meaning_are_flaws_at_their_place(text: str) -> None:
    node, flaws = read_tree(f"a: 1\nb: {text}\n")
    assert [(flaw.place, flaw.path) for flaw in flaws] == [(Place(2, 4), ("b",))]
    assert node is not None and node.plain() == {"a": 1, "b": None}


def test_duplicate_keys_are_found_at_every_depth_and_the_first_stays() -> None:
    node, flaws = read_tree("a: {x: 1, x: 2}\nb: [{y: 1, 'y': 3}]\na: 5\n")
    assert [(flaw.place, flaw.path) for flaw in flaws] == [
        (Place(1, 11), ("a", "x")),
        (Place(2, 12), ("b", 0, "y")),
        (Place(3, 1), ("a",)),
    ]
    assert node is not None and node.plain() == {"a": {"x": 1}, "b": [{"y": 1}]}


@pytest.mark.parametrize("key", ["5", "1e-3", "true", "null", "~"])
def test_keys_are_text(key: str) -> None:
    _, flaws = read_tree(f"a: 1\n{key}: 2\n")
    assert flaws[0].place == Place(2, 1)
    assert "quotes" in flaws[0].message
    assert read(f"'{key}': 2") == {key: 2}


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: [1,\nb", Place(3, 1), "not valid YAML"),
        ("a: b: c", Place(1, 5), "not valid YAML"),
        ("a:\n\t- b", Place(2, 1), "tab"),
        ("a: 1\n---\nb: 2\n", Place(2, 1), "second document"),
        ("a: &x [*x]", Place(1, 8), "contains itself"),
        ("a: *x", Place(1, 4), "no anchor"),
        ("? [a]\n: 1", Place(1, 3), "key must be text"),
        ("a: ok\nb: \x07", Place(2, 4), "control characters"),
    ],
)
def test_syntax_errors_have_a_place(text: str, place: Place, words: str) -> None:
    with pytest.raises(YamlError, match=words) as caught:
        read_tree(text)
    assert caught.value.place == place


def test_aliases_and_merge_keys_are_followed() -> None:
    text = "a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\nd: {q: 4, <<: [*x, {r: 5, p: 6}]}\n"
    assert read(text) == yaml.safe_load(text)


def test_alias_bombs_are_refused_at_once() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    start = time.monotonic()
    with pytest.raises(YamlError, match="aliases"):
        read_tree("\n".join(lines))
    assert time.monotonic() - start < 2


def test_a_merge_key_bomb_is_refused() -> None:
    lines = ["m0: &m0 {" + ", ".join(f"k{i}: 1" for i in range(900)) + "}"]
    lines += [f"m{i}: &m{i} {{<<: *m{i - 1}}}" for i in range(1, 200)]
    with pytest.raises(YamlError, match=r"aliases|nested"):
        read_tree("\n".join(lines))


@pytest.mark.parametrize("opening", ["[", "- ", "{a: ", "? "])
def test_deep_nesting_is_refused_at_once(opening: str) -> None:
    start = time.monotonic()
    with pytest.raises(YamlError, match=r"nested|key must be text"):
        read_tree(opening * 100_000)
    assert time.monotonic() - start < 2


def test_chained_aliases_cannot_nest_deeper_than_text_can() -> None:
    lines = ["a0: &a0 [1]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 2 * MOST_NESTING)]
    with pytest.raises(YamlError, match="nested"):
        read_tree("\n".join(lines))


def test_columns_count_characters() -> None:
    node, _ = read_tree("größe: {naïve: [ü, 漢字, x]}\n")
    assert node is not None
    key, value, _ = find(node, ("größe", "naïve", 2))
    assert value.place == Place(1, 24)
    key, value, _ = find(node, ("größe", "naïve"))
    assert (key, value.place) == (Place(1, 9), Place(1, 16))


# No YAML: surrogate pairs, and keys of more than 1024 characters.
text = st.text(st.characters(max_codepoint=0xD7FF), max_size=60)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | floats | text
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@given(trees)
def test_reads_json_as_json_does(tree: object) -> None:
    # JSON is YAML: what Python's json writes, with quotes around all text, has one meaning.
    assert read(json.dumps({"tree": tree})) == {"tree": tree}

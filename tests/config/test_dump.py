from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evolve.config.dump import resolved_yaml, to_yaml
from evolve.config.json_schema import json_schema
from evolve.config.load import load, load_text
from evolve.config.yaml import read_tree
from tests.config.text import MERGE

SPACE = MERGE.replace("weight: 1.0", "weight: {low: 0, high: 1.5, knots: 4}").replace(
    "- merge:", "- merge:\n      enabled: {choices: [false, true]}"
) + (
    "score:\n  tasks: [{task: ä task, metric: 'exact_match,strict-match'}]\n"
    "  eval_args: {x: '1e-4', y: 'yes'}\n"
    "engine: inline\n"
)
SHIPPED = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema())


def test_a_resolved_config_loads_as_an_equal_one_with_its_ranges() -> None:
    loaded = load_text(SPACE, "folder/space.yaml")
    text = resolved_yaml(loaded)
    again = load_text(text, "other.yaml")
    assert again.config == loaded.config
    assert again.stages == loaded.stages
    assert resolved_yaml(again).split("\n", 1)[1] == text.split("\n", 1)[1]
    data = yaml.safe_load(text)
    assert data["search"]["trials"] == 100 and data["engine"]["kind"] == "inline"
    weight = data["pipeline"][0]["merge"]["models"][0]["parameters"]["weight"]
    assert weight == {"low": 0.0, "high": 1.5, "knots": 4}
    assert text.startswith("# ") and "folder" not in text


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_spaces_load_and_fit_the_schema(path: Path) -> None:
    loaded = load(path)
    assert load_text(resolved_yaml(loaded), str(path)).config == loaded.config
    assert list(validator().iter_errors(yaml.safe_load(path.read_text()))) == []


# What YAML 1.2 reads (ours) and what 1.1 reads (PyYAML's own, as in mergekit) must both be what was written.
TRICKY = (
    "yes no on off y n true null ~ 1e-4 1_000 4_000_000 0o17 017 0x1f .inf .nan - = << 1:30 2024-01-01 !x &a"
)
tricky = st.sampled_from(
    [*TRICKY.split(), "*b", "", " x", "a: b", "a #b", "\n", "1 ", "\x85", "a\r\nb", "\u2028"]
)
words = st.text(st.characters(exclude_categories=["Cs"])) | tricky
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(words, trees, max_size=4))
def test_what_is_written_is_read_back_here_and_elsewhere(data: dict[str, object]) -> None:
    text = to_yaml(data)
    root, flaws = read_tree(text)
    assert flaws == []
    assert root is not None and root.plain() == data
    assert repr(root.plain()) == repr(data)
    assert repr(yaml.safe_load(text)) == repr(data)


def test_the_json_schema_is_one_and_knows_the_stages() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    stages = [entry["properties"] for entry in schema["properties"]["pipeline"]["items"]["oneOf"]]
    [merge] = [entry["merge"] for entry in stages if "merge" in entry]
    block = schema["$defs"][merge["$ref"].rpartition("/")[2]]
    assert "ties" in block["properties"]["merge_method"]["enum"]
    assert block["properties"]["enabled"]["description"]
    assert schema["properties"]["search"]["description"]


@pytest.mark.parametrize(
    "text", [MERGE, SPACE, MERGE.replace("weight: 1.0", "weight: [0, {low: 0, high: 1}, 1]")]
)
def test_the_json_schema_accepts_what_loads(text: str) -> None:
    load_text(text, "c.yaml")
    assert list(validator().iter_errors(yaml.safe_load(text))) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("merge_method: ties", "merge_method: tise"),
        ("weight: 1.0", "weight: abc"),
        ("weight: 1.0", "weight: {low: 1}"),
        ("base_model: base", "base_modle: base"),
        ("- merge:", "- merg:"),
        ("name: demo", "nam: demo"),
        ("name: demo", "search: {trials: 0}"),
        ("name: demo", "engine: lokal"),
    ],
)
def test_the_json_schema_refuses_mistakes(old: str, new: str) -> None:
    assert list(validator().iter_errors(yaml.safe_load(MERGE.replace(old, new)))) != []


def test_pure_python_yaml_reads_the_same() -> None:
    code = (
        "import yaml; yaml.__with_libyaml__ = False\n"
        "import sys; sys.path.insert(0, '.')\n"
        "from evolve.config.load import load_text\n"
        f"print(load_text({SPACE!r}, 'c.yaml').config.model_dump_json())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == load_text(SPACE, "c.yaml").config.model_dump_json()

from __future__ import annotations

import pytest

from evolve.config.load import load_text
from tests.config.text import MERGE, only_problem, problems


def test_values_are_yaml_and_places_are_created() -> None:
    loaded = load_text(
        MERGE,
        "c.yaml",
        [
            "search.trials=1_000",
            "search.timeout=1e2",
            "name=two words",
            "pipeline.0.merge.models.1.parameters.weight={low: 0, high: 2, knots: 3}",
            "pipeline.0.merge.parameters.lambda=0.5",
            "models.extra=org/extra@v1=2",
            "engine=inline",
            "engine.cpus=2",
        ],
    )
    config = loaded.config
    assert (config.search.trials, config.search.timeout, config.name) == (1000, 100.0, "two words")
    block = config.pipeline[0]["merge"]
    assert block["models"][1]["parameters"]["weight"] == {"low": 0.0, "high": 2.0, "knots": 3}
    assert block["parameters"] == {"lambda": 0.5}
    assert config.models["extra"] == "org/extra@v1=2"
    assert (config.engine.kind, config.engine.cpus) == ("inline", 2)
    assert loaded.where("search.trials") == "override 'search.trials=1_000'"
    assert loaded.where("pipeline.0.merge.models.0.model").startswith("c.yaml:8:")


def test_the_last_one_counts() -> None:
    assert load_text(MERGE, "c", ["search.trials=5", "search.trials=7"]).config.search.trials == 7
    assert load_text(MERGE, "c", ["search={trials: 5}", "search.seed=3"]).config.search.seed == 3


def test_keys_with_dots_are_found() -> None:
    text = MERGE.replace("math", "math.v1.5")
    assert load_text(text, "c", ["models.math.v1.5=other"]).config.models["math.v1.5"] == "other"


def test_a_shared_node_changes_in_one_place_only() -> None:
    text = MERGE.replace("{weight: 1.0, density: 0.5}", "&p {weight: 1.0, density: 0.5}")
    text = text.replace("{weight: 0.5, density: 0.5}", "*p")
    block = load_text(text, "c", ["pipeline.0.merge.models.1.parameters.weight=2"]).config.pipeline[0][
        "merge"
    ]
    assert [entry["parameters"]["weight"] for entry in block["models"]] == [1.0, 2]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.trails=5", "search.trails: unknown key (did you mean 'trials'?)"),
        ("search.trials=five", "search.trials: expected a whole number, got the text 'five'"),
        ("search.trials=", "search.trials: expected a whole number, got nothing"),
        ("serach.seed=1", "serach: unknown key (did you mean 'search'?)"),
        ("search", "expected key.path=value"),
        ("=5", "expected key.path=value"),
        ("a..b=5", "expected key.path=value"),
        ("search.seed=[1", "not valid YAML"),
        ("search.seed={a: 1, a: 2}", "stands here twice"),
        ("search.timeout=.inf", "must be finite"),
        ("pipeline.1.merge.dtype=float16", "pipeline is a list: expected a position (0 to 0), got 1"),
        ("pipeline.last=1", "pipeline is a list: expected a position (0 to 0), got 'last'"),
        ("name.first=1", "name is a single value and has no key 'first'"),
    ],
)
def test_mistakes_name_the_override(override: str, words: str) -> None:
    assert str(only_problem(MERGE, override)).startswith(
        f"override {override!r}: {words}"[: len(str(words)) + 12]
    )
    assert words in str(only_problem(MERGE, override))


def test_mistakes_of_file_and_overrides_come_together() -> None:
    found = problems(MERGE + "search: {sed: 1}\n", "search.trails=5", "x")
    assert [problem.where for problem in found] == [
        "c.yaml:12:10",
        "override 'x'",
        "override 'search.trails=5'",
    ]

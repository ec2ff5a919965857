"""Searches over layers: candidates of changing depth in one engine, from the config to the exported model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.cli.kit import call
from tests.driving import finish, left
from tests.small import make_search
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

SWITCH = {"choices": [False, True]}
SCALE = {"low": 0.5, "high": 2.0, "log": True}
RANGE = {"low": 0.1, "high": 1.0}


def searched(folder: Path, merge: dict[str, Any], **changes: Any) -> Path:
    """Run a small search over ``merge`` and return the run's folder."""
    make_model(folder / "deep", seed=7, layers=4)
    models = {name: str(folder / name) for name in ("base", "one", "deep")}
    pipeline = [{"merge": {**merge, "dtype": "float32"}}]
    config = make_search(folder, models=models, pipeline=pipeline, **changes)
    finish(config, folder / "runs")
    return folder / "runs" / "small"


def test_a_stack_of_parents_of_unlike_depth(tmp_path: Path) -> None:
    sources = [{"model": "one", "layer_range": [0, 2]}, {"model": "deep", "layer_range": [0, 4]}]
    stack = {"sources": sources, "repeats": 2, "keep_last": 0, "scale": SCALE}
    run = searched(tmp_path, {"merge_method": "passthrough", "stack": stack})
    found = left(run)
    assert [trial[1] for trial in found.trials].count("complete") == 9
    assert {len(trial[3]) for trial in found.trials} == {2 * (2 * (1 + 4))}
    state = json.loads((run / "state.json").read_text())
    assert state["average"] is None and state["no_average"] is True
    # The three parents alone, and no average; the first trial is the first source as it is.
    first = next(key for key in found.outcomes if key == f"{found.trials[0][4]}-search")
    assert found.outcomes[first]["state"] == "complete"
    shown = call("best", "small", "--runs", run.parent).stdout
    assert "deep" in shown and "average" not in shown
    out = tmp_path / "out"
    call("export", "small", "--runs", run.parent, "--to", "model", "--out", out)
    layers = json.loads((out / "config.json").read_text())["num_hidden_layers"]
    assert 1 <= layers <= 11


def test_candidates_without_any_layer_fail_and_say_so(tmp_path: Path) -> None:
    slices = [
        {"enabled": SWITCH, "sources": [{"model": name, "layer_range": [0, 1]}]} for name in ("base", "one")
    ]
    run = searched(
        tmp_path, {"merge_method": "passthrough", "slices": slices}, **{"search.sampler": "random"}
    )
    found = left(run)
    assert [trial[1] for trial in found.trials].count("complete") == 9
    failed = {outcome["message"] for outcome in found.outcomes.values() if outcome["state"] == "failed"}
    assert failed == {"every slice is off: the model would have no layer"}
    assert {outcome.get("kind") for outcome in found.outcomes.values()} == {None, "invalid_recipe"}


def test_weights_and_layers_together(tmp_path: Path) -> None:
    """Weights inside of slices, switches, scales and a stage before, all genes of one search."""
    soup = {
        "name": "soup",
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": RANGE}} for name in ("base", "one")],
    }
    slices = [
        {
            "sources": [
                {"model": "soup", "layer_range": [0, 2], "parameters": {"weight": {**RANGE, "knots": 2}}},
                {"model": "deep", "layer_range": [1, 3], "parameters": {"weight": 0.5}},
            ]
        },
        {
            "enabled": SWITCH,
            "scale": SCALE,
            "sources": [{"model": "deep", "layer_range": [2, 4], "parameters": {"weight": 1}}],
        },
    ]
    last = {"merge_method": "linear", "slices": slices, "dtype": "float32"}
    make_model(tmp_path / "deep", seed=7, layers=4)
    models = {name: str(tmp_path / name) for name in ("base", "one", "deep")}
    config = make_search(tmp_path, models=models, pipeline=[{"merge": soup}, {"merge": last}])
    call("validate", config)
    finish(config, tmp_path / "runs")
    found = left(tmp_path / "runs" / "small")
    names = {name for trial in found.trials for name, _ in trial[3]}
    assert names == {
        "soup.base.weight",
        "soup.one.weight",
        "merge.slice0.soup.weight.0",
        "merge.slice0.soup.weight.1",
        "merge.deep.layers2-3.enabled",
        "merge.deep.layers2-3.scale",
    }
    assert all(outcome["state"] == "complete" for outcome in found.outcomes.values())
    call("export", "small", "--runs", tmp_path / "runs", "--to", "recipe", "--out", tmp_path / "best.yaml")
    call("build", tmp_path / "best.yaml", tmp_path / "built")
    assert json.loads((tmp_path / "built" / "config.json").read_text())["num_hidden_layers"] in (2, 4)

"""Slices and stacks that were searched: what we export for mergekit gives the tensors of our own build."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from evolve.config.load import load
from evolve.errors import UserError
from evolve.export.mergekit import mergekit_document, mergekit_yaml
from evolve.space.space import derive
from evolve.types import Parent, Recipe
from tests.cli.kit import call
from tests.export.test_mergekit_itself import ROOT, constant, mergekit
from tests.report.synthetic import make_run
from tests.stages.merge.test_mergekit_examples import relative
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["mergekit"]

RANGE = {"low": 0.1, "high": 1.0}
SWITCH = {"choices": [False, True]}
LINEAR = {
    "merge_method": "linear",
    "slices": [
        {
            "sources": [
                {"model": "one", "layer_range": [0, 3], "parameters": {"weight": {**RANGE, "knots": 2}}},
                {"model": "two", "layer_range": [1, 4], "parameters": {"weight": RANGE}},
            ]
        },
        {
            "enabled": SWITCH,
            "sources": [
                {"model": "two", "layer_range": [2, 4], "parameters": {"weight": [RANGE, 0.5]}},
                {"model": "base", "layer_range": [0, 2], "parameters": {"weight": 0.5}},
            ],
            "parameters": {"normalize": False},
        },
    ],
}
ARITHMETIC = {
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "modules": {
        "default": {
            "slices": [
                {
                    "sources": [
                        {"model": "base", "layer_range": [first, first + 2]},
                        {"model": "one", "layer_range": [first, first + 2], "parameters": {"weight": RANGE}},
                    ],
                    "parameters": {"lambda": RANGE},
                }
                for first in (0, 2, 1)
            ]
        }
    },
}
STACK = {
    "merge_method": "passthrough",
    "stack": {
        "sources": [{"model": "one", "layer_range": [0, 4]}, {"model": "two", "layer_range": [1, 3]}],
        "repeats": 2,
        "scale": {"low": 0.5, "high": 1.5},
    },
}
BOTH = {
    "merge_method": "passthrough",
    "slices": [
        {
            "sources": [
                {"model": "one", "layer_range": [0, 2], "parameters": {"scale": {**RANGE, "knots": 2}}}
            ]
        },
        {
            "scale": RANGE,
            "sources": [{"model": "two", "layer_range": [0, 4]}],
            "parameters": {"scale": RANGE},
        },
        {"scale": 1.5, "enabled": SWITCH, "sources": [{"model": "one", "layer_range": [1, 4]}]},
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("trial", [1, 3])
@pytest.mark.parametrize(
    "block", [LINEAR, ARITHMETIC, STACK, BOTH], ids=["linear", "modules", "stack", "both"]
)
def test_exported_slices_through_mergekit(
    mergekit: Path, block: dict[str, Any], trial: int, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    models = {
        name: make_model(tmp_path / name, seed=seed, layers=4)
        for seed, name in enumerate(("base", "one", "two"))
    }
    document = {
        "name": "small",
        "models": {name: str(path) for name, path in models.items()},
        "pipeline": [{"merge": {**block, "dtype": "float32"}}],
        "score": {"backend": "hf", "tasks": [{"task": "x", "metric": "acc"}]},
        "search": {"trials": 5, "population": 4, "sampler": "random"},
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(document))
    make_run(tmp_path / "search.yaml", tmp_path / "runs", score=constant)
    where = ("--runs", tmp_path / "runs", "--trial", trial)
    call("export", "small", *where, "--to", "model", "--out", tmp_path / "ours")
    call("export", "small", *where, "--to", "mergekit", "--out", tmp_path / "theirs.yml")
    assert derive(load(tmp_path / "theirs.yml")).genes == ()
    call("build", tmp_path / "theirs.yml", tmp_path / "again")
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([{"config": str(tmp_path / "theirs.yml"), "out": str(tmp_path / "theirs")}]))
    command = [mergekit, ROOT / "scripts/oracle/mergekit_merge.py", jobs]
    subprocess.run(command, check=True, capture_output=True)
    ours, again, theirs = (
        load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again", "theirs")
    )
    theirs.pop("lm_head.weight", None)
    assert ours.keys() == theirs.keys() == again.keys()
    for name, tensor in ours.items():
        assert relative(tensor, theirs[name]) <= 1e-6, name
        assert relative(tensor, again[name]) <= 1e-6, name
    layers = [
        json.loads((tmp_path / name / "config.json").read_text())["num_hidden_layers"]
        for name in ("ours", "theirs")
    ]
    assert layers[0] == layers[1] == len({name.split(".")[2] for name in ours if ".layers." in name})


def recipe(block: dict[str, Any]) -> tuple[Recipe, dict[str, Parent]]:
    models = ("one", "two")
    parents = {name: Parent(name, name, f"/{name}", None, "sha256:0") for name in models}
    return Recipe.make(dict.fromkeys(models, "sha256:0"), [{"merge": block}]), parents


def piece(*models: str, **keys: Any) -> dict[str, Any]:
    return {"sources": [{"model": model, "layer_range": [0, 2]} for model in models], **keys}


def test_what_mergekit_cannot_say_is_refused(tmp_path: Path) -> None:
    linear = {"merge_method": "linear", "parameters": {"weight": 1}, "slices": [piece("one", scale=2)]}
    with pytest.raises(UserError, match="passthrough alone"):
        mergekit_document(*recipe(linear))
    for kind, parameters, words in (
        ("gemma2", {}, "gemma2 models"),
        ("llama", {"scale": [{"filter": "mlp", "value": 2}]}, "list of filters"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        block = {"merge_method": "passthrough", "slices": [piece("one", scale=2, parameters=parameters)]}
        made, parents = recipe(block)
        parents["one"] = Parent("one", "one", str(tmp_path), None, "sha256:0")
        with pytest.raises(UserError, match=words):
            mergekit_document(made, parents)


def test_the_model_that_gives_the_config_is_named() -> None:
    block = {"merge_method": "passthrough", "slices": [piece("two"), piece("one")]}
    assert mergekit_document(*recipe(block))["base_model"] == "two"


def test_a_last_slice_with_more_models_than_the_first_comes_with_a_warning() -> None:
    block = {
        "merge_method": "linear",
        "parameters": {"weight": 1},
        "slices": [piece("one"), piece("one", "two")],
    }
    assert "last norm" in mergekit_yaml(*recipe(block))
    turned = {**block, "slices": block["slices"][::-1]}
    assert "last norm" not in mergekit_yaml(*recipe(turned))

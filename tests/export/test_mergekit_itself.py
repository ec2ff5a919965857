"""What we export for mergekit gives, through mergekit itself, the tensors of our own build."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from evolve.cli.build import open_contents
from evolve.config.load import load
from evolve.export.mergekit import mergekit_yaml
from evolve.space.space import derive, derive_recipe
from evolve.weights.reader import open_model
from tests.cli.kit import call
from tests.report.synthetic import make_run
from tests.stages.merge.mergekit import write_masks
from tests.tiny import make_model

ROOT = Path(__file__).resolve().parents[2]

LINEAR = {
    "merge_method": "linear",
    "models": [
        {"model": "one", "parameters": {"weight": {"low": 0.1, "high": 1.0, "knots": 3}}},
        {
            "model": "two",
            "parameters": {"weight": [{"filter": "mlp", "value": {"low": 0.1, "high": 1.0}}, {"value": 0.5}]},
        },
    ],
}
ARITHMETIC = {
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "models": [
        {"model": "one", "parameters": {"weight": {"low": 0.0, "high": 1.0}}},
        {"model": "two", "parameters": {"weight": {"low": -0.5, "high": 1.0, "knots": 2}}},
    ],
    "parameters": {"lambda": {"low": 0.5, "high": 1.5}},
}
SLERP = {
    "merge_method": "slerp",
    "base_model": "one",
    "models": [{"model": "one"}, {"model": "two"}],
    "parameters": {"t": {"low": 0.1, "high": 0.9, "knots": 4}},
}
TIES = {
    **ARITHMETIC,
    "merge_method": "ties",
    "models": [
        {"model": "one", "parameters": {"weight": {"low": 0.1, "high": 1.0}, "density": 0.6}},
        {"model": "two", "parameters": {"weight": {"low": 0.1, "high": 1.0, "knots": 2}, "density": 0.4}},
    ],
}
DARE_TIES = {**TIES, "merge_method": "dare_ties"}
DARE_LINEAR = {**TIES, "merge_method": "dare_linear"}
METHODS = [LINEAR, ARITHMETIC, SLERP, TIES, DARE_TIES, DARE_LINEAR]


@pytest.fixture(scope="module")
def mergekit():
    done = subprocess.run(
        ["bash", ROOT / "scripts/oracle/mergekit_env.sh"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mergekit's environment cannot be made: {done.stderr[-500:]}")
    return ROOT / ".venv-mergekit" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("block", METHODS, ids=lambda block: block["merge_method"])
def test_exported_yaml_through_mergekit(mergekit, block, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "größe und maß"
    models = {
        name: make_model(folder / name, seed=seed, layers=4)
        for seed, name in enumerate(("base", "one", "two"))
    }
    config = folder / "search.yaml"
    document = {
        "name": "small",
        "models": {name: str(path) for name, path in models.items()},
        "pipeline": [{"merge": {**block, "dtype": "float32"}}],
        "score": {"backend": "hf", "tasks": [{"task": "x", "metric": "acc"}]},
        "search": {"trials": 5, "population": 4, "sampler": "random"},
    }
    config.write_text(yaml.safe_dump(document))
    make_run(config, folder / "runs", score=constant)
    where = ("--runs", folder / "runs", "--trial", 3)
    call("export", "small", *where, "--to", "model", "--out", folder / "ours")
    call("export", "small", *where, "--to", "mergekit", "--out", folder / "theirs.yml")
    assert derive(load(folder / "theirs.yml")).genes == ()
    jobs = folder / "jobs.json"
    masks = None
    if block["merge_method"].startswith("dare"):
        opened = {name: open_model(path) for name, path in models.items()}
        masks = str(
            write_masks(folder / "masks.safetensors", opened, models, {"one": 0.6, "two": 0.4}, seed=0)
        )
    jobs.write_text(
        json.dumps([{"config": str(folder / "theirs.yml"), "out": str(folder / "theirs"), "masks": masks}])
    )
    subprocess.run(
        [mergekit, ROOT / "scripts/oracle/mergekit_merge.py", jobs], check=True, capture_output=True
    )
    ours, theirs = (load_file(folder / name / "model.safetensors") for name in ("ours", "theirs"))
    base = load_file(folder / "one" / "model.safetensors")
    theirs.pop("lm_head.weight", None)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert any(not torch.equal(tensor, base[name]) for name, tensor in ours.items())


@pytest.mark.slow
def test_a_model_with_an_adapter_through_mergekit(mergekit, tmp_path):
    """Mergekit merges path+lora with peft, into the type of the base, before it merges the models."""
    import torch
    from safetensors.torch import load_file, save_file

    base, other = (make_model(tmp_path / name, seed=seed) for seed, name in enumerate(("base", "other")))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    module = "base_model.model.model.layers.1.mlp.down_proj"
    factors = {"A": torch.randn(4, 128), "B": 0.1 * torch.randn(64, 4)}
    save_file(
        {f"{module}.lora_{key}.weight": value for key, value in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["layers.1.mlp.down_proj"]}
    settings |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "use_rslora": True}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    merge = {"merge_method": "linear", "dtype": "float32"}
    names = {"math": f"{base}+{adapter}", "other": str(other)}
    merge["models"] = [{"model": name, "parameters": {"weight": 0.5}} for name in names]
    config = tmp_path / "recipe.yml"
    config.write_text(yaml.safe_dump({"models": names, "pipeline": [{"merge": merge}]}))
    call("build", config, tmp_path / "ours")
    parents = open_contents(load(config))
    recipe = derive_recipe(load(config)).recipe({}, {name: p.content for name, p in parents.items()})
    theirs = tmp_path / "theirs.yml"
    theirs.write_text(mergekit_yaml(recipe, parents))
    assert yaml.safe_load(theirs.read_text())["models"][0]["model"] == f"{base}+{adapter}"
    command = [mergekit.with_name("mergekit-yaml"), theirs, tmp_path / "theirs"]
    subprocess.run([*command, "--lora-merge-cache", tmp_path / "cache"], check=True, capture_output=True)
    found = load_file(tmp_path / "theirs" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "ours" / "model.safetensors").items():
        torch.testing.assert_close(tensor, found[name], rtol=1e-5, atol=1e-6)
    plain = (open_model(base).tensor(CHANGED) + open_model(other).tensor(CHANGED)) / 2
    assert not torch.allclose(found[CHANGED], plain, atol=1e-3)


CHANGED = "model.layers.1.mlp.down_proj.weight"


def constant(job):
    from evolve.types import Scored, TaskScore

    items = {str(index): float(index % 2) for index in range(10)}
    return Scored(0.5, 0.1, {"x": TaskScore("acc", 0.5, 0.1, True, items)})

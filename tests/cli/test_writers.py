import json
import shutil
import stat
import subprocess
import sys

import pytest
import yaml

from evolve.cli import doctor
from evolve.cli.spaces import purpose, shipped
from tests.cli.kit import call, read_json


def tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(one, two):
    import torch

    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_export_recipe_builds_the_exported_model(run, runs, tmp_path):
    where = ("--runs", runs)
    out = call("export", "small", *where).stdout
    assert (run.path / "export" / "recipe.yaml").exists()
    number = read_json("best", "small", *where)[0]["number"]
    assert out.startswith(f"trial {number}: ")
    call("export", "small", *where, "--to", "model", "--out", tmp_path / "ein modell")
    call("build", run.path / "export" / "recipe.yaml", tmp_path / "gebaut ü")
    assert same(tensors(tmp_path / "ein modell"), tensors(tmp_path / "gebaut ü"))
    call("build", tmp_path / "ein modell" / "evolve_recipe.yaml", tmp_path / "again")
    assert same(tensors(tmp_path / "ein modell"), tensors(tmp_path / "again"))
    card = (tmp_path / "ein modell" / "README.md").read_text()
    for part in (
        "plain average",
        f"best (trial {number})",
        "[",
        "Seeds: merge 3",
        "not stated",
        "evolve build",
    ):
        assert part in card


def test_the_exported_model_loads_in_transformers(runs, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    call("export", "small", "--runs", runs, "--to", "model", "--out", tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ids = AutoTokenizer.from_pretrained(tmp_path / "m")("the hen", return_tensors="pt")["input_ids"]
    assert model(ids).logits.isfinite().all()


def test_export_of_one_trial_and_to_stdout(runs):
    where = ("--runs", runs)
    trials = read_json("trials", "small", *where)
    good = next(trial for trial in trials if trial["state"] == "complete")
    bad = next(trial for trial in trials if trial["state"] == "failed")
    text = call("export", "small", *where, "--trial", good["number"], "--out", "-").stdout
    assert good["recipe"] in text
    document = yaml.safe_load(text)
    weights = document["pipeline"][0]["merge"]["models"][0]["parameters"]
    assert weights["weight"] == good["params"]["merge.one.weight"]
    assert "it failed (timeout)" in call("export", "small", *where, "--trial", bad["number"], code=2).stderr
    assert "0 to 10" in call("export", "small", *where, "--trial", 500, code=2).stderr
    mergekit = yaml.safe_load(call("export", "small", *where, "--to", "mergekit", "--out", "-").stdout)
    assert mergekit["merge_method"] == "dare_ties"


def test_export_never_overwrites_what_the_user_named(runs, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("precious")
    assert "exists" in call("export", "small", "--runs", runs, "--out", file, code=2).stderr
    assert file.read_text() == "precious"
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "precious").write_text("x")
    result = call("export", "small", "--runs", runs, "--to", "model", "--out", folder, code=2)
    assert "not empty" in result.stderr
    assert [path.name for path in folder.iterdir()] == ["precious"]


@pytest.mark.skipif(shutil.which("chmod") is None, reason="no permissions")
def test_export_into_a_folder_that_may_not_be_written(runs, tmp_path):
    import os

    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "closed" in call("export", "small", "--runs", runs, "--out", closed / "a.yaml", code=2).stderr


def test_build_refuses_ranges_and_says_where(made, tmp_path):
    message = call("build", made[0], tmp_path / "out", code=2).stderr
    assert message.count("a range") == 3
    assert f"{made[0]}:" in message
    assert not (tmp_path / "out").exists()


def test_build_with_the_ranges_filled_in(made, tmp_path):
    merge = "pipeline.0.merge.models"
    call(
        *("build", made[0], tmp_path / "out", f"{merge}.0.parameters.weight=0.5"),
        *(f"{merge}.1.parameters.weight=[0.1, 0.9]", f"{merge}.1.parameters.density=1.0"),
    )
    assert (tmp_path / "out" / "config.json").exists()


def test_build_in_shards_and_over_an_older_model(made, tmp_path):
    config = tmp_path / "one.yml"
    models = [{"model": str(made[0].parent / "one"), "parameters": {"weight": 1}}]
    config.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    out = tmp_path / "out"
    call("build", config, out)
    assert (out / "model.safetensors").exists()
    assert "is not empty" in call("build", config, out, code=2).stderr
    call("build", config, out, "--force", "--max-shard-size", "60KB")
    assert not (out / "model.safetensors").exists()
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size < 70_000 for shard in shards)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.yml", "out"]
    result = call("build", config, made[0].parent / "one", "--force", code=2)
    assert "holds the model 'one' itself" in result.stderr
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("mine")
    assert "is no model's folder" in call("build", config, notes, "--force", code=2).stderr
    assert (notes / "a.txt").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5gb", 15 * 10**8), ("512MiB", 2**29), ("2000000", 2_000_000), ("3 K", 3000)],
)
def test_sizes(text, size):
    from evolve.cli.options import byte_size

    assert byte_size(None, None, text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 apples", "0", "0.0001KB", "1e9", "nan"])
def test_what_is_no_size(text, made, tmp_path):
    result = call("build", made[0], tmp_path / "out", "--max-shard-size", text, code=2)
    assert "is no size" in result.stderr or "at least one byte" in result.stderr


def test_export_over_an_older_one(made, tmp_path):
    _, runs = made
    for target in ("recipe", "model"):
        place = tmp_path / target
        command = ("export", "small", "--runs", runs, "--to", target, "--out", place)
        call(*command)
        assert call(*command, code=2).stderr
        call(*command, "--force", "--max-shard-size", "60KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2


def test_build_shows_every_problem(made, tmp_path):
    merge = "pipeline.0.merge.models"
    fixed = (
        f"{merge}.0.parameters.weight=0.5",
        f"{merge}.1.parameters.weight=1",
        f"{merge}.1.parameters.density=1.0",
    )
    shutil.copytree(made[0].parent / "one", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = call(
        *("build", made[0], tmp_path / "out", *fixed),
        *(f"models.one={tmp_path / 'cut'}", f"models.two={tmp_path / 'nowhere'}"),
        code=2,
    )
    assert "models.one" in result.stderr
    assert "models.two" in result.stderr
    assert not (tmp_path / "out").exists()


def test_build_of_weights_that_sum_to_zero(tmp_path, made):
    base = made[0].parent
    config = tmp_path / "zero.yml"
    models = [{"model": str(base / name), "parameters": {"weight": 0}} for name in ("one", "two")]
    config.write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    result = call("build", config, tmp_path / "out", code=2)
    assert "invalid_recipe" in result.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_spaces_cp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    for name, file in shipped().items():
        assert purpose(file), f"{name} has no comment that says when to use it"
        assert name in call("spaces", "ls").stdout
        call("spaces", "cp", name)
        assert (tmp_path / f"{name}.yaml").read_bytes() == file.read_bytes()
        assert "exists" in call("spaces", "cp", name, code=2).stderr
        call("spaces", "cp", f"{name}.yaml", tmp_path / "a b")
        assert (tmp_path / "a b" / f"{name}.yaml").exists()
        assert f"did you mean {name!r}" in call("spaces", "cp", name[:-1], code=2).stderr


def test_spaces_of_an_installed_wheel(tmp_path, monkeypatch):
    """In a wheel the files lie inside the package."""
    package = tmp_path / "site packages" / "evolve"
    (package / "cli").mkdir(parents=True)
    (package / "search_spaces").mkdir()
    (package / "search_spaces" / "x.yaml").write_text("# For a test. And more.\nmodels: {}\n")
    monkeypatch.setattr("evolve.cli.spaces.__file__", str(package / "cli" / "spaces.py"))
    assert list(shipped()) == ["x"]
    assert purpose(shipped()["x"]) == "For a test."


def test_schema_is_json_with_the_blocks():
    found = json.loads(call("schema").stdout)
    assert {"models", "pipeline", "score", "search", "engine"} <= found["properties"].keys()


def test_doctor_finds_what_is_needed():
    done = subprocess.run(
        [sys.executable, "-m", "evolve.cli", "doctor", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    findings = {row["what"]: row for row in json.loads(done.stdout)}
    assert findings["torch"]["state"] == "ok"
    assert findings["optuna"]["found"].count(".") >= 1
    assert done.returncode == 0
    assert all(row["mend"] for row in findings.values() if row["state"] == "missing")


def test_doctor_says_how_to_mend(monkeypatch):
    monkeypatch.setattr(doctor, "_NEEDED", ("not_a_module_at_all",))
    result = call("doctor", code=1)
    assert "pip install 'not-a-module-at-all'" in result.stdout
    monkeypatch.setattr(doctor, "_distribution", lambda name: {"torch": "2.13.0+cpu"}.get(name))
    assert doctor.torch_mismatch("0.28.0")
    assert not doctor.torch_mismatch("0.28.0+cpu")


def test_a_config_that_is_not_there():
    assert "no such file" in call("validate", "nowhere ü.yaml", code=2).stderr
    assert "no such file" in call("run", "nowhere ü.yaml", code=2).stderr


def test_run_needs_something_to_search(made, tmp_path):
    merge = "pipeline.0.merge.models"
    fixed = (
        f"{merge}.0.parameters.weight=0.5",
        f"{merge}.1.parameters.weight=1",
        f"{merge}.1.parameters.density=1.0",
    )
    result = call("run", made[0], *fixed, "--runs", tmp_path / "runs", code=2)
    assert "range" in result.stderr
    assert not (tmp_path / "runs").exists()

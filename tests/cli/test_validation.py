import pytest
import yaml

from evolve import validation
from evolve.config.load import load
from evolve.errors import ConfigError
from tests.cli.kit import call, read_json
from tests.tiny import make_model


def test_facts(made, tmp_path):
    facts = read_json("validate", made[0], "--runs", tmp_path)["facts"]
    assert facts["genes"] == 4
    assert (facts["trials"], facts["population"], facts["generations"]) == (9, 4, 3), "1 + 8 / 4"
    assert facts["items"] == {"tiny_choice": [20, 20]}
    weights = (made[0].parent / "one" / "model.safetensors").stat().st_size
    assert 0.9 * weights < facts["model_bytes"] <= weights
    assert facts["parameters"] * 4 == facts["model_bytes"], "float32"
    assert facts["evaluators"] == 1, "inline"
    assert facts["seconds"] > 0


def test_the_time_counts_finalists_and_parts_of_items(made, tmp_path):
    def seconds(*overrides: str) -> float:
        return read_json("validate", made[0], "--runs", tmp_path, *overrides)["facts"]["seconds"]

    plain = seconds("score.holdout.top=5")
    assert seconds("score.holdout.items=0") < seconds("score.holdout.top=1") < plain
    assert seconds("score.holdout.top=99") == seconds("score.holdout.top=9"), "no more than there are trials"
    grown = seconds("search.items_growth={first: 0.1}")
    assert seconds("search.items_growth={first: 0.01}") < grown < plain
    assert seconds("search.estimator={anchors: 0.1}") < plain
    raced = seconds("search.racing={first: 0.25}")
    assert raced > seconds("search.items_growth={first: 0.25}"), "a race loads a candidate again"


def test_the_table_and_the_warnings(made, tmp_path):
    result = call(
        "validate", made[0], "--runs", tmp_path, "search.population=4", "engine={kind: ray, evaluators: 3}"
    )
    assert "no problems found" in " ".join(result.stdout.split())
    assert "very roughly" in result.stdout
    assert "no multiple of the 3 evaluators" in result.stderr
    assert "search.population to 6" in result.stderr
    assert "set search.trials to 40" in result.stderr
    quiet = call("validate", made[0], "--runs", tmp_path, "search.trials=40")
    assert quiet.stderr == ""
    without = call("validate", made[0], "search.trials=40", "score.holdout.items=0")
    assert "without a holdout" in without.stderr


def test_all_problems_at_once_with_their_places(made, tmp_path):
    config = yaml.safe_load(made[0].read_text())
    config["models"]["one"] = str(tmp_path / "nowhere")
    config["score"]["tasks"][0]["metric"] = "accu"
    file = tmp_path / "schlecht ü.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    lines = file.read_text().splitlines()
    message = call("validate", file, code=2).stderr
    model = next(number for number, line in enumerate(lines, 1) if "nowhere" in line)
    metric = next(number for number, line in enumerate(lines, 1) if "metric: accu" in line)
    assert f"{file}:{model}:" in message
    assert f"{file}:{metric}:" in message
    assert "did you mean 'acc'" in message


@pytest.mark.parametrize(
    ("changes", "place", "message"),
    [
        (["search.racing={}", "score.retention={model: base}"], "search.racing", "remove score.retention"),
        (["search.racing={}", "score.scorers=[{size: {weight: 0}}]"], "search.racing", "means over items"),
        (["search.sampler=grid"], "search.sampler", "needs a step or choices"),
        (["search.sampler=greedy_soup"], "search.sampler", "switch"),
        (["score.holdout={items: 0, ablations: true}"], "score.holdout", "need items"),
    ],
)
def test_what_a_run_would_refuse_is_found_where_it_stands(made, tmp_path, changes, place, message):
    found = call("validate", made[0], "--runs", tmp_path, *changes, code=2).stderr
    assert message in found
    assert f"override '{place}=" in found


def test_cmaes_with_one_gene(made, tmp_path):
    config = yaml.safe_load(made[0].read_text())
    models = config["pipeline"][0]["merge"]["models"]
    models[1]["parameters"] = {"weight": 0.5, "density": 0.5}
    file = tmp_path / "one gene.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 2) if text == "search:")
    message = call("validate", file, code=2).stderr
    assert f"{file}:{line}:" in message
    assert "at least two genes" in message


def test_parents_that_do_not_fit(made, tmp_path):
    make_model(tmp_path / "deep", layers=3)
    message = call("validate", made[0], f"models.two={tmp_path / 'deep'}", code=2).stderr
    assert "layer" in message
    make_model(tmp_path / "other", arch="gpt2")
    assert "two" in call("validate", made[0], f"models.two={tmp_path / 'other'}", code=2).stderr


def test_a_cut_off_parent_and_a_missing_task(made, tmp_path):
    (tmp_path / "cut").mkdir()
    for file in (made[0].parent / "one").iterdir():
        data = file.read_bytes()
        (tmp_path / "cut" / file.name).write_bytes(data[:-10] if file.suffix == ".safetensors" else data)
    message = call(
        "validate", made[0], f"models.one={tmp_path / 'cut'}", "score.tasks.0.task=tiny_choise", code=2
    ).stderr
    assert "models.one" in message
    assert "tiny_choise" in message


def test_too_little_memory_or_disk_is_a_problem(made, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(validation, "free_memory", lambda: 10**9)
    with pytest.raises(ConfigError, match="evaluators need about"):
        validation.check(load(made[0]), runs=tmp_path)
    monkeypatch.setattr(validation, "free_memory", lambda: None)
    validation.check(load(made[0]), runs=tmp_path / "not" / "there")
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(validation.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match="free some space"):
        validation.check(load(made[0]), runs=tmp_path)


def test_validation_reads_no_weights(made, monkeypatch):
    import evolve.weights.reader as reader

    def refuse(self, name):
        raise AssertionError(f"read {name}")

    monkeypatch.setattr(reader._Reader, "__call__", refuse)
    validation.check(load(made[0]))


def test_devices_are_counted_without_torch(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert validation._evaluators(cpus=1, gpus=None) >= 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert validation._evaluators(cpus=1, gpus=None) == 3
    assert validation._evaluators(cpus=1, gpus=0.5) == 6
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setattr(validation.os, "cpu_count", lambda: 8)
    assert validation._evaluators(cpus=3, gpus=None) == 2

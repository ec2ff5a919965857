"""``evolve eval`` on real tiny models, with a config and with tasks alone."""

import itertools

import pytest

from tests.cli.kit import call, read_csv, read_json
from tests.small import make_search


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("größe hier")
    return folder, make_search(folder)


@pytest.fixture(scope="module")
def found(place):
    folder, config = place
    models = [folder / name for name in ("one", "two", "base")]
    return models, read_json("eval", *models, "--config", config)


def test_models_are_compared_on_the_same_items(found):
    models, rows = found
    assert [row["model"] for row in rows] == [str(model) for model in models]
    for row in rows:
        assert row["split"] == "holdout" and row["low"] <= row["value"] <= row["high"]
        task = row["tasks"]["tiny_choice"]
        assert task["low"] <= task["value"] == row["value"] <= task["high"]
        assert task["chance"] == pytest.approx(0.25) and "items" not in task
        assert row["parameters"] > 0 and row["bytes"] > 0 and row["items_per_second"] > 0
        assert set(row["kept"]) == {"one", "two", "base"}, "those that the config names"
    first, *others = rows
    assert first["first_minus_this"] is None
    for row in others:
        gap = row["first_minus_this"]
        assert gap["value"] == pytest.approx(first["value"] - row["value"])
        assert gap["low"] <= gap["value"] <= gap["high"] and 0 <= gap["superiority"] <= 1
        assert gap["verdict"] in ("better", "worse", "cannot tell") and gap["items"] == 20
        expected = "better" if gap["low"] > 0 else "worse" if gap["high"] < 0 else "cannot tell"
        assert gap["verdict"] == expected


def test_a_table_for_people(place, found):
    text = call("eval", *found[0], "--config", place[1]).stdout
    for part in ("tiny_choice (acc)", "keeps of one", "average", "items/s", "P(better)", "first minus this"):
        assert part in text


def test_tasks_without_a_config(place):
    folder, _ = place
    where = ("--include-path", folder / "tasks", "--backend", "hf")
    models = (folder / "one", folder / "two")
    rows = read_json("eval", *models, "--tasks", "tiny_choice", *where, "--parent", folder / "two")
    assert [row["tasks"]["tiny_choice"]["metric"] for row in rows] == ["acc", "acc"]
    assert all(set(row["kept"]) == {str(folder / "two")} for row in rows)
    assert rows[1]["first_minus_this"]["items"] == 60, "all items"
    few = read_csv("eval", *models, "--tasks", "tiny_choice:acc", "--items", 10, *where)
    assert [line["first_minus_this.items"] for line in few] == ["", "10"]


def test_what_cannot_be_asked(place):
    folder, config = place
    model = folder / "one"
    assert "one of them" in call("eval", model, code=2).stderr
    assert "one of them" in call("eval", model, "--config", config, "--tasks", "x", code=2).stderr
    where = ("--include-path", folder / "tasks")
    assert "no task named" in call("eval", model, "--tasks", "tiny_choize", *where, code=2).stderr
    assert "listed twice" in call("eval", model, "--tasks", "t:a,t:a", *where, code=2).stderr
    wrong = call("eval", model, "--tasks", "tiny_choice:f1", *where, "--backend", "hf", code=2)
    assert "no metric 'f1'" in wrong.stderr


def test_show_holds_a_trial_against_every_parent(runs):
    trials = read_json("trials", "small", "--runs", runs)
    good = next(trial for trial in trials if trial["state"] == "complete")
    text = call("show", "small", good["number"], "--runs", runs).stdout
    assert all(f"better than {name} by" in text for name in ("base", "one", "two"))
    assert "keeps of it" in text and "n/a" in text, "base is below chance"


def test_order_of_models_turns_the_comparison_around(place):
    folder, config = place
    values = []
    for pair in itertools.permutations([folder / "one", folder / "two"]):
        values.append(read_json("eval", *pair, "--config", config)[1]["first_minus_this"])
    assert values[0]["value"] == pytest.approx(-values[1]["value"])
    assert values[0]["low"] == pytest.approx(-values[1]["high"])


def test_gain_and_forgetting_are_counted_from_the_first_model(tmp_path):
    """By the scores of the same output: better on the task of one role, worse on the text of the other."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {word} and {word * 3} more of them\n" for word in "abcdefgh"))
    tasks = [{"task": "tiny_choice", "metric": "acc", "items": 20, "role": "gain"}]
    block = {"path": str(text), "chunk_bytes": 30, "items": 4, "weight": 0.0, "role": "retention"}
    changes = {"score.tasks": tasks, "score.scorers": [{"bits_per_byte": block}]}
    config = make_search(tmp_path, **changes)
    models = [tmp_path / name for name in ("two", "one")]
    first, other = read_json("eval", *models, "--config", config, "--split", "search")
    nothing = {"value": 0, "low": 0, "high": 0}
    assert (first["gain"], first["forgetting"]) == (nothing, nothing)
    for key, task in (("gain", "tiny_choice"), ("forgetting", "bits_per_byte")):
        then, now = (row["tasks"][task]["value"] for row in (first, other))
        assert then != now
        assert other[key]["value"] == pytest.approx(now - then), "bits per byte are worse when higher"
        assert other[key]["low"] < other[key]["value"] < other[key]["high"]
    turned = read_json("eval", *reversed(models), "--config", config, "--split", "search")[1]
    assert turned["gain"]["value"] == pytest.approx(-other["gain"]["value"])
    table = call("eval", *models, "--config", config, "--split", "search").stdout
    assert f"how much better than {models[0]} on the tasks of role gain" in table
    line = next(line for line in table.splitlines() if "gain" in line)
    assert line.split()[-2:] == ["gain", "forgetting"]


def test_without_roles_there_is_no_gain(found, place):
    assert all("gain" not in row and "forgetting" not in row for row in found[1])
    assert "forgetting" not in call("eval", *found[0], "--config", place[1]).stdout

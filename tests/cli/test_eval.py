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

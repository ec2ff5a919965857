"""Loss curves: what is kept of a training's log beside a candidate."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from evolve.stages.history import MOST_ROWS, shown, thinned
from evolve.stages.kept import LOG
from evolve.types import Scored, Training, outcome_from_json, outcome_to_json
from evolve.weights.reader import open_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path


def log(steps: list[int], **more: list[float]) -> list[dict[str, float]]:
    losses = [10.0 / step for step in steps]
    lines = [
        {"loss": loss, "step": float(step), "epoch": 0.5, "learning_rate": 1e-3, "grad_norm": 2.0}
        for step, loss in zip(steps, losses, strict=True)
    ]
    for name, values in more.items():
        for line, value in zip(lines, values, strict=True):
            line[name] = value
    return lines


def test_a_short_log_stays_as_it_is() -> None:
    columns, rows = thinned(log([5, 10, 13], kl=[1.0, 0.5, 0.25]))
    assert columns == ("step", "loss", "kl")
    assert rows == ((5, 2.0, 1.0), (10, 1.0, 0.5), (13, 0.76923, 0.25))


def test_neighbours_are_averaged_by_their_steps() -> None:
    """The mean over the steps of each group, worked out step by step."""
    steps = [5, 10, 15, 20, 25, 30, 31]
    lines = log(steps)
    by_step = np.repeat([line["loss"] for line in lines], np.diff([0, *steps]))
    _, rows = thinned(lines, most=3)
    assert [row[0] for row in rows] == [15, 30, 31]
    expected = [by_step[:15].mean(), by_step[15:30].mean(), by_step[30:].mean()]
    assert [row[1] for row in rows] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [0, 1, 59, 60, 61, 1000])
def test_it_is_never_long(count: int) -> None:
    names = {f"term{place}": [1.0] * count for place in range(30)}
    columns, rows = thinned(log(list(range(1, count + 1)), **names))
    assert len(rows) <= MOST_ROWS and (len(rows) > 0) == (count > 0)
    assert all(len(row) == len(columns) <= 10 for row in rows)
    assert len(json.dumps(rows)) < 8 * 10 * MOST_ROWS
    if count:
        assert rows[-1][0] == count, "the last step is there"


def test_what_is_missing_is_left_out_of_the_mean() -> None:
    lines = log([1, 2, 3, 4], kl=[math.nan, 0.5, math.nan, math.nan])
    del lines[3]["kl"]
    _, rows = thinned(lines, most=2)
    assert rows[0][2] == 0.5 and math.isnan(rows[1][2])


def test_out_of_the_file_beside_a_model(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    model = open_model(str(tmp_path / "model"))
    assert shown("cpt", model) is None, "nothing was trained"
    report: dict[str, Any] = {"steps": 10, "tokens": 640, "seconds": 1.5, "log": log([5, 10])}
    (tmp_path / "model" / LOG).write_text(json.dumps(report))
    found = shown("cpt", model)
    assert found == Training("cpt", 10, 640, 1.5, ("step", "loss"), ((5.0, 2.0), (10.0, 1.0)))
    assert found.curve() == [(5, 2), (10, 1)] and found.curve("kl") == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"log": [{}]}', '{"steps": 1, "log": [1]}', "\xff"])
def test_a_damaged_file_costs_the_curve_alone(tmp_path: Path, text: str, caplog: Any) -> None:
    make_model(tmp_path / "model")
    (tmp_path / "model" / LOG).write_bytes(text.encode("latin-1"))
    assert shown("cpt", open_model(str(tmp_path / "model"))) is None
    assert "cannot be read" in caplog.text


def test_a_record_holds_it() -> None:
    training = Training("cpt", 2, 64, 1.0, ("step", "loss", "kl"), ((1, 2.0, math.nan), (2, 1.0, 0.5)))
    outcome = Scored(0.5, 0.1, {}, training=(training,))
    text = json.dumps(outcome_to_json(outcome), allow_nan=False)
    back = outcome_from_json(json.loads(text))
    assert isinstance(back, Scored)
    assert repr(back.training) == repr(outcome.training), "NaN is not equal to itself"
    assert back.training[0].curve("kl") == [(2, 0.5)]
    old = outcome_to_json(Scored(0.5, 0.1, {}))
    assert "training" not in old and outcome_from_json(old) == Scored(0.5, 0.1, {}, {})

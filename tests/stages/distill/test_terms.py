"""``loss_functions`` of a config, and what every loss of the table declares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evolve.errors import CandidateError
from evolve.registry import LOSSES
from evolve.stages.distill.losses.base import LayerLoss, TokenLoss
from evolve.stages.distill.terms import check_terms, make_terms

KL = {"function": "kl"}


@pytest.mark.parametrize("name", LOSSES.names())
def test_every_loss_declares_itself(name: str) -> None:
    loss = LOSSES.load(name)
    assert loss.name == name
    assert loss.formula
    assert loss.__doc__
    assert loss.paper or not loss.teacher
    assert issubclass(loss, TokenLoss if loss.reads == "scores" else LayerLoss)
    assert loss.power in (0, 1, 2)
    for param in loss.params:
        assert param.doc
        assert param.low is not None
        assert param.high is not None
        assert param.suggest is not None
        assert param.default is not None
        assert param.low <= param.suggest[0] < param.suggest[1] <= param.high
        assert param.low <= param.default <= param.high
    [term] = make_terms([{"function": name}])
    assert term.loss is loss
    assert term.factor == 1


def test_listing_the_losses_loads_no_torch() -> None:
    code = (
        "import sys; from evolve.registry import LOSSES; [LOSSES.load(n) for n in LOSSES.names()];"
        "from evolve.stages.distill.terms import make_terms; make_terms([{'function': 'kl'}]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_terms_of_the_schema() -> None:
    terms = make_terms(
        [
            {"function": "cross_entropy", "weight": 1.0},
            {"function": "kl", "weight": 2, "temperature": 3.0},
            {"function": "reverse_kl", "weight": 0.0, "temperature": 1.0},
            {"function": "jsd", "weight": 0.5, "temperature": 1.0, "beta": 0.2},
            {"function": "tvd", "temperature": 2.0},
            {"function": "hs_cosine", "weight": 0.5, "layer_mapping": [[1, 2], [2, 4]]},
        ]
    )
    assert [term.loss.name for term in terms] == ["cross_entropy", "kl", "jsd", "tvd", "hs_cosine"]
    assert [term.weight for term in terms] == [1.0, 2.0, 0.5, 1.0, 0.5]
    assert [term.factor for term in terms] == [1, 9, 1, 2, 1]
    assert dict(terms[2].values) == {"beta": 0.2}
    assert terms[4].layers == ((1, 2), (2, 4))
    assert dict(make_terms([{"function": "skew_kl"}])[0].values) == {"alpha": 0.1}


@pytest.mark.parametrize(
    ("entries", "path", "message"),
    [
        ([{"function": "kll"}], "0.function", "did you mean 'kl'?"),
        ([{}], "0.function", "unknown loss None"),
        ([KL, {**KL, "temprature": 2.0}], "1.temprature", "did you mean 'temperature'?"),
        ([{**KL, "beta": 0.5}], "0.beta", "kl has no such key"),
        ([{**KL, "layer_mapping": "even"}], "0.layer_mapping", "no such key"),
        ([{"function": "hs_mse", "temperature": 1.0}], "0.temperature", "no such key"),
        ([{**KL, "weight": -1}], "0.weight", "at least 0"),
        ([{**KL, "weight": "much"}], "0.weight", "must be a number"),
        ([{**KL, "weight": True}], "0.weight", "must be a number"),
        ([{**KL, "weight": float("nan")}], "0.weight", "must be a number"),
        ([{**KL, "temperature": 0}], "0.temperature", "above 0"),
        (
            [{"function": "cross_entropy", "temperature": 2.0}],
            "0.temperature",
            "always taken at temperature 1",
        ),
        ([{"function": "jsd", "beta": 1.0}], "0.beta", "at most 0.99"),
        ([{"function": "skew_kl", "alpha": -0.1}], "0.alpha", "at least 0"),
        ([{"function": "hs_mse", "layer_mapping": "odd"}], "0.layer_mapping", "even, all, last"),
        ([{"function": "hs_mse", "layer_mapping": [[1]]}], "0.layer_mapping", "even, all, last"),
        ([{**KL, "weight": 0.0}], "", "all weights are 0"),
        ([], "", "all weights are 0"),
    ],
)
def test_mistakes_are_named_with_the_mend(entries: list[dict[str, Any]], path: str, message: str) -> None:
    [(where, what)] = check_terms(entries)
    assert where == path
    assert message in what
    with pytest.raises(CandidateError, match="loss_functions"):
        make_terms(entries)


def test_all_mistakes_at_once() -> None:
    found = check_terms([{**KL, "weight": -1, "x": 1}, {"function": "nothing"}])
    assert sorted(path for path, _ in found) == ["0.weight", "0.x", "1.function"]


def test_the_documentation_lists_every_loss_with_its_factor() -> None:
    text = (Path(__file__).parents[3] / "docs" / "distillation.md").read_text(encoding="utf-8")
    named = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    rows = {name: line for name, line in named.items() if not name.endswith(".py")}
    assert tuple(rows) == LOSSES.names()
    for name, row in rows.items():
        power = LOSSES.load(name).power
        assert ("| T² |" in row, "| T |" in row) == (power == 2, power == 1)
        for param in LOSSES.load(name).params:
            assert f"`{param.name}` {param.default:g}".replace(" 0.", " .") in row

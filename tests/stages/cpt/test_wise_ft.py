from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from evolve.errors import CandidateError
from evolve.stages.cpt.wise_ft import interpolated
from evolve.weights.reader import open_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path


def test_the_line_between_two_models(tmp_path: Path) -> None:
    start = open_model(make_model(tmp_path / "a", seed=0))
    trained = open_model(make_model(tmp_path / "b", seed=1))
    found = interpolated(start, trained, 0.3)
    for name in trained.specs:
        wanted = 0.7 * start.tensor(name).double() + 0.3 * trained.tensor(name).double()
        torch.testing.assert_close(found.tensor(name).double(), wanted, rtol=1e-6, atol=1e-7)
    assert interpolated(start, trained, 1.0) is trained
    back = interpolated(start, trained, 0.0)
    assert all(torch.equal(back.tensor(name), start.tensor(name)) for name in start.specs)


def test_one_rounding(tmp_path: Path) -> None:
    start = open_model(make_model(tmp_path / "a", seed=0, dtype="float32"))
    trained = open_model(make_model(tmp_path / "b", seed=1, dtype="bfloat16"))
    found = interpolated(start, trained, 0.5)
    for name in trained.specs:
        wanted = 0.5 * start.tensor(name) + 0.5 * trained.tensor(name).float()
        assert torch.equal(found.tensor(name), wanted.bfloat16())


def test_other_tensors(tmp_path: Path) -> None:
    start = open_model(make_model(tmp_path / "a", layers=1))
    trained = open_model(make_model(tmp_path / "b"))
    with pytest.raises(CandidateError, match="other tensors"):
        interpolated(start, trained, 0.5)

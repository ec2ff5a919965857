from __future__ import annotations

from dataclasses import replace
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
    start = open_model(make_model(tmp_path / "a", seed=0, dtype="bfloat16"))
    kept = open_model(make_model(tmp_path / "b", seed=1, dtype="float32"))
    # As the stage hands over what it trained: bfloat16 like the start, float32 behind it.
    trained = replace(
        start,
        content="",
        tensor=lambda name: kept.tensor(name).bfloat16(),
        exact=lambda name: kept.tensor(name),
    )
    found = interpolated(start, trained, 0.3)
    twice = 0
    for name in trained.specs:
        wanted = 0.7 * start.tensor(name).double() + 0.3 * kept.tensor(name).double()
        torch.testing.assert_close(found.unrounded(name).double(), wanted, rtol=1e-6, atol=1e-7)
        assert torch.equal(found.tensor(name), found.unrounded(name).bfloat16())
        rounded = 0.7 * start.tensor(name).double() + 0.3 * trained.tensor(name).double()
        twice += int((rounded.float().bfloat16() != found.tensor(name)).sum())
    # Rounding the trained end first gives other bits.
    assert twice > 100


def test_other_tensors(tmp_path: Path) -> None:
    start = open_model(make_model(tmp_path / "a", layers=1))
    trained = open_model(make_model(tmp_path / "b"))
    with pytest.raises(CandidateError, match="other tensors"):
        interpolated(start, trained, 0.5)

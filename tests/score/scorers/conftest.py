from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from evolve.registry import ENGINES
from evolve.score.engines.choose import vllm_version
from evolve.weights.reader import open_model
from tests.score.scorers.held import config
from tests.tiny import make_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evolve.score.engines.base import Engine

VLLM = pytest.param(
    "vllm",
    marks=[pytest.mark.vllm, pytest.mark.skipif(vllm_version() is None, reason="vllm is not installed")],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorers") / "model"
    make_model(folder)
    return folder


@pytest.fixture(scope="module", params=["hf", VLLM])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    settings = config({"size": {}}, batch_size=3)
    with closing(ENGINES.load(request.param)(settings, open_model(folder), 1)) as engine:
        yield engine

"""Both engines on a GPU: asleep they hold next to none of its memory, and score as before afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from evolve.errors import CandidateError
from evolve.registry import ENGINES
from evolve.score.engines.choose import vllm_device, vllm_version
from tests.score.engines.oracle import config, make, scores

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
VLLM = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        vllm_version() is None or vllm_device() == "cpu", reason="the vllm for GPUs is not installed"
    ),
]


@pytest.mark.parametrize("backend", ["hf", pytest.param("vllm", marks=VLLM)])
@pytest.mark.parametrize("short", [False, True])
def test_asleep_it_holds_no_memory_and_then_scores_as_before(
    tmp_path: Path, backend: str, short: bool
) -> None:
    model = make(tmp_path, "llama", tied=True, seed=0)
    more = {"enable_sleep_mode": True, "gpu_memory_utilization": 0.3} if backend == "vllm" else {}
    engine = ENGINES.load(backend)(config(engine_args=more), model, 1)
    try:
        before = scores(engine.lm)
        awake = torch.cuda.mem_get_info()[0]
        held = torch.cuda.memory_allocated()
        engine.sleep(short=short)
        with pytest.raises(CandidateError, match="holds no model"):
            _ = engine.lm
        if backend == "hf":
            assert torch.cuda.memory_allocated() < held
        else:
            assert torch.cuda.mem_get_info()[0] > awake + (1 << 30), "the KV cache is given back"
        engine.wake()
        engine.load(model)
        assert scores(engine.lm) == before
        assert engine.starts == (2 if short else 1)
    finally:
        engine.close()

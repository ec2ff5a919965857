"""vLLM's k best tokens beside transformers' whole distribution, on the real engine."""

from __future__ import annotations

import sys
from contextlib import closing
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evolve.errors import CandidateError
from evolve.registry import TEACHERS
from evolve.stages.distill.generation import Generation
from evolve.stages.distill.signals import TopK
from evolve.stages.distill.teachers.base import batch_of
from evolve.stages.distill.teachers.vllm import best_by_rank, memory_share
from tests.stages.distill.teachers.kit import alone, documents, opening, packed, reference
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.stages.distill.teachers.base import Opening


def make(where: Opening, **block: Any) -> Any:
    factory = TEACHERS.load("vllm")
    return factory(factory.block.model_validate({"kind": "vllm", "model": "m", **block}), where)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")
def test_the_k_best_are_those_of_the_whole_distribution(tmp_path: Path) -> None:
    make_model(tmp_path / "m", tied=False, seed=3)
    network = reference(tmp_path / "m")
    with torch.no_grad():
        # Peaked, so that a temperature or a shift would show.
        network.lm_head.weight.mul_(4)
    network.float().save_pretrained(tmp_path / "m")
    network.double()
    k = 30  # above vLLM's usual limit of 20
    with closing(make(opening(tmp_path / "m", max_length=40), top_k=k)) as teacher:
        found = documents(7, seed=5)
        batch = batch_of([packed(found[:4]), packed(found[4:])])
        scores = teacher.signals(batch).scores
        assert isinstance(scores, TopK)
        inside = 0
        for (row, begin, end), one in zip(batch.spans(), found, strict=True):
            truth = torch.log_softmax(alone(network, one).logits[0], dim=-1)
            best, order = truth.topk(k, dim=-1)
            torch.testing.assert_close(scores.log_p[row, begin:end].double(), best, atol=2e-4, rtol=0)
            same = scores.tokens[row, begin:end] == order
            assert same.float().mean() > 0.99
            inside += sum(int(one[t + 1] in order[t]) for t in range(len(one) - 1))
        assert 0 < inside < sum(len(one) - 1 for one in found), "the token itself is in and out of the k"
        with pytest.raises(CandidateError, match="no hidden states"):
            teacher.signals(batch, hidden=True)
        prompts = [one.tolist() for one in found]
        settings = Generation(temperature=1.0, max_new_tokens=6)
        texts = teacher.complete(prompts, settings, seed=1)
        assert texts == teacher.complete(prompts, settings, seed=1)
        assert texts != teacher.complete(prompts, settings, seed=2)
        greedy = teacher.complete(prompts[:1], Generation(temperature=0, max_new_tokens=1), seed=0)
        assert greedy[0].tokens[0] == int(alone(network, found[0]).logits[0, -1].argmax())
    with pytest.raises(CandidateError, match="closed"):
        teacher.signals(batch)


def test_the_label_is_dropped_by_its_rank() -> None:
    table = SimpleNamespace(
        start_indices=[0, 0, 3, 6],
        end_indices=[0, 3, 6, 9],
        token_ids=[9, 4, 2, 4, 4, 2, 8, 1, 4],
        logprobs=[-9.0, -0.1, -3.0, -0.1, -0.1, -3.0, -2.0, -0.5, -2.0],
        ranks=[7, 1, 2, 1, 1, 2, 3, 1, 2],
    )
    found = [(ids.tolist(), values.tolist()) for ids, values in best_by_rank(table, 2)]
    assert found == [([], []), ([4, 2], [-0.1, -3.0]), ([4, 2], [-0.1, -3.0]), ([1, 4], [-0.5, -2.0])]
    assert best_by_rank(table, 1)[1][0].tolist() == [4]
    assert best_by_rank(table, 2)[0][0].dtype == np.int64


def test_another_temperature_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path / "m")
    with pytest.raises(CandidateError, match="at temperature 1 alone"):
        make(opening(tmp_path / "m", temperature=2.0))


@pytest.mark.parametrize(
    ("free", "whole", "weights", "bytes_taken"),
    [
        (70, 80, 1, 35.0),  # half is left to the student, whose moments are still to come
        (20, 80, 1, 10.0),  # of what is free, not of the whole
        (20, 80, 12, 14.0),  # the weights and 2 GiB beside them
        (20, 80, 30, 18.0),  # never all of it: vLLM then says that they do not fit
    ],
)
def test_an_engine_on_a_gpu_leaves_room_for_the_student(
    free: int, whole: int, weights: int, bytes_taken: float
) -> None:
    gib = 1 << 30
    share = memory_share(free * gib, whole * gib, weights * gib)
    assert share * whole == pytest.approx(bytes_taken, abs=0.01)


def test_the_share_of_a_gpu_is_that_of_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine is started with; a share of the user's own wins."""
    from evolve.stages.distill.teachers import vllm as module

    asked: list[dict[str, Any]] = []

    def engine(**arguments: Any) -> Any:
        asked.append(arguments)
        return SimpleNamespace(llm_engine=SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: None)))

    make_model(tmp_path / "m")
    monkeypatch.setattr(module, "_on_cpu", lambda: False)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=engine))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40 << 30, 80 << 30))
    for arguments in ({}, {"gpu_memory_utilization": 0.7}):
        make(opening(tmp_path / "m", max_length=40), engine_args=arguments).close()
    assert [one["gpu_memory_utilization"] for one in asked] == [0.25, 0.7]

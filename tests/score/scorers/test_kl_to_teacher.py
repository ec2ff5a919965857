"""The distance to a teacher beside a float64 computation, one text at a time."""

from __future__ import annotations

import json
import math
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evolve.errors import CandidateError
from evolve.registry import ENGINES
from evolve.score.scorer import Scorer
from evolve.score.scorers.base import ScorerProblem
from evolve.score.scorers.kl_to_teacher import KlToTeacher, KlToTeacherBlock
from evolve.stages.distill.measure import kl_to
from evolve.stages.distill.signals import Signals, TopK
from evolve.tensors.logits import Head, Logits
from evolve.weights.reader import open_model
from tests.score.scorers.held import config, score
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.score.engines.base import Engine

TEXTS = ["the red hen", "and the rat; one and ten.", "a", "then on and on to the end " * 3, "an ore, a net"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("kl")
    make_model(home / "teacher", "qwen2", seed=9, layers=3)
    (home / "text.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS))
    return home / "teacher", home / "text.jsonl"


def oracle(folder: Path, text: str, longest: int) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False).input_ids[:longest]
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        return torch.log_softmax(network(torch.tensor([ids])).logits[0, :-1], dim=-1)


@pytest.mark.parametrize("metric", ["kl", "top1_agreement"])
def test_it_is_the_mean_over_tokens(
    engine: Engine, folder: Path, places: tuple[Path, Path], metric: str
) -> None:
    teacher, text = places
    block = {"model": str(teacher), "path": str(text), "metric": metric, "max_length": 30}
    found = score(engine, {"kl_to_teacher": block})["kl_to_teacher"]
    pairs = []
    for one in TEXTS:
        log_p, log_q = oracle(teacher, one, 30), oracle(folder, one, 30)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        values = kl if metric == "kl" else (log_p.argmax(-1) == log_q.argmax(-1)).double()
        pairs.append((float(values.sum()), len(values)))
    ratio = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
    assert found.value == pytest.approx(ratio, rel=1e-4)
    assert found.higher_is_better == (metric != "kl")
    mean = np.mean([b for _, b in pairs])
    influence = [ratio + (a - ratio * b) / mean for a, b in pairs]
    assert sorted(found.items.values()) == pytest.approx(sorted(influence), rel=1e-3)
    assert found.stderr == pytest.approx(np.std(influence, ddof=1) / math.sqrt(5), rel=1e-3)


def test_the_teacher_itself_is_at_0(places: tuple[Path, Path]) -> None:
    teacher, text = places
    entry = {"kl_to_teacher": {"model": str(teacher), "path": str(text)}}
    with closing(ENGINES.load("hf")(config(entry), open_model(teacher), 1)) as engine:
        assert score(engine, entry)["kl_to_teacher"].value == pytest.approx(0, abs=1e-6)
        entry["kl_to_teacher"]["metric"] = "top1_agreement"
        assert score(engine, entry)["kl_to_teacher"].value == 1


def test_the_teacher_reads_once(engine: Engine, places: tuple[Path, Path], monkeypatch: Any) -> None:
    teacher, text = places
    scorer = Scorer(config({"kl_to_teacher": {"model": str(teacher), "path": str(text)}}))
    first = scorer.score(engine, "search")
    import evolve.stages.distill.teachers.hf as module

    monkeypatch.setattr(module, "open_frozen", lambda *_: pytest.fail("opened again"))
    assert scorer.score(engine, "search") == first


def test_what_decides_the_score_is_in_its_identity(places: tuple[Path, Path], tmp_path: Path) -> None:
    teacher, text = places
    make_model(tmp_path / "other", seed=10)

    def fingerprint(**changes: Any) -> str:
        block = {"model": str(teacher), "path": str(text), **changes}
        return Scorer(config({"kl_to_teacher": block})).fingerprint

    same = fingerprint()
    (tmp_path / "copy.jsonl").write_text(text.read_text())
    assert fingerprint(path=str(tmp_path / "copy.jsonl")) == same
    assert fingerprint(model=str(tmp_path / "other")) != same
    assert fingerprint(max_length=7) != same
    assert fingerprint(metric="top1_agreement") != same


def test_what_cannot_be_compared(engine: Engine, places: tuple[Path, Path], tmp_path: Path) -> None:
    teacher, text = places
    make_model(tmp_path / "other", vocab=120)
    with pytest.raises(CandidateError, match="one tokenizer: the candidate has 128 tokens, the other 120"):
        score(engine, {"kl_to_teacher": {"model": str(tmp_path / "other"), "path": str(text)}})
    for changes, key in (
        ({"model": str(tmp_path / "no")}, "model"),
        ({"path": str(tmp_path / "no")}, "path"),
        ({"items": 99}, "items"),
        ({"key": "x"}, "path"),
    ):
        block = KlToTeacherBlock.model_validate({"model": str(teacher), "path": str(text), **changes})
        with pytest.raises(ScorerProblem) as caught:
            KlToTeacher(block, config({"size": {}}))
        assert caught.value.key == key
    short = tmp_path / "short.txt"
    short.write_text("a")
    with pytest.raises(CandidateError, match="nothing to measure on"):
        score(engine, {"kl_to_teacher": {"model": str(teacher), "path": str(short)}})


def test_padding_of_head_and_batch_does_not_count() -> None:
    draw = torch.Generator().manual_seed(0)
    p, q = (torch.randn((2, 4, 9), generator=draw, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([[1, 2, 3, -100], [-100, 2, -100, 4]])
    wide = torch.cat([p, 90 + torch.zeros((2, 4, 3))], dim=-1)
    found = kl_to(Signals(Logits(wide)), Signals(Logits(q)), labels, vocabulary=9)
    assert found.rows.tolist() == [0, 1, 4, 6]
    log_p, log_q = p.log_softmax(-1).view(8, 9)[found.rows], q.log_softmax(-1).view(8, 9)[found.rows]
    torch.testing.assert_close(found.kl.double(), (log_p.exp() * (log_p - log_q)).sum(-1), rtol=1e-5, atol=0)
    assert torch.equal(found.agrees, log_p.argmax(-1) == log_q.argmax(-1))
    none = kl_to(Signals(Logits(p)), Signals(Logits(q)), torch.full((2, 4), -100), vocabulary=9)
    assert len(none.kl) == 0


def test_scores_that_do_not_fit() -> None:
    logits = Signals(Logits(torch.zeros((1, 3, 5))))
    labels = torch.zeros((1, 3), dtype=torch.int64)
    best = Signals(TopK(torch.zeros((1, 3, 2), dtype=torch.int64), torch.zeros((1, 3, 2))))
    with pytest.raises(ValueError, match="teacher's whole distribution"):
        kl_to(best, logits, labels, vocabulary=5)
    with pytest.raises(ValueError, match="student's whole distribution"):
        kl_to(logits, Signals(), labels, vocabulary=5)
    with pytest.raises(ValueError, match="6 tokens, but 5 and 5 logits"):
        kl_to(logits, logits, labels, vocabulary=6)
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(1, 3\) tokens, labels \(1, 2\)"):
        kl_to(logits, logits, labels[:, :2], vocabulary=5)
    head = Signals(Head(torch.zeros((1, 3, 2)), torch.zeros((5, 2))))
    assert kl_to(logits, head, labels, vocabulary=5).kl.tolist() == [0, 0]

"""A captured teacher beside the whole distribution in float64, and captures that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.errors import CandidateError, UserError
from evolve.registry import TEACHERS
from evolve.stages.distill.capture import capture
from evolve.stages.distill.captured import (
    MANIFEST,
    Captured,
    CaptureKey,
    log_p_of,
    steps_of,
    tokenizer_key,
)
from evolve.stages.distill.objective import distillation_loss
from evolve.stages.distill.signals import Signals, TopK, count_items
from evolve.stages.distill.teachers.base import batch_of
from evolve.stages.distill.terms import make_terms
from evolve.stages.distill.top_k import best_of, tempered
from evolve.tensors.logits import Logits
from tests.stages.distill.teachers.kit import documents, opening, packed, reference
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

V = 128


class Stub:
    """A teacher whose logits are a function of the token, in no time."""

    def __init__(self, vocabulary: int = V, pause: float = 0.0, scale: float = 3.0) -> None:
        table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(1))
        self.table = scale * table
        self.pause = pause
        self.closed = 0
        self.asked = 0

    def signals(self, batch: Any, **_: Any) -> Signals:
        time.sleep(self.pause)
        self.asked += 1
        return Signals(Logits(self.table[batch.tokens % len(self.table)]))

    def close(self) -> None:
        self.closed += 1


def key_of(**changes: Any) -> CaptureKey:
    plain = CaptureKey("sha256:a", "sha256:b", "sha256:c", 8, (1.0,), 32, V)
    return replace(plain, **changes)


def block(folder: Path) -> Any:
    data = {"kind": "dataset", "path": str(folder / MANIFEST)}
    return TEACHERS.load("dataset").block.model_validate(data)


def teacher(folder: Path, where: Any) -> Any:
    return TEACHERS.load("dataset")(block(folder), where)


@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 2.0, 0.5)])
@pytest.mark.parametrize("k", [1, 8, V])
def test_what_is_read_is_what_the_teacher_said(
    tmp_path: Path, k: int, temperatures: tuple[float, ...]
) -> None:
    make_model(tmp_path / "m")
    where = opening(tmp_path / "m")
    found = documents(12, seed=2)
    stub = Stub()
    key = key_of(top_k=k, temperatures=temperatures, tokenizer=tokenizer_key(where.student))
    seen: list[Any] = []
    manifest = capture(lambda: stub, found, tmp_path / "c", key, shard_tokens=40, progress=seen.append)
    assert manifest == tmp_path / "c" / MANIFEST
    assert stub.closed == 1
    assert len(list((tmp_path / "c").glob("shard-*"))) == len(seen) > 1
    assert seen[-1].tokens == sum(map(len, found)) and seen[-1].documents == 12
    row = packed(found)
    batch = batch_of([row])
    for temperature in temperatures:
        scores = teacher(tmp_path / "c", replace(where, temperature=temperature)).signals(batch).scores
        assert isinstance(scores, TopK) and scores.temperature == temperature
        truth = torch.log_softmax(stub.table.double()[batch.tokens[0]] / temperature, dim=-1)
        best, order = truth.topk(k, dim=-1)
        assert torch.equal(scores.tokens[0], order)
        # A step of 1/4096 at temperature 1, divided by T.
        allowed = 3e-4 * max(1, 1 / temperature) + 1e-5
        torch.testing.assert_close(scores.log_p[0].double(), best, atol=2 * allowed, rtol=0)
        rest = 1 - scores.log_p[0].double().exp().sum(-1)
        torch.testing.assert_close(rest, 1 - best.exp().sum(-1), atol=2e-6, rtol=1e-3)


def test_a_loss_of_a_captured_teacher_is_near_that_of_the_live_one(tmp_path: Path) -> None:
    make_model(tmp_path / "m", seed=1)
    where = opening(tmp_path / "m")
    found = documents(30, seed=4)
    live = TEACHERS.load("hf")
    key = key_of(top_k=V, temperatures=(1.0, 2.0), tokenizer=tokenizer_key(where.student))
    capture(
        lambda: live(live.block.model_validate({"kind": "hf", "model": "m"}), where),
        found,
        tmp_path / "c",
        key,
    )
    rows = [packed(found[5:12]), packed(found[20:30])]
    batch = batch_of(rows)
    labels = torch.full(batch.shape, -100)
    for number, row in enumerate(rows):
        labels[number, : len(row)] = torch.from_numpy(row.labels.astype("int64"))
    student = torch.randn((*batch.shape, V), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = reference(tmp_path / "m")
    for temperature in (1.0, 2.0):
        terms = make_terms([{"function": "kl", "temperature": temperature}])
        signals = teacher(tmp_path / "c", replace(where, temperature=temperature)).signals(batch)
        loss = distillation_loss(
            terms, Signals(Logits(student)), signals, labels, num_items=count_items(labels)
        )
        total = 0.0
        for row, begin, end in batch.spans():
            with torch.no_grad():
                logits = network(batch.tokens[row : row + 1, begin:end]).logits[0, :-1]
            log_p = torch.log_softmax(logits / temperature, -1)
            log_q = torch.log_softmax(student[row, begin : end - 1] / temperature, -1)
            total += float((log_p.exp() * (log_p - log_q)).sum()) * temperature**2
        assert loss.total.item() == pytest.approx(total / count_items(labels).item(), rel=1e-4)


def test_a_document_is_found_by_its_beginning_and_nothing_else_is(tmp_path: Path) -> None:
    found = documents(40, seed=6, longest=6, vocabulary=6)
    capture(lambda: Stub(), found, tmp_path, key_of(), shard_tokens=30)
    captured = Captured(tmp_path)
    known = {tuple(one[:n]) for one in found for n in range(1, len(one) + 1)}
    for length in range(1, 5):
        for flat in np.ndindex(*(3,) * length):
            asked = np.array(flat, np.int64) + 3
            document = captured.find(asked)
            assert (document is not None) == (tuple(asked) in known)
            if document is not None:
                assert document.tokens.tolist() == asked.tolist() and len(document.odds) == length
    assert captured.find(np.array([], np.int64)) is None
    assert captured.find(np.array([-1])) is None
    assert captured.find(np.array([3 + 65536])) is None, "ids are not folded"


def test_large_vocabularies_have_wide_ids(tmp_path: Path) -> None:
    size = 70_000

    class Wide(Stub):
        def signals(self, batch: Any, **_: Any) -> Signals:
            logits = torch.zeros((*batch.shape, size))
            logits[..., 69_999] = 5.0
            return Signals(Logits(logits))

    capture(lambda: Wide(), [np.array([69_998, 3], np.int32)], tmp_path, key_of(vocabulary=size, top_k=2))
    found = Captured(tmp_path).find(np.array([69_998]))
    assert found is not None
    assert found.best.dtype == np.uint32 and found.best[0, 0] == 69_999


@given(st.lists(st.floats(-31.9, 0), min_size=1, max_size=20))
def test_the_stated_error(values: list[float]) -> None:
    given_ = np.array(values, np.float32)
    assert np.abs(log_p_of(steps_of(given_)) - given_).max() <= 2.5e-4
    assert np.isneginf(log_p_of(steps_of(np.array([-np.inf], np.float32)))).all()
    assert log_p_of(steps_of(np.array([-1e4], np.float32)))[0] == pytest.approx(-32, abs=0.01)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([0.3, 1.0, 3.0]), st.floats(0.1, 200))
def test_k_and_rest_are_one_at_any_temperature(seed: int, k: int, temperature: float, scale: float) -> None:
    logits = scale * torch.randn((1, 3, 10), generator=torch.Generator().manual_seed(seed))
    best = best_of(Logits(logits), torch.arange(3), k, (1.0, temperature), 10)
    log_p = tempered(best.log_p, best.odds[:, 1], temperature)
    rest = torch.sigmoid(best.odds[:, 1].double())
    assert torch.allclose(log_p.double().exp().sum(-1) + rest, torch.ones(3).double(), atol=1e-5)
    truth = torch.log_softmax(logits[0].double() / temperature, -1).gather(1, best.tokens)
    # Logits of size s are known to s * 1e-7.
    assert torch.allclose(log_p.double(), truth, atol=1e-5 + 1e-6 * scale / temperature)


def test_padding_is_no_token() -> None:
    logits = torch.zeros((1, 2, 20))
    logits[..., 15:] = 50
    best = best_of(Logits(logits), torch.arange(2), 20, (1.0,), 15)
    assert best.tokens.shape == (2, 15) and int(best.tokens.max()) < 15
    assert torch.isneginf(best.odds).all()


def test_a_servers_tokens_are_sorted_cut_and_have_a_rest() -> None:
    log_p = torch.tensor([[[0.2, 0.5, 0.1]]]).log()
    served = TopK(torch.tensor([[[4, 9, 2]]]), log_p)
    best = best_of(served, torch.arange(1), 2, (1.0,), 12)
    assert best.tokens.tolist() == [[9, 4]]
    assert torch.sigmoid(best.odds)[0, 0].item() == pytest.approx(0.3, rel=1e-5)
    with pytest.raises(ValueError, match="gives 3 tokens, 4"):
        best_of(served, torch.arange(1), 4, (1.0,), 12)
    with pytest.raises(ValueError, match="temperature 1"):
        best_of(served, torch.arange(1), 2, (1.0, 2.0), 12)


def content(folder: Path) -> list[Any]:
    captured = Captured(folder)
    return [
        [part.tobytes() for part in shard.document(n)] for shard in captured.shards for n in range(len(shard))
    ]


def test_killed_at_any_instant_it_goes_on_to_the_same_capture(tmp_path: Path) -> None:
    found = documents(60, seed=7)
    capture(lambda: Stub(), found, tmp_path / "whole", key_of(), shard_tokens=20)
    draw = random.Random(0)
    kills = 0
    for _ in range(60):
        child = os.fork()
        if child == 0:
            try:
                capture(lambda: Stub(pause=0.001), found, tmp_path / "killed", key_of(), shard_tokens=20)
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0.005, 0.06))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        if (tmp_path / "killed" / MANIFEST).exists():
            break
    stub = Stub()
    capture(lambda: stub, found, tmp_path / "killed", key_of(), shard_tokens=20)
    assert kills > 1
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".*.partial"))
    assert (tmp_path / "killed" / MANIFEST).read_bytes() == (tmp_path / "whole" / MANIFEST).read_bytes()


def test_a_finished_capture_asks_nobody(tmp_path: Path) -> None:
    capture(lambda: Stub(), documents(3), tmp_path, key_of())
    capture(lambda: pytest.fail("opened"), documents(3), tmp_path, key_of())
    with pytest.raises(UserError, match=r"top_k: 8, not 9.*another folder"):
        capture(lambda: pytest.fail("opened"), documents(3), tmp_path, key_of(top_k=9))


def test_a_part_of_another_capture_is_refused(tmp_path: Path) -> None:
    capture(lambda: Stub(), documents(3), tmp_path, key_of())
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(UserError, match="a part of another capture"):
        capture(lambda: pytest.fail("opened"), documents(3), tmp_path, key_of(data="sha256:x"))
    with pytest.raises(UserError, match="another text"):
        capture(lambda: Stub(), documents(2), tmp_path, key_of())


@pytest.mark.parametrize("harm", ["cut", "flip", "head", "gone", "empty"])
def test_a_damaged_shard_is_captured_again_with_all_behind_it(tmp_path: Path, harm: str) -> None:
    found = documents(20, seed=7)
    capture(lambda: Stub(), found, tmp_path / "whole", key_of(), shard_tokens=20)
    capture(lambda: Stub(), found, tmp_path / "c", key_of(), shard_tokens=20)
    shard = tmp_path / "c" / "shard-00002.safetensors"
    raw = shard.read_bytes()
    changed = {
        "cut": raw[:-3],
        "flip": raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:],
        "head": b"\xff" * 40 + raw[40:],
        "empty": b"",
    }
    if harm == "gone":
        shard.unlink()
    else:
        shard.write_bytes(changed[harm])
    with pytest.raises(UserError, match=r"shard-00002.*(remove|again)"):
        Captured(tmp_path / "c")
    (tmp_path / "c" / MANIFEST).unlink()
    stub = Stub()
    capture(lambda: stub, found, tmp_path / "c", key_of(), shard_tokens=20)
    assert content(tmp_path / "c") == content(tmp_path / "whole")
    assert 0 < stub.asked < 20, "the first two shards were kept"


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    class Nested(Stub):
        def signals(self, batch: Any, **more: Any) -> Signals:
            with pytest.raises(UserError, match="another process"):
                capture(lambda: Stub(), documents(3), tmp_path, key_of())
            return super().signals(batch, **more)

    capture(lambda: Nested(), documents(3), tmp_path, key_of())


def test_what_broke_on_the_way_is_closed_and_kept(tmp_path: Path) -> None:
    stub = Stub()

    def stops() -> Any:
        yield from documents(20, seed=7)[:10]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(lambda: stub, stops(), tmp_path, key_of(), shard_tokens=20)
    assert stub.closed == 1 and not (tmp_path / MANIFEST).exists()
    again = Stub()
    capture(lambda: again, documents(20, seed=7), tmp_path, key_of(), shard_tokens=20)
    assert again.asked < stub.asked + 20


def test_nan_is_no_capture(tmp_path: Path) -> None:
    stub = Stub()
    stub.table[:] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        capture(lambda: stub, documents(3), tmp_path, key_of())
    with pytest.raises(UserError, match="no document"):
        capture(lambda: Stub(), [], tmp_path, key_of())


def test_what_a_captured_teacher_refuses(tmp_path: Path) -> None:
    make_model(tmp_path / "m")
    make_model(tmp_path / "other", vocab=120)
    where = opening(tmp_path / "m")
    found = documents(5)
    capture(lambda: Stub(), found, tmp_path / "c", key_of(tokenizer=tokenizer_key(where.student)))
    with pytest.raises(CandidateError, match="another tokenizer than the student's"):
        teacher(tmp_path / "c", opening(tmp_path / "other"))
    with pytest.raises(CandidateError, match=r"temperatures 1, .* at 2: .*--temperature 2"):
        teacher(tmp_path / "c", replace(where, temperature=2.0))
    good = teacher(tmp_path / "c", where)
    with pytest.raises(CandidateError, match=r"does not hold a document of 4 tokens .*max_length"):
        good.signals(batch_of([packed([np.array([5, 5, 5, 5], np.int32)])]))
    with pytest.raises(CandidateError, match="no hidden states"):
        good.signals(batch_of([packed(found)]), hidden=True)
    with pytest.raises(UserError, match="when it is finished"):
        teacher(tmp_path / "nowhere", where)
    manifest = tmp_path / "c" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        teacher(tmp_path / "c", where)
    manifest.write_text("{}")
    with pytest.raises(UserError, match="not what"):
        teacher(tmp_path / "c", where)

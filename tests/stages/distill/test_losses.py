"""Every loss over the vocabulary against a derivation by hand; masks, denominators, limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.stages.distill.objective import distillation_loss
from evolve.stages.distill.signals import Signals, count_items
from evolve.stages.distill.terms import make_terms
from evolve.tensors.logits import Logits
from tests.stages.distill import reference
from tests.stages.distill.batches import (
    DIVERGENCES,
    FAMILIES,
    OVER_VOCABULARY,
    Batch,
    batches,
    logits_loss,
    make_batch,
)

VALUES = {"jsd": {"beta": 0.3}, "skew_kl": {"alpha": 0.2}, "skew_reverse_kl": {"alpha": 0.2}}


def entry(name: str, temperature: float = 1.0, **values: float) -> dict[str, Any]:
    given = {"function": name, **VALUES.get(name, {}), **values}
    return given if name == "cross_entropy" else {**given, "temperature": temperature}


@pytest.mark.parametrize("name", OVER_VOCABULARY)
@given(batch=batches(), temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0]), extra=st.integers(0, 5))
def test_value_and_gradient_by_hand(name: str, batch: Batch, temperature: float, extra: int) -> None:
    if name == "cross_entropy":
        temperature = 1.0
    items = batch.items + extra
    expected = reference.batch(
        name,
        batch.student.numpy(),
        batch.teacher.numpy(),
        batch.labels.numpy(),
        vocabulary=batch.vocabulary,
        temperature=temperature,
        values=VALUES.get(name, {}),
        num_items=items,
    )
    # The chunk changes the order of sums alone.
    for dtype, relative in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        found, gradient = logits_loss([entry(name, temperature)], batch, dtype, num_items=items, chunk=2)
        size = temperature ** reference.POWER.get(name, 2)
        assert found.total.item() == pytest.approx(expected.value, rel=relative, abs=size * relative)
        assert found.terms.tolist() == pytest.approx([expected.value], rel=relative, abs=size * relative)
        np.testing.assert_allclose(gradient.numpy(), expected.gradient, rtol=relative, atol=size * relative)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_equal_distributions_cost_nothing(name: str, temperature: float) -> None:
    batch = make_batch(padding=(2, 2))
    batch.teacher = batch.student + 7.5  # the same distribution
    found, gradient = logits_loss([entry(name, temperature)], batch, torch.float64)
    assert abs(found.total.item()) < 1e-12
    assert gradient.abs().max() < (0.2 if name == "tvd" else 1e-12)  # total variation has a corner there


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kl", 0.75 * math.log(3) + 0.25 * math.log(1 / 3)),
        ("reverse_kl", 0.25 * math.log(1 / 3) + 0.75 * math.log(3)),
        ("jsd", 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        ("tvd", 0.5),
        ("cross_entropy", math.log(4)),
    ],
)
def test_two_tokens(name: str, expected: float) -> None:
    """The teacher says 3/4 and 1/4, the student 1/4 and 3/4, the label is the first."""
    logits = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    batch = Batch(
        torch.stack([logits.flip(1), logits], 1), torch.stack([logits, logits], 1), torch.tensor([[1, 0]]), 2
    )
    functions = [{"function": name, **({"beta": 0.5} if name == "jsd" else {})}]
    assert logits_loss(functions, batch)[0].total.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", OVER_VOCABULARY)
def test_chunks_are_the_plain_loss(name: str) -> None:
    """To the rounding of sums; each row's gradient to that of a row."""
    batch = make_batch(size=(3, 9), vocabulary=40)
    plain, gradient = logits_loss([entry(name, 2.0)], batch, chunk=1000)
    for chunk in (1, 2, 5, 24):
        found, other = logits_loss([entry(name, 2.0)], batch, chunk=chunk)
        assert found.total.item() == pytest.approx(plain.total.item(), rel=1e-6)
        # A vector instruction may round the last elements of a chunk otherwise.
        torch.testing.assert_close(other, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", OVER_VOCABULARY)
def test_masked_tokens_do_not_matter_at_all(name: str) -> None:
    batch = make_batch(size=(2, 8), ignored=0.5)
    plain, gradient = logits_loss([entry(name)], batch)
    predicting = torch.zeros(batch.labels.shape, dtype=torch.bool)
    predicting[:, :-1] = batch.labels[:, 1:] != -100
    for logits in (batch.student, batch.teacher):
        logits[~predicting] = math.nan
    found, other = logits_loss([entry(name)], batch)
    assert torch.equal(found.total, plain.total)
    assert torch.equal(other, gradient)
    assert not other[~predicting].any()


@pytest.mark.parametrize("name", OVER_VOCABULARY)
@pytest.mark.parametrize("items", [0, 7])
def test_nothing_to_learn_from_is_zero(name: str, items: int) -> None:
    for size in ((2, 4), (2, 1)):
        batch = make_batch(size=size, ignored=1.1)
        found, gradient = logits_loss([entry(name)], batch, num_items=items)
        assert found.total.item() == 0
        assert not gradient.any()


def test_micro_batches_add_up_to_the_batch() -> None:
    """Of other lengths and paddings: the one denominator is that of the whole step."""
    whole = make_batch(size=(5, 8), ignored=0.4)
    parts = [slice(0, 1), slice(1, 4), slice(4, 5)]
    functions = [*FAMILIES, {"function": "kl", "temperature": 2.0, "weight": 3.0}]
    expected, gradient = logits_loss(functions, whole)
    total = torch.zeros(())
    for part in parts:
        batch = Batch(whole.student[part], whole.teacher[part], whole.labels[part], whole.vocabulary)
        found, piece = logits_loss(functions, batch, num_items=whole.items)
        total = total + found.total.detach()
        torch.testing.assert_close(piece, gradient[part], rtol=1e-5, atol=1e-7)
    assert total.item() == pytest.approx(expected.total.item(), rel=1e-6)


def test_left_and_right_padding_are_the_same() -> None:
    batch = make_batch(size=(2, 6))
    expected, _ = logits_loss(FAMILIES, batch)
    pad = torch.full((2, 3), -100)
    junk = torch.full((2, 3, batch.vocabulary), 1e4, dtype=torch.float64)
    for left in (True, False):

        def padded(values: torch.Tensor, more: torch.Tensor, left: bool = left) -> torch.Tensor:
            return torch.cat([more, values] if left else [values, more], dim=1)

        # The first token of a sequence is predicted by nothing; behind padding it would be.
        labels = batch.labels.clone()
        labels[:, 0] = -100
        moved = Batch(
            padded(batch.student, junk), padded(batch.teacher, junk), padded(labels, pad), batch.vocabulary
        )
        assert torch.allclose(logits_loss(FAMILIES, moved)[0].terms, expected.terms, rtol=1e-6)


@pytest.mark.parametrize("name", OVER_VOCABULARY)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_large_logits_are_finite(name: str, size: float, temperature: float) -> None:
    batch = make_batch(size=(3, 7))
    batch.student = size * batch.student.sign()
    batch.teacher = size * batch.teacher.sign()
    for dtype in (torch.float32, torch.bfloat16):
        found, gradient = logits_loss([entry(name, temperature)], batch, dtype)
        assert found.total.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", OVER_VOCABULARY)
def test_forbidden_tokens_are_finite(name: str) -> None:
    """-inf in either model or in both; labels that are allowed."""
    batch = make_batch(size=(3, 7))
    batch.labels[batch.labels >= 0] = 0
    batch.student[..., 3:6] = -math.inf
    batch.teacher[..., 5:8] = -math.inf
    for dtype in (torch.float32, torch.float64):
        found, gradient = logits_loss([entry(name, 2.0)], batch, dtype)
        assert found.total.isfinite()
        assert gradient.isfinite().all()
        assert not gradient[..., 3:6].any()


@pytest.mark.parametrize("name", OVER_VOCABULARY)
def test_bfloat16_logits_are_worked_on_in_float32(name: str) -> None:
    batch = make_batch(size=(3, 7), vocabulary=500, scale=1.0)
    batch.teacher = batch.student + 0.02 * batch.teacher
    batch.student, batch.teacher = (x.to(torch.bfloat16).double() for x in (batch.student, batch.teacher))
    expected, gradient = logits_loss([entry(name)], batch, torch.float32)
    found, rounded = logits_loss([entry(name)], batch, torch.bfloat16)
    assert torch.equal(found.total, expected.total)
    assert found.total.item() >= 0  # the softmax in bfloat16 makes it negative
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, gradient.to(torch.bfloat16))


def test_float16_gradients_of_many_tokens_do_not_vanish() -> None:
    """The loss scaler of float16 multiplies after the loss; what it multiplies must still be there."""
    batch = make_batch(size=(3, 7))
    student = batch.student.half().requires_grad_()
    signals = Signals(Logits(batch.teacher.half()))
    found = distillation_loss(
        make_terms(FAMILIES), Signals(Logits(student)), signals, batch.labels, num_items=10**8
    )
    (found.total * 2.0**26).backward()
    assert student.grad is not None
    _, expected = logits_loss(FAMILIES, batch, torch.float32, num_items=10**8)
    torch.testing.assert_close(student.grad.float(), expected * 2.0**26, rtol=5e-2, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "tvd"])
def test_the_factor_keeps_the_size_of_the_gradient(name: str) -> None:
    """In Hinton's limit of a high temperature; T itself for total variation."""
    batch = make_batch(scale=0.5)
    sizes = [logits_loss([entry(name, t)], batch, torch.float64)[1].norm().item() for t in (50.0, 100.0)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_the_factor_of_total_variation_is_t() -> None:
    batch = make_batch(scale=0.5)
    sizes = [logits_loss([entry("tvd", t)], batch, torch.float64)[1].norm().item() for t in (50.0, 100.0)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_terms_are_averaged_with_their_weights() -> None:
    batch = make_batch()
    functions = [{**entry(name, 1.5), "weight": 0.5 + index} for index, name in enumerate(OVER_VOCABULARY)]
    found, gradient = logits_loss(functions, batch, torch.float64)
    alone = [logits_loss([function], batch, torch.float64) for function in functions]
    weights = torch.tensor([function["weight"] for function in functions], dtype=torch.float64)
    shares = weights / weights.sum()
    assert torch.allclose(found.terms, torch.stack([one.total.detach() for one, _ in alone]))
    assert torch.allclose(found.total, (found.terms * shares).sum())
    expected = sum(share * one for share, (_, one) in zip(shares, alone, strict=True))
    torch.testing.assert_close(gradient, expected)


def test_padding_of_the_vocabulary_does_not_matter() -> None:
    """Columns behind the real tokens, of any value and number, change neither loss nor gradient."""
    plain = make_batch(size=(2, 5))
    expected, gradient = logits_loss(FAMILIES, plain)
    for ours, theirs in ((3, 0), (0, 128), (2, 5)):
        batch = make_batch(size=(2, 5))
        junk = torch.full((2, 5, max(ours, theirs)), 50.0, dtype=torch.float64)
        batch.student = torch.cat([batch.student, junk[..., :ours]], -1)
        batch.teacher = torch.cat([batch.teacher, junk[..., :theirs]], -1)
        found, other = logits_loss(FAMILIES, batch)
        assert torch.equal(found.terms, expected.terms)
        assert torch.equal(other[..., : batch.vocabulary], gradient)
        assert not other[..., batch.vocabulary :].any()


def test_signals_that_do_not_fit_are_refused() -> None:
    batch = make_batch(padding=(0, 4))
    terms, labels = make_terms(FAMILIES), batch.labels
    student, teacher = Signals(Logits(batch.student)), Signals(Logits(batch.teacher))

    def loss(*arguments: Any, **options: Any) -> None:
        distillation_loss(terms, *arguments, num_items=1, **options)

    with pytest.raises(ValueError, match="11 logits, the teacher 15"):
        loss(student, teacher, labels)
    with pytest.raises(ValueError, match="a vocabulary of 12 tokens"):
        loss(student, teacher, labels, vocabulary=12)
    with pytest.raises(ValueError, match="compares with a teacher"):
        loss(student, None, labels)
    with pytest.raises(ValueError, match="the teacher's scores are for"):
        loss(student, Signals(Logits(batch.teacher[:, 1:])), labels, vocabulary=11)
    with pytest.raises(ValueError, match="needs the student's logits"):
        loss(Signals(), teacher, labels, vocabulary=11)
    with pytest.raises(ValueError, match="is outside the vocabulary of 3"):
        loss(student, teacher, labels, vocabulary=3)
    with pytest.raises(ValueError, match="token -1 is outside the vocabulary of 11"):
        loss(student, teacher, torch.where(labels == -100, -1, labels), vocabulary=11)


def test_the_teacher_gets_no_gradient_and_evaluation_computes_none() -> None:
    batch = make_batch()
    teacher = batch.teacher.clone().requires_grad_()
    student = batch.student.clone().requires_grad_()
    terms, labels = make_terms(FAMILIES), batch.labels
    options: dict[str, Any] = {"num_items": count_items(labels)}
    found = distillation_loss(terms, Signals(Logits(student)), Signals(Logits(teacher)), labels, **options)
    found.total.backward()
    assert teacher.grad is None
    assert student.grad is not None
    with pytest.raises(RuntimeError):
        found.total.backward()
    with torch.no_grad():
        again = distillation_loss(
            terms, Signals(Logits(student)), Signals(Logits(teacher)), labels, **options
        )
    assert torch.equal(again.total, found.total)
    assert not again.total.requires_grad
    assert not found.terms.requires_grad

"""Hidden states and attention maps: pairs of layers, projections, values and gradients by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.registry import LOSSES
from evolve.stages.distill.layers import layer_pairs, make_projections
from evolve.stages.distill.losses.base import LayerLoss
from evolve.stages.distill.objective import distillation_loss
from evolve.stages.distill.signals import Signals
from evolve.stages.distill.terms import make_terms
from evolve.tensors.logits import Logits
from tests.stages.distill.batches import make_batch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.stages.distill.layers import Pair
    from evolve.stages.distill.objective import Losses

BETWEEN_LAYERS = tuple(name for name in LOSSES.names() if issubclass(LOSSES.load(name), LayerLoss))
SIZE = (2, 5)


def states(seed: int, layers: int, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (*SIZE, width)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(layers + 1)
    ]


def maps(seed: int, layers: int, heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (SIZE[0], heads, SIZE[1], SIZE[1])
    future = torch.ones(SIZE[1], SIZE[1], dtype=torch.bool).triu(1)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        .masked_fill(future, -math.inf)
        .softmax(-1)
        .requires_grad_()
        for _ in range(layers)
    ]


def signals(name: str, seed: int, layers: int, size: int) -> Signals:
    if LOSSES.load(name).reads == "hidden":
        return Signals(hidden=states(seed, layers, size))
    return Signals(attentions=maps(seed, layers, size))


def tensors(of: Signals) -> list[Tensor]:
    return [*of.hidden, *of.attentions]


def loss(
    function: Mapping[str, Any],
    student: Signals,
    teacher: Signals,
    labels: Tensor,
    *,
    num_items: int = 3,
    projections: Mapping[Pair, Tensor] | None = None,
) -> Losses:
    terms = make_terms([function])
    return distillation_loss(terms, student, teacher, labels, num_items=num_items, projections=projections)


def by_hand(name: str, student: Tensor, teacher: Tensor) -> float:
    """Of one token and one pair of layers, with plain numbers; heads of equal number."""
    s, t = student.tolist(), teacher.tolist()
    if name == "hs_mse":
        return sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
    if name == "hs_cosine":
        return 1 - sum(a * b for a, b in zip(s, t, strict=True)) / (math.hypot(*s) * math.hypot(*t))
    heads = []
    for ours, theirs in zip(s, t, strict=True):
        pairs = list(zip(ours, theirs, strict=True))
        if name == "attention_kl":
            heads.append(sum(b * math.log(b / a) for a, b in pairs if b > 0))
        else:
            heads.append(sum((a - b) ** 2 for a, b in pairs))
    return sum(heads) / len(heads)


def rows(name: str, layer: Tensor, row: int, place: int) -> Tensor:
    return layer[row, place] if LOSSES.load(name).reads == "hidden" else layer[row, :, place]


@pytest.mark.parametrize("name", BETWEEN_LAYERS)
@given(seed=st.integers(0, 500), ignored=st.sampled_from([0.0, 0.5, 1.1]))
def test_values_and_gradients(name: str, seed: int, ignored: float) -> None:
    labels = make_batch(seed, SIZE, ignored=ignored).labels
    student, teacher = signals(name, seed, 2, 3), signals(name, seed + 1, 4, 3)
    found = loss({"function": name}, student, teacher, labels)
    places = [(r, t) for r in range(SIZE[0]) for t in range(SIZE[1] - 1) if labels[r, t + 1] != -100]
    pairs = [(tensors(student)[-2], tensors(teacher)[-3]), (tensors(student)[-1], tensors(teacher)[-1])]
    expected = sum(
        by_hand(name, rows(name, ours, *place), rows(name, theirs, *place))
        for ours, theirs in pairs
        for place in places
    )
    assert found.total.item() == pytest.approx(expected / 2 / 3, rel=1e-9, abs=1e-12)
    found.total.backward()
    for tensor in tensors(teacher):
        assert tensor.grad is None
    for ours, theirs in pairs:
        _check_gradient(name, ours, theirs, places)


def _check_gradient(name: str, ours: Tensor, theirs: Tensor, places: list[tuple[int, int]]) -> None:
    assert ours.grad is not None
    assert ours.grad.isfinite().all()
    left = torch.ones(SIZE, dtype=torch.bool)
    for place in places:
        left[place] = False
        s, t = rows(name, ours, *place).detach(), rows(name, theirs, *place).detach()
        if name == "hs_mse":
            expected = 2 * (s - t) / s.numel()
        elif name == "hs_cosine":
            unit = s / s.norm()
            expected = -(t / t.norm() - unit * (unit @ t) / t.norm()) / s.norm()
        elif name == "attention_kl":
            expected = torch.where(t > 0, -t / s, 0) / len(s)
        else:
            expected = 2 * (s - t) / len(s)
        torch.testing.assert_close(rows(name, ours.grad, *place), expected / 2 / 3, rtol=1e-8, atol=1e-12)
    untouched = ours.grad if LOSSES.load(name).reads == "hidden" else ours.grad.transpose(1, 2)
    assert not untouched[left].any()


@pytest.mark.parametrize("name", BETWEEN_LAYERS)
def test_equal_models_cost_nothing(name: str) -> None:
    labels = make_batch(0, SIZE, ignored=0.0).labels
    student, teacher = signals(name, 1, 3, 4), signals(name, 1, 3, 4)
    found = loss({"function": name, "layer_mapping": "all"}, student, teacher, labels)
    found.total.backward()
    assert abs(found.total.item()) < 1e-12


@pytest.mark.parametrize("name", ["hs_cosine", "hs_mse"])
def test_projections_are_trained_along(name: str) -> None:
    labels = make_batch(0, SIZE, ignored=0.0).labels
    student, teacher = Signals(hidden=states(0, 2, 3)), Signals(hidden=states(1, 4, 6))
    pairs = layer_pairs("even", 2, 4)
    matrices = {pair: m.requires_grad_() for pair, m in make_projections(pairs, 3, 6, seed=0).items()}
    found = loss({"function": name}, student, teacher, labels, projections=matrices)
    found.total.backward()
    projected = Signals(
        hidden=[
            states(0, 2, 3)[0],
            *(states(0, 2, 3)[ours] @ matrices[ours, theirs].detach().double().T for ours, theirs in pairs),
        ]
    )
    teacher = Signals(hidden=states(1, 4, 6))
    torch.testing.assert_close(loss({"function": name}, projected, teacher, labels).total, found.total)
    assert all(m.grad is not None and m.grad.any() for m in matrices.values())
    with pytest.raises(ValueError, match=r"layers \[1, 2\]: states of widths 3 and 6 need a projection"):
        loss({"function": name}, student, teacher, labels)


def test_projections_keep_lengths_and_repeat() -> None:
    pairs = [(1, 2), (2, 4)]
    wider, again = (make_projections(pairs, 3, 7, seed=5) for _ in range(2))
    for pair in pairs:
        assert torch.equal(wider[pair], again[pair])
        torch.testing.assert_close(wider[pair].T @ wider[pair], torch.eye(3), rtol=0, atol=1e-5)
    assert not torch.equal(wider[pairs[0]], wider[pairs[1]])
    narrower = make_projections(pairs, 7, 3, seed=5)
    torch.testing.assert_close(narrower[1, 2] @ narrower[1, 2].T, torch.eye(3), rtol=0, atol=1e-5)
    assert make_projections(pairs, 3, 3, seed=5) == {}
    # The stage hands over seeds of 63 bits.
    largest = make_projections(pairs, 3, 7, seed=2**63 - 1)
    assert not torch.equal(largest[1, 2], wider[1, 2])


def test_heads_of_a_wider_teacher_are_averaged_in_groups() -> None:
    labels = make_batch(0, SIZE, ignored=0.0).labels
    student, teacher = maps(0, 1, 2), maps(1, 1, 6)
    means = [m.unflatten(1, (2, 3)).mean(2) for m in teacher]
    for name in ("attention_kl", "attention_mse"):
        one, two = (
            loss({"function": name}, Signals(attentions=student), Signals(attentions=t), labels)
            for t in (teacher, means)
        )
        torch.testing.assert_close(one.total, two.total)
    with pytest.raises(ValueError, match="6 heads are no multiple of the student's 4"):
        loss(
            {"function": "attention_kl"},
            Signals(attentions=maps(0, 1, 4)),
            Signals(attentions=teacher),
            labels,
        )


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_vectors_without_length_and_very_long_ones(size: float) -> None:
    labels = make_batch(0, SIZE, ignored=0.0).labels
    student = [(size * s).detach().float().requires_grad_() for s in states(0, 1, 4)]
    teacher = Signals(hidden=states(1, 1, 4, torch.float32))
    found = loss({"function": "hs_cosine"}, Signals(hidden=student), teacher, labels, num_items=8)
    found.total.backward()
    expected = (
        1.0
        if size == 0
        else loss(
            {"function": "hs_cosine"}, Signals(hidden=states(0, 1, 4)), teacher, labels, num_items=8
        ).total.item()
    )
    assert found.total.item() == pytest.approx(expected, rel=1e-5)
    assert student[1].grad is not None
    assert student[1].grad.isfinite().all()


def test_attention_of_zero_is_finite() -> None:
    labels = make_batch(0, SIZE, ignored=0.0).labels
    student = torch.zeros(SIZE[0], 2, SIZE[1], SIZE[1], requires_grad=True)
    found = loss(
        {"function": "attention_kl"}, Signals(attentions=[student]), Signals(attentions=maps(0, 1, 2)), labels
    )
    found.total.backward()
    assert found.total.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", BETWEEN_LAYERS)
def test_masked_tokens_may_be_anything(name: str) -> None:
    labels = torch.full(SIZE, -100)
    labels[0, 2] = 1  # predicted at (0, 1)
    student, teacher = signals(name, 0, 1, 3), signals(name, 1, 1, 3)
    expected = loss({"function": name}, student, teacher, labels).total
    for side in (student, teacher):
        for tensor in tensors(side):
            kept = rows(name, tensor, 0, 1).detach().clone()
            tensor.data.fill_(math.nan)
            rows(name, tensor.data, 0, 1).copy_(kept)
    found = loss({"function": name}, student, teacher, labels).total
    found.backward()
    assert torch.equal(found, expected)
    for tensor in tensors(student)[-1:]:
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_losses_of_both_kinds_together() -> None:
    batch = make_batch(0, SIZE)
    student, teacher = (
        Signals(Logits(logits.clone().requires_grad_()), hidden=states(seed, 2, 3))
        for seed, logits in ((0, batch.student), (1, batch.teacher))
    )
    functions: list[dict[str, Any]] = [
        {"function": "hs_cosine", "weight": 0.5},
        {"function": "kl", "weight": 2.0},
        {"function": "hs_mse", "weight": 0.0},
        {"function": "cross_entropy"},
    ]
    found = distillation_loss(make_terms(functions), student, teacher, batch.labels, num_items=4)
    alone = [
        distillation_loss(make_terms([f]), student, teacher, batch.labels, num_items=4).total
        for f in ({"function": "hs_cosine"}, {"function": "kl"}, {"function": "cross_entropy"})
    ]
    expected = (0.5 * alone[0] + 2 * alone[1] + alone[2]) / 3.5
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.terms, torch.stack(alone).detach())
    found.total.backward()
    assert isinstance(student.scores, Logits)
    assert student.scores.values.grad is not None
    assert student.hidden[2].grad is not None
    assert student.hidden[0].grad is None


@pytest.mark.parametrize(
    ("mapping", "student", "teacher", "expected"),
    [
        ("even", 3, 6, ((1, 2), (2, 4), (3, 6))),
        ("even", 2, 3, ((1, 2), (2, 3))),
        ("even", 3, 1, ((1, 1), (2, 1), (3, 1))),
        ("even", 4, 4, ((1, 1), (2, 2), (3, 3), (4, 4))),
        ("all", 2, 2, ((1, 1), (2, 2))),
        ("last", 2, 9, ((2, 9),)),
        (((0, 0), (2, 5)), 2, 5, ((0, 0), (2, 5))),
    ],
)
def test_pairs_of_layers(mapping: Any, student: int, teacher: int, expected: Any) -> None:
    assert layer_pairs(mapping, student, teacher) == expected


@given(st.integers(1, 40), st.integers(1, 80))
def test_even_pairs_rise_and_end_at_the_end(student: int, teacher: int) -> None:
    pairs = layer_pairs("even", student, teacher)
    assert [ours for ours, _ in pairs] == list(range(1, student + 1))
    assert [theirs for _, theirs in pairs] == sorted(theirs for _, theirs in pairs)
    assert pairs[-1] == (student, teacher)
    assert pairs[0][1] >= 1


def test_layers_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="the student has 2 layers, the teacher 3"):
        layer_pairs("all", 2, 3)
    with pytest.raises(ValueError, match=r"\[3, 1\]: there are layers 0 to 2 and 0 to 3"):
        layer_pairs(((3, 1),), 2, 3)
    with pytest.raises(ValueError, match="use even, all, last"):
        layer_pairs("odd", 2, 3)
    labels = make_batch(0, SIZE).labels
    both = Signals(attentions=maps(0, 1, 1))
    with pytest.raises(ValueError, match="layer 0, the embeddings"):
        loss({"function": "attention_kl", "layer_mapping": [[0, 0]]}, both, both, labels)
    with pytest.raises(ValueError, match="needs the attentions of both"):
        loss({"function": "attention_kl"}, Signals(), both, labels)

"""Losses from hidden states and a head: those of the logits, without the logits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from evolve.stages.distill.objective import distillation_loss
from evolve.stages.distill.signals import Signals, count_items
from evolve.stages.distill.terms import make_terms
from evolve.tensors.chunked import chunk_rows
from evolve.tensors.logits import Head, Logits
from tests.stages.distill.batches import FAMILIES, make_batch, make_head

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.stages.distill.objective import Losses

OPTIONS = ({}, {"scale": 0.4}, {"softcap": 2.0}, {"scale": 3.0, "softcap": 1.5})


def loss(student: Head | Logits, teacher: Head | Logits, labels: Tensor, **options: Any) -> Losses:
    options = {"num_items": count_items(labels), **options}
    return distillation_loss(make_terms(FAMILIES), Signals(student), Signals(teacher), labels, **options)


def plain_logits(head: Head) -> Tensor:
    """By autograd, all at once."""
    logits = head.hidden @ head.weight.T
    logits = (logits if head.bias is None else logits + head.bias) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def gradients(tensors: tuple[Tensor, ...], total: Tensor) -> list[Tensor | None]:
    for tensor in tensors:
        tensor.grad = None
    total.backward()
    return [tensor.grad for tensor in tensors]


@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 3), st.integers(1, 6)),
    vocabulary=st.integers(2, 15),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
    options=st.sampled_from(OPTIONS),
    chunk=st.sampled_from([1, 2, 100]),
)
def test_value_and_gradients_are_those_of_the_logits(
    seed: int,
    size: tuple[int, int],
    vocabulary: int,
    padding: tuple[int, int],
    bias: bool,
    options: dict[str, float],
    chunk: int,
) -> None:
    labels = make_batch(seed, size, vocabulary).labels
    kind: dict[str, Any] = {"dtype": torch.float64, "bias": bias, **options}
    student = make_head(seed, size, vocabulary + padding[0], **kind)
    teacher = make_head(seed + 1, size, vocabulary + padding[1], **kind)
    plain = loss(Logits(plain_logits(student)), Logits(plain_logits(teacher)), labels, vocabulary=vocabulary)
    expected = gradients(student.tensors, plain.total)
    found = loss(student, teacher, labels, vocabulary=vocabulary, chunk=chunk)
    torch.testing.assert_close(found.terms, plain.terms)
    for ours, theirs in zip(gradients(student.tensors, found.total), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("trained", [(True, False, False), (False, True, False), (False, False, True)])
def test_what_is_frozen_gets_no_gradient(trained: tuple[bool, ...]) -> None:
    size = (2, 5)
    student, teacher = make_head(1, size, 9), make_head(2, size, 9)
    labels = make_batch(0, size, 9).labels
    expected = gradients(student.tensors, loss(student, teacher, labels).total)
    for tensor, train in zip(student.tensors, trained, strict=True):
        tensor.requires_grad_(train)
    found = gradients(student.tensors, loss(student, teacher, labels).total)
    for ours, theirs, train in zip(found, expected, trained, strict=True):
        if train:
            torch.testing.assert_close(ours, theirs)
        else:
            assert ours is None


def test_gradients_flow_on_through_hidden_states_and_tied_embeddings() -> None:
    size, vocabulary = (2, 5), 12
    labels = make_batch(0, size, vocabulary, ignored=0.0).labels
    teacher = make_head(2, size, vocabulary, dtype=torch.float64)
    table = torch.randn(vocabulary, 5, dtype=torch.float64, requires_grad=True)
    hidden = torch.tanh(table[labels])
    [expected] = gradients((table,), 3 * loss(Logits(hidden @ table.T), teacher, labels).total)
    [found] = gradients(
        (table,), 3 * loss(Head(torch.tanh(table[labels]), table), teacher, labels, chunk=3).total
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("factor", [1.0, -2.5, 0.0])
def test_the_gradient_is_scaled_by_what_follows(factor: float) -> None:
    size = (2, 5)
    student, teacher = (make_head(seed, size, 9) for seed in (1, 2))
    logits = (plain_logits(student).detach().requires_grad_(),)
    labels = make_batch(0, size, 9).labels
    for tensors, source in ((student.tensors, student), (logits, Logits(*logits))):
        plain = gradients(tensors, loss(source, teacher, labels).total)
        found = gradients(tensors, factor * loss(source, teacher, labels).total + 1)
        for ours, one in zip(found, plain, strict=True):
            assert one is not None
            torch.testing.assert_close(ours, factor * one)


def test_sixteen_bits_are_widened_before_the_product() -> None:
    size, vocabulary = (2, 9), 10_000  # more than one block of the matrix
    student, teacher = (make_head(seed, size, vocabulary, bias=False) for seed in (1, 2))
    half = replace(student, hidden=_rounded(student.hidden), weight=_rounded(student.weight))
    wide = replace(half, hidden=_wide(half.hidden), weight=_wide(half.weight))
    labels = make_batch(0, size, vocabulary).labels
    expected, found = loss(wide, teacher, labels), loss(half, teacher, labels)
    torch.testing.assert_close(found.terms, expected.terms, rtol=1e-6, atol=0)
    theirs = gradients(wide.tensors, expected.total)
    for ours, other in zip(gradients(half.tensors, found.total), theirs, strict=True):
        assert ours is not None
        assert other is not None
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), other, rtol=2**-7, atol=1e-7)


def test_autocast_does_not_reach_the_loss() -> None:
    size = (2, 6)
    student, teacher = make_head(1, size, 30), make_head(2, size, 30)
    labels = make_batch(0, size, 30).labels
    matrix = {(1, 1): torch.randn(7, 5, generator=torch.Generator().manual_seed(0))}
    wider = torch.randn(*size, 7, generator=torch.Generator().manual_seed(1))

    def found() -> Tensor:
        sides = Signals(student, [student.hidden] * 2), Signals(teacher, [wider] * 2)
        terms = make_terms([*FAMILIES, {"function": "hs_mse"}])
        return distillation_loss(terms, *sides, labels, num_items=3, projections=matrix).terms

    expected = found()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found(), expected)


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("backward", [False, True])
def test_no_tensor_of_all_tokens_and_the_vocabulary_is_made(backward: bool) -> None:
    size, vocabulary, chunk = (2, 64), 400, 8
    student, teacher = (make_head(seed, size, vocabulary, bias=False) for seed in (1, 2))
    labels = make_batch(0, size, vocabulary).labels
    with Largest() as seen:
        total = loss(student, teacher, labels, chunk=chunk).total
        if backward:
            total.backward()
    assert seen.elements <= chunk * vocabulary
    assert chunk * vocabulary < 128 * vocabulary


def test_the_default_chunk_is_by_bytes() -> None:
    assert chunk_rows(1 << 23) == 1
    assert chunk_rows(1 << 30) == 1
    assert chunk_rows(1 << 13) == 512


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.bfloat16).requires_grad_()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().float().requires_grad_()


def test_signals_of_a_transformers_model() -> None:
    """Hidden states, head and attention maps as a model gives them; its own parameters get the gradient."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def model(seed: int, layers: int) -> Any:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            attn_implementation="eager",
        )
        return LlamaForCausalLM(config).double()

    student, teacher = model(0, 2), model(1, 4)
    tokens = torch.randint(0, 64, (2, 9))
    labels = tokens.clone()
    labels[:, :3] = -100
    functions = [
        *FAMILIES,
        *({"function": f} for f in ("hs_cosine", "hs_mse", "attention_kl", "attention_mse")),
    ]

    def run(whole: bool) -> tuple[Losses, list[Tensor]]:
        student.zero_grad()
        sides = []
        for one in (student, teacher):
            out = one(tokens, output_hidden_states=True, output_attentions=True)
            scores = Logits(out.logits) if whole else Head(out.hidden_states[-1], one.lm_head.weight)
            sides.append(Signals(scores, out.hidden_states, out.attentions))
        found = distillation_loss(
            make_terms(functions), *sides, labels, num_items=count_items(labels), chunk=5
        )
        found.total.backward()
        assert all(parameter.grad is None for parameter in teacher.parameters())
        return found, [parameter.grad.clone() for parameter in student.parameters()]

    expected, theirs = run(whole=True)
    found, ours = run(whole=False)
    torch.testing.assert_close(found.terms, expected.terms)
    assert found.terms[0].item() == pytest.approx(student(tokens, labels=labels).loss.item())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)

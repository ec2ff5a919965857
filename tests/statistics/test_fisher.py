from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from evolve.errors import CandidateError
from evolve.statistics.fisher import diagonal_fisher
from tests.tiny import make_config


class _Output(NamedTuple):
    logits: torch.Tensor


class Bigrams(nn.Module):
    """The smallest language model: the logits of the next token are a row of a matrix."""

    device = torch.device("cpu")

    def __init__(self, tokens: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(tokens, tokens, generator=generator))
        self.unused = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> _Output:
        return _Output(self.table[input_ids])

    def chances(self) -> Any:
        return self.table.detach().double().softmax(-1).numpy()


def some_text(tokens: int, count: int, length: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(tokens, (length,), generator=generator) for _ in range(count)]


def test_sampled_labels_give_the_true_fisher_information() -> None:
    """Of a softmax over logits it is p (1 - p) at each logit, times how often the context comes."""
    network, text = Bigrams(4), some_text(4, 4000, 6)
    contexts = torch.cat([one[:-1] for one in text]).numpy()
    share = np.bincount(contexts, minlength=4) / len(contexts)
    p = network.chances()
    exact = share[:, None] * p * (1 - p)
    found = diagonal_fisher(network, text)["table"].numpy()
    # 20,000 predictions: the error of a mean of squares that are below 1.
    assert np.abs(found - exact).max() < 4 / np.sqrt(20_000)
    assert np.allclose(found, exact, rtol=0.1)
    assert set(diagonal_fisher(network, text[:2])) == {"table"}, "what needs no gradient is left out"


def test_labels_of_the_text_give_the_empirical_fisher_information_of_sequences() -> None:
    network, text = Bigrams(4), some_text(4, 30, 7)
    p = network.chances()
    total = np.zeros((4, 4))
    for one in text:
        gradient = np.zeros((4, 4))
        for x, y in zip(one[:-1].tolist(), one[1:].tolist(), strict=True):
            gradient[x] += np.eye(4)[y] - p[x]
        total += gradient**2
    found = diagonal_fisher(network, text, labels="data")["table"]
    assert np.allclose(found.numpy(), total / (30 * 6), atol=1e-6)


def llama(*, tied: bool) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(make_config(tied=tied)).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_a_transformer_against_plain_gradients(tied: bool) -> None:
    network, text = llama(tied=tied), [*some_text(128, 3, 9), *some_text(128, 1, 4)]
    parameters = dict(network.named_parameters())
    expected = {name: torch.zeros(one.shape, dtype=torch.float64) for name, one in parameters.items()}
    for one in text:
        logits = network(input_ids=one[None]).logits[0, :-1]
        score = logits.log_softmax(-1).gather(1, one[1:, None]).sum()
        gradients = torch.autograd.grad(score, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            expected[name] += gradient.double() ** 2
    found = diagonal_fisher(network, text, labels="data")
    assert found.keys() == expected.keys()
    assert ("lm_head.weight" in found) == (not tied)
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.allclose(value.double(), expected[name] / (3 * 8 + 3), rtol=1e-4, atol=1e-10), name


def test_the_seed_decides_the_labels() -> None:
    network, text = llama(tied=True), some_text(128, 3, 9)
    one, same, other = (diagonal_fisher(network, text, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_state_of_the_network_is_left_as_it_was() -> None:
    network = llama(tied=True).train()
    before = {name: one.detach().clone() for name, one in network.named_parameters()}
    state = torch.random.get_rng_state()
    diagonal_fisher(network, some_text(128, 2, 9))
    assert network.training
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, one in network.named_parameters():
        assert one.grad is None
        assert torch.equal(one, before[name])
        assert not one._post_accumulate_grad_hooks
    with torch.no_grad():  # whatever the caller has switched off
        assert diagonal_fisher(network, some_text(128, 1, 9))


def test_the_sums_go_where_the_caller_wants_them() -> None:
    network = llama(tied=True)
    into = {name: torch.zeros(one.shape) for name, one in network.named_parameters()}
    held = diagonal_fisher(network, some_text(128, 2, 9), into=into)
    assert held is into
    assert any(bool(one.any()) for one in into.values())


def test_only_one_gradient_is_held_at_a_time() -> None:
    """Not one for each parameter: they would take as much memory as the model."""
    network = llama(tied=False)
    held = []
    for one in network.parameters():
        one.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(p.grad is not None for p in network.parameters()))
        )
    diagonal_fisher(network, some_text(128, 1, 9))
    assert len(held) == len(list(network.parameters()))
    assert max(held) == 1


def test_what_cannot_be_measured() -> None:
    network = Bigrams(4)
    with pytest.raises(CandidateError, match="no two tokens"):
        diagonal_fisher(network, [])
    network.table.data[2, 1] = float("nan")
    for labels in ("sampled", "data"):
        with pytest.raises(CandidateError, match="NaN or infinity") as caught:
            diagonal_fisher(network, some_text(4, 9, 9), labels=labels)
        assert caught.value.kind == "non_finite"
    assert network.table.grad is None

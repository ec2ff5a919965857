"""Formulas of speculative decoding against the algorithm itself, enumerated and drawn."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.tensors.divergence import total_variation
from evolve.tensors.speculative import (
    acceptance,
    accepted_share,
    along,
    block_lengths,
    break_even,
    expected_length,
    greedy_acceptance,
    speed_up,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Path = tuple[int, ...]
Model = Any
"""A text to the distribution of its next token."""


def language_model(seed: int, size: int, sharp: float = 2.0) -> Callable[[Path], Any]:
    """A distribution that depends on all that came before."""

    def after(path: Path) -> Any:
        logits = sharp * np.random.default_rng([seed, *[token + 1 for token in path]]).normal(size=size)
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    return after


def greedy(model: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def after(path: Path) -> Any:
        q = model(path)
        return np.eye(len(q))[q.argmax()]

    return after


def outcomes(p: Model, q: Model, path: Path, k: int) -> dict[Path, float]:
    """What one cycle adds to a text, with its probability: the algorithm as it stands in the paper."""
    found: dict[Path, float] = {}
    size = len(p(path))

    def add(tokens: Path, probability: float) -> None:
        if probability:
            found[tokens] = found.get(tokens, 0.0) + probability

    for draft in itertools.product(range(size), repeat=k):
        chance = 1.0
        for i in range(k):
            chance *= q(path + draft[:i])[draft[i]]
        if not chance:
            continue
        for i in range(k):
            here, theirs = p(path + draft[:i]), q(path + draft[:i])
            accept = min(1.0, here[draft[i]] / theirs[draft[i]])
            rest = np.maximum(here - theirs, 0)
            if accept < 1:
                for token, weight in enumerate(rest / rest.sum()):
                    add((*draft[:i], token), chance * (1 - accept) * weight)
            chance *= accept
        for token, weight in enumerate(p(path + draft)):
            add((*draft, token), chance * weight)
    return found


def expected_cycles(p: Model, q: Model, count: int, k: int, path: Path = ()) -> float:
    """Cycles until ``count`` tokens are there."""
    if len(path) >= count:
        return 0.0
    return 1.0 + sum(
        chance * expected_cycles(p, q, count, k, path + more)
        for more, chance in outcomes(p, q, path, k).items()
    )


def texts(p: Model, count: int, size: int) -> Any:
    for path in itertools.product(range(size), repeat=count):
        yield path, np.prod([p(path[:i])[path[i]] for i in range(count)])


def shares(p: Model, q: Model, path: Path) -> list[float]:
    log_p = torch.tensor([p(path[:i])[path[i]] for i in range(len(path))]).log()
    log_q = torch.tensor([q(path[:i])[path[i]] for i in range(len(path))]).log()
    return accepted_share(log_p, log_q).tolist()


@pytest.mark.parametrize(("size", "count", "k"), [(2, 5, 1), (2, 5, 2), (2, 4, 3), (3, 4, 2), (3, 3, 4)])
@pytest.mark.parametrize("method", ["probabilistic", "greedy"])
def test_cycles_along_the_targets_texts_are_those_of_the_algorithm(
    size: int, count: int, k: int, method: str
) -> None:
    p, q = language_model(1, size), language_model(2, size)
    if method == "greedy":
        q = greedy(q)
    real = expected_cycles(p, q, count, k)
    found = sum(chance * along(shares(p, q, path), k).cycles for path, chance in texts(p, count, size))
    assert found == pytest.approx(real, rel=1e-10)


def test_a_mean_of_rates_is_not_the_length_of_a_cycle() -> None:
    """Why the text's own tokens are followed: the product of the rates along them is another number."""
    size, k, p, q = 2, 2, language_model(1, 2), language_model(2, 2)
    real = sum(len(more) * chance for more, chance in outcomes(p, q, (), k).items())
    followed = product = 0.0
    for path, chance in texts(p, k, size):
        followed += chance * block_lengths(shares(p, q, path), k)[0]
        rates = [np.minimum(p(path[:i]), q(path[:i])).sum() for i in range(k)]
        product += chance * (1 + rates[0] + rates[0] * rates[1])
    assert followed == pytest.approx(real, rel=1e-10)
    assert abs(product - real) > 1e-3


def test_one_token_is_accepted_as_often_as_is_drawn() -> None:
    draw = np.random.default_rng(0)
    p, q = language_model(3, 6)(()), language_model(4, 6)(())
    x = draw.choice(6, size=200_000, p=q)
    rate = (draw.random(len(x)) < p[x] / q[x]).mean()
    log_p, log_q = torch.tensor(p).log(), torch.tensor(q).log()
    assert acceptance(log_p, log_q).item() == pytest.approx(rate, abs=0.005)
    assert acceptance(log_p, log_q).item() == pytest.approx(1 - total_variation(log_p, log_q).item())
    assert greedy_acceptance(log_p, log_q).item() == pytest.approx(p[q.argmax()])
    # The mean over the target's own tokens of how often they were drafted is the rate.
    assert (p * np.minimum(1, q / p)).sum() == pytest.approx(acceptance(log_p, log_q).item())


@given(st.floats(0, 1), st.integers(1, 8))
def test_equal_rates_have_the_closed_form(alpha: float, k: int) -> None:
    assert expected_length(alpha, k) == pytest.approx(sum(alpha**j for j in range(k + 1)))
    assert block_lengths([alpha] * (3 * k), k)[0] == pytest.approx(expected_length(alpha, k))


def test_a_long_text_of_equal_rates_comes_near_the_closed_form() -> None:
    assert along([0.7] * 4000, 4).length == pytest.approx(expected_length(0.7, 4), rel=1e-3)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30), st.integers(1, 6))
def test_tokens_are_drafted_or_the_targets(values: list[float], k: int) -> None:
    found = along(values, k)
    assert found.tokens == len(values)
    assert -1e-9 <= found.accepted <= found.tokens + 1e-9
    # All but the end of a text that ends in a draft: a cycle has one token of the target.
    assert -1e-9 <= found.cycles + found.accepted - found.tokens <= 1 + 1e-9
    assert len(values) / (k + 1) - 1e-9 <= found.cycles <= len(values) + 1e-9
    assert along([1.0] * len(values), k).cycles == pytest.approx(-(-len(values) // (k + 1)))
    assert along([0.0] * len(values), k).cycles == pytest.approx(len(values))
    assert along([0.0] * len(values), k).accepted == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 1000))
def test_along_is_the_mean_of_coins(values: list[float], k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    cycles = accepted = 0
    rounds = 2000
    for _ in range(rounds):
        place = 0
        while place < len(values):
            cycles += 1
            done = 0
            while done < k and place < len(values) and draw.random() < values[place]:
                place, done, accepted = place + 1, done + 1, accepted + 1
            place += 1
    found = along(values, k)
    assert cycles / rounds == pytest.approx(found.cycles, abs=0.2)
    assert accepted / rounds == pytest.approx(found.accepted, abs=0.25)


def test_speed_up_and_break_even() -> None:
    assert speed_up(3.0, 4, 0.0) == 3.0
    assert speed_up(3.0, 4, 0.5) == 1.0
    # Costs that were measured once: a cycle of three drafts takes 88 ms, a token alone 41 ms.
    assert break_even(3, (88 / 41 - 1) / 3) == pytest.approx(0.59, abs=0.01)
    assert break_even(3, 1.0) == 1.0
    for k, cost in ((1, 0.1), (4, 0.3), (8, 0.05)):
        assert speed_up(expected_length(break_even(k, cost), k), k, cost) == pytest.approx(1.0)
    assert np.isnan(along([], 3).length)

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.space.genes import Gene, on_grid

sizes = st.floats(1e-6, 1e6)


def test_choices_decode_by_index_and_keep_their_types() -> None:
    gene = Gene("g", 0.0, 3.0, step=1.0, choices=(False, 1, 2.5, "x"))
    assert [(type(value), value) for value in map(gene.decode, range(4))] == [
        (bool, False),
        (int, 1),
        (float, 2.5),
        (str, "x"),
    ]
    assert gene.decode(1.6) == 2.5
    assert gene.centre() == 2.0
    assert Gene("s", 0.0, 1.0, step=1.0, choices=(False, True)).decode(1.0) is True
    assert Gene("s", 0.0, 1.0, step=1.0, choices=(False, True)).centre() == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.6])
def test_values_outside_are_refused(value: float) -> None:
    for gene in (Gene("g", 0.0, 1.5), Gene("g", 0.0, 1.0, step=1.0, choices=(1, 2))):
        with pytest.raises(ValueError, match="outside"):
            gene.decode(value)


@given(low=st.floats(-1e6, 1e6), size=sizes, share=st.floats(0, 1))
def test_continuous_values_keep_every_bit(low: float, size: float, share: float) -> None:
    gene = Gene("g", low, low + size)
    value = min(max(low + share * size, gene.low), gene.high)
    assert gene.decode(value) == value
    assert gene.low <= gene.centre() <= gene.high


def test_rounding_at_the_ends_is_forgiven() -> None:
    gene = Gene("g", 0.1, 0.3, log=True)
    assert gene.decode(math.nextafter(0.3, 1)) == 0.3
    assert gene.decode(math.nextafter(0.1, 0)) == 0.1


@given(
    tenths=st.integers(-1000, 1000),
    step=st.integers(1, 500),
    count=st.integers(0, 50),
    jitter=st.floats(-0.3, 0.3),
)
def test_steps_are_exact_in_decimal(tenths: int, step: int, count: int, jitter: float) -> None:
    low, width = tenths / 10, step / 100
    gene = Gene("g", low, on_grid(low, width, 50), step=width)
    # The oracle: exact fractions, rounded once.
    exact = float(Fraction(tenths, 10) + count * Fraction(step, 100))
    assert gene.decode(min(max(low + (count + jitter) * width, gene.low), gene.high)) == exact
    assert gene.decode(gene.centre()) == gene.centre()


@given(low=st.floats(1e-300, 1e300), factor=st.floats(1.001, 1e5))
def test_the_centre_of_a_log_range_is_the_geometric_mean(low: float, factor: float) -> None:
    gene = Gene("g", low, low * factor, log=True)
    assert math.isclose(
        math.log(gene.centre()), (math.log(gene.low) + math.log(gene.high)) / 2, rel_tol=1e-9, abs_tol=1e-9
    )

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.training.phases import (
    Moves,
    Phase,
    depth_below_top,
    ends,
    layer_of,
    matches,
    moves,
    phase_at,
    unfreezing,
)

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def layer(number: int) -> str:
    return f"model.layers.{number}.mlp.up_proj.weight"


def test_patterns_are_whole_parts_of_names() -> None:
    assert matches("embed_tokens", EMBED)
    assert matches("layers.1", layer(1))
    assert not matches("layers.1", layer(11))
    assert not matches("embed", EMBED)
    assert matches("*.up_proj.*", layer(3))
    assert not matches("*.down_proj.*", layer(3))


def test_phases_follow_each_other() -> None:
    first, second, third = Phase(0.1, "new_embeddings"), Phase(0.1), Phase(1.0, "embeddings")
    phases = [first, second, third]
    assert phase_at(phases, 0.0) is first
    assert phase_at(phases, 0.0999) is first
    assert phase_at(phases, 0.1) is third, "a phase without length is never there"
    assert phase_at(phases, 1.0) is third
    assert phase_at([], 0.5) == Phase()
    assert phase_at([Phase(0.0, "new_embeddings"), second], 0.0) is second


@pytest.mark.parametrize(
    ("train", "trained"),
    [
        ("all", {EMBED, HEAD, NORM, layer(0), layer(3)}),
        ("embeddings", {EMBED, HEAD}),
        ("new_embeddings", {EMBED, HEAD}),
        (("layers.3", "norm"), {NORM, layer(3)}),
    ],
)
def test_what_is_trained(train: str | tuple[str, ...], trained: set[str]) -> None:
    phase = Phase(1.0, train)  # type: ignore[arg-type]
    found = {name: moves(phase, name) for name in (EMBED, HEAD, NORM, layer(0), layer(3))}
    assert {name for name, one in found.items() if one.rate} == trained
    assert all(one.new_rows == (train == "new_embeddings") for one in found.values() if one.rate)


def test_rates_multiply() -> None:
    phase = Phase(1.0, "all", {"embed_tokens": 0.5, "*.weight": 0.1})
    assert moves(phase, EMBED) == Moves(0.05)
    assert moves(phase, layer(0)) == Moves(0.1)


def test_rates_decay_with_the_depth() -> None:
    depths = [depth_below_top(name, 4) for name in (HEAD, NORM, layer(3), layer(0), EMBED)]
    assert depths == [0, 0, 1, 4, 5]
    assert moves(Phase(), layer(0), 0.5, 4).rate == 0.5**4
    assert layer_of("transformer.h.7.attn.c_attn.weight") == 7
    assert layer_of(NORM) is None


@given(st.integers(1, 6), st.integers(6, 30), st.floats(0.1, 1.0))
def test_unfreezing_only_adds(groups: int, layers: int, until: float) -> None:
    phases = unfreezing(groups, layers, until)
    assert len(phases) == groups
    assert phases[-1] == Phase()
    names = [EMBED, HEAD, NORM, *map(layer, range(layers))]
    before: set[str] = set()
    last = 0.0
    for phase in phases:
        trained = {name for name in names if moves(phase, name).rate}
        assert before < trained
        assert phase.until > last
        assert HEAD in trained
        before, last = trained, phase.until
    assert before == set(names)


def test_both_ends() -> None:
    phase = Phase(1.0, ends(2, 1, 6))
    assert [number for number in range(6) if moves(phase, layer(number)).rate] == [0, 4, 5]
    assert moves(phase, EMBED).rate == moves(phase, HEAD).rate == 1.0
    assert not moves(phase, NORM).rate
    assert ends(9, 9, 2) == ends(1, 1, 2)

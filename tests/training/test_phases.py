from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.training.phases import (
    Ends,
    Moves,
    Phase,
    Unfreezing,
    depth_below_top,
    layer_of,
    matches,
    moves,
    phase_at,
    thawed,
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


@given(st.integers(1, 6), st.integers(1, 30), st.floats(0.1, 1.0))
def test_unfreezing_only_adds(groups: int, layers: int, until: float) -> None:
    names = [EMBED, HEAD, NORM, "transformer.wpe.weight", *map(layer, range(layers))]
    before: set[str] = set()
    for number in range(groups):
        # The last group joins at ``until`` exactly.
        begin = until * number / max(1, groups - 1)
        trained = {name for name in names if thawed(name, begin, Unfreezing(groups, until), layers)}
        assert before <= trained
        assert {HEAD, NORM} <= trained
        if layers >= groups and number:
            assert before < trained
        kept = sorted(int(name.split(".")[2]) for name in trained if ".layers." in name)
        assert kept == list(range(layers - len(kept), layers)), "the top ones"
        assert (EMBED in trained) == (number == groups - 1)
        before = trained
    assert before == set(names)


def test_when_the_groups_join() -> None:
    plan = Unfreezing(3, 0.5)
    found = [[thawed(layer(n), t, plan, 6) for n in range(6)] for t in (0.0, 0.24, 0.25, 0.49, 0.5, 0.9)]
    assert [sum(row) for row in found] == [2, 2, 4, 4, 6, 6]
    assert not thawed(EMBED, 0.49, plan, 6)
    assert thawed(EMBED, 0.0, Unfreezing(3, 0.0), 6)


def test_both_ends() -> None:
    phase = Phase(1.0, Ends(2, 1))
    assert [number for number in range(6) if moves(phase, layer(number), layers=6).rate] == [0, 4, 5]
    assert moves(phase, EMBED).rate == moves(phase, HEAD).rate == 1.0
    assert not moves(phase, NORM).rate
    assert [n for n in range(2) if moves(Phase(1.0, Ends(9, 9)), layer(n), layers=2).rate] == [0, 1]

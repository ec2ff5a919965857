"""What a stacked model computes: its logits against the layers of its parents, run one by one in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from evolve.stages.merge import MergeStage
from evolve.stages.merge.block import MergeBlock
from evolve.stages.merge.residual import OUTPUTS
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model
from tests.stages.merge.stacks import KINDS, Pick, by_hand, logits, make_parent, network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PLAIN = [Pick("a", 0, 2), Pick("b", 2, 4), Pick("a", 1, 3), Pick("b", 4, 5)]
SCALED = [Pick("a", 0, 2), Pick("b", 2, 4, 0.6), Pick("a", 1, 3, 1.9), Pick("b", 4, 5, 0.75)]
TINY = 2e-5
"""Rounding of float32 over a handful of layers."""
LARGE = 1e-2
"""An epsilon that would show if it were scaled wrongly."""
QUICK = {"llama", "gemma3_text", "gpt2", "mixtral"}
EACH = [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS]


def stacked(picks: Sequence[Pick]) -> MergeBlock:
    slices = [
        {"sources": [{"model": pick.model, "layer_range": [pick.first, pick.end]}], "scale": pick.scale}
        for pick in picks
    ]
    return MergeBlock.model_validate({"merge_method": "passthrough", "slices": slices})


def built(folder: Path, picks: Sequence[Pick]) -> tuple[Path, dict[str, Path]]:
    """Write the stacked model as an ordinary one."""
    paths = {name: folder / name for name in "ab"}
    models = {name: open_model(path) for name, path in paths.items()}
    block = stacked(picks)
    assert block.problems() == []
    write_model(MergeStage.run(block, models, seed=0), folder / "stacked")
    return folder / "stacked", paths


def test_every_architecture_with_scales_is_tested() -> None:
    assert KINDS.keys() == OUTPUTS.keys()


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("picks", [PLAIN, SCALED], ids=["plain", "scaled"])
def test_a_stacked_model_computes_what_its_layers_do(kind: str, picks: list[Pick], tmp_path: Path) -> None:
    """The norms of this oracle see the hidden state as if it had not been multiplied, epsilon and all."""
    for seed, (name, layers) in enumerate((("a", 4), ("b", 5))):
        make_parent(tmp_path / name, kind, seed=seed, layers=layers, eps=LARGE)
    folder, paths = built(tmp_path, picks)
    parents = {name: network(path) for name, path in paths.items()}
    exact = kind != "olmo"  # its epsilon stands in the code
    ours, wanted = logits(network(folder)), by_hand(parents, picks, exact=exact)
    size = wanted.abs().max()
    assert (ours - wanted).abs().max() <= TINY * size
    if picks is SCALED:  # the scales do something
        assert (by_hand(parents, PLAIN, exact=exact) - wanted).abs().max() > 1e-2 * size


@pytest.mark.parametrize("kind", EACH)
def test_a_scale_is_a_factor_of_the_hidden_state_but_for_the_epsilon(kind: str, tmp_path: Path) -> None:
    """With the epsilons that such models have, the difference to a real multiplication is small."""
    for seed, (name, layers) in enumerate((("a", 4), ("b", 5))):
        make_parent(tmp_path / name, kind, seed=seed, layers=layers)
    folder, paths = built(tmp_path, SCALED)
    parents = {name: network(path) for name, path in paths.items()}
    wanted = by_hand(parents, SCALED, exact=False)
    assert (logits(network(folder)) - wanted).abs().max() <= 1e-3 * wanted.abs().max()


def test_the_epsilon_is_the_only_difference(tmp_path: Path) -> None:
    """As it goes to zero, so does the difference; a large one shows."""
    found = []
    for number, eps in enumerate((1e-1, 1e-3, 1e-5, 1e-12)):
        folder = tmp_path / str(number)
        for seed, (name, layers) in enumerate((("a", 4), ("b", 5))):
            make_parent(folder / name, "llama", seed=seed, layers=layers, eps=eps)
        result, paths = built(folder, SCALED)
        wanted = by_hand({name: network(path) for name, path in paths.items()}, SCALED, exact=False)
        found.append(float((logits(network(result)) - wanted).abs().max() / wanted.abs().max()))
    assert found[0] > 1e-3
    assert found[0] > 10 * found[1] > 10 * found[2]
    assert found[3] <= TINY

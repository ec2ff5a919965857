from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.errors import CandidateError
from evolve.stages.cpt.block import CptBlock
from evolve.stages.cpt.data import rows_of
from evolve.stages.cpt.objective import Objective
from evolve.training.regularizers.base import Anchor
from evolve.training.regularizers.quadratic import Quadratic
from evolve.training.trainer import count_items
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.training.rows import Row


@pytest.fixture
def anchor(tmp_path: Path) -> Anchor:
    model = replace(open_model(make_model(tmp_path / "base")), content="sha256:base")
    network, names = open_network(model)
    return Anchor(model, network, names, 32, 0)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "domain.jsonl"
    entries = [{"text": f"hen {n} and " * (1 + n % 4), "rank": -n} for n in range(40)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def block(text: Path, **changes: Any) -> CptBlock:
    return CptBlock.model_validate(
        {"dataset": {"path": str(text), "max_length": 80, "packing": False}, **changes}
    )


def test_orders(anchor: Anchor, text: Path) -> None:
    sizes = [len(row) for row in rows_of(block(text, curriculum={"order": "length"}), anchor).rows]
    assert sizes == sorted(sizes)
    back = [
        len(row) for row in rows_of(block(text, curriculum={"order": "length", "reverse": True}), anchor).rows
    ]
    assert back == sorted(sizes, reverse=True)
    ranked = rows_of(block(text, curriculum={"order": "quality", "field": "rank"}), anchor).rows
    paced = rows_of(block(text, curriculum={"order": "quality", "field": "rank", "pacing": 1.0}), anchor).rows
    plain = rows_of(block(text), anchor).rows
    texts = [[row.tokens.tolist() for row in rows] for rows in (ranked, paced, plain)]
    assert texts[1] == texts[2]
    assert texts[0] != texts[2]
    assert sorted(texts[0]) == sorted(texts[2])
    losses = []
    for row in rows_of(block(text, curriculum={"order": "base_loss"}), anchor).rows:
        # The start model reads at most max_length (32) tokens of a document.
        ids = torch.from_numpy(row.tokens[:32]).long()[None]
        with torch.no_grad():
            losses.append(float(anchor.network(input_ids=ids, labels=ids).loss))
    assert losses == pytest.approx(sorted(losses), abs=1e-4)
    assert losses[0] < losses[-1]


def test_replay_that_the_model_writes(anchor: Anchor, text: Path) -> None:
    rows = rows_of(block(text, replay={"self_generated": 20, "share": 0.25}), anchor)
    total = rows.counts["data_bytes"] + rows.counts["replay_bytes"]
    assert total == rows_of(block(text), anchor).counts["data_bytes"]
    assert rows.counts["replay_bytes"] == pytest.approx(total / 4, abs=1)


def test_a_missing_text(anchor: Anchor, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match=r"gone\.jsonl"):
        rows_of(block(tmp_path / "gone.jsonl"), anchor)


def test_micro_batches_add_up(anchor: Anchor, text: Path) -> None:
    network = open_network(anchor.model)[0]
    ready = Quadratic(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    rows = list(rows_of(block(text), anchor).rows[:6])
    objective = Objective(2, {"l2sp": (0.5, ready)})
    assert objective.prepare(network, rows, step=3) is rows

    def gradient(groups: list[list[Row]]) -> tuple[float, float, torch.Tensor]:
        network.zero_grad()
        total = terms = 0.0
        for group in groups:
            loss, numbers = objective.loss(network, group, num_items=count_items(rows))
            loss.backward()
            total += float(loss.detach())
            terms += numbers["cross_entropy"] + 0.5 * numbers["l2sp"]
        return total, terms, network.model.norm.weight.grad.clone()

    whole, split = gradient([rows]), gradient([rows[:1], rows[1:4], rows[4:]])
    assert whole[0] == pytest.approx(split[0], rel=1e-5)
    assert whole[1] == pytest.approx(whole[0], rel=1e-5)
    assert split[1] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(whole[2], split[2], rtol=1e-4, atol=1e-6)

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.errors import CandidateError
from evolve.stages.cpt.block import CptBase
from evolve.stages.cpt.data import rows_of
from evolve.stages.cpt.objective import Objective
from evolve.training.collate import collate
from evolve.training.regularizers.base import Anchor
from evolve.training.regularizers.quadratic import Quadratic
from evolve.training.rows import IGNORED
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def anchor(tmp_path: Path) -> Anchor:
    from dataclasses import replace

    model = replace(open_model(make_model(tmp_path / "base")), content="sha256:base")
    network, names = open_network(model)
    return Anchor(model, network, names, 32, 0)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "domain.jsonl"
    entries = [{"text": f"hen {n} and " * (1 + n % 4), "rank": -n} for n in range(40)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def block(text: Path, **changes: Any) -> CptBase:
    return CptBase.model_validate(
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
    rows = rows_of(block(text), anchor).rows[:6]
    objective = Objective({"l2sp": (0.5, ready)})

    def gradient(groups: list[list[Any]]) -> tuple[float, torch.Tensor]:
        network.zero_grad()
        batches = [collate(group, 2) for group in groups]
        items = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
        total = 0.0
        for batch in batches:
            parts = objective(network, batch, items)
            parts.total.backward()
            total += float(parts.total.detach())
        return total, network.model.norm.weight.grad.clone()

    whole, split = gradient([list(rows)]), gradient([[rows[0]], list(rows[1:4]), list(rows[4:])])
    assert whole[0] == pytest.approx(split[0], rel=1e-5)
    torch.testing.assert_close(whole[1], split[1], rtol=1e-4, atol=1e-6)
    parts = objective(network, collate(list(rows), 2), sum(len(row) - 1 for row in rows))
    wanted = parts.terms["loss"] + 0.5 * parts.terms["l2sp"]
    assert float(parts.total.detach()) == pytest.approx(float(wanted), rel=1e-6)

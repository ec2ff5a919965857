"""Which layers a model can best do without: those without which its loss on some text grows least."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError
from evolve.training.kept import kept
from evolve.training.rows import IGNORED
from evolve.types import content_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from evolve.stages.distill.data import Document
    from evolve.weights.model import Model

logger = logging.getLogger(__name__)

ROWS = 64
"""So many documents of the text are read, its first."""


def least_damaging(model: Model, documents: Sequence[Document], keep: int) -> tuple[int, ...]:
    """Return the layers that stay: each was left out alone, and those whose lack costs least are gone.

    Of layers that cost the same the later one goes first.

    Args:
        model: One whose content is known; what is measured is kept under it.
        documents: In the model's tokens, at least one.
        keep: How many layers stay.

    Raises:
        CandidateError: The model has no layers that can be left out one by one, or predicts NaN.
        UserError: The cache cannot be written.
    """
    costs = damages(model, documents)
    order = sorted(range(len(costs)), key=lambda layer: (costs[layer], -layer))
    gone = order[: len(costs) - keep]
    logger.info(
        "layers left out: %s", ", ".join(f"{layer} ({costs[layer]:+.4f})" for layer in gone) or "none"
    )
    return tuple(layer for layer in range(len(costs)) if layer not in gone)


def damages(model: Model, documents: Sequence[Document]) -> list[float]:
    """Return how much the loss grows without each layer, in nats a token that counts; worked out once."""
    if not model.content:
        raise CandidateError("build", "student.keep_by: the content of the model is not known")
    first = documents[:ROWS]
    key = {"model": model.content, "rows": content_hash([[one.tokens, one.labels] for one in first])}

    def write(path: Path) -> None:
        path.write_text(json.dumps(_measured(model, first)), encoding="utf-8")

    found: list[float] = json.loads(kept("damage", key, ".json", write).read_text(encoding="utf-8"))
    return found


def _measured(model: Model, documents: Sequence[Document]) -> list[float]:
    import torch

    from evolve.stages.merge.layers import layer_count
    from evolve.weights.network import open_network

    network, _ = open_network(model)
    depth = layer_count(model)
    stacks = [one for one in network.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == depth]
    if len(stacks) != 1:
        raise CandidateError(
            "build", "student.keep_by: the model's layers cannot be told apart: list them in keep_layers"
        )
    network.config.use_cache = False
    whole = _loss(network, documents)
    found = []
    for layer in stacks[0]:
        with _left_out(layer):
            found.append(_loss(network, documents) - whole)
    return found


@contextlib.contextmanager
def _left_out(layer: Any) -> Iterator[None]:
    """Let a layer return what it is given."""

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handle = layer.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _loss(network: Any, documents: Sequence[Document]) -> float:
    import math

    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for one in documents:
            labels = torch.tensor(one.labels[1:])
            logits = network(input_ids=torch.tensor([one.tokens])).logits[0, :-1].float()
            total += float(
                torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
            )
            count += int((labels != IGNORED).sum())
    if not math.isfinite(total):
        raise CandidateError("non_finite", "student.keep_by: the model predicts NaN or infinity on the text")
    return total / max(1, count)

"""Rows into a batch, and the proof that documents of a row do not see each other.

Positions begin again at each document. Without an attention mask and without a cache, transformers reads the
borders of documents from these positions, and makes the mask of each kind of layer from them, full or with a
sliding window, for eager, SDPA, flex and Flash attention alike. A mask of our own could not tell these layers
apart. Padding stands at the right as one more document, so it needs no mask either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.errors import CandidateError
from evolve.training.rows import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from evolve.training.rows import Row

_TOLERANCE = 1e-3
"""Largest difference of the logits, relative to the largest logit, that rounding explains in float32."""


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """Return a batch, padded at the right to its longest row.

    To be given to a network without an attention mask and with ``use_cache=False``: see the text above.

    Args:
        rows: At least one.
        pad_id: The token of the padding, any that the model has; its label is ``IGNORED``.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids``, each int64, (rows, longest).
    """
    import torch

    shape = len(rows), max(len(row) for row in rows)
    tokens = np.full(shape, pad_id, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    positions = np.zeros(shape, np.int64)
    for index, row in enumerate(rows):
        end = len(row)
        tokens[index, :end] = row.tokens
        labels[index, :end] = row.labels
        lengths = (*row.lengths, shape[1] - end) if end < shape[1] else row.lengths
        positions[index] = np.concatenate([np.arange(length) for length in lengths])
    return {
        "input_ids": torch.from_numpy(tokens),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(positions),
    }


def logits_of(network: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of a batch, (rows, longest, vocabulary), every document by itself."""
    logits: Tensor = network(
        input_ids=batch["input_ids"].to(network.device),
        position_ids=batch["position_ids"].to(network.device),
        use_cache=False,
    ).logits
    return logits


def require_isolation(network: Any) -> None:
    """Check that a network keeps the documents of a row apart, on a few tokens.

    Raises:
        CandidateError: It does not, as those that carry a state along the row (Mamba, RWKV), or cannot be
            told where documents begin.
    """
    import torch

    rows = network.get_input_embeddings().weight.shape[0]
    one = torch.tensor([[(7 * place + 3) % rows for place in range(6)]], device=network.device)
    other = torch.tensor([[(5 * place + 1) % rows for place in range(5)]], device=network.device)
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            alone = network(input_ids=other, use_cache=False).logits
            both = torch.cat([one, other], dim=1)
            positions = torch.cat([torch.arange(6), torch.arange(5)])[None].to(network.device)
            packed = network(input_ids=both, position_ids=positions, use_cache=False).logits[:, 6:]
    except TypeError as error:
        raise CandidateError("build", _refusal(network)) from error
    finally:
        network.train(training)
    scale = float(alone.abs().max()) or 1.0
    if not float((alone - packed).abs().max()) <= _TOLERANCE * scale:
        raise CandidateError("build", _refusal(network))


def _refusal(network: Any) -> str:
    kind = network.config.model_type
    return (
        f"a {kind!r} model cannot keep the documents of a row apart: set `packing: false`, one document a row"
    )

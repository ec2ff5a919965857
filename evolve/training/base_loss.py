"""How hard each document is for a model: its mean loss on it, worked out once and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.errors import CandidateError
from evolve.training.collate import collate, logits_of
from evolve.training.kept import kept
from evolve.training.rows import IGNORED, Row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evolve.training.corpus_rows import Encode
    from evolve.training.documents import Chosen

_BATCH = 8


def base_losses(
    network: Any, chosen: Chosen, encode: Encode, *, max_length: int, key: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Return the mean loss of each document in nats per token, float64, (n,).

    Documents are read up to ``max_length`` tokens; one with a single token gets the mean of the others.

    Args:
        network: A transformers causal language model; it is put into evaluation mode for the time.
        chosen: The documents.
        encode: The model's tokenizer.
        max_length: Most tokens of a document that are read.
        key: What the model is, as plain data; corpus, documents and length are added to it.

    Raises:
        CandidateError: The model predicts NaN or infinity.
        UserError: The cache cannot be written.
    """

    def write(out: Path) -> None:
        with out.open("xb") as file:
            np.save(file, _losses(network, chosen, encode, max_length), allow_pickle=False)

    whole = {
        **key,
        "corpus": chosen.documents.content,
        "numbers": chosen.numbers.tolist(),
        "sizes": chosen.sizes.tolist(),
        "max_length": max_length,
    }
    found: NDArray[np.float64] = np.load(kept("base_loss", whole, ".npy", write), allow_pickle=False)
    return found


def _losses(network: Any, chosen: Chosen, encode: Encode, max_length: int) -> NDArray[np.float64]:
    import torch

    training = network.training
    network.eval()
    found: list[float] = []
    waiting: list[str] = []
    try:
        with torch.no_grad():
            for text in chosen.texts():
                waiting.append(text)
                if len(waiting) == _BATCH:
                    found += _of_batch(network, encode(waiting), max_length)
                    waiting = []
            if waiting:
                found += _of_batch(network, encode(waiting), max_length)
    finally:
        network.train(training)
    values = np.array(found, dtype=np.float64)
    known = np.isfinite(values)
    return np.where(known, values, values[known].mean() if known.any() else 0.0)


def _of_batch(network: Any, documents: Sequence[list[int]], max_length: int) -> list[float]:
    import torch

    rows = []
    for ids in documents:
        tokens = np.asarray(ids[:max_length] or [0], dtype=np.int32)
        labels = tokens.copy()
        labels[0] = IGNORED
        rows.append(Row(tokens, labels, (len(tokens),)))
    batch = collate(rows, 0)
    logits = logits_of(network, batch)[:, :-1].float()
    targets = batch["labels"][:, 1:].to(logits.device)
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED
    )
    counts = (targets != IGNORED).sum(dim=1)
    sums = losses.sum(dim=1)
    if not bool(torch.isfinite(sums).all()):
        raise CandidateError("non_finite", "the model predicts NaN or infinity on the corpus")
    means: list[float] = (sums.double() / counts).tolist()
    return means

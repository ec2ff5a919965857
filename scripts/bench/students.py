"""Where a student stands: nearness to a teacher, loss of texts, questions, seconds. Benchmarks share it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from evolve.stages.distill.data import read
from evolve.stages.distill.forward import forward
from evolve.stages.distill.measure import kl_to
from evolve.stages.distill.signals import places
from evolve.stages.distill.teachers.base import batch_of
from evolve.stages.kept import log_of
from evolve.tensors.logits import Logits
from evolve.training.rows import IGNORED, Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from evolve.stages.distill.teachers.base import Batch
    from evolve.weights.model import Model
    from evolve.weights.tokenizer import Tokenizer


class Spent(NamedTuple):
    """What a training took, as its log says; seconds are those of all starts."""

    seconds: float
    tokens: int
    steps: int


def spent(model: Model) -> Spent:
    """Return what the training of a kept model took."""
    log = log_of(model)
    if log is None:
        raise ValueError("no training was kept with this model")
    plain = json.loads(log.read_text(encoding="utf-8"))
    return Spent(float(plain["seconds"]), int(plain["tokens"]), int(plain["steps"]))


def rows_of_text(path: Path, tokenizer: Tokenizer, length: int, most: int | None = None) -> list[Row]:
    """Return the documents of a text, each a row, until they have ``most`` tokens."""
    found: list[Row] = []
    count = 0
    for one in read(path, tokenizer, length)[0]:
        if most is not None and count >= most:
            break
        tokens, labels = np.array(one.tokens, np.int32), np.array(one.labels, np.int32)
        found.append(Row(tokens, labels, (len(tokens),)))
        count += len(tokens)
    return found


def distance(
    student: Any, teacher: Any, rows: list[Row], vocabulary: int, together: int = 64
) -> dict[str, float]:
    """Return the mean KL to the teacher, and how often both have the same most likely token."""
    nats = same = count = 0.0
    with torch.no_grad():
        for batch, labels in batches(rows, together):
            theirs, ours = (forward(one, batch, rule=None) for one in (teacher, student))
            found = kl_to(theirs, ours, labels, vocabulary=vocabulary)
            nats += float(found.kl.sum())
            same += float(found.agrees.sum())
            count += len(found.kl)
    return {"kl": nats / count, "agreement": same / count}


def nll(network: Any, rows: list[Row], vocabulary: int, together: int = 64) -> float:
    """Return the loss of a text in nats a token that counts."""
    nats = count = 0.0
    for logits, tokens in _said(network, rows, vocabulary, together):
        nats += float(torch.nn.functional.cross_entropy(logits, tokens, reduction="sum"))
        count += len(tokens)
    return nats / count


def entropy(network: Any, rows: list[Row], vocabulary: int, temperature: float, together: int = 64) -> float:
    """Return the mean entropy in nats of what a network says at a temperature."""
    nats = count = 0.0
    for logits, tokens in _said(network, rows, vocabulary, together):
        log_p = (logits / temperature).log_softmax(-1)
        nats -= float((log_p.exp() * log_p).sum())
        count += len(tokens)
    return nats / count


def accuracy(network: Any, tokenizer: Tokenizer, items: list[dict[str, Any]]) -> float:
    """Return the share of questions whose right answer is the likeliest of its choices."""
    return sum(answered(network, tokenizer, items)) / len(items)


def answered(network: Any, tokenizer: Tokenizer, items: list[dict[str, Any]]) -> list[bool]:
    """Return for each question whether its right answer is the likeliest of its choices."""
    found = []
    for item in items:
        texts = [f"{item['question']} {choice}" for choice in item["choices"]]
        first = len(tokenizer.encode([item["question"]])[0])
        ids = tokenizer.encode(texts)
        width = max(map(len, ids))
        inputs = torch.tensor([[*one, *[0] * (width - len(one))] for one in ids])
        with torch.no_grad():
            log_q = network(input_ids=inputs).logits.log_softmax(-1)
        scores = [
            sum(float(log_q[place, at - 1, one[at]]) for at in range(first, len(one)))
            for place, one in enumerate(ids)
        ]
        found.append(scores.index(max(scores)) == item["answer"])
    return found


def chance(items: list[dict[str, Any]]) -> float:
    """Return the share of questions that guessing answers."""
    return sum(1 / len(item["choices"]) for item in items) / len(items)


def batches(rows: list[Row], together: int) -> Iterator[tuple[Batch, Tensor]]:
    """Yield so many rows at a time, with their labels."""
    for start in range(0, len(rows), together):
        some = rows[start : start + together]
        batch = batch_of(some)
        labels = np.full(batch.shape, IGNORED, np.int64)
        for place, row in enumerate(some):
            labels[place, : len(row)] = row.labels
        yield batch, torch.from_numpy(labels)


def _said(network: Any, rows: list[Row], vocabulary: int, together: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits at the places that count, and the tokens that come there."""
    for batch, labels in batches(rows, together):
        found = places(labels)
        with torch.no_grad():
            scores = forward(network, batch, rule=None).scores
            assert isinstance(scores, Logits)
            logits = scores.finish(scores.raw(found.rows, vocabulary))
        yield logits.float(), found.labels

"""What a target writes and what two models say of it: the ground that a draft model is measured on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evolve.stages.distill.forward import forward, head_rule
from evolve.stages.distill.generation import complete
from evolve.stages.distill.teachers.base import Batch
from evolve.tensors.chunked import chunk_rows
from evolve.tensors.divergence import log_probabilities
from evolve.types import content_hash
from evolve.weights.files import cache_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from evolve.stages.distill.generation import Generation
    from evolve.weights.model import Model

logger = logging.getLogger(__name__)

_VERSION = 1
_TOGETHER = 16


class Written(NamedTuple):
    """A prompt, what the target wrote behind it, and how likely each of these tokens was.

    Attributes:
        prompt: Token ids.
        completion: Token ids, at least one.
        log_p: The target's log-probability of each token of the completion, at the temperature of decoding
            (at 1 where that is 0).
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    log_p: tuple[float, ...]


def target_texts(
    target: Model,
    content: str,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    *,
    seed: int,
    vocabulary: int,
) -> list[Written]:
    """Return what a target writes behind each prompt; kept in the user's cache.

    Args:
        target: The model, opened in float32 on a CPU where nothing is kept yet.
        content: ``sha256:...`` of it.
        prompts: Token ids.
        settings: How it decodes.
        seed: Of the sampling.
        vocabulary: Number of real tokens.
    """
    flat = [list(map(int, prompt)) for prompt in prompts]
    key = {
        "version": _VERSION,
        "target": content,
        "prompts": hashlib.sha256(json.dumps(flat).encode()).hexdigest(),
        "settings": settings.as_plain(),
        "seed": seed,
        "vocabulary": vocabulary,
    }
    path = cache_folder("drafts") / f"{content_hash(key)}.json"
    kept = _read(path, flat)
    if kept is not None:
        return kept
    import torch

    from evolve.stages.distill.teachers.hf import open_frozen

    network = open_frozen(target, "cuda" if torch.cuda.is_available() else "cpu")
    found = complete(network, flat, settings, seed=seed)
    texts = [
        Written(tuple(prompt), one.tokens, (0.0,) * len(one.tokens))
        for prompt, one in zip(flat, found, strict=True)
    ]
    said = said_of(network, texts, settings.temperature or 1.0, vocabulary)
    texts = [one._replace(log_p=tuple(log_p.tolist())) for one, (log_p, _) in zip(texts, said, strict=True)]
    _write(path, texts)
    return texts


def said_of(
    network: Any, texts: Sequence[Written], temperature: float, vocabulary: int
) -> list[tuple[Tensor, Tensor]]:
    """Return what a network says of each completion's tokens.

    Args:
        network: A causal language model of transformers.
        texts: With at least one token of a prompt and one of a completion.
        temperature: Above 0.
        vocabulary: Number of real tokens.

    Returns:
        For each text the log-probability of every token of its completion, float32, and the most likely
        token in its place, int64; both on the CPU.
    """
    import torch

    rule = head_rule(network)
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i].prompt) + len(texts[i].completion), i))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for begin in range(0, len(order), _TOGETHER):
        some = order[begin : begin + _TOGETHER]
        whole = [[*texts[place].prompt, *texts[place].completion] for place in some]
        width = max(map(len, whole))
        tokens = torch.tensor([one + [0] * (width - len(one)) for one in whole])
        with torch.no_grad():
            scores: Any = forward(
                network, Batch(tokens, tuple((len(one),) for one in whole)), rule=rule
            ).scores
        for number, place in enumerate(some):
            start = len(texts[place].prompt)
            wanted = torch.tensor(texts[place].completion)
            rows = torch.arange(start - 1, start - 1 + len(wanted)) + number * width
            found[place] = _said(scores, rows, wanted, temperature, min(vocabulary, scores.vocabulary))
    return [found[place] for place in range(len(texts))]


def _said(
    scores: Any, rows: Tensor, wanted: Tensor, temperature: float, vocabulary: int
) -> tuple[Tensor, Tensor]:
    import torch

    values, best = [], []
    step = chunk_rows(vocabulary)
    device = scores.tensors[0].device
    with torch.no_grad():
        for begin in range(0, len(rows), step):
            logits = scores.finish(scores.raw(rows[begin : begin + step].to(device), vocabulary))
            log_p = log_probabilities(logits, temperature).float().cpu()
            # A padded entry that was written all the same is as good as impossible.
            ids = wanted[begin : begin + step]
            known = ids < vocabulary
            picked = log_p.gather(1, torch.where(known, ids, 0)[:, None])[:, 0]
            values.append(torch.where(known, picked, torch.tensor(float("-inf"))))
            best.append(log_p.argmax(-1))
    return torch.cat(values), torch.cat(best)


def _read(path: Path, prompts: Sequence[Sequence[int]]) -> list[Written] | None:
    try:
        data = json.loads(path.read_bytes())
        found = [Written(tuple(one[0]), tuple(one[1]), tuple(one[2])) for one in data]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, IndexError) as error:
        logger.warning("%s is damaged and is written again: %s", path, error)
        return None
    return found if [list(one.prompt) for one in found] == [list(one) for one in prompts] else None


def _write(path: Path, texts: Sequence[Written]) -> None:
    # A cache only saves time: a full disk must not stop a search.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            rows = [[list(one.prompt), list(one.completion), _plain(one.log_p)] for one in texts]
            partial.write_text(json.dumps(rows), encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the target's texts are not kept: %s", error)


def _plain(values: Sequence[float]) -> list[float]:
    return [float(np.float32(value)) for value in values]

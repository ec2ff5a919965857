"""Text that a model writes itself, to be replayed where its own training data is not known.

Pseudo-rehearsal: Robins 1995, Catastrophic forgetting, rehearsal and pseudorehearsal; for language models
Sun et al. 2020, LAMOL, arXiv:1909.03329.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError
from evolve.training.kept import kept
from evolve.training.seeds import seed_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from evolve.weights.tokenizer import Tokenizer

_BATCH = 32


def self_generated(
    network: Any, tokenizer: Tokenizer, count: int, *, max_length: int, seed: int, key: Mapping[str, Any]
) -> Path:
    """Return a ``.jsonl`` file with texts that the model wrote: sampled at temperature 1 from nothing.

    Args:
        network: A transformers causal language model; it is put into evaluation mode for the time.
        tokenizer: The model's.
        count: How many texts.
        max_length: Most tokens of a text.
        seed: Decides the draws.
        key: What the model is, as plain data; the other arguments are added to it.

    Raises:
        CandidateError: The model has no token to begin with, or predicts NaN or infinity.
        UserError: The cache cannot be written.
    """
    whole = {**key, "count": count, "max_length": max_length, "seed": seed}
    return kept(
        "self_generated",
        whole,
        ".jsonl",
        lambda out: _write(network, tokenizer, count, max_length, seed, out),
    )


def _write(network: Any, tokenizer: Tokenizer, count: int, max_length: int, seed: int, out: Path) -> None:
    import torch

    begin = tokenizer.end if tokenizer.begin is None else tokenizer.begin
    if begin is None:
        raise CandidateError(
            "build", "self_generated: the tokenizer has no token that begins a text: replay a file instead"
        )
    training = network.training
    network.eval()
    try:
        with out.open("x", encoding="utf-8") as lines, torch.random.fork_rng(), torch.no_grad():
            for start in range(0, count, _BATCH):
                size = min(_BATCH, count - start)
                torch.manual_seed(seed_of(seed, "self_generated", start))
                ids = torch.full((size, 1), begin, device=network.device)
                written = network.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_length=None,
                    max_new_tokens=max_length - 1,
                    eos_token_id=tokenizer.end,
                    pad_token_id=begin if tokenizer.end is None else tokenizer.end,
                )
                for row in written[:, 1:].tolist():
                    ended = row[: row.index(tokenizer.end)] if tokenizer.end in row else row
                    text = tokenizer.backend.decode(ended, skip_special_tokens=True)
                    lines.write(json.dumps({"text": text}) + "\n")
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise CandidateError("non_finite", "self_generated: the model predicts NaN or infinity") from error
    finally:
        network.train(training)

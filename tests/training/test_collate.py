from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evolve.errors import CandidateError
from evolve.training.collate import collate, logits_of, require_isolation
from evolve.training.rows import IGNORED, Row
from tests.architectures import make

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = (20, 1, 33, 2, 7)
"""Longer than the sliding windows of 16, one token, and in between."""


def row_of(lengths: tuple[int, ...], seed: int = 0) -> Row:
    tokens = np.random.default_rng(seed).integers(3, 128, sum(lengths)).astype(np.int32)
    labels = tokens.copy()
    labels[np.cumsum((0, *lengths[:-1]))] = IGNORED
    return Row(tokens, labels, lengths)


def load(path: Path, name: str, **settings: Any) -> Any:
    from transformers import AutoModelForCausalLM

    make(path, name, tokenizer=False)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **settings).eval()


def test_batch() -> None:
    long, short = row_of((3, 1, 2)), row_of((2,))
    batch = collate([long, short], 7)
    assert batch["input_ids"].tolist() == [long.tokens.tolist(), [*short.tokens.tolist(), 7, 7, 7, 7]]
    assert batch["labels"].tolist() == [long.labels.tolist(), [*short.labels.tolist(), *[IGNORED] * 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 2, 3]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3_text", "mistral", "gpt2"])
def test_documents_of_a_row_do_not_see_each_other(tmp_path: Path, name: str, attention: str) -> None:
    network = load(tmp_path / "m", name, attn_implementation=attention)
    packed, padded = row_of(LENGTHS), row_of((19, 5), seed=1)
    require_isolation(network)
    with torch.no_grad():
        found = logits_of(network, collate([packed, padded], 2))
        for index, row in enumerate((packed, padded)):
            start = 0
            for length in row.lengths:
                ids = torch.from_numpy(row.tokens[start : start + length]).long()[None]
                alone = network(input_ids=ids, use_cache=False).logits[0]
                torch.testing.assert_close(found[index, start : start + length], alone, rtol=1e-5, atol=1e-5)
                start += length


def test_without_isolation_the_logits_differ(tmp_path: Path) -> None:
    # The test above can fail: plain positions leak.
    network = load(tmp_path / "m", "llama")
    row = row_of(LENGTHS)
    with torch.no_grad():
        apart = logits_of(network, collate([row], 2))
        plain = network(input_ids=torch.from_numpy(row.tokens).long()[None]).logits
    assert (apart - plain)[0, 21:].abs().max() > 1e-2


def test_a_state_along_the_row_is_refused(tmp_path: Path) -> None:
    network = load(tmp_path / "m", "mamba")
    with pytest.raises(CandidateError, match=r"'mamba'.*packing: false"):
        require_isolation(network)

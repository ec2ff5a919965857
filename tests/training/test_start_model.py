"""What is asked of the start model before training: its losses, and text that it writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.errors import CandidateError
from evolve.training.base_loss import base_losses
from evolve.training.documents import Documents, choose
from evolve.training.rehearsal import self_generated
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from evolve.weights.tokenizer import load_tokenizer
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.tokenizer import Tokenizer


@pytest.fixture
def start(tmp_path: Path) -> tuple[Any, Tokenizer]:
    model = open_model(make_model(tmp_path / "base"))
    return open_network(model)[0], load_tokenizer(model.files, model.config)


def test_documents_are_framed(start: tuple[Any, Tokenizer]) -> None:
    _, tokenizer = start
    one, two = tokenizer.documents(["hen", "hen</s>"])
    assert one == two, "an end mark that is there is not doubled"
    assert (tokenizer.begin, tokenizer.end) == (1, 2)
    assert one[-1] == 2


def test_base_losses(tmp_path: Path, start: tuple[Any, Tokenizer]) -> None:
    network, tokenizer = start
    path = tmp_path / "a.jsonl"
    texts = ["the hen", "red sea and " * 9, "one", *(f"{number} ants" for number in range(9))]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    chosen = choose(Documents(path), seed=0)
    found = base_losses(network, chosen, tokenizer.documents, max_length=16, key={"model": "a"})
    for text, loss in zip(chosen.texts(), found, strict=True):
        ids = torch.tensor(tokenizer.documents([text]))[:, :16]
        with torch.no_grad():
            wanted = network(input_ids=ids, labels=ids).loss
        assert loss == pytest.approx(float(wanted), rel=1e-5)
    # The second time nothing is computed; another model is another key.
    again = base_losses(None, chosen, tokenizer.documents, max_length=16, key={"model": "a"})
    assert again.tolist() == found.tolist()
    with pytest.raises(AttributeError):
        base_losses(None, chosen, tokenizer.documents, max_length=16, key={"model": "b"})


def test_a_single_token_gets_the_mean(tmp_path: Path, start: tuple[Any, Tokenizer]) -> None:
    network, _ = start
    path = tmp_path / "a.txt"
    path.write_text("a\n\nb\n\nc")
    chosen = choose(Documents(path), seed=0)
    ids = {"a": [5], "b": [6, 7], "c": [8, 9, 10]}
    found = base_losses(
        network, chosen, lambda some: [ids[t] for t in some], max_length=8, key={"model": "x"}
    )
    by_text = dict(zip(chosen.texts(), found.tolist(), strict=True))
    assert by_text["a"] == pytest.approx((by_text["b"] + by_text["c"]) / 2)


def test_a_model_writes_text(start: tuple[Any, Tokenizer]) -> None:
    network, tokenizer = start

    def write(model: str, seed: int, count: int = 40) -> list[str]:
        path = self_generated(network, tokenizer, count, max_length=8, seed=seed, key={"model": model})
        return [json.loads(line)["text"] for line in path.read_text().splitlines()]

    before = torch.random.get_rng_state()
    texts = write("a", 0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(texts) == 40
    assert len(set(texts)) > 30
    assert texts == write("same bits, another key", 0)
    assert texts != write("a", 1)
    assert write("a", 0, 33)[:32] == texts[:32]
    # A uniform model writes every token about as often: the draws are not greedy.
    assert not any("</s>" in text for text in texts)


def test_no_token_to_begin_with(start: tuple[Any, Tokenizer]) -> None:
    from dataclasses import replace

    network, tokenizer = start
    bare = replace(tokenizer, begin=None, end=None)
    with pytest.raises(CandidateError, match="no token that begins"):
        self_generated(network, bare, 1, max_length=8, seed=0, key={"model": "a"})

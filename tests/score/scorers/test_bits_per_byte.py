"""Bits per byte beside a float64 computation of its own, one window at a time."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.registry import ENGINES
from evolve.score.scorer import Scorer
from evolve.score.scorers.base import ScorerProblem
from evolve.score.scorers.bits_per_byte import BitsPerByte, BitsPerByteBlock, chunked
from evolve.weights.reader import open_model
from tests.score.scorers.held import config, score

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.score.engines.base import Engine

DOCUMENTS = [
    "the red hen and the rat, one and ten.\nthen on and on to the end\n",
    "an ore, a net, a tin: " * 40,  # longer than the model's 256 tokens
    "naive tents; ten of them.",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in DOCUMENTS))
    return path


class Oracle:
    """Bits of a text, by float64 sums over windows of at most 254 tokens."""

    longest = 254

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    def bits(self, text: str) -> float:
        tokens = self.tokenizer(text, add_special_tokens=False).input_ids
        whole = [self.tokenizer.bos_token_id, *tokens]
        nats, done = 0.0, 0
        while done < len(tokens):
            end = min(len(tokens), done + self.longest)
            # The last window reads as much before its own tokens as fits.
            first = max(0, end - self.longest) if done else 0
            read = torch.tensor([whole[first:end]])
            with torch.no_grad():
                logs = torch.log_softmax(self.network(read).logits[0], dim=-1)
            nats -= sum(logs[i - first, whole[i + 1]].item() for i in range(done, end))
            done = end
        return nats / math.log(2)


def test_it_is_the_bits_of_all_chunks_over_their_bytes(engine: Engine, folder: Path, text: Path) -> None:
    block = {"path": str(text), "chunk_bytes": 5000}
    found = score(engine, {"bits_per_byte": block})["bits_per_byte"]
    oracle = Oracle(folder)
    bits = [oracle.bits(one) for one in DOCUMENTS]
    sizes = [len(one.encode()) for one in DOCUMENTS]
    ratio = sum(bits) / sum(sizes)
    assert found.value == pytest.approx(ratio, rel=1e-5)
    assert not found.higher_is_better
    influence = [ratio + (b - ratio * n) / np.mean(sizes) for b, n in zip(bits, sizes, strict=True)]
    assert sorted(found.items.values()) == pytest.approx(sorted(influence), rel=1e-4)
    assert found.stderr == pytest.approx(np.std(influence, ddof=1) / math.sqrt(3), rel=1e-3)


def test_a_tokenizer_that_puts_a_token_in_front_changes_nothing(
    folder: Path, text: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    data = json.loads(path.read_text())
    front = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [front, sequence],
        "pair": [front, sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(data))
    values = []
    for place in (folder, tmp_path / "model"):
        block = {"bits_per_byte": {"path": str(text)}}
        with closing(ENGINES.load("hf")(config(block), open_model(place), 1)) as engine:
            values.append(score(engine, block)["bits_per_byte"].value)
            first = engine.lm.tok_encode("hen")[0]
    assert first == 1, "the second tokenizer does put a token in front"
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_search_and_holdout_are_disjoint_and_drawn_by_seed(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number} of the text, and so on\n" for number in range(200)))

    def keys(seed: int, **block: Any) -> tuple[set[str], set[str]]:
        block = {"path": str(path), "chunk_bytes": 100, **block}
        scorer = BitsPerByte(
            BitsPerByteBlock.model_validate(block), config({"size": {}}, holdout=20, seed=seed)
        )
        found: Any = scorer.identity()
        return set(found["search"]), set(found["holdout"])

    search, holdout = keys(0)
    assert not search & holdout
    assert len(holdout) == 20 and len(search) > 40
    fewer, same = keys(0, items=10)
    assert len(fewer) == 10 and fewer < search and same == holdout
    assert keys(1) != (search, holdout)
    few = tmp_path / "few.txt"
    few.write_text("a line\n" * 3 + "and another line of the text\n" * 9)
    short, held = keys(0, path=str(few), chunk_bytes=30)
    assert len(held) <= len(short), "a short text keeps half for the search"


@given(st.text(st.characters(codec="utf-8")), st.integers(16, 60))
def test_chunks_are_the_text(text: str, size: int) -> None:
    chunks = chunked(text, size)
    assert all(chunk.strip() and len(chunk) <= max(size, 16) for chunk in chunks)
    rest = text
    for chunk in chunks:
        before, _, rest = rest.partition(chunk)
        assert not before.strip()
    assert not rest.strip()


@pytest.mark.parametrize(
    ("content", "block", "key", "message"),
    [
        (None, {}, "path", "cannot be read"),
        ("", {}, "path", "0 distinct chunks"),
        ("one line\n", {"items": 5}, "items", "1 distinct chunks"),
        ('{"body": "x"}\n', {"path": "t.jsonl"}, "path", "line 1: no JSON object with a key 'text'"),
        ('{"text": 3}\n', {"path": "t.jsonl"}, "key", "holds no text"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    block: dict[str, Any],
    key: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    block = {"path": "t.txt", **block}
    if content is not None:
        (tmp_path / block["path"]).write_text(content)
    with pytest.raises(ScorerProblem, match=message) as caught:
        BitsPerByte(BitsPerByteBlock.model_validate(block), config({"size": {}}))
    assert caught.value.key == key


def test_the_text_and_not_its_place_enters_the_fingerprint(tmp_path: Path) -> None:
    def fingerprint(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        return Scorer(config({"bits_per_byte": {"path": str(tmp_path / name)}})).fingerprint

    assert fingerprint("a.txt", "one text\n") == fingerprint("b.txt", "one text\n")
    assert fingerprint("a.txt", "one text\n") != fingerprint("a.txt", "another text\n")


def test_a_byte_model_of_known_entropy(tmp_path: Path) -> None:
    """Every byte has the same probability everywhere, so a text costs -sum(count log2 p) bits, no more."""
    from transformers import AutoModelForCausalLM

    from tests.tiny import make_config
    from tests.tokenizers import SPECIAL, gpt2_style

    folder = tmp_path / "model"
    gpt2_style(folder, bos_token="<s>", eos_token="</s>")
    ids = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(ids) == 256 + len(SPECIAL)
    plain = make_config("llama", tied=False, layers=1, vocab=len(ids))
    network = AutoModelForCausalLM.from_config(plain)
    chances = np.random.default_rng(0).dirichlet(np.full(256, 0.3)) + 1e-9
    chances /= chances.sum()
    logs = np.full(len(ids), -60.0)  # the special ones: no part of the sum in float32
    letters = bytes_to_letters()
    for byte, chance in enumerate(chances):
        logs[ids[letters[byte]]] = np.log(chance)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        # The hidden state is all ones everywhere, which the norm divides by sqrt(1 + eps), and its first
        # place alone is read: with this weight it is 1, and the logits are log p.
        network.model.embed_tokens.weight.fill_(1.0)
        network.model.norm.weight[0] = math.sqrt(1 + plain.rms_norm_eps)
        network.lm_head.weight[:, 0] = torch.tensor(logs)
    network.save_pretrained(folder)
    path = tmp_path / "text.jsonl"
    texts = ["the red hen\n", "naïve café — 東京 🙂", "0123456789" * 20]
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    block = {"bits_per_byte": {"path": str(path), "chunk_bytes": 5000}}
    with closing(ENGINES.load("hf")(config(block), open_model(folder), 1)) as engine:
        found = score(engine, block)["bits_per_byte"]
    counts = np.bincount(np.frombuffer("".join(texts).encode(), np.uint8), minlength=256)
    assert found.value == pytest.approx(-(counts * np.log2(chances)).sum() / counts.sum(), rel=1e-6)


def bytes_to_letters() -> list[str]:
    """Return the character that a byte-level tokenizer writes for each byte (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from evolve.errors import CandidateError
from evolve.registry import REGULARIZERS
from evolve.training.collate import collate, logits_of
from evolve.training.regularizers.base import Anchor
from evolve.training.regularizers.ewc import EwcBlock, fisher_of
from evolve.training.regularizers.lwf import LwfBlock
from evolve.training.regularizers.quadratic import Quadratic
from evolve.training.rows import IGNORED, Row
from evolve.weights.content import content_of, file_content
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from tests.tiny import WIDTH, make_config, make_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Anchor, EwcBlock]:
    """A small model that has learned a small text, and the text."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.jsonl"
    draw = np.random.default_rng(0)
    words = ["the hen", "then", "in", "the tin", "one", "red", "ants", "and", "on"]
    lines = [" ".join(draw.choice(words, 14)) for _ in range(120)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(make_config())
    make_tokenizer(folder / "m")
    network.save_pretrained(folder / "m")
    model = open_model(folder / "m")
    from evolve.weights.tokenizer import load_tokenizer

    ids = load_tokenizer(model.files, model.config).documents(lines)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(60):
        batch = torch.tensor([ids[(8 * step + one) % 120][:24] for one in range(8)])
        network(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.save_pretrained(folder / "m")
    model = replace(open_model(folder / "m"), content=content_of(folder / "m"))
    network, names = open_network(model)
    block = EwcBlock(path=str(text), content=file_content(text), weight=1.0, samples=120)
    return Anchor(model, network, names, 32, 0), block


def batch_of(*lengths: int) -> dict[str, Tensor]:
    tokens = np.random.default_rng(1).integers(3, 128, sum(lengths)).astype(np.int32)
    labels = tokens.copy()
    labels[np.cumsum((0, *lengths[:-1]))] = IGNORED
    return collate([Row(tokens, labels, lengths)], 2)


def moved(network: Any, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def copied(anchor: Anchor) -> Any:
    return open_network(anchor.model)[0]


@pytest.mark.parametrize("name", ["ewc", "l2sp"])
def test_quadratic_form_and_gradient_against_autograd(trained: tuple[Anchor, EwcBlock], name: str) -> None:
    anchor, ewc = trained
    network = copied(anchor)
    method = REGULARIZERS.load(name)
    block = ewc if name == "ewc" else method.block(weight=1.0)
    ready = method.prepare(block, Anchor(anchor.model, network, anchor.names, 32, 0))
    parameters = dict(network.named_parameters())
    start = {key: one.detach().double().clone() for key, one in parameters.items()}
    factors = fisher_of(ewc, anchor) if name == "ewc" else None
    logits = torch.zeros(1, 1, 1)
    assert float(ready.penalty(network, {}, logits)) == 0.0
    moved(network, 0.01)
    found = ready.penalty(network, {}, logits)
    (3 * found).backward()
    wide = {key: one.detach().double().requires_grad_() for key, one in parameters.items()}
    total = torch.zeros((), dtype=torch.float64)
    for key, one in wide.items():
        factor = 1.0 if factors is None else factors[key].double()
        total = total + 0.5 * (factor * (one - start[key]) ** 2).sum()
    (3 * total).backward()
    assert float(found) == pytest.approx(float(total), rel=1e-5)
    for key, one in parameters.items():
        torch.testing.assert_close(one.grad.double(), wide[key].grad, rtol=1e-4, atol=1e-12)
    count = sum(one.numel() for one in parameters.values())
    assert ready.nbytes == count * (8 if name == "ewc" else 4) == count * method.held


def test_what_is_not_trained_is_not_held(trained: tuple[Anchor, EwcBlock]) -> None:
    network = copied(trained[0])
    for parameter in network.model.layers.parameters():
        parameter.requires_grad_(False)
    ready = Quadratic(network)
    assert ready.nbytes == 4 * (128 * WIDTH + WIDTH)
    free = Quadratic(network, {"model.norm.weight": torch.ones(WIDTH)})
    moved(network, 0.1)
    norm = network.model.norm.weight.detach()
    start = trained[0].network.model.norm.weight.detach()
    wanted = 0.5 * ((norm - start) ** 2).sum()
    assert float(free.penalty(network, {}, torch.zeros(1))) == pytest.approx(float(wanted), rel=1e-4)


def test_fisher_predicts_the_divergence(trained: tuple[Anchor, EwcBlock]) -> None:
    """Over random signs the mean of KL(start || moved) is half eps^2 sum F, as for the full matrix.

    The padding token of this model is its end token, which stands between documents: torch's padding_idx
    would leave its row out of the Fisher information, and 40 % of the sum with it.
    """
    from evolve.statistics.corpus import Corpus, sequences
    from evolve.statistics.fisher import diagonal_fisher
    from evolve.weights.tokenizer import load_tokenizer

    anchor, block = trained
    tokenizer = load_tokenizer(anchor.model.files, anchor.model.config)
    corpus = Corpus(block.path, block.content or "", 40 * 16, 16, 0)
    text = list(sequences(corpus, lambda text: tokenizer.documents([text])[0]))
    tokens = torch.stack(text)
    # Of one draw of labels each: their mean has the noise of neither.
    sums = [
        sum(float(one.double().sum()) for one in diagonal_fisher(anchor.network, text, seed=seed).values())
        for seed in range(12)
    ]
    mine = fisher_of(block.model_copy(update={"samples": 40}), replace(anchor, max_length=16))
    assert sum(float(one.double().sum()) for one in mine.values()) == pytest.approx(sums[0], rel=1e-4)
    predicted = np.mean(sums) / 2
    network, eps, found = copied(anchor), 3e-4, []
    start = {name: one.detach().clone() for name, one in network.named_parameters()}
    with torch.no_grad():
        before = network(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1)
        for draw in range(160):
            generator = torch.Generator().manual_seed(draw)
            for name, parameter in network.named_parameters():
                signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
                parameter.copy_(start[name] + eps * signs)
            after = network(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(-1)
            found.append(float((before.exp() * (before - after)).sum(-1).mean()))
    assert np.mean(found) == pytest.approx(predicted * eps**2, rel=0.1)


def test_the_fisher_is_gathered_once(
    trained: tuple[Anchor, EwcBlock], monkeypatch: pytest.MonkeyPatch
) -> None:
    anchor, block = trained
    one = fisher_of(block, anchor)
    monkeypatch.setattr("evolve.statistics.gather.open_network", None)
    two = fisher_of(block, anchor)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one.keys() == dict(anchor.network.named_parameters()).keys()


def test_ewc_without_content(trained: tuple[Anchor, EwcBlock]) -> None:
    anchor, block = trained
    with pytest.raises(CandidateError, match="no content hash"):
        fisher_of(block.model_copy(update={"content": None}), anchor)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_lwf_is_the_divergence_from_the_start(trained: tuple[Anchor, EwcBlock], temperature: float) -> None:
    anchor, _ = trained
    network = copied(anchor)
    method = REGULARIZERS.load("lwf")
    ready = method.prepare(
        LwfBlock(weight=1.0, temperature=temperature), Anchor(anchor.model, network, {}, 32, 0)
    )
    batch = batch_of(5, 1, 9)
    assert float(ready.penalty(network, batch, logits_of(network, batch))) == pytest.approx(0.0, abs=1e-7)
    moved(network, 0.02)
    logits = logits_of(network, batch)
    found = ready.penalty(network, batch, logits)
    with torch.no_grad():
        old = logits_of(anchor.network, batch)[0].double() / temperature
    new = logits[0].detach().double() / temperature
    counted = [place for place in range(14) if batch["labels"][0, place + 1] != IGNORED]
    assert len(counted) == 12
    each = [
        float((old[p].softmax(-1) * (old[p].log_softmax(-1) - new[p].log_softmax(-1))).sum()) for p in counted
    ]
    assert float(found) == pytest.approx(temperature**2 * np.mean(each), rel=1e-4)
    found.backward()
    assert network.model.norm.weight.grad.abs().sum() > 0
    assert ready.nbytes == 4 * sum(one.numel() for one in network.parameters())
    assert method.held == 4


def test_lwf_with_an_adapter_takes_no_second_network(trained: tuple[Anchor, EwcBlock]) -> None:
    peft = pytest.importorskip("peft")
    anchor, _ = trained
    network = peft.get_peft_model(copied(anchor), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    ready = REGULARIZERS.load("lwf").prepare(LwfBlock(weight=1.0), Anchor(anchor.model, network, {}, 32, 0))
    batch = batch_of(5, 9)
    assert ready.nbytes == 0
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    with torch.no_grad():
        after, before = logits_of(network, batch), logits_of(anchor.network, batch)
        found = ready.penalty(network, batch, after)
    from evolve.tensors.divergence import forward_kl, log_probabilities

    counted = batch["labels"][:, 1:] != IGNORED
    each = forward_kl(*(log_probabilities(one[:, :-1][counted]) for one in (before, after)))
    assert float(each.mean()) > 1e-3
    assert float(found) == pytest.approx(float(each.mean()), rel=1e-4)

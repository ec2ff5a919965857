"""Shared beginnings give the numbers of single rows, and models that cannot share are noticed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.score.engines.hf import open_engine
from evolve.weights.reader import open_model
from tests.score.engines.oracle import Oracle, agree, changed, config, instances, make, scores

if TYPE_CHECKING:
    from pathlib import Path

SHARED = [("the hen and the red hen in", f" {word} at the end") for word in ("one", "ten", "a tin", "no")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def answers(lm: Any) -> list[Any]:
    return list(lm.loglikelihood(instances("loglikelihood", [*SHARED])))


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_beginnings_are_shared_with_the_same_numbers(root: Path, arch: str, attention: str) -> None:
    model = make(root, arch, tied=arch != "gpt_neox", seed=0)
    engine = open_engine(config(engine_args={"attn_implementation": attention}), model, 1)
    shared = answers(engine.lm)
    assert engine.lm._can_share is True
    work = engine.lm.work
    assert work["tokens computed"] < work["tokens of whole prompts"] / 2
    assert work["positions with logits"] <= work["tokens computed"] - 10, "none for the context"
    engine.lm._can_share = False
    agree(shared, answers(engine.lm), 1e-5)
    agree(scores(engine.lm), Oracle(model).scores)


def test_a_model_that_ignores_mask_or_positions_is_noticed(root: Path) -> None:
    model = make(root, "llama", tied=True, seed=0)
    engine = open_engine(config(), model, 1)
    lm, network = engine.lm, engine.lm.model
    wanted = answers(lm)
    real = network.model.forward
    for left_out in ("attention_mask", "position_ids"):
        lm._can_share = None

        def deaf(*args: Any, left_out: str = left_out, **more: Any) -> Any:
            return real(*args, **{**more, left_out: None})

        network.model.forward = deaf
        agree(answers(lm), wanted, 1e-5)
        assert lm._can_share is False


def test_a_model_of_states_reads_every_sequence_for_itself(root: Path) -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    from evolve.score.engines.hf_lm import lm_class

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=4)
    ).eval()
    tokenizer = open_engine(config(), make(root, "llama", tied=True, seed=0), 1).lm.tokenizer
    lm = lm_class()(pretrained=network, tokenizer=tokenizer, batch_size=3, max_length=128)
    found = answers(lm)
    assert lm._can_share is False
    for (context, continuation), (value, _) in zip(SHARED, found, strict=True):
        whole = tokenizer(context + continuation, add_special_tokens=False).input_ids
        start = len(tokenizer(context, add_special_tokens=False).input_ids)
        with torch.no_grad():
            logits = network(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        alone = sum(logits[i - 1, whole[i]].item() for i in range(start, len(whole)))
        assert value == pytest.approx(alone, abs=1e-4)


def test_beyond_a_sliding_window_nothing_is_shared(root: Path) -> None:
    model = make(root, "mistral", tied=False, seed=0)
    engine = open_engine(config(), model, 1)
    engine.lm.model.config.sliding_window = 8
    answers(engine.lm)
    assert engine.lm.work["tokens computed"] == engine.lm.work["tokens of whole prompts"]


def test_weights_that_tell_nothing_decide_nothing(root: Path) -> None:
    model = make(root, "llama", tied=True, seed=0)
    engine = open_engine(config(), changed(model, "norm", lambda tensor: tensor.fill_(float("nan"))), 1)
    assert all(value != value for value, _ in answers(engine.lm))
    assert engine.lm._can_share is None
    engine.load(changed(model, "v_proj", lambda tensor: tensor.zero_()))
    assert engine.lm._can_share is None or not engine.lm._can_share
    engine.load(model)
    agree(scores(engine.lm), Oracle(model).scores)
    assert engine.lm._can_share is True


def test_plans_are_kept_for_the_next_candidate(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(config(), make(root, "llama", tied=True, seed=0), 1)
    before = answers(engine.lm)
    engine.load(make(root, "llama", tied=True, seed=1))
    monkeypatch.setattr(engine.lm, "_make_plan", None)
    assert answers(engine.lm) != before


def test_plans_outlive_restarts_for_another_depth_or_tokenizer(root: Path, tmp_path: Path) -> None:
    first = make(root, "llama", tied=True, seed=0)
    deeper = make(root, "llama", tied=True, seed=0, layers=3)
    other = open_model(shutil.copytree(first.files, tmp_path / "other"))
    generation = tmp_path / "other" / "generation_config.json"
    generation.write_text(generation.read_text().replace("}", "\n}"))
    engine = open_engine(config(), first, 1)
    before = answers(engine.lm)
    [plan] = engine.lm.plans
    key = engine.lm.tokenizer_key
    for model, same in ((other, False), (deeper, True)):
        lm = engine.lm
        engine.load(model)
        found = answers(engine.lm)
        assert engine.lm is not lm and (engine.lm.tokenizer_key == key) is same
        assert len(engine.lm.plans) == 1 and (engine.lm.plans[0] is plan) is same
        assert (found == before) is (model is other)
    assert engine.starts == 3


def test_each_candidate_says_what_its_padding_is(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = open_engine(config(), make(root, "llama", tied=True, seed=0), 1)
    engine.lm._can_share = False
    pairs = [("the hen", " in"), ("the hen and the red hen in the tent", " in")]
    tokens = [len(engine.lm.tok_encode(context + asked)) - 1 for context, asked in pairs]
    with caplog.at_level("INFO", logger="evolve"):
        engine.lm.loglikelihood(instances("loglikelihood", pairs))
        engine.load(make(root, "llama", tied=True, seed=1))
        engine.lm.loglikelihood(instances("loglikelihood", pairs))
    said = [record.message for record in caplog.records if "padding" in record.message]
    share = 1 - sum(tokens) / (2 * max(tokens))
    assert len(said) == 2 and f"{sum(tokens)} computed" in said[1] and f"padding {share:.0%}" in said[1]


def test_equal_requests_are_computed_once(root: Path) -> None:
    engine = open_engine(config(), make(root, "llama", tied=True, seed=0), 1)
    found = engine.lm.loglikelihood(instances("loglikelihood", [SHARED[0]] * 3))
    assert found[0] == found[1] == found[2]
    assert engine.lm.work["tokens computed"] == engine.lm.work["tokens of whole prompts"] / 3

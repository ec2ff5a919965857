"""Adapters on models whose head is their embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.errors import CandidateError
from evolve.training.adapters import adapter_problems
from evolve.training.arguments import PeftConfig
from evolve.training.network import open_trainee, trained_model
from evolve.weights.network import open_network
from evolve.weights.reader import open_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = torch.arange(3, 30)[None]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], None])
def test_what_is_exported_is_what_was_trained(tmp_path: Path, saved: Any, tied: bool) -> None:
    model = open_model(make_model(tmp_path / "model", layers=1, tied=tied))
    trainee = open_trainee(model, peft=PeftConfig(r=4, modules_to_save=saved))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainee.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        trained = trainee.network.eval()(input_ids=TOKENS).logits
        exported, _ = open_network(trained_model(trainee))
        torch.testing.assert_close(exported(input_ids=TOKENS).logits, trained, rtol=1e-4, atol=1e-4)
        start, _ = open_network(model)
        assert torch.equal(start.get_input_embeddings().weight, exported.get_input_embeddings().weight) is (
            saved is None or (saved == ["lm_head"] and not tied)
        )


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_low_rank_change_of_a_tied_table_is_refused(tmp_path: Path, name: str) -> None:
    config = PeftConfig(r=4, target_modules=["q_proj", name])
    model = open_model(make_model(tmp_path / "tied", layers=1))
    assert [path for path, _ in adapter_problems(config, model)] == ["peft_config.target_modules"]
    with pytest.raises(CandidateError, match="modules_to_save"):
        open_trainee(model, peft=config)
    untied = open_model(make_model(tmp_path / "untied", layers=1, tied=False))
    assert adapter_problems(config, untied) == []
    open_trainee(untied, peft=config)


def test_dora_is_merged_as_its_paper_has_it(tmp_path: Path) -> None:
    """Weight-decomposed: each row of W + s B A is set to the length of its magnitude (arXiv:2402.09353)."""
    model = open_model(make_model(tmp_path / "model", layers=1))
    trainee = open_trainee(model, peft=PeftConfig(r=4, lora_alpha_ratio=0.5, use_dora=True))
    trained = {name: one for name, one in trainee.network.named_parameters() if one.requires_grad}
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        state = {name: value.detach().clone().double() for name, value in trained.items()}
        said = trainee.network.eval()(input_ids=TOKENS).logits
    made = trained_model(trainee)
    exported, _ = open_network(made)
    with torch.no_grad():
        torch.testing.assert_close(exported(input_ids=TOKENS).logits, said, rtol=1e-4, atol=1e-4)
    for module in ("self_attn.q_proj", "mlp.down_proj"):
        [down] = [one for name, one in state.items() if module in name and "lora_A" in name]
        [up] = [one for name, one in state.items() if module in name and "lora_B" in name]
        [size] = [one for name, one in state.items() if module in name and "magnitude" in name]
        name = f"model.layers.0.{module}.weight"
        whole = model.tensor(name).double() + 0.5 * up @ down
        expected = size.reshape(-1, 1) * whole / whole.norm(dim=1, keepdim=True)
        torch.testing.assert_close(made.tensor(name).double(), expected, rtol=1e-3, atol=1e-4)

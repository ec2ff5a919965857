"""Trained-looking LoRA adapters, made by peft on the tiny models of tests/architectures.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tests.architectures import make

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.arange(16)[None] * 7 % 128


class Trained(NamedTuple):
    """A base, its adapter, and what peft makes of the two."""

    base: Path
    adapter: Path
    live: torch.Tensor
    """Logits of the base with the adapter beside it, as it was trained."""
    merged: dict[str, torch.Tensor]
    """The state after merge_and_unload."""

    @property
    def place(self) -> str:
        return f"{self.base}+{self.adapter}"


def train(folder: Path, arch: str, *, dtype: str = "float32", seed: int = 0, **settings: Any) -> Trained:
    """Write a base and an adapter below ``folder``; every tensor of the adapter is random."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = folder / "base"
    if not base.exists():
        make(base, arch, dtype=dtype)
    adapter = folder / f"adapter{seed}"
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"),
        LoraConfig(init_lora_weights=False, **settings),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(adapter)
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter
    ).eval()
    with torch.no_grad():
        live = loaded(IDS).logits
    return Trained(base, adapter, live, loaded.merge_and_unload().state_dict())


def edit_config(adapter: Path, **changes: Any) -> None:
    """Change keys of adapter_config.json; ``...`` removes one."""
    file = adapter / "adapter_config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))

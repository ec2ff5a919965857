"""Models that live in memory, for tests of the merge stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.stages.merge.block import MergeBlock
from evolve.weights.model import Model, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.2.self_attn.q_proj.weight",
    "model.layers.2.mlp.up_proj.weight",
    "model.norm.weight",
)


def memory_model(tensors: Mapping[str, Tensor], *, files: str = "files", **config: Any) -> Model:
    """Return a model of these tensors."""
    specs = {
        name: TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()
    }
    return Model({"num_hidden_layers": 3, **config}, specs, lambda name: tensors[name], Path(files))


def random_model(seed: int, *, dtype: str = "float32", size: int = 40, **config: Any) -> Model:
    """Return a llama-like model of three layers with random weights."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    kind: torch.dtype = getattr(torch, dtype)
    tensors = {name: torch.randn(size, generator=generator).to(kind) for name in NAMES}
    return memory_model(tensors, files=f"files{seed}", **config)


def block(method: str, models: Mapping[str, Any], **keys: Any) -> MergeBlock:
    """Return a block that merges ``models``: name to parameters."""
    entries = [{"model": name, "parameters": parameters} for name, parameters in models.items()]
    return MergeBlock.model_validate({"merge_method": method, "models": entries, **keys})

"""The models that mergekit_parity.py merges: of one architecture a base and fine-tunes of it, all random.

``one``, ``two`` and ``three`` share most of their changes, so that nowhere they oppose each other. ``three``
leaves half of the weights as they are, and all of the embedding. ``against`` goes the other way. ``near`` and
``nearer`` are hardly changed, and their embeddings not at all. No two changes of a tensor have the same size:
which of equal ones stays in a trimming is chance in mergekit.
"""

from __future__ import annotations

import shutil
import zlib
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from evolve.stages.merge.plan import tensor_seed
from evolve.tensors.random import draws
from tests.architectures import make

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model

# Size of the change that all share, and of the own one.
SIZES = {
    "one": (0.02, 0.01),
    "two": (0.02, 0.015),
    "three": (0.015, 0.01),
    "against": (-0.02, 0.01),
    "near": (0.0, 5e-5),
    "nearer": (0.0, 1e-5),
}
FROZEN = ("three", "near", "nearer")
# What a filter for attention and one for the rest of a layer says.
PARTS = {
    "gpt2": ("attn", "mlp"),
    "gpt_neox": ("attention", "mlp"),
    "mixtral": ("self_attn", "block_sparse_moe"),
    "mamba": ("in_proj", "out_proj"),
}


def parts(architecture: str) -> tuple[str, str]:
    """Return parts of the names of the tensors of attention, and of those that follow it in a layer."""
    return PARTS.get(architecture, ("self_attn", "mlp"))


def _noise(name: str, kind: str, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{kind}:{name}".encode()))
    return torch.randn(like.shape, generator=generator)


def make_models(folder: Path, architecture: str, seed: int) -> dict[str, Path]:
    """Write the base and its fine-tunes, all float32, and return their folders."""
    paths = {"base": make(folder / "base", architecture, seed=seed, tokenizer=False)}
    base = load_file(paths["base"] / "model.safetensors")
    for model, (shared, own) in SIZES.items():
        paths[model] = folder / model
        shutil.copytree(paths["base"], paths[model])
        tensors = {}
        for name, tensor in base.items():
            change = shared * _noise(name, f"{seed}:shared", tensor) + own * _noise(
                name, f"{seed}:{model}", tensor
            )
            if model == "three":
                change *= _noise(name, f"{seed}:places", tensor) > 0
            if model in FROZEN and _is_embedding(name):
                change *= 0
            tensors[name] = _distinct(tensor + change, tensor)
        save_file(tensors, paths[model] / "model.safetensors", metadata={"format": "pt"})
    return paths


def _distinct(changed: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Move weights up by one step of float32 until no two of them have changed by the same amount."""
    flat, start = changed.flatten(), base.flatten().double()
    while True:
        sizes, order = (flat.double() - start).abs().sort(stable=True)
        same = order[1:][(sizes[1:] == sizes[:-1]) & (sizes[1:] > 0)]
        if not len(same):
            return flat.reshape(base.shape)
        flat[same] = torch.nextafter(flat[same], torch.tensor(torch.inf))


def _is_embedding(name: str) -> bool:
    return any(part in name for part in ("embed_tokens", "embed_in", "wte", "embeddings"))


def write_words(
    target: Path, models: dict[str, Model], paths: dict[str, Path], seed: int
) -> dict[str, torch.Tensor]:
    """Write the numbers by which our DARE and DELLA decide what stays, for mergekit to take them."""
    drawn = {}
    for name, model in models.items():
        for tensor, spec in model.specs.items():
            numbers = draws(tensor_seed(seed, name, tensor), 0, spec.numel).astype("int64")
            drawn[f"{paths[name]}|{tensor}"] = torch.from_numpy(numbers).reshape(spec.shape)
    save_file(drawn, target)
    return drawn

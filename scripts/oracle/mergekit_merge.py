"""Run mergekit on a list of merges, as an oracle. Needs the environment that mergekit_env.sh makes.

    .venv-mergekit/bin/python scripts/oracle/mergekit_merge.py JOBS.json

JOBS.json is a list of {"config": a mapping or the path of a YAML file, "out": folder, "masks": file or null}.
mergekit draws the masks of the DARE and DELLA methods from a global generator. With "masks", a safetensors
file of booleans under "MODEL PATH|TENSOR NAME", it takes these in the place of its own, and divides by the
probability to stay: the density in DARE, that of the rank in the row in DELLA.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mergekit.sparsify
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.options import MergeOptions
from safetensors.torch import load_file


class InjectedMasks:
    """Stands for mergekit's ``bernoulli`` and ``della_magprune``, which are told neither model nor tensor."""

    def __init__(self, masks: dict[str, torch.Tensor]) -> None:
        self._masks = masks
        self._next: list[torch.Tensor] = []
        self._merge_group = GeneralizedTaskArithmeticMerge.merge_group
        self._bernoulli = mergekit.sparsify.bernoulli
        self._magprune = mergekit.sparsify.della_magprune

    def __enter__(self) -> None:
        def merge_group(method: Any, group: Any, /, **parameters: Any) -> torch.Tensor:
            # One of the two is then called once for each of these, in this order.
            self._next = [self._mask(entry.id, group.metadata.name) for entry in group.non_base]
            return self._merge_group(method, group, **parameters)

        GeneralizedTaskArithmeticMerge.merge_group = merge_group
        mergekit.sparsify.bernoulli = self._thin
        mergekit.sparsify.della_magprune = self._prune

    def __exit__(self, *_error: object) -> None:
        GeneralizedTaskArithmeticMerge.merge_group = self._merge_group
        mergekit.sparsify.bernoulli = self._bernoulli
        mergekit.sparsify.della_magprune = self._magprune

    def _mask(self, model: Any, name: str) -> torch.Tensor:
        for spelling in (name, name.removeprefix("transformer.")):
            mask = self._masks.get(f"{model}|{spelling}")
            if mask is not None:
                return mask
        raise KeyError(f"no mask for {model}|{name}")

    def _thin(self, tensor: torch.Tensor, density: float, rescale_norm: Any = None) -> torch.Tensor:
        mask = self._next.pop(0).reshape(tensor.shape)
        if density <= 0:
            return torch.zeros_like(tensor)
        return tensor * mask / (density if rescale_norm is not None and density < 1 else 1.0)

    def _prune(
        self, tensor: torch.Tensor, density: float, epsilon: float, rescale_norm: Any = None
    ) -> torch.Tensor:
        mask = self._next.pop(0).reshape(tensor.shape)
        if rescale_norm is None:
            return tensor * mask
        rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor.reshape(1, -1)
        # From the largest down; of equal ones the first in the row ranks higher.
        ranks = rows.abs().argsort(dim=1, descending=True, stable=True).argsort(dim=1).double()
        chances = density + epsilon * (1 - 2 * ranks / (rows.shape[1] - 1))
        return (tensor * mask / chances.reshape(tensor.shape).clamp(0, 1)).to(tensor.dtype)


def main() -> None:
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        source = job["config"]
        config = yaml.safe_load(Path(source).read_text()) if isinstance(source, str) else source
        options = MergeOptions(write_model_card=False, quiet=True, copy_tokenizer=False)
        masks = load_file(job["masks"]) if job.get("masks") else None
        if masks is None:
            run_merge(MergeConfiguration.model_validate(config), job["out"], options)
        else:
            with InjectedMasks(masks):
                run_merge(MergeConfiguration.model_validate(config), job["out"], options)


if __name__ == "__main__":
    main()

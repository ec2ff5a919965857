"""Merge with mergekit, one job after the other, for mergekit_parity.py.

Needs the environment that mergekit_env.sh makes. Reads one JSON object a line: {"config": the merge config as
a mapping, "out": folder, "words": file or null, "divide": false, "names": list or null}. Answers each with a
line {"error": text or null}.

mergekit draws what stays in DARE and DELLA from a global generator. With "words", a safetensors file of whole
numbers from 0 to 2**32 - 1 under "MODEL PATH|TENSOR NAME", an element stays if its number is below the
probability that mergekit itself has computed, times 2**32. Everything else is mergekit's own, but for
"divide": then what stays is divided by its probability, where mergekit restores the L1 norm. With "names"
these tensors are merged, instead of those that mergekit expects in such an architecture.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import mergekit.merge
import mergekit.merge_methods.generalized_task_arithmetic as arithmetic
import mergekit.sparsify as sparsify
import torch
from mergekit.architecture.base import ModelArchitecture, ModuleArchitecture, ModuleDefinition, WeightInfo
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from pydantic import BaseModel
from safetensors.torch import load_file

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = 2.0**32


class Drawn:
    """Stands in for ``torch.bernoulli``, which is told neither model nor tensor."""

    def __init__(self, words: dict[str, torch.Tensor]) -> None:
        self._words = words
        self._waiting: list[torch.Tensor] = []
        self._chances: torch.Tensor | None = None
        self._merge_group = arithmetic.GeneralizedTaskArithmeticMerge.merge_group
        self._sparsify = arithmetic.sparsify
        self._rescaled = sparsify.rescaled_masked_tensor

    def merge_group(self, method: Any, group: Any, /, **parameters: Any) -> torch.Tensor:
        # sparsify is called once for each of these, in this order.
        self._waiting = [self._words[f"{entry.id}|{group.metadata.name}"] for entry in group.non_base]
        return self._merge_group(method, group, **parameters)

    def sparsify(self, tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        self._next = self._waiting.pop(0)
        return self._sparsify(tensor, **options)

    def bernoulli(self, chances: torch.Tensor) -> torch.Tensor:
        if not ((chances >= 0) & (chances <= 1)).all():  # what torch.bernoulli says
            raise RuntimeError("Expected p_in >= 0 && p_in <= 1 to be true, but got false.")
        self._chances = chances
        kept = self._next.reshape(chances.shape).double() < torch.round(chances.double() * STEPS)
        return kept.to(chances.dtype)

    def divided(self, tensor: torch.Tensor, mask: torch.Tensor, norm: Any, eps: float = 1e-7) -> torch.Tensor:
        return tensor * mask if norm is None else tensor * mask / self._chances


@contextmanager
def injected(words: dict[str, torch.Tensor], divide: bool) -> Iterator[None]:
    drawn = Drawn(words)
    own = {name: getattr(torch, name) for name in dir(torch) if not name.startswith("__")}
    mine = SimpleNamespace(**{**own, "bernoulli": drawn.bernoulli})
    with (
        mock.patch.object(
            arithmetic.GeneralizedTaskArithmeticMerge,
            "merge_group",
            lambda method, group, /, **parameters: drawn.merge_group(method, group, **parameters),
        ),
        mock.patch.object(arithmetic, "sparsify", drawn.sparsify),
        mock.patch.object(sparsify, "torch", mine),
        mock.patch.object(sparsify, "rescaled_masked_tensor", drawn.divided) if divide else nullcontext(),
    ):
        yield


class Given(ModuleArchitecture, BaseModel, frozen=True):
    """An architecture that has these tensors."""

    names: tuple[str, ...]

    def name(self) -> str:
        return "given"

    def _of(self, layer: str | None) -> list[WeightInfo]:
        found = [(name, re.search(r"\.(\d+)\.", name)) for name in self.names]
        return [WeightInfo(name=name) for name, place in found if (place and place[1]) == layer]

    def pre_weights(self, config: Any) -> list[WeightInfo]:
        return self._of(None)

    def post_weights(self, config: Any) -> list[WeightInfo]:
        return []

    def layer_weights(self, index: int, config: Any) -> list[WeightInfo]:
        return self._of(str(index))

    def num_layers_config_key(self) -> str:
        return "num_hidden_layers"


def with_names(names: list[str]) -> Any:
    module = ModuleDefinition(architecture=Given(names=tuple(names)))
    given = ModelArchitecture(modules={"default": module}, architectures=["given"], model_type="given")
    return mock.patch.object(mergekit.merge, "get_architecture_info", lambda *_: given)


def merge(job: dict[str, Any]) -> str | None:
    options = MergeOptions(write_model_card=False, quiet=True, copy_tokenizer=False)
    words = load_file(job["words"]) if job.get("words") else None
    try:
        with (
            nullcontext() if words is None else injected(words, job.get("divide", False)),
            with_names(job["names"]) if job.get("names") else nullcontext(),
        ):
            run_merge(MergeConfiguration.model_validate(job["config"]), job["out"], options)
    except Exception as error:
        # What stopped it is the answer; a chain of tasks may hide it.
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return f"{type(cause).__name__}: {cause}"
    return None


def main() -> None:
    torch.set_num_threads(1)
    # Whatever is printed on the way must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps({"error": merge(json.loads(line))}) + "\n")


if __name__ == "__main__":
    main()

"""The values of every parameter for every tensor, and the arithmetic of one tensor."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import CandidateError
from evolve.registry import MERGE_METHODS
from evolve.stages.merge.base import Inputs, Statistic
from evolve.stages.merge.headers import merged
from evolve.stages.merge.layers import depths
from evolve.stages.merge.values import choose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

    from evolve.config.values import Parameter
    from evolve.stages.memo import Memo
    from evolve.stages.merge.base import Param
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.statistics import Gathered
    from evolve.weights.model import Model


class _Values(NamedTuple):
    per_model: tuple[dict[str, float], ...]
    shared: dict[str, float]


def tensor_seed(seed: int, model: str, tensor: str) -> int:
    """Return the 64-bit seed of one tensor of one model, the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{model}\0{tensor}".encode()).digest()[:8], "big")


class Plan:
    """Computes any tensor of a merge, in any order and from any thread."""

    def __init__(
        self,
        block: MergeBlock,
        models: Mapping[str, Model],
        *,
        seed: int,
        types: Mapping[str, str],
        memo: Memo | None = None,
        statistics: Mapping[str, Gathered] | None = None,
    ) -> None:
        self._block = block
        self._models = models
        self._seed = seed
        self._types = types
        self._memo = memo
        self._statistics = statistics or {}
        self._method = MERGE_METHODS.load(block.merge_method)
        self._names = tuple(entry.model for entry in block.others)
        self._base = None if self._method.base == "none" else block.base_model
        depth = depths(models[block.reference])
        # Resolved now, so that a recipe that cannot be built fails before the engine is touched.
        self._values = {
            tensor: self._resolve(tensor, depth(tensor)) for tensor in types if merged(types[tensor])
        }

    def _resolve(self, tensor: str, t: float) -> _Values:
        common = self._block.parameters
        per_model = tuple(
            {
                param.name: _value(
                    param, [entry.parameters.get(param.name), common.get(param.name)], tensor, t
                )
                for param in self._method.per_model
            }
            for entry in self._block.others
        )
        shared = {
            param.name: _value(param, [common.get(param.name)], tensor, t) for param in self._method.shared
        }
        return _Values(per_model, shared)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor of every model and merge them.

        Raises:
            CandidateError: The values have no meaning together, or the result is not finite.
        """
        import torch

        from evolve.tensors.fused import all_finite

        if not merged(self._types[name]):
            return self._copied(name)
        values = self._values[name]
        dtype: torch.dtype = getattr(torch, self._types[name])
        base, tensors = self._read(name)
        inputs = Inputs(
            name=name,
            tensors=tensors,
            base=base,
            per_model=values.per_model,
            shared=values.shared,
            seeds=tuple(tensor_seed(self._seed, model, name) for model in self._names),
            dtype=dtype,
            buffers=None if self._memo is None else self._memo.buffers,
            remember=self._remember(name),
            statistics=tuple(self._known(model, name) for model in self._names) if self._statistics else (),
        )
        result = self._method.merge(inputs)
        out = result.to(dtype)
        if not all_finite(out):
            raise CandidateError("non_finite", self._blame(inputs))
        return out

    def _read(self, name: str) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Return the base's tensor and those of the models, in one place."""
        import torch

        read = [self._models[model].unrounded(name) for model in self._names]
        read += [] if self._base is None else [self._models[self._base].unrounded(name)]
        # float64 has no fused pass, and merging is done in float32 anyway. What is not fused runs on the CPU.
        if not self._method.stored or any(tensor.dtype == torch.float64 for tensor in read):
            read = [tensor.to("cpu", torch.float32) for tensor in read]
        count = len(self._names)
        return (None if self._base is None else read[count]), tuple(read[:count])

    def _remember(self, tensor: str) -> Callable[[str, int | None, Callable[[], Any]], Any]:
        def remember(kind: str, index: int | None, compute: Callable[[], Any]) -> Any:
            if self._memo is None:
                return compute()
            some = self._names if index is None else (self._names[index],)
            names = [*some, *([] if self._base is None else [self._base])]
            return self._memo.get((kind, tensor), tuple(self._models[name] for name in names), compute)

        return remember

    def _known(self, model: str, name: str) -> Statistic | None:
        statistics = self._statistics[model]
        found = statistics.get(name)
        return None if found is None else Statistic(found[0], statistics.mean, found[1])

    def _copied(self, name: str) -> Tensor:
        import torch

        (first, reference), *others = [(model, found.tensor(name)) for model, found in self._models.items()]
        for model, tensor in others:
            if not torch.equal(tensor, reference):
                message = (
                    f"{name} is {self._types[name]}, which is copied, but {first} and {model} differ in it"
                )
                raise CandidateError("build", message)
        return reference

    def _blame(self, inputs: Inputs) -> str:
        read = dict(zip(self._names, inputs.tensors, strict=True))
        if inputs.base is not None and self._base is not None:
            read[self._base] = inputs.base
        import torch

        from evolve.tensors.fused import all_finite

        for model, tensor in read.items():
            if not all_finite(tensor):
                return f"{inputs.name}: model {model!r} has NaN or infinite weights"
        if all_finite(self._method.merge(replace(inputs, dtype=torch.float32))):
            return f"{inputs.name}: a value is too large for {self._types[inputs.name]}; set dtype: bfloat16"
        return f"{inputs.name}: the merge gives NaN or infinity; the weights are too large"


def _value(param: Param, sources: list[Parameter | None], tensor: str, t: float) -> float:
    value = choose(param, sources, tensor, t)
    if value is None:
        raise CandidateError("invalid_recipe", f"{tensor}: no value for the parameter {param.name}")
    return value

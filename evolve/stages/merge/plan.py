"""The values of every parameter for every tensor, and the arithmetic of one tensor."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import CandidateError
from evolve.registry import MERGE_METHODS
from evolve.stages.merge.base import Inputs
from evolve.stages.merge.headers import merged
from evolve.stages.merge.residual import OUTPUTS, factors
from evolve.stages.merge.values import choose

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.config.values import Parameter
    from evolve.stages.merge.base import Param
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.layout import Layout, Place
    from evolve.stages.merge.parts import Entry
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
        layout: Layout,
        models: Mapping[str, Model],
        *,
        seed: int,
        types: Mapping[str, str],
    ) -> None:
        self._layout = layout
        self._models = models
        self._seed = seed
        self._types = types
        self._method = MERGE_METHODS.load(block.merge_method)
        self._factors = factors(layout)
        # Resolved now, so that a recipe that cannot be built fails before the engine is touched.
        self._values = {
            name: self._resolve(place) for name, place in layout.places.items() if merged(types[name])
        }

    def _resolve(self, place: Place) -> _Values:
        part = place.part
        per_model = tuple(
            {
                param.name: _value(param, part.sources(entry, param.name), place.name, place.t)
                for param in self._method.per_model
            }
            for entry in part.others
        )
        shared = {
            param.name: _value(param, part.sources(None, param.name), place.name, place.t)
            for param in self._method.shared
        }
        return _Values(per_model, shared)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor of every model and merge them.

        Raises:
            CandidateError: The values have no meaning together, or the result is not finite.
        """
        import torch

        if not merged(self._types[name]):
            return self._copied(name)
        values, place = self._values[name], self._layout.places[name]
        others, base = place.part.others, place.part.base_entry
        inputs = Inputs(
            name=name,
            tensors=tuple(self._read(entry, place) for entry in others),
            base=None if base is None else self._read(base, place),
            per_model=values.per_model,
            shared=values.shared,
            seeds=tuple(tensor_seed(self._seed, entry.model, name) for entry in others),
        )
        result = self._method.merge(inputs)
        if (factor := self._factors.get(name)) is not None:
            result = (result + factor.shift) * factor.factor - factor.shift
        dtype: torch.dtype = getattr(torch, self._types[name])
        out = result.to(dtype)
        if not _finite(out):
            raise CandidateError("non_finite", self._blame(inputs, place, result))
        return out

    def same(self) -> dict[str, str]:
        """Return the tensors that equal an earlier one by construction, each with the first of its kind."""
        if not self._method.deterministic:
            return {}
        first: dict[Any, str] = {}
        found: dict[str, str] = {}
        for name, place in self._layout.places.items():
            own = (repr(self._values.get(name)), self._types[name], self._factors.get(name))
            earlier = first.setdefault((tuple(place.sources()), place.part.base, own), name)
            if earlier != name:
                found[name] = earlier
        return found

    def _read(self, entry: Entry, place: Place) -> Tensor:
        import torch

        return self._models[entry.model].tensor(place.source(entry)).to(torch.float32)

    def _copied(self, name: str) -> Tensor:
        import torch

        (first, reference), *others = [
            (model, self._models[model].tensor(source))
            for model, source in self._layout.places[name].sources()
        ]
        for model, tensor in others:
            if not torch.equal(tensor, reference):
                message = (
                    f"{name} is {self._types[name]}, which is copied, but {first} and {model} differ in it"
                )
                raise CandidateError("build", message)
        return reference

    def _blame(self, inputs: Inputs, place: Place, result: Tensor) -> str:
        part = place.part
        read = dict(zip((entry.model for entry in part.others), inputs.tensors, strict=True))
        if inputs.base is not None and part.base is not None:
            read[part.base] = inputs.base
        for model, tensor in read.items():
            if not _finite(tensor):
                return f"{inputs.name}: model {model!r} has NaN or infinite weights"
        if _finite(result):
            return f"{inputs.name}: a value is too large for {self._types[inputs.name]}; set dtype: bfloat16"
        return f"{inputs.name}: the merge gives NaN or infinity; the weights are too large"


def repeated(block: MergeBlock, layout: Layout) -> dict[str, str]:
    """Return what :meth:`Plan.same` returns, as far as it holds for all values that ranges may take."""
    given = [scope.parameters for part in layout.parts for scope in part.scopes]
    given += [entry.parameters for part in layout.parts for entry in part.entries]
    if block.merge_method != "passthrough" or any(given):
        return {}
    scaled = any(part.scale != 1 for part in layout.parts)
    output = OUTPUTS.get(layout.reference.config.get("model_type", "")) if scaled else None
    first: dict[Any, str] = {}
    found: dict[str, str] = {}
    for name, place in layout.places.items():
        if output is not None and output.has(place):
            continue
        earlier = first.setdefault(tuple(place.sources()), name)
        if earlier != name:
            found[name] = earlier
    return found


def _value(param: Param, sources: list[Parameter | None], tensor: str, t: float) -> float:
    value = choose(param, sources, tensor, t)
    if value is None:
        raise CandidateError("invalid_recipe", f"{tensor}: no value for the parameter {param.name}")
    return value


def _finite(tensor: Tensor) -> bool:
    import torch

    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))

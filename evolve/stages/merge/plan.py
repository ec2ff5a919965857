"""The values of every parameter for every tensor, and the arithmetic of one tensor."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import CandidateError
from evolve.registry import MERGE_METHODS
from evolve.stages.merge.base import Inputs, Statistic
from evolve.stages.merge.headers import merged
from evolve.stages.merge.residual import OUTPUTS, factors
from evolve.stages.merge.values import choose, filters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import Tensor

    from evolve.config.values import Parameter
    from evolve.stages.memo import Memo
    from evolve.stages.merge.base import Param
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.layout import Layout, Place
    from evolve.stages.merge.parts import Entry, Part
    from evolve.stages.merge.residual import Factor
    from evolve.stages.merge.statistics import Gathered
    from evolve.tensors.fused import Sink
    from evolve.weights.model import Model


class _Values(NamedTuple):
    per_model: tuple[dict[str, float], ...]
    shared: dict[str, float]


class _Roles(NamedTuple):
    """The models of a part: those that are merged, and the base."""

    others: tuple[Entry, ...]
    base: Entry | None


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
        memo: Memo | None = None,
        statistics: Mapping[str, Gathered] | None = None,
    ) -> None:
        self._layout = layout
        self._models = models
        self._seed = seed
        self._types = types
        self._memo = memo
        self._statistics = statistics or {}
        self._method = MERGE_METHODS.load(block.merge_method)
        self._factors = factors(layout)
        self._roles = {id(part): _Roles(part.others, part.base_entry) for part in layout.parts}
        # Resolved now, so that a recipe that cannot be built fails before the engine is touched.
        self._values = self._all_values(layout, types)

    def _all_values(self, layout: Layout, types: Mapping[str, str]) -> dict[str, _Values]:
        """Return the values for each tensor; those without filters are resolved once for a depth."""
        parts = {id(part): _filtered(part) for part in layout.parts}
        known: dict[tuple[int, float], _Values] = {}
        found = {}
        for name, place in layout.places.items():
            if not merged(types[name]):
                continue
            key = (id(place.part), place.t)
            values = None if parts[key[0]] else known.get(key)
            found[name] = known[key] = self._resolve(place) if values is None else values
        return found

    def _resolve(self, place: Place) -> _Values:
        part = place.part
        per_model = tuple(
            {
                param.name: _value(param, part.sources(entry, param.name), place.name, place.t)
                for param in self._method.per_model
            }
            for entry in self._roles[id(part)].others
        )
        shared = {
            param.name: _value(param, part.sources(None, param.name), place.name, place.t)
            for param in self._method.shared
        }
        return _Values(per_model, shared)

    def __call__(self, name: str) -> Tensor:
        """Read one tensor of every model and merge them.

        Raises:
            CandidateError: The values have no meaning together, or the result is not finite.
        """
        return self._made(name, None)

    def fill(self, targets: Mapping[str, Tensor]) -> None:
        """Compute tensors straight into others; see :meth:`evolve.weights.model.Model.fill`."""
        from evolve.weights.model import put

        for name, target in targets.items():
            made = self._made(name, target)
            if made is not target:
                put(name, made, target)

    def _made(self, name: str, target: Tensor | None) -> Tensor:
        """Return one tensor, or the target where it was written there."""
        import torch

        from evolve.tensors.fused import Sink, all_finite

        if not merged(self._types[name]):
            return self._copied(name)
        place = self._layout.places[name]
        factor = self._factors.get(name)
        dtype: torch.dtype = getattr(torch, self._types[name])
        sink = Sink(None if self._memo is None else self._memo.buffers)
        # Only such a method writes its result, and nothing else, to where it is told to.
        if self._method.stored and factor is None:
            sink.target = target
        # What is multiplied afterwards is rounded afterwards.
        inputs = self._inputs(name, place, dtype if factor is None else torch.float32, sink)
        out = self._method.merge(inputs)
        if out is not target:
            if factor is not None:
                out = (out.to(torch.float32) + factor.shift) * factor.factor - factor.shift
            out = out.to(dtype)
        if not (sink.finite if out is sink.result else all_finite(out)):
            raise CandidateError("non_finite", self._blame(inputs, place, factor))
        return out

    def _inputs(self, name: str, place: Place, dtype: torch.dtype, sink: Sink) -> Inputs:
        others, values = self._roles[id(place.part)].others, self._values[name]
        base, tensors = self._read(place)
        return Inputs(
            name=name,
            tensors=tensors,
            base=base,
            per_model=values.per_model,
            shared=values.shared,
            seeds=() if self._method.deterministic else self._seeds(name, others),
            dtype=dtype,
            sink=sink,
            remember=self._remember(place),
            statistics=tuple(self._known(entry, place) for entry in others) if self._statistics else (),
        )

    def _seeds(self, name: str, others: Sequence[Entry]) -> tuple[int, ...]:
        return tuple(tensor_seed(self._seed, entry.model, name) for entry in others)

    def same(self) -> dict[str, str]:
        """Return the tensors that equal an earlier one by construction, each with the first of its kind."""
        if not self._method.deterministic:
            return {}
        first: dict[Any, str] = {}
        found: dict[str, str] = {}
        # Most tensors share one object.
        texts = {id(values): repr(values) for values in self._values.values()}
        for name, place in self._layout.places.items():
            own = (texts.get(id(self._values.get(name))), self._types[name], self._factors.get(name))
            earlier = first.setdefault((tuple(place.sources()), place.part.base, own), name)
            if earlier != name:
                found[name] = earlier
        return found

    def _read(self, place: Place) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        """Return the base's tensor and those of the models, in one place."""
        import torch

        from evolve.tensors.devices import in_one_place

        others, base = self._roles[id(place.part)]
        entries = [*others, *([] if base is None else [base])]
        read = [self._models[entry.model].unrounded(place.source(entry)) for entry in entries]
        # float64 has no fused pass, and merging is done in float32 anyway. What is not fused runs on the CPU.
        if not self._method.stored or any(tensor.dtype == torch.float64 for tensor in read):
            read = [tensor.to("cpu", torch.float32) for tensor in read]
        # A parent may stay on a GPU, while what a stage has made of others is on the CPU.
        read = in_one_place(read)
        count = len(others)
        return (None if base is None else read[count]), tuple(read[:count])

    def _remember(self, place: Place) -> Callable[[str, int | None, Callable[[], Any]], Any]:
        others, base = self._roles[id(place.part)]

        def remember(kind: str, index: int | None, compute: Callable[[], Any]) -> Any:
            if self._memo is None:
                return compute()
            some = others if index is None else (others[index],)
            entries = [*some, *([] if base is None else [base])]
            # By the names in the models: of a layer that stands in two places, what is known holds for both.
            key = (kind, *(place.source(entry) for entry in entries))
            return self._memo.get(key, tuple(self._models[entry.model] for entry in entries), compute)

        return remember

    def _known(self, entry: Entry, place: Place) -> Statistic | None:
        statistics = self._statistics[entry.model]
        found = statistics.get(place.source(entry))
        return None if found is None else Statistic(found[0], statistics.mean, found[1])

    def _copied(self, name: str) -> Tensor:
        import torch

        from evolve.tensors.devices import in_one_place

        sources = list(self._layout.places[name].sources())
        read = in_one_place([self._models[model].tensor(source) for model, source in sources])
        (first, reference), *others = zip((model for model, _ in sources), read, strict=True)
        for model, tensor in others:
            if not torch.equal(tensor, reference):
                message = (
                    f"{name} is {self._types[name]}, which is copied, but {first} and {model} differ in it"
                )
                raise CandidateError("build", message)
        return reference

    def _blame(self, inputs: Inputs, place: Place, factor: Factor | None) -> str:
        import torch

        from evolve.tensors.fused import all_finite

        part = place.part
        read = dict(zip((entry.model for entry in part.others), inputs.tensors, strict=True))
        if inputs.base is not None and part.base is not None:
            read[part.base] = inputs.base
        for model, tensor in read.items():
            if not all_finite(tensor):
                return f"{inputs.name}: model {model!r} has NaN or infinite weights"
        if all_finite(self._method.merge(replace(inputs, dtype=torch.float32, sink=None))):
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


def _filtered(part: Part) -> bool:
    """Whether a value of a part may depend on a tensor's name."""
    given = [*(entry.parameters for entry in part.entries), *(scope.parameters for scope in part.scopes)]
    return any(filters(value) for parameters in given for value in parameters.values())


def _value(param: Param, sources: list[Parameter | None], tensor: str, t: float) -> float:
    value = choose(param, sources, tensor, t)
    if value is None:
        raise CandidateError("invalid_recipe", f"{tensor}: no value for the parameter {param.name}")
    return value

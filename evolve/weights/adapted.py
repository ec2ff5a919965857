"""A base with an adapter on it: tensors are merged when they are asked for, nothing is copied to disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evolve.errors import ModelError
from evolve.weights.mapped import MappedTensors
from evolve.weights.model import Model, TensorSpec
from evolve.weights.skeleton import Skeleton
from evolve.weights.tied import EMBEDDINGS, HEADS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from evolve.weights.adapter import Adapter, Factors


@dataclass(frozen=True)
class _Change:
    """What is done to one tensor of the base, in this order. Names are those of the adapter's file.

    Attributes:
        source: The tensor of the base that it starts from.
        value: Takes the place of the source, or None.
        left: With ``right`` the factors whose product is added; they are transposed where ``crossed``.
        right: See ``left``.
        crossed: The weight is stored as inputs by outputs: ``Conv1D`` and embeddings.
        scale: Before the product, or before ``added``.
        magnitude: DoRA's lengths, or None.
        tokens: Rows that are replaced.
        rows: What replaces them, or None.
        added: A vector that is added, or None.
    """

    source: str
    value: str | None = None
    left: str | None = None
    right: str | None = None
    crossed: bool = False
    scale: float = 1.0
    magnitude: str | None = None
    tokens: tuple[int, ...] = ()
    rows: str | None = None
    added: str | None = None


def with_adapter(base: Model, adapter: Adapter) -> Model:
    """Return ``base`` with ``adapter`` merged into it: ``W + scale * B A``, or DoRA's variant of it.

    ``tensor()`` gives the merged weights rounded once to the base's types; ``unrounded()`` gives those that
    change in float32, so that a merge does not round twice. A tied model whose adapter treats embedding and
    head differently is no longer tied, since no single tensor could be both.

    Raises:
        ModelError: The adapter does not fit the base.
    """
    names = _Names(base)
    changes = _changes(base, adapter, names)
    head, embedding = names.head, names.embedding
    untied = base.tied and head in changes
    specs = dict(base.specs)
    config = dict(base.config)
    if untied:
        specs[head] = TensorSpec(base.specs[embedding].shape, base.specs[embedding].dtype)
        config["tie_word_embeddings"] = False
    _check_shapes(adapter, changes, specs)
    read = MappedTensors(dict.fromkeys(adapter.header.specs, adapter.header))

    def exact(name: str) -> Tensor:
        return _apply(changes[name], base.unrounded, read) if name in changes else base.unrounded(name)

    def tensor(name: str) -> Tensor:
        import torch

        if name not in changes:
            return base.tensor(name)
        if name not in specs:
            raise ModelError(f"{base.files} has no tensor {name!r}")
        dtype: torch.dtype = getattr(torch, specs[name].dtype)
        return exact(name).to(dtype)

    return replace(base, config=config, specs=specs, tensor=tensor, exact=exact)


class _Names:
    """From modules in transformers' memory to the tensors of the base's files."""

    def __init__(self, base: Model) -> None:
        self._base = base
        self._skeleton = Skeleton.of(base.config)
        skeleton = self._skeleton
        if skeleton is None:
            self._places = {name: name for name in base.specs}
            embedding = next((name for name in base.specs if name.endswith(EMBEDDINGS)), "")
            head = next((name for name in base.specs if name in HEADS), HEADS[0])
        else:
            loaded = skeleton.loaded(base.specs)
            self._places = {place: name for name, (place, fused) in loaded.items() if fused is None}
            embedding, head = skeleton.ends()
        self.embedding = self._places.get(embedding, "")
        self._head = head
        self.head = self._places.get(head, "")
        if not self.head:
            self.head = skeleton.file_names(head)[0] if skeleton is not None and head else head
            self._places[head] = self.head

    def file(self, parameter: str) -> str | None:
        """Return the tensor of the files that holds a parameter, or None."""
        if parameter in self._base.specs:
            return parameter
        if parameter in self._places:
            return self._places[parameter]
        # Trained on the bare model, without the prefix of the one with a head.
        return next(
            (name for place, name in self._places.items() if place.partition(".")[2] == parameter), None
        )

    def crossed(self, module: str, shape: tuple[int, ...], adapter: Adapter, factors: Factors) -> bool:
        """Whether a module stores its weight as inputs by outputs."""
        if factors.lookup:
            return True
        kind = self._skeleton.kind(module) if self._skeleton is not None else ""
        if kind:
            return kind == "Conv1D"
        out, into = adapter.shape(factors.up or "")[0], adapter.shape(factors.down or "")[-1]
        if out == into:
            return bool(adapter.config.get("fan_in_fan_out"))
        return shape == (into, out)


def _changes(base: Model, adapter: Adapter, names: _Names) -> dict[str, _Change]:
    """Return tensor of the result to what is done to it.

    Raises:
        ModelError: The adapter has something for a module that the base lacks.
    """
    found: dict[str, _Change] = {}
    ends = (names.embedding, names.head) if base.tied else ()

    def at(parameter: str, what: str) -> str:
        name = names.file(parameter)
        if name is None:
            raise ModelError(
                f"{adapter.folder} has {what} for {parameter}, which {base.files} lacks{_trained_on(adapter)}"
            )
        return name

    def start(name: str) -> _Change:
        tied_head = bool(ends) and name == names.head
        return found.get(name) or _Change(names.embedding if tied_head else name)

    for parameter, value in adapter.values.items():
        name = at(parameter, "a value")
        for end in ends if name in ends else (name,):
            found[end] = replace(start(end), value=value)
    for parameter, value in adapter.saved.items():
        name = at(parameter, "a value")
        found[name] = replace(start(name), value=value)
    for module, factors in adapter.factors.items():
        name = at(f"{module}.weight", "factors")
        crossed = names.crossed(module, base.specs[start(name).source].shape, adapter, factors)
        left, right = (factors.down, factors.up) if crossed else (factors.up, factors.down)
        scale = adapter.scale(module)
        found[name] = replace(
            start(name), left=left, right=right, crossed=crossed, scale=scale, magnitude=factors.magnitude
        )
        if factors.bias is not None:
            bias = at(f"{module}.bias", "a bias")
            found[bias] = replace(start(bias), added=factors.bias, scale=scale)
    for module, (tokens, rows) in adapter.tokens.items():
        name = at(f"{module}.weight", "vectors of tokens")
        for end in ends if name == names.embedding and ends else (name,):
            found[end] = replace(start(end), tokens=tokens, rows=rows)
    return _tie_again(found, ends, adapter)


def _tie_again(
    found: dict[str, _Change], ends: tuple[str, ...] | tuple[str, str], adapter: Adapter
) -> dict[str, _Change]:
    """Drop what is done to a tied head if the embedding gets the same; keep both if they part.

    A head that stays as it was while the embedding changes gets a change that does nothing.
    """
    if not ends or not any(end in found for end in ends):
        return found
    embedding, head = ends
    first = found.get(embedding, _Change(embedding))
    second = found.get(head, _Change(embedding))
    if adapter.keeps_tied:
        # Both are stored, and are copies of each other: one application is what was trained.
        first = first if embedding in found else second
        return {**{name: change for name, change in found.items() if name != head}, embedding: first}
    if first == second:
        return {name: change for name, change in found.items() if name != head}
    return {**found, head: second}


def _check_shapes(adapter: Adapter, changes: Mapping[str, _Change], specs: Mapping[str, TensorSpec]) -> None:
    for name, change in changes.items():
        shape = specs[name].shape
        if change.value is not None and adapter.shape(change.value) != shape:
            raise ModelError(_resized(adapter, name, change.value, shape))
        if change.left is not None and change.right is not None:
            _check_factors(adapter, name, change, shape)
        wanted = {change.added: shape, change.rows: (len(change.tokens), *shape[1:])}
        if change.magnitude is not None:
            wanted[change.magnitude] = (shape[1] if change.crossed else shape[0],)
        for tensor, expected in wanted.items():
            if tensor is not None and adapter.shape(tensor) != expected:
                raise ModelError(
                    f"{adapter.folder} does not fit: {tensor} is {list(adapter.shape(tensor))}, and {name} "
                    f"of the base wants {list(expected)}{_trained_on(adapter)}"
                )
        if change.tokens and not all(0 <= token < shape[0] for token in change.tokens):
            raise ModelError(
                f"{adapter.folder} has a vector for token {max(change.tokens)}, and {name} of the base has "
                f"{shape[0]} rows: resize the base's embedding first, as for training"
            )


def _check_factors(adapter: Adapter, name: str, change: _Change, shape: tuple[int, ...]) -> None:
    left, right = adapter.shape(change.left or ""), adapter.shape(change.right or "")
    if len(left) == len(right) == len(shape) == 2:
        made, ranks = ((left[1], right[0]), (left[0], right[1]))
        if not change.crossed:
            made, ranks = ((left[0], right[1]), (left[1], right[0]))
        if made == shape and ranks[0] == ranks[1]:
            return
    raise ModelError(
        f"{adapter.folder} does not fit: {name} is {list(shape)} in the base, and the adapter has factors "
        f"{list(left)} and {list(right)} for it{_trained_on(adapter)}"
    )


def _trained_on(adapter: Adapter) -> str:
    known = f" ({adapter.base})" if adapter.base else ""
    return f": put the adapter on the model that it was trained on{known}"


def _resized(adapter: Adapter, name: str, value: str, shape: tuple[int, ...]) -> str:
    from evolve.weights.adapter import MERGE_COMMAND

    theirs = adapter.shape(value)
    start = f"{adapter.folder} brings {name} as {list(theirs)}, and the base has {list(shape)}"
    if len(theirs) == len(shape) == 2 and theirs[1] == shape[1]:
        return (
            f"{start}: it was trained with a resized vocabulary. Resize the base first "
            f"(model.resize_token_embeddings({theirs[0]}) in transformers) and save it with the adapter's "
            f"tokenizer, then name that as the base; or merge with peft after resizing: {MERGE_COMMAND}"
        )
    return f"{start}{_trained_on(adapter)}"


def _apply(change: _Change, base: Callable[[str], Tensor], read: Callable[[str], Tensor]) -> Tensor:
    """Return the changed tensor in float32."""
    import torch

    from evolve.tensors.lora import add_low_rank, set_lengths

    value = base(change.source) if change.value is None else read(change.value)
    if change.left is not None and change.right is not None:
        left, right = read(change.left), read(change.right)
        if change.crossed:
            left, right = left.T, right.T
        value = add_low_rank(value, left, right, change.scale)
        if change.magnitude is not None:
            value = set_lengths(value, read(change.magnitude), dim=0 if change.crossed else 1)
    value = value.to(torch.float32)
    if change.rows is not None:
        value = value.clone()
        value[list(change.tokens)] = read(change.rows).to(torch.float32)
    if change.added is not None:
        value = value + change.scale * read(change.added).to(torch.float32)
    return value

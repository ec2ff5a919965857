"""A model as evolve sees it: a config, named tensors that are computed on demand, and side files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError
from evolve.types import content_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from evolve.weights.files import Files


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor that need not exist yet.

    Attributes:
        shape: Sizes; () for a scalar.
        dtype: Name as torch spells it, such as ``bfloat16``.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def put(name: str, tensor: Tensor, target: Tensor) -> None:
    """Copy a tensor into another one, of any type.

    Raises:
        CandidateError: Their shapes differ.
    """
    if tensor.shape != target.shape:
        raise CandidateError("build", f"{name} came out as {list(tensor.shape)}, not {list(target.shape)}")
    target.copy_(tensor)


@dataclass(frozen=True)
class Model:
    """A readable model: on disk, or computed tensor by tensor.

    Attributes:
        config: The content of config.json.
        specs: Tensor name to spec, in the order in which tensors are best read. A tied head is absent, and
            so are buffers that every loader computes itself.
        tensor: Returns one tensor by name, with its own storage or one that nobody writes to. It may have a
            method ``fill`` beside, which does what :meth:`fill` says without a copy.
        files: Where the tokenizer, generation config and other side files are: a folder, or one with changes.
        finite: Whether ``tensor`` raises itself where a value is NaN or infinite.
        exact: Returns one tensor before its rounding to the type in ``specs``, where there is such a thing
            (a base with an adapter on it); None where ``tensor`` is all there is.
        content: ``sha256:...`` of a parent; empty for a computed model, and where nobody asked.
        same: Tensors that equal another one by construction (a layer that is stacked twice), each with the
            first of its kind. An engine may keep them once; on disk each is stored.
        new_tokens: Ids of the tokens that the last stage ``vocab`` has added, so that a training can begin
            with their rows; empty where there was none, or where a merge has changed the vocabulary since.
    """

    config: Mapping[str, Any]
    specs: Mapping[str, TensorSpec]
    tensor: Callable[[str], Tensor]
    files: Files
    finite: bool = False
    exact: Callable[[str], Tensor] | None = None
    content: str = ""
    same: Mapping[str, str] = field(default_factory=dict)
    new_tokens: range = range(0)

    def unrounded(self, name: str) -> Tensor:
        """Return one tensor in the widest type in which it is known: what arithmetic should start from."""
        return (self.exact or self.tensor)(name)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor in the order of ``specs``, one at a time."""
        for name in self.specs:
            yield name, self.tensor(name)

    def fill(self, targets: Mapping[str, Tensor]) -> None:
        """Compute tensors into others, such as an engine's, in the order of ``targets``.

        What is written is the tensor in the type of its spec, widened or rounded once more where the target
        has another type. When it raises, what is in the targets means nothing.

        Args:
            targets: Tensor name to a tensor without gradient, which is written to as a whole.

        Raises:
            CandidateError: A shape differs, and whatever ``tensor`` raises.
        """
        import torch

        straight = getattr(self.tensor, "fill", None)
        if straight is not None:
            straight(targets)
            return
        for name, target in targets.items():
            put(name, self.tensor(name).to(getattr(torch, self.specs[name].dtype)), target)

    @property
    def tied(self) -> bool:
        """Whether the output head is the input embedding."""
        return bool(self.config.get("tie_word_embeddings", False))

    @property
    def architecture(self) -> str:
        """Hash of config and shapes: as long as it stays, weights can be swapped in a running engine."""
        shapes = {name: list(spec.shape) for name, spec in self.specs.items()}
        config = {key: value for key, value in self.config.items() if key not in _NOISE}
        return content_hash({"config": config, "shapes": shapes})


_NOISE = frozenset({"_name_or_path", "dtype", "torch_dtype", "transformers_version"})

"""What a merge method is: declared parameters and one pure function over one tensor.

Method modules do not import torch at the top, so that names, parameters and ranges can be listed and
checked without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from evolve.stages.param import Param

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

    from evolve.tensors.fused import Sink


__all__ = ["Inputs", "MergeMethod", "Param", "Statistic"]


def _not_kept(_kind: str, _index: int | None, compute: Callable[[], Any]) -> Any:
    return compute()


@dataclass(frozen=True)
class Statistic:
    """What was gathered of one tensor of a model on a text.

    Attributes:
        values: float32. ``fisher``: of the tensor's shape; ``gram``: inner products of the inputs, (in, in).
        mean: Mean of the values over all tensors of the model, by which models can be compared.
        input_axis: Which axis of the tensor the inputs belong to: 1 in a Linear, 0 in a Conv1D.
    """

    values: Tensor
    mean: float = 1.0
    input_axis: int = 1


@dataclass(frozen=True)
class Inputs:
    """One tensor of every model, ready to merge.

    Attributes:
        name: The tensor's name.
        tensors: One per model without the base, in the order of the config; all of one shape, float32, or as
            they are stored if the method says ``stored``.
        base: The base model's tensor, of such a type, or None for a method without a base.
        per_model: For each of ``tensors`` the values of the per-model parameters.
        shared: Values of the global parameters.
        seeds: For each of ``tensors`` a seed that depends on (seed, model, tensor name) alone; empty for a
            method that is deterministic.
        dtype: Type of the result for a method that says ``stored``; None: float32.
        sink: Where the result of such a method is written, and nothing before it; None: into new memory.
        remember: ``remember(kind, index, compute)`` returns what ``compute()`` gives, kept from an earlier
            candidate if it can be: for values that depend on model ``index`` and the base alone; for None on
            the models alone, all of them.
        statistics: For each of ``tensors`` what was gathered of it, or None where that is nothing; empty for
            a method that asks for nothing.
    """

    name: str
    tensors: tuple[Tensor, ...]
    base: Tensor | None
    per_model: tuple[Mapping[str, float], ...]
    shared: Mapping[str, float]
    seeds: tuple[int, ...]
    dtype: torch.dtype | None = None
    sink: Sink | None = None
    remember: Callable[[str, int | None, Callable[[], Any]], Any] = _not_kept
    statistics: tuple[Statistic | None, ...] = ()

    @property
    def out(self) -> torch.dtype:
        """Type of the result."""
        import torch

        return torch.float32 if self.dtype is None else self.dtype


class MergeMethod(ABC):
    """Base of the merge methods. A method is a class that is never instantiated."""

    name: ClassVar[str]
    paper: ClassVar[str]
    """Citation or link."""
    base: ClassVar[Literal["required", "optional", "none"]]
    """Whether ``base_model`` must, may or must not be given."""
    models: ClassVar[tuple[int, int | None]]
    """Fewest and most models, the base not counted."""
    per_model: ClassVar[tuple[Param, ...]] = ()
    """Parameters that each model may have a value of its own for."""
    shared: ClassVar[tuple[Param, ...]] = ()
    """Parameters of the whole merge."""
    stored: ClassVar[bool] = False
    """Whether ``merge`` takes tensors in their stored types and returns ``inputs.out``, in one fused pass."""
    ignored: ClassVar[tuple[str, ...]] = ("int8_mask",)
    """Keys of mergekit that are accepted and have no effect: they save it memory, or it ignores them too."""
    deterministic: ClassVar[bool] = True
    """Whether ``seeds`` and ``name`` have no effect: then a layer that is stacked twice is computed once."""
    statistics: ClassVar[Literal["fisher", "gram"] | None] = None
    """What the method needs to know of each model, gathered on the text that the config names."""
    mergekit: ClassVar[bool] = True
    """Whether mergekit 0.1.5 has the method."""

    @classmethod
    def mergekit_notes(cls, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what a reader of an exported mergekit YAML must know, given its global parameters."""
        if cls.deterministic:
            return ()
        return (
            f"{cls.name} drops weights at random: mergekit draws other ones than evolve did, so the tensors "
            "differ from the scored model; --to recipe and --to model keep them",
        )

    @staticmethod
    @abstractmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return the merged tensor: the shape of the inputs, own storage, float32 (or see ``stored``).

        Raises:
            CandidateError: The values have no meaning together, such as weights that sum to zero.
        """

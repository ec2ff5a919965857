"""What a merge method is: declared parameters and one pure function over one tensor.

Method modules do not import torch at the top, so that names, parameters and ranges can be listed and
checked without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class Param:
    """A parameter of a merge method.

    Attributes:
        name: mergekit's name.
        default: Used where the config says nothing; None: the user must give it.
        low: Smallest value that has a meaning, or None for no bound.
        high: Largest value that has a meaning, or None for no bound.
        kind: ``float`` may be a range; ``bool`` and ``int`` may be choices.
        suggest: The range that a search usually wants.
        doc: One line.
    """

    name: str
    default: float | bool | None
    low: float | None = None
    high: float | None = None
    kind: Literal["float", "int", "bool"] = "float"
    suggest: tuple[float, float] | None = None
    doc: str = ""


@dataclass(frozen=True)
class Inputs:
    """One tensor of every model, ready to merge.

    Attributes:
        name: The tensor's name.
        tensors: One per model without the base, in the order of the config; all of one shape, float32.
        base: The base model's tensor, float32, or None for a method without a base.
        per_model: For each of ``tensors`` the values of the per-model parameters.
        shared: Values of the global parameters.
        seeds: For each of ``tensors`` a seed that depends on (seed, model, tensor name) alone.
    """

    name: str
    tensors: tuple[Tensor, ...]
    base: Tensor | None
    per_model: tuple[Mapping[str, float], ...]
    shared: Mapping[str, float]
    seeds: tuple[int, ...]


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
    ignored: ClassVar[tuple[str, ...]] = ("int8_mask",)
    """Keys of mergekit that are accepted and have no effect: they save it memory, or it ignores them too."""
    deterministic: ClassVar[bool] = False
    """Whether ``seeds`` and ``name`` have no effect: then a layer that is stacked twice is computed once."""

    @staticmethod
    @abstractmethod
    def merge(inputs: Inputs) -> Tensor:
        """Return the merged tensor: float32, the shape of the inputs, own storage.

        Raises:
            CandidateError: The values have no meaning together, such as weights that sum to zero.
        """

"""The keys of a merge stage: a mergekit config in which any number may be a range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from evolve.config.values import StageBlock
from evolve.registry import MERGE_METHODS
from evolve.stages.merge.checks import block_problems
from evolve.stages.merge.parts import ONLY_MODULE, Part, parts_of
from evolve.stages.merge.slices import (
    STRUCTURES,
    MergeModel,
    Module,
    Parameters,
    Slice,
    Stack,
    expand,
    one_structure,
)
from evolve.stages.merge.statistics import StatisticsBlock
from evolve.stages.merge.tokenizer_keys import TokenizerBlock, donor_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.stages.merge.values import Path


class MergeBlock(StageBlock):
    """A merge stage. Exactly one of ``models``, ``slices``, ``modules`` and ``stack`` is given."""

    merge_method: str
    """Name of the method, such as ``linear``, ``slerp``, ``task_arithmetic``, ``ties`` or ``dare_ties``."""
    base_model: str | None = None
    """The model that task vectors start from (slerp: the one at t = 0). Gives config and tokenizer."""
    models: list[MergeModel] | None = Field(default=None, min_length=1)
    """Whole models to merge. The base may be among them."""
    slices: list[Slice] | None = None
    """Layers to stack: the result has the layers of the first slice, then those of the second, and so on."""
    modules: dict[str, Module] | None = None
    """``default``: models or slices once more, as mergekit writes it for models with one stack of layers."""
    stack: Stack | None = Field(default=None, exclude=True, repr=False)
    """Short for slices that the search switches on and off."""
    parameters: Parameters = Field(default_factory=dict)
    """Values for the whole merge, and for each model that has none of its own."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the result; absent: for each tensor the smallest type that holds those of all models."""
    out_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the result, before ``dtype``. Arithmetic is float32 whatever they say."""
    tokenizer_source: str | None = None
    """``union``, ``base`` or the name of a model: short for ``tokenizer: {source: ...}``."""
    tokenizer: TokenizerBlock | None = None
    """The vocabulary of the result; absent: all models must have the same."""
    chat_template: str | None = Field(default=None, min_length=1)
    """``auto`` (of most models), ``alpaca``, ``chatml``, ``exaone``, ``llama3``, ``mistral``, or Jinja."""
    statistics: StatisticsBlock | None = None
    """The text that ``fisher`` and ``regmean`` run the models on; other methods need none."""

    @model_validator(mode="before")
    @classmethod
    def _expand_stack(cls, data: Any) -> Any:
        return expand(data)

    @model_validator(mode="after")
    def _one_structure(self) -> Self:
        # A stack stands beside the slices that it was expanded to.
        given = [key for key in STRUCTURES if getattr(self, key) is not None and key != "stack"]
        if len(given) != 1:
            raise ValueError(one_structure(given))
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is merged with each other: all models, or those of each slice, also of one that is off."""
        return parts_of(self)

    @property
    def sliced(self) -> bool:
        """Whether the result is made of listed layers."""
        return any(part.layers is not None for part in self.parts)

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the models whose statistics are gathered."""
        if self.merge_method not in MERGE_METHODS or MERGE_METHODS.load(self.merge_method).statistics is None:
            return ()
        return tuple(dict.fromkeys(entry.model for part in self.parts for entry in part.others))

    @property
    def reshapes(self) -> bool:
        """Whether the search switches slices, or a stack as a whole, on and off."""
        switched = not isinstance(self.enabled, bool) and self.sliced
        return switched or any(not isinstance(part.enabled, bool) for part in self.parts)

    @property
    def has_base(self) -> bool:
        """Whether the method has a base. Without one ``base_model`` only gives config and tokenizer."""
        return self.merge_method in MERGE_METHODS and MERGE_METHODS.load(self.merge_method).base != "none"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all models that are read, in the order of the config; a base that is not listed last."""
        listed = [entry.model for part in self.parts for entry in part.entries]
        return tuple(dict.fromkeys([*listed, *([self.base_model] if self.base_model else [])]))

    @property
    def vocabulary(self) -> TokenizerBlock | None:
        """What the config says of the result's vocabulary; None: it is that of every model."""
        if self.tokenizer is None and self.tokenizer_source is not None:
            return TokenizerBlock(source=self.tokenizer_source)
        return self.tokenizer

    @property
    def key(self) -> Path:
        """Path of the key that lists what is merged."""
        if self.stack is not None:
            return ("stack",)
        if self.modules is not None:
            return ("modules", ONLY_MODULE, "slices" if self.sliced else "models")
        return ("slices",) if self.slices is not None else ("models",)

    def listed(self, path: Path) -> Path:
        """Return where a path stands in what the user wrote: a stack, not the slices that it stands for."""
        return self.key if self.stack is not None and path[:1] == ("slices",) else path

    @property
    def reference(self) -> str:
        """Name of the model that gives the config: the base, else the first."""
        return self.names[0] if self.base_model is None else self.base_model

    @property
    def donor(self) -> str | None:
        """Name of the model that gives the tokenizer; None where the keys name no merged model."""
        if (keys := self.vocabulary) is None:
            return self.reference
        return donor_of(keys.source, reference=self.reference, base=self.base_model, names=self.names)

    def problems(self) -> list[tuple[Path, str]]:
        """Return what is wrong with the method, the models and their parameters."""
        return block_problems(self)

    @classmethod
    def effective(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Return a filled-in block without the slices that are off."""
        return _without_off(plain)

    @classmethod
    def draws(cls, plain: Mapping[str, Any]) -> bool:
        """Return whether the merge method draws masks at random."""
        return not MERGE_METHODS.load(plain["merge_method"]).deterministic


def _without_off(value: dict[str, Any]) -> dict[str, Any]:
    found = dict(value)
    if isinstance(found.get("slices"), list):
        on = [piece for piece in found["slices"] if piece.get("enabled", True)]
        found["slices"] = [{key: item for key, item in piece.items() if key != "enabled"} for piece in on]
    if isinstance(found.get("modules"), dict):
        found["modules"] = {name: _without_off(module) for name, module in found["modules"].items()}
    return found

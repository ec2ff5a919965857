"""The keys of a merge stage: a mergekit config with ``models``, in which any number may be a range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator
from pydantic.json_schema import SkipJsonSchema

from evolve.config.values import Block, Parameter, StageBlock
from evolve.registry import MERGE_METHODS, did_you_mean
from evolve.stages.merge.statistics import StatisticsBlock, statistics_problems
from evolve.stages.merge.tokenizer_keys import (
    TokenizerBlock,
    donor_of,
    template_problems,
    tokenizer_problems,
)
from evolve.stages.merge.values import Path, always, ranges, value_problems

if TYPE_CHECKING:
    from evolve.stages.merge.base import MergeMethod, Param


def _full_form(parameters: Any) -> Any:
    """Accept what mergekit accepts beside the full form: nothing at all, and one filter without a list."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        return parameters
    return {
        name: [value] if isinstance(value, dict) and "value" in value else value
        for name, value in parameters.items()
    }


Refused: TypeAlias = SkipJsonSchema[Any]
Parameters: TypeAlias = Annotated[dict[str, Parameter], BeforeValidator(_full_form)]


class MergeModel(Block):
    """One model of the merge."""

    model: str
    """Name of a model or of an earlier stage's output."""
    parameters: Parameters = Field(default_factory=dict)
    """Values for this model; they go before those of the whole merge. Those of the base have no effect."""


class MergeBlock(StageBlock):
    """A merge stage."""

    merge_method: str
    """Name of the method, such as ``linear``, ``slerp``, ``task_arithmetic``, ``ties`` or ``dare_ties``."""
    base_model: str | None = None
    """The model that task vectors start from (slerp: the one at t = 0). Gives config and tokenizer."""
    models: list[MergeModel] = Field(min_length=1)
    """The models to merge. The base may be among them."""
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
    slices: Refused = Field(default=None, exclude=True, repr=False)
    """Refused: not supported yet."""
    modules: Refused = Field(default=None, exclude=True, repr=False)
    """Refused: not supported yet."""

    @field_validator("slices", "modules", mode="before")
    @classmethod
    def _no_slices(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("slices and modules are not supported yet; list whole models under models")
        return value

    @property
    def others(self) -> tuple[MergeModel, ...]:
        """The models that the method merges: those of ``models``, without the base if the method has one."""
        if MERGE_METHODS.load(self.merge_method).base == "none":
            return tuple(self.models)
        return tuple(entry for entry in self.models if entry.model != self.base_model)

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the models whose statistics are gathered."""
        if self.merge_method not in MERGE_METHODS or MERGE_METHODS.load(self.merge_method).statistics is None:
            return ()
        return tuple(entry.model for entry in self.others)

    def problems(self) -> list[tuple[Path, str]]:
        """Return what is wrong with the method, the models and their parameters."""
        if self.merge_method not in MERGE_METHODS:
            known = did_you_mean(self.merge_method, MERGE_METHODS.names())
            return [(("merge_method",), f"unknown merge method {self.merge_method!r}{known}")]
        method = MERGE_METHODS.load(self.merge_method)
        return [
            *self._model_problems(method),
            *self._tokenizer_problems(),
            *self._parameter_problems(method),
            *self._missing(method),
            *self._overridden(method),
            *statistics_problems(method, self.statistics),
        ]

    def _model_problems(self, method: type[MergeMethod]) -> list[tuple[Path, str]]:
        found: list[tuple[Path, str]] = []
        names = [entry.model for entry in self.models]
        for index, name in enumerate(names):
            if name in names[:index]:
                found.append((("models", index, "model"), f"{name!r} is listed twice"))
        if method.base == "required" and self.base_model is None:
            found.append((("merge_method",), f"{method.name} needs a base_model"))
        if method.base == "none" and self.base_model is not None and self.base_model not in names:
            message = (
                f"{method.name} has no base; list {self.base_model!r} under models, or leave base_model out"
            )
            found.append((("base_model",), message))
        fewest, most = method.models
        count = len(self.others)
        if count < fewest or (most is not None and count > most):
            wanted = f"exactly {fewest}" if fewest == most else f"at least {fewest}"
            beside = "" if method.base == "none" else " beside the base"
            found.append((("models",), f"{method.name} needs {wanted} model(s){beside}, got {count}"))
        return found

    def _tokenizer_problems(self) -> list[tuple[Path, str]]:
        names = [entry.model for entry in self.models] + ([self.base_model] if self.base_model else [])
        return [
            *tokenizer_problems(self.tokenizer, self.tokenizer_source, base=self.base_model, names=names),
            *template_problems(self.chat_template),
        ]

    @property
    def vocabulary(self) -> TokenizerBlock | None:
        """What the config says of the result's vocabulary; None: it is that of every model."""
        if self.tokenizer is None and self.tokenizer_source is not None:
            return TokenizerBlock(source=self.tokenizer_source)
        return self.tokenizer

    @property
    def reference(self) -> str:
        """Name of the model that gives the config and the order of the tensors: the base, else the first."""
        return self.models[0].model if self.base_model is None else self.base_model

    @property
    def donor(self) -> str | None:
        """Name of the model that gives the tokenizer; None where the keys name no merged model."""
        if (keys := self.vocabulary) is None:
            return self.reference
        names = [entry.model for entry in self.models]
        return donor_of(
            keys.source, reference=self.reference, base=self.base_model, names=[*names, self.reference]
        )

    def _parameter_problems(self, method: type[MergeMethod]) -> list[tuple[Path, str]]:
        per_model = {param.name: param for param in method.per_model}
        shared = {param.name: param for param in method.shared}
        found = []
        for name, value in self.parameters.items():
            path: Path = ("parameters", name)
            found += _check_one(method, name, value, path, {**per_model, **shared})
        for index, entry in enumerate(self.models):
            base = method.base != "none" and entry.model == self.base_model
            for name, value in entry.parameters.items():
                path = ("models", index, "parameters", name)
                if name in shared:
                    found.append(
                        (path, f"{name} holds for the whole merge; move it to the stage's own parameters")
                    )
                else:
                    found += _check_one(method, name, value, path, per_model, base=base)
        return found

    def _missing(self, method: type[MergeMethod]) -> list[tuple[Path, str]]:
        found: list[tuple[Path, str]] = []
        for param in method.shared:
            if param.default is None and param.name not in self.parameters:
                path: Path = ("parameters",) if self.parameters else ("merge_method",)
                found.append((path, f"{method.name} needs the parameter {param.name}: {param.doc}"))
        for index, entry in enumerate(self.models):
            if entry not in self.others:
                continue
            for param in method.per_model:
                if param.default is None and param.name not in {**self.parameters, **entry.parameters}:
                    path = ("models", index, "parameters") if entry.parameters else ("models", index)
                    found.append((path, f"{entry.model!r} has no {param.name}, and {method.name} needs one"))
        return found

    def _overridden(self, method: type[MergeMethod]) -> list[tuple[Path, str]]:
        """Find ranges that hold for all models while every model has a value of its own."""
        found: list[tuple[Path, str]] = []
        for param in method.per_model:
            common = self.parameters.get(param.name)
            if common is None or not ranges(common):
                continue
            if all(
                param.name in entry.parameters and always(entry.parameters[param.name])
                for entry in self.others
            ):
                message = f"this range has no effect: every model has a {param.name} of its own"
                found.append((("parameters", param.name), message))
        return found


def _check_one(
    method: type[MergeMethod],
    name: str,
    value: Parameter,
    path: Path,
    known: dict[str, Param],
    *,
    base: bool = False,
) -> list[tuple[Path, str]]:
    if name not in known and name not in method.ignored:
        hint = did_you_mean(name, [*known, *method.ignored])
        return [(path, f"{method.name} has no parameter {name!r}{hint}")]
    if name not in known or base:
        what = "the base's parameters have" if base else f"{name} has"
        return [
            (path, f"{what} no effect in {method.name}; a range here would be searched in vain")
        ] * ranges(value)
    return [((*path, *inside), message) for inside, message in value_problems(known[name], value)]

"""A function of the user's: ``score(model) -> {metric: value}``.

The file is code that the user names, and it runs in every evaluator. ``model`` is a :class:`HeldModel`. A
value is a number, or item to number, whose mean counts; only with items is there an interval.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from pydantic import Field

from evolve.errors import CandidateError
from evolve.score.scorers.base import ScorerBlock, ScorerProblem
from evolve.types import TaskScore

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.config.schema import ScoreConfig
    from evolve.score.engines.base import Engine
    from evolve.types import JsonValue, Split

Function: TypeAlias = Callable[["HeldModel"], Any]


@dataclass(frozen=True)
class HeldModel:
    """The candidate, as a user's function sees it.

    Attributes:
        lm: The ``lm_eval.api.model.LM`` that answers for it: ``loglikelihood``, ``generate_until`` and so on.
        tokenizer: Its transformers tokenizer.
        config: The content of its config.json.
        shapes: Name of each tensor to its shape.
        tensor: Returns a tensor by name, computed at each call.
        split: ``search`` or ``holdout``: use other data for each.
        seed: ``score.seed``.
    """

    lm: Any
    tokenizer: Any
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    tensor: Callable[[str], Tensor]
    split: Split
    seed: int


class PythonBlock(ScorerBlock):
    """One metric of a function in a Python file."""

    function: str = Field(min_length=1)
    """``file.py:name``, relative to the working directory."""
    metric: str = Field(min_length=1)
    """Key of the result that counts."""
    higher_is_better: bool = True
    """Direction of the metric."""

    @property
    def metric_name(self) -> str:
        """Name of the metric."""
        return self.metric

    def located(self) -> PythonBlock:
        """Return the block with an absolute path."""
        path, colon, name = self.function.rpartition(":")
        return self.model_copy(update={"function": f"{Path(path).expanduser().absolute()}{colon}{name}"})


class Python:
    """See the text of the module."""

    block: ClassVar[type[ScorerBlock]] = PythonBlock

    def __init__(self, block: PythonBlock, config: ScoreConfig) -> None:
        self._block = block
        self._seed = config.seed
        self._function, self._content = load_function(block.function)

    @property
    def sizes(self) -> Mapping[Split, int]:
        """The function alone knows how many items it has."""
        return {"search": 1, "holdout": 1}

    def identity(self) -> JsonValue:
        """Return the content of the file; what it imports or reads is not seen."""
        block = self._block
        name = block.function.rpartition(":")[2]
        return [self._content, name, block.metric, block.higher_is_better]

    def score(self, engine: Engine, split: Split) -> TaskScore:
        """Call the function; what it raises goes through as it is."""
        model = engine.model
        held = HeldModel(
            lm=engine.lm,
            tokenizer=getattr(engine.lm, "tokenizer", None),
            config=model.config,
            shapes={name: spec.shape for name, spec in model.specs.items()},
            tensor=model.tensor,
            split=split,
            seed=self._seed,
        )
        found = self._function(held)
        metric = self._block.metric
        if not isinstance(found, Mapping) or metric not in found:
            given = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
            raise CandidateError("score", f"{self._block.function} gave no {metric!r}; it gave {given}")
        value = found[metric]
        items = value if isinstance(value, Mapping) else {"model": value}
        return self._task_score(items)

    def _task_score(self, items: Mapping[Any, Any]) -> TaskScore:
        from evolve.score.metrics import standard_error

        metric = self._block.metric
        try:
            values = {str(key): float(value) for key, value in items.items()}
        except (TypeError, ValueError) as error:
            raise CandidateError("score", f"{metric} is no number: {error}") from error
        if not values:
            raise CandidateError("score", f"{self._block.function} gave no item for {metric!r}")
        if not all(map(math.isfinite, values.values())):
            raise CandidateError("non_finite", f"{self._block.function}: {metric} is NaN or infinite")
        return TaskScore(
            metric=metric,
            value=sum(values.values()) / len(values),
            stderr=standard_error(list(values.values())),
            higher_is_better=self._block.higher_is_better,
            items=values,
        )


def load_function(text: str) -> tuple[Function, str]:
    """Import ``file.py:name``; return the function and a hash of the file.

    Raises:
        ScorerProblem: No such file, it cannot be imported, or it has no such function.
    """
    path, colon, name = text.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise ScorerProblem("function", f"expected file.py:name, such as scores.py:score, got {text!r}")
    file = Path(path).expanduser()
    try:
        content = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ScorerProblem("function", f"{path} cannot be read: {error.strerror or error}") from error
    spec = importlib.util.spec_from_file_location(f"evolve_user_{content}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ScorerProblem(
            "function", f"{path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ScorerProblem(
            "function", f"{path} has no function {name!r}; it has {', '.join(known) or 'none'}"
        )
    return function, content

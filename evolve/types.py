"""Frozen values that cross the layers: parents, recipes, outcomes, jobs.

Nothing here imports more than the standard library, so every layer may use it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

FailureKind = Literal[
    "invalid_recipe",  # the recipe cannot be built at all, such as all weights zero
    "build",  # merging or training raised
    "non_finite",  # a weight or a score is NaN or infinite
    "engine",  # the inference engine rejected the model or broke
    "oom",  # out of memory
    "timeout",  # longer than engine.candidate_timeout
    "score",  # the scorer raised
    "lost_worker",  # the evaluator's process or node died
]

Split = Literal["search", "holdout"]

Role = Literal["gain", "retention"]
"""What a task is for, where gain is held against forgetting."""

Items: TypeAlias = "tuple[tuple[str, tuple[str, ...]], ...]"
"""Some items of a split: each task with the keys of its items, in the order in which they are asked."""

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"


def canonical_json(value: Any) -> str:
    """Return the one spelling of ``value`` that is hashed: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """Return 16 hex digits of the SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def without_paths(value: Any) -> Any:
    """Return plain data without the paths of files whose content stands beside them.

    What a file holds decides a result, where it is does not.
    """
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, dict):
        return value
    known = isinstance(value.get("content"), str)
    return {key: without_paths(item) for key, item in value.items() if not (known and key == "path")}


@dataclass(frozen=True)
class Parent:
    """A model that exists, resolved to one revision.

    Attributes:
        name: The name that the config gives it.
        source: What the user wrote: a folder or ``hub/id[@revision]``.
        path: The absolute local folder that holds config.json and safetensors files.
        revision: The hub commit, or None for a folder.
        content: ``sha256:...`` over weights, config and tokenizer files; empty until it is computed.
    """

    name: str
    source: str
    path: str
    revision: str | None = None
    content: str = ""


@dataclass(frozen=True)
class Recipe:
    """A pipeline with every value fixed: the only currency between search, workers and store.

    Attributes:
        text: Canonical JSON of ``{"models": {name: content}, "pipeline": [{stage: block}, ...]}``.
            Only stages that are on, and only models that they use. No host name; a path only beside the
            content of its file, and not in the hash.
    """

    text: str

    @classmethod
    def make(cls, models: Mapping[str, str], pipeline: list[dict[str, Any]]) -> Recipe:
        """Build a recipe from model contents and resolved stage blocks."""
        return cls(canonical_json({"models": dict(models), "pipeline": pipeline}))

    @cached_property
    def hash(self) -> str:
        """16 hex digits that identify the recipe: duplicate check, cache key, identity on resume."""
        if '"path"' in self.text:
            pipeline = without_paths(self.pipeline)
            return content_hash({"models": self.models, "pipeline": pipeline})
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def models(self) -> dict[str, str]:
        """Name to content hash of every parent that the recipe uses."""
        models: dict[str, str] = json.loads(self.text)["models"]
        return models

    @property
    def pipeline(self) -> list[dict[str, Any]]:
        """A fresh copy of the stages, each ``{stage: block}``."""
        pipeline: list[dict[str, Any]] = json.loads(self.text)["pipeline"]
        return pipeline


@dataclass(frozen=True)
class TaskScore:
    """What one task says of one model.

    Attributes:
        metric: Name of the metric, such as ``acc``.
        value: The metric's mean over the items, in the metric's own unit.
        stderr: Its standard error over items, or NaN where the task gives none.
        higher_is_better: Direction of the metric.
        items: Item key (hash of the item's content) to the metric of that item.
        chance: What guessing gives, or None where nobody can say.
    """

    metric: str
    value: float
    stderr: float
    higher_is_better: bool
    items: Mapping[str, float] = field(default_factory=dict)
    chance: float | None = None


@dataclass(frozen=True)
class Training:
    """What one training stage of a candidate showed, short enough to stand in its record.

    Attributes:
        stage: Name of the stage, or its kind.
        steps: Optimiser steps of the whole training.
        tokens: Tokens that were gone over, padding left out.
        seconds: That the training took, whichever candidate it was made for.
        columns: Names of the numbers of a row: ``step``, ``loss`` (nats per token that counts), and what the
            objective says beside them.
        rows: One for each point of the curve, in the order of the steps; NaN where a number is not known.
        written: ``sha256:...`` of the text, where a teacher behind an API wrote it; "" where it was there.
    """

    stage: str
    steps: int
    tokens: int
    seconds: float
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()
    written: str = ""

    def curve(self, column: str = "loss") -> list[tuple[float, float]]:
        """Return ``(step, number)`` of one column, as far as it is finite; empty where there is none."""
        if column not in self.columns or "step" not in self.columns:
            return []
        x, y = self.columns.index("step"), self.columns.index(column)
        return [(row[x], row[y]) for row in self.rows if math.isfinite(row[x]) and math.isfinite(row[y])]


@dataclass(frozen=True)
class Scored:
    """A candidate that was built and scored.

    Attributes:
        value: The objective; larger is better.
        stderr: Standard error of ``value`` over items.
        tasks: Task name to its score.
        seconds: Phase name (``build``, ``load`` or ``restart``, ``score``, ``total``) to wall-clock seconds.
        log: What the candidate printed, cut to a bounded size.
        training: What its training stages showed, in their order.
    """

    value: float
    stderr: float
    tasks: Mapping[str, TaskScore]
    seconds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    log: str = ""
    training: tuple[Training, ...] = ()


@dataclass(frozen=True)
class Failed:
    """A candidate that could not be built or scored. Failure is data.

    Attributes:
        kind: The cause, for counting and for deciding on a second try.
        message: One line for people.
        retryable: True where a second try may succeed (a lost worker).
        seconds: As in ``Scored``.
        log: As in ``Scored``, with the traceback at its end.
    """

    kind: FailureKind
    message: str
    retryable: bool = False
    seconds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    log: str = ""


Outcome: TypeAlias = Scored | Failed


@dataclass(frozen=True)
class Job:
    """One piece of work for an evaluator: build this recipe and score it on this split.

    Attributes:
        recipe: What is built.
        split: The items that it is scored on.
        items: A part of the split's items; empty: all of them. A part's outcome has scores of items and no
            value of its own.
    """

    recipe: Recipe
    split: Split = "search"
    items: Items = ()

    @cached_property
    def key(self) -> str:
        """Identity of the job within a run."""
        whole = f"{self.recipe.hash}-{self.split}"
        return f"{whole}-{content_hash(self.items)}" if self.items else whole


def outcome_to_json(outcome: Outcome, *, items: bool = True) -> dict[str, Any]:
    """Return a JSON object that :func:`outcome_from_json` reads back, the log left out.

    NaN standard errors become null, since JSON has no NaN.

    Args:
        outcome: The outcome.
        items: Whether the metric of every item is in it.
    """
    if isinstance(outcome, Failed):
        return {
            "state": "failed",
            "kind": outcome.kind,
            "message": outcome.message,
            "retryable": outcome.retryable,
            "seconds": dict(outcome.seconds),
        }
    return {
        "state": "complete",
        "value": outcome.value,
        "stderr": _finite_or_none(outcome.stderr),
        "tasks": {
            name: {
                "metric": task.metric,
                "value": task.value,
                "stderr": _finite_or_none(task.stderr),
                "higher_is_better": task.higher_is_better,
                **({} if task.chance is None else {"chance": task.chance}),
                **({"items": dict(task.items)} if items else {}),
            }
            for name, task in outcome.tasks.items()
        },
        "seconds": dict(outcome.seconds),
        **({"training": [training_to_json(one) for one in outcome.training]} if outcome.training else {}),
    }


def training_to_json(training: Training) -> dict[str, Any]:
    """Return a JSON object; a number that is not finite becomes null."""
    return {
        "stage": training.stage,
        "steps": training.steps,
        "tokens": training.tokens,
        "seconds": training.seconds,
        "columns": list(training.columns),
        "rows": [[_finite_or_none(number) for number in row] for row in training.rows],
        **({"written": training.written} if training.written else {}),
    }


def _training_from_json(data: Mapping[str, Any]) -> Training:
    return Training(
        stage=data["stage"],
        steps=data["steps"],
        tokens=data["tokens"],
        seconds=data["seconds"],
        columns=tuple(data["columns"]),
        rows=tuple(tuple(_nan_if_none(number) for number in row) for row in data["rows"]),
        written=data.get("written", ""),
    )


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    """Read what :func:`outcome_to_json` wrote."""
    if data["state"] == "failed":
        return Failed(data["kind"], data["message"], data["retryable"], data["seconds"])
    tasks = {
        name: TaskScore(
            metric=task["metric"],
            value=task["value"],
            stderr=_nan_if_none(task["stderr"]),
            higher_is_better=task["higher_is_better"],
            items=task.get("items", {}),
            chance=task.get("chance"),
        )
        for name, task in data["tasks"].items()
    }
    training = tuple(_training_from_json(one) for one in data.get("training", ()))
    return Scored(data["value"], _nan_if_none(data["stderr"]), tasks, data["seconds"], training=training)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _nan_if_none(value: float | None) -> float:
    return math.nan if value is None else value

"""The exceptions of evolve.

.. code-block:: text

    EvolveError
    ├── UserError              shown without a traceback; exit code 2
    │   ├── ConfigError        the config file; carries every problem at once
    │   ├── ModelError         a parent model: missing, damaged, or unlike the others
    │   ├── TaskError          a task, a metric, or its data
    │   ├── RunError           a run's folder or study: locked, newer, changed, damaged
    │   └── MissingDependency  an optional package is not installed
    ├── CandidateError         one candidate failed; becomes a ``Failed`` outcome, never ends a run
    └── Interrupted            Ctrl-C; exit code 130
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from evolve.types import FailureKind


def some(names: Iterable[str], shown: int = 3) -> str:
    """Return the first few of some names in their order, for a message: ``a, b, c and 4 more``."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


class EvolveError(Exception):
    """Base class of everything that evolve raises on purpose."""


class UserError(EvolveError):
    """Something that the user can mend. The message says what happened, where, and the mend."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a config.

    Attributes:
        where: ``file:line:column`` of the offending key or value, or the file alone.
        path: The dotted path inside the document, such as ``pipeline.0.merge.models.1.parameters.weight``.
        message: What is wrong, and what would be right.
    """

    where: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.message) if part)


class ConfigError(UserError):
    """The config is wrong. ``problems`` lists everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ModelError(UserError):
    """A parent model is missing, damaged, or does not fit the others."""


class TaskError(UserError):
    """A task does not exist, has no items, or lacks the metric that was asked for."""


class RunError(UserError):
    """A run's folder or study cannot be used: locked, of a newer format, changed or damaged."""


class MissingDependency(UserError):
    """An optional package is needed. The message holds the command that installs it."""

    def __init__(self, feature: str, requirement: str) -> None:
        super().__init__(f"{feature} needs {requirement}: pip install '{requirement}'")


class CandidateError(EvolveError):
    """One candidate could not be built or scored. The evaluator turns it into ``Failed``."""

    def __init__(self, kind: FailureKind, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.retryable = retryable


class Interrupted(EvolveError):
    """The user asked to stop. Unfinished candidates stay for the next start."""

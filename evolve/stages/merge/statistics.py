"""What merge methods may know of their models: the keys that say on which text, and the gathering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field

from evolve.config.values import DataFile
from evolve.errors import CandidateError, UserError
from evolve.registry import MERGE_METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.stages.merge.base import MergeMethod
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.values import Path
    from evolve.statistics.cache import Statistics
    from evolve.weights.model import Model


class Gathered(Protocol):
    """What was gathered of one model."""

    mean: float
    """Mean of all values."""

    def get(self, name: str) -> tuple[Tensor, int] | None:
        """Return what is known of a tensor, float32, and its input axis; None: nothing is."""
        ...


class StatisticsBlock(DataFile):
    """The text on which statistics of the models are gathered, once per model.

    A ``.jsonl`` file has a document a line, with the key ``text``; in any other file empty lines stand
    between documents.
    """

    max_tokens: int = Field(default=200_000, ge=2)
    """Most tokens that are read of it."""
    sequence_length: int = Field(default=512, ge=2)
    """Tokens that a model reads at a time."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides which documents are read first, and the sampled labels."""
    labels: Literal["sampled", "data"] = "sampled"
    """Of the Fisher information: ``sampled`` from the model's own prediction, or those of the ``data``."""


def statistics_problems(method: type[MergeMethod], block: StatisticsBlock | None) -> list[tuple[Path, str]]:
    """Return what is wrong with the key ``statistics``, judged by the method alone."""
    if method.statistics is None:
        if block is None:
            return []
        return [(("statistics",), f"{method.name} uses no statistics: remove this key")]
    if block is None:
        message = f"{method.name} needs `statistics: {{path: FILE}}`, a text to run the models on"
        return [(("merge_method",), message)]
    if method.statistics != "fisher" and "labels" in block.model_fields_set and block.labels != "sampled":
        return [(("statistics", "labels"), f"labels has no effect in {method.name}: remove it")]
    return []


def corpus_problems(block: MergeBlock) -> list[tuple[str, str]]:
    """Return what is wrong with the text itself. Reads its beginning."""
    from evolve.statistics.corpus import problem

    if block.statistics is None:
        return []
    found = problem(block.statistics.path)
    return [("statistics.path", found)] if found else []


def gathered(block: MergeBlock, models: Mapping[str, Model]) -> dict[str, Statistics]:
    """Return the statistics of each merged model, gathered now where nobody has yet; empty without need.

    Raises:
        CandidateError: They cannot be gathered.
    """
    method = MERGE_METHODS.load(block.merge_method)
    if method.statistics is None:
        return {}
    from evolve.statistics.corpus import Corpus
    from evolve.statistics.gather import statistics_of

    settings = block.statistics
    if settings is None or settings.content is None:
        raise CandidateError("invalid_recipe", f"{method.name} needs statistics with a path and its content")
    corpus = Corpus(
        settings.path, settings.content, settings.max_tokens, settings.sequence_length, settings.seed
    )
    found = {}
    for name in block.measured:
        model = models[name]
        if not model.content:
            raise CandidateError("invalid_recipe", f"{name} is no model on disk: it has no statistics")
        try:
            found[name] = statistics_of(model, method.statistics, corpus, labels=settings.labels)
        except UserError as error:
            raise CandidateError("build", f"{name}: {error}") from error
        except CandidateError as error:
            raise CandidateError(error.kind, f"{name}: {error}") from error
    return found

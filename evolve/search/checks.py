"""What of a search's config can be seen to fail before anything is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.errors import UserError
from evolve.registry import SAMPLERS
from evolve.score.objective import needs_parents
from evolve.score.scorer import no_means
from evolve.search.population import population_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evolve.config.schema import ScoreConfig, SearchConfig
    from evolve.score.tasks import LoadedTask
    from evolve.space.genes import Gene

Path = tuple[str, ...]


def sampler_problems(search: SearchConfig, genes: Sequence[Gene]) -> list[tuple[Path, str]]:
    """Return why the sampler cannot search a space, as ``(path in the config, message with the mend)``."""
    if not genes:
        return []
    try:
        SAMPLERS.load(search.sampler)(genes, population_of(search, len(genes)), 0)
    except UserError as error:
        key, colon, message = str(error).partition(": ")
        path = tuple(key.split(".")) if colon and key.startswith("search.") else ("search", "sampler")
        return [(path, message if colon and key.startswith("search.") else str(error))]
    return []


def part_problems(
    search: SearchConfig, score: ScoreConfig, tasks: Sequence[LoadedTask], scorers: Iterable[str]
) -> list[tuple[Path, str]]:
    """Return why candidates cannot be scored on a part of the items, where the search asks for it.

    Args:
        search: The search.
        score: The objective.
        tasks: The loaded tasks.
        scorers: Names of the other scorers.
    """
    asked = [key for key in ("racing", "items_growth", "estimator") if getattr(search, key) is not None]
    if not asked:
        return []
    what = "racing, items_growth and estimator"
    found: list[tuple[Path, str]] = []
    if needs_parents(score):
        key = "retention" if score.objective == "weighted" else f"objective: {score.objective}"
        message = f"{what} need an objective that is a sum over items: remove score.{key}, or these"
        found.append((("search", asked[0]), message))
    if ratios := no_means(tasks, scorers):
        message = f"{what} need metrics that are means over items: {', '.join(ratios)}"
        found.append((("search", asked[0]), message))
    return found

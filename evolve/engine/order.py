"""The order in which jobs are started: those of one shape together, so that engines restart less often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evolve.errors import CandidateError, UserError
from evolve.types import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evolve.engine.base import EvaluatorSpec, Pool, Result
    from evolve.types import Job
    from evolve.weights.model import Model


class Grouped:
    """A pool's ``run`` that starts jobs of one shape one after the other, the last one's shape first.

    What comes of a job does not depend on the order; only the time of the restarts does.
    """

    def __init__(self, pool: Pool, shape: Callable[[Recipe], str], first: str) -> None:
        """Group the jobs of a pool whose engines start with a model of the shape ``first``."""
        self._pool = pool
        self._shape = shape
        self._last = first

    def __call__(self, jobs: Sequence[Job], should_stop: Callable[[], bool]) -> Iterator[Result]:
        """See :meth:`evolve.engine.base.Pool.run`."""
        groups: dict[str, list[Job]] = {self._last: []}
        for job in jobs:
            groups.setdefault(self._shape(job.recipe), []).append(job)
        ordered = [(shape, job) for shape, group in groups.items() for job in group]
        if ordered:
            self._last = ordered[-1][0]
        yield from self._pool.run([job for _, job in ordered], should_stop)


class Shapes:
    """The architecture that each recipe builds, from headers alone."""

    def __init__(self, spec: EvaluatorSpec) -> None:
        self._spec = spec
        self._parents: dict[str, Model] = {}
        self._known: dict[str, str] = {}

    @property
    def first(self) -> str:
        """The shape of the model that the engines start with."""
        name = self._spec.first
        return self(Recipe.make({name: self._spec.parents[name].content}, []))

    def __call__(self, recipe: Recipe) -> str:
        """Return a hash of config and shapes; of a recipe that cannot be built its own hash."""
        if recipe.hash not in self._known:
            self._known[recipe.hash] = self._found(recipe)
        return self._known[recipe.hash]

    def _found(self, recipe: Recipe) -> str:
        from evolve.config.files import located
        from evolve.stages.pipeline import outline
        from evolve.weights.reader import open_model

        try:
            if not self._parents:
                self._parents = {
                    name: replace(open_model(parent.path), content=parent.content)
                    for name, parent in self._spec.parents.items()
                }
            pipeline = located(list(recipe.pipeline), Path(self._spec.folder or Path.cwd()))
            # The same recipe, its data files found from any folder.
            return outline(Recipe.make(recipe.models, pipeline), self._parents).architecture
        except (CandidateError, UserError):
            return recipe.hash

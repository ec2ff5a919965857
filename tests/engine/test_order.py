"""Jobs of one shape are started together, and no other job or result comes of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from evolve.engine.order import Grouped
from evolve.types import Job, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def test_the_running_shape_first_then_each_once() -> None:
    started: list[list[str]] = []

    def run(jobs: Sequence[Job], _: Any) -> Iterator[Any]:
        started.append([job.recipe.hash for job in jobs])
        yield from jobs

    jobs = [Job(Recipe.make({"m": f"sha256:{number:064x}"}, [])) for number in range(6)]
    names = [job.recipe.hash for job in jobs]
    shapes = dict(zip(names, "abacba", strict=True))
    grouped = Grouped(SimpleNamespace(run=run), lambda recipe: shapes[recipe.hash], "b")  # type: ignore[arg-type]
    assert {job.key for job in grouped(jobs, lambda: False)} == {job.key for job in jobs}
    assert list(grouped(jobs[:4], lambda: False))
    assert list(grouped([], lambda: False)) == []
    assert [[shapes[name] for name in group] for group in started] == [list("bbaaac"), list("caab"), []]
    assert started[0] == [names[1], names[4], names[0], names[2], names[5], names[3]]

"""Start or go on with a run: check, lock, and drive the search to its end.

The only module that knows both search and engine.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from evolve.errors import CandidateError, RunError, UserError
from evolve.types import content_hash, without_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from evolve.config.load import Loaded
    from evolve.config.schema import ScoreConfig
    from evolve.engine.base import EvaluatorSpec, Loop, Pool
    from evolve.score.overlap import Overlap
    from evolve.search.generations import Generations
    from evolve.store.rundir import RunDir
    from evolve.types import Parent, Recipe

Watch: TypeAlias = "Callable[[RunDir], AbstractContextManager[None]]"

_ISLAND_WAIT = 60.0


@dataclass(frozen=True)
class Prepared:
    """A run that may start: everything checked, its folder open, nothing expensive done.

    Attributes:
        loaded: The config.
        folder: The run's folder.
        parents: Name to parent, with contents.
        score: The score block with the backend resolved.
        fingerprint: Hash of tasks and items, as the scorer reports it.
        population: Candidates per generation.
        changed: Whether the config differs from the folder's and the user allows it.
        overlaps: What the items share with the texts that the recipe reads.
    """

    loaded: Loaded
    folder: RunDir
    parents: Mapping[str, Parent]
    score: ScoreConfig
    fingerprint: str
    population: int
    changed: bool = False
    overlaps: tuple[Overlap, ...] = ()

    @property
    def contents(self) -> dict[str, str]:
        """Model name to content hash."""
        return {name: parent.content for name, parent in self.parents.items()}

    @property
    def score_key(self) -> str:
        """Hash of everything that decides a score: a recorded score counts only under the same key."""
        weights = [[task.task, task.metric, task.weight] for task in self.score.counted]
        document: dict[str, Any] = {
            "tasks": self.fingerprint,
            "weights": weights,
            "backend": self.score.backend,
            "dtype": self.score.dtype,
        }
        # Only what differs from the weighted mean, so that keys of earlier runs stay.
        if self.score.objective != "weighted":
            document["objective"] = self.score.objective
        if self.score.retention is not None:
            document["retention"] = self.score.retention.model_dump()
        return content_hash(document)


def run(
    loaded: Loaded,
    *,
    runs: Path,
    allow_config_change: bool = False,
    watch: Watch | None = None,
    notify: Callable[[str], None] | None = None,
) -> RunDir:
    """Search until a stop rule holds; a run that exists is gone on with.

    Args:
        loaded: A config with at least one range and a ``score`` block.
        runs: Folder that holds the runs.
        allow_config_change: Go on although the config differs from the run's own.
        watch: Shows progress while it is open.
        notify: Receives warnings for the user, a line each.

    Returns:
        The run's folder: every record is in it, the holdout's included.

    Raises:
        UserError: The config, a parent, a task or the run's folder cannot be used.
        Interrupted: Ctrl-C; the same call goes on.
    """
    from evolve.config.dump import resolved_yaml

    prepared = prepare(loaded, runs=runs, allow_config_change=allow_config_change, notify=notify)
    folder = prepared.folder
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.lock(f"evolve run {loaded.source}"))
        folder.clear_stop()
        if prepared.changed:
            folder.replace_config(
                resolved_yaml(prepared.loaded),
                _identity(prepared.loaded, prepared.parents),
                prepared.parents,
            )
        folder.write_state(
            phase="checking",
            started=time.time(),
            reason=None,
            running=0,
            trials=loaded.config.search.trials,
            population=prepared.population,
            generations=1 + math.ceil((loaded.config.search.trials - 1) / prepared.population),
            score_key=prepared.score_key,
            study=study_name(prepared),
            overlaps=[asdict(one) for one in prepared.overlaps],
        )
        _check_study(prepared)
        if watch is not None:
            stack.enter_context(watch(folder))
        _prepare_stages(prepared)
        drive(prepared)
    return folder


def prepare(
    loaded: Loaded,
    *,
    runs: Path,
    allow_config_change: bool = False,
    notify: Callable[[str], None] | None = None,
) -> Prepared:
    """Check everything that can be checked, hash the parents, and open or create the run's folder.

    Raises:
        UserError: Something is wrong; nothing was written, unless the folder is new.
    """
    from evolve import validation
    from evolve.config.files import pinned
    from evolve.score.scorer import Scorer
    from evolve.search.population import population_of
    from evolve.space.space import derive_search
    from evolve.weights.content import content_of

    space = derive_search(loaded)
    config = loaded.config
    checked = validation.check(loaded, runs=runs)
    for warning in checked.warnings:
        if notify is not None:
            notify(warning)
    loaded = pinned(checked.loaded)
    parents = {
        name: replace(parent, content=content_of(parent.path)) for name, parent in checked.parents.items()
    }
    score = _resolved(config.score, stacked=loaded.stacked)
    scorer = Scorer(score)
    scorer.prepare()
    population = population_of(config.search, len(space.genes))
    folder, changed = _open_folder(loaded, parents, runs=runs, allow_config_change=allow_config_change)
    return Prepared(loaded, folder, parents, score, scorer.fingerprint, population, changed, checked.overlaps)


def _resolved(score: ScoreConfig | None, *, stacked: bool) -> ScoreConfig:
    """Return the score block with its engine chosen, and its paths as workers need them.

    Ray starts its workers in another folder.
    """
    from evolve.score.engines.choose import choose_backend
    from evolve.score.scorers.base import located_scorers

    if score is None:
        raise UserError("a search needs a score block")
    folder = score.include_path
    return score.model_copy(
        update={
            "backend": choose_backend(score, stacked=stacked),
            "include_path": None if folder is None else str(Path(folder).absolute()),
            "scorers": located_scorers(score),
        }
    )


def _open_folder(
    loaded: Loaded, parents: Mapping[str, Parent], *, runs: Path, allow_config_change: bool
) -> tuple[RunDir, bool]:
    """Return the run's folder, made where it is new, and whether its config is to be replaced.

    It is where the config is an allowed change, and where a model of the same content is in another place.
    """
    from evolve.config.dump import resolved_yaml
    from evolve.config.older import completed
    from evolve.store.changes import difference
    from evolve.store.rundir import RunDir

    name = loaded.config.name or "run"
    path = runs / name
    identity = _identity(loaded, parents)
    if not (path / "run.json").exists():
        text = resolved_yaml(loaded)
        return RunDir.create(path, name=name, config_text=text, identity=identity, parents=parents), False
    folder = RunDir.open(path)
    changes = difference(completed(folder.identity()), identity)
    if changes and not allow_config_change:
        raise RunError(
            f"{path}: the config differs from the one that this run was started with:\n  "
            + "\n  ".join(changes)
            + "\nGo on with it by --allow-config-change, or choose another name for a new run."
        )
    moved = {name: parent.path for name, parent in parents.items()} != {
        name: parent.path for name, parent in folder.parents().items()
    }
    return folder, bool(changes) or moved


def _identity(loaded: Loaded, parents: Mapping[str, Parent]) -> dict[str, Any]:
    """Return the config as it decides results: parents by content, no paths."""
    document: dict[str, Any] = loaded.config.model_dump(mode="json", exclude={"name", "models"})
    document["models"] = {name: parent.content for name, parent in parents.items()}
    document["pipeline"] = without_paths(document["pipeline"])
    return document


def study_name(prepared: Prepared) -> str:
    """Name the study by what shapes it: a changed space, sampler or score makes a new study in the run."""
    from evolve.space.space import derive

    search = prepared.loaded.config.search
    shape = {
        "space": derive(prepared.loaded).key,
        "sampler": search.sampler,
        "seed": search.seed,
        "population": prepared.population,
        "contents": prepared.contents,
        "score": prepared.score_key,
    }
    return f"{prepared.folder.meta['name']}-{content_hash(shape)}"


def _prepare_stages(prepared: Prepared) -> None:
    """Gather what every candidate needs of the parents, in this process: evaluators find it on the disk."""
    from evolve.stages.pipeline import prepare as prepare_stages
    from evolve.weights.reader import open_model

    stages = prepared.loaded.stages
    if any(block.measured for _, block in stages):
        prepared.folder.write_state(phase="statistics")
        models = {
            name: replace(open_model(parent.path), content=parent.content)
            for name, parent in prepared.parents.items()
        }
        prepare_stages(stages, models)


def _check_study(prepared: Prepared) -> None:
    """Open the study once in the driver, so that a damaged or unreachable one is a clear error."""
    from evolve.store.study import open_study

    open_study(prepared.folder, prepared.loaded.config.search.storage, study_name(prepared))


def drive(prepared: Prepared) -> None:
    """Run the loop on the engine that the config names, to its end."""
    engine = prepared.loaded.config.engine
    if engine.kind == "inline":
        from evolve.engine.inline import InlinePool

        spec = evaluator_spec(prepared)
        pool = InlinePool(spec, timeout=engine.candidate_timeout)
        with contextlib.closing(pool), contextlib.closing(open_loop(prepared, pool)) as loop:
            prepared.folder.write_state(evaluators=1)
            while not loop.step():
                pass
        return
    from evolve.engine import island

    placement = island.connect(engine.evaluators, engine.cpus, engine.gpus, engine.candidate_timeout)
    prepared.folder.write_state(evaluators=placement.size)
    island.run_island(
        functools.partial(open_loop, prepared),
        evaluator_spec(prepared),
        placement,
        request_stop=prepared.folder.request_stop,
        scratch=prepared.folder.path / "scratch",
    )


def evaluator_spec(prepared: Prepared) -> EvaluatorSpec:
    """Return what an evaluator needs to start."""
    from evolve.engine.base import EvaluatorSpec

    config = prepared.loaded.config
    return EvaluatorSpec(
        score=prepared.score,
        parents=prepared.parents,
        first=next(iter(prepared.parents)),
        fingerprint=prepared.fingerprint,
        threads=max(1, int(config.engine.cpus)),
        seed=config.search.seed,
        folder=str(Path.cwd()),
        cache_bytes=None if config.engine.cache_gib is None else int(config.engine.cache_gib * (1 << 30)),
    )


def open_loop(prepared: Prepared, pool: Pool) -> Loop:
    """Open the study and return the loop over it. Runs in the island's process.

    It waits for an island that may still be dying: two must never write one study.
    """
    from evolve.engine.order import Grouped, Shapes
    from evolve.registry import SAMPLERS
    from evolve.search.generations import Generations, Plan
    from evolve.search.study_searcher import StudySearcher
    from evolve.space.baselines import AVERAGE, baselines
    from evolve.space.space import derive
    from evolve.store.study import open_study

    config = prepared.loaded.config
    space = derive(prepared.loaded)
    stack = contextlib.ExitStack()
    stack.enter_context(prepared.folder.island_lock(_ISLAND_WAIT))
    study = open_study(prepared.folder, config.search.storage, study_name(prepared))
    searcher = StudySearcher(
        study,
        space.genes,
        SAMPLERS.load(config.search.sampler),
        population=prepared.population,
        seed=config.search.seed,
        centre=space.centre(),
    )
    compared = baselines(prepared.loaded, prepared.contents)
    # Parents of different depths, whose layers are stacked, have no average.
    if AVERAGE in compared and not _can_be_built(compared[AVERAGE], prepared):
        del compared[AVERAGE]
    prepared.folder.write_state(no_average=AVERAGE not in compared)
    plan = Plan(
        config=config.search,
        population=prepared.population,
        contents=prepared.contents,
        baselines=compared,
        score_key=prepared.score_key,
        holdout=prepared.score.holdout.items > 0,
        score=prepared.score,
    )
    run = pool.run
    if any(block.reshapes for _, block in prepared.loaded.stages):
        shapes = Shapes(evaluator_spec(prepared))
        run = Grouped(pool, shapes, shapes.first)
    return _Locked(Generations(prepared.folder, space, searcher, plan, run), stack)


def _can_be_built(recipe: Recipe, prepared: Prepared) -> bool:
    """Whether the headers of the parents allow a recipe."""
    from evolve.stages.pipeline import build
    from evolve.weights.reader import open_model

    try:
        build(recipe, {name: open_model(prepared.parents[name].path) for name in recipe.models})
    except CandidateError:
        return False
    return True


class _Locked:
    """A loop that holds the island's lock until it is closed."""

    def __init__(self, loop: Generations, stack: contextlib.ExitStack) -> None:
        self._loop = loop
        self._stack = stack

    def step(self) -> bool:
        return self._loop.step()

    def close(self) -> None:
        self._stack.close()

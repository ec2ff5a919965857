"""Everything that can be known to be wrong with a config before anything expensive is done.

Reads configs, safetensors headers and task data, never weights. All problems are found in one pass.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from evolve import contamination
from evolve.errors import ConfigError, ModelError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.load import Loaded
    from evolve.config.schema import ScoreConfig, SearchConfig
    from evolve.score.overlap import Overlap
    from evolve.score.scorers.base import ModelScorer
    from evolve.score.tasks import LoadedTask
    from evolve.types import Parent
    from evolve.weights.model import Model

_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2}
_RUNTIME_BYTES = 1_500_000_000
"""What Python, torch and an inference engine take before any weight is loaded."""

# Rough speeds that were measured on small machines; the estimate that they give is called rough.
_CPU_FLOPS_PER_CORE = 5e10
_GPU_FLOPS = 5e13
_SWAP_BYTES_PER_SECOND = 5e8
_OVERHEAD_SECONDS = 1.0
_TOKENS_PER_ITEM = 300


@dataclass(frozen=True)
class Facts:
    """What a search will need.

    Attributes:
        genes: Coordinates of the search.
        population: Candidates per generation.
        generations: Generations until the last trial.
        trials: Candidates in all.
        evaluators: Evaluators on this machine, or what the config asks for.
        parameters: Parameters of a candidate.
        model_bytes: Bytes of a candidate's weights.
        memory: Bytes of memory of one evaluator.
        memory_free: Bytes of free memory of this machine, or None where it does not say.
        disk: Bytes of disk that the run needs.
        disk_free: Bytes free where the run's folder will be.
        items: Task name to the number of items of a search score and of the holdout.
        seconds: Rough time of the search, the baselines and the last choice on the holdout included.
        most: Trials after which the search ends by itself, or None.
    """

    genes: int
    population: int
    generations: int
    trials: int
    evaluators: int
    parameters: int
    model_bytes: int
    memory: int
    memory_free: int | None
    disk: int
    disk_free: int
    items: Mapping[str, tuple[int, int]]
    seconds: float
    most: int | None = None


@dataclass(frozen=True)
class Checked:
    """A config in which nothing was found that would stop a run.

    Attributes:
        parents: Name to parent, contents left empty.
        warnings: Sentences for the user.
        facts: What a search will need.
        loaded: The config, the score's items handed to the stages that must not learn them.
        overlaps: What the items share with the texts that the recipe reads.
    """

    parents: Mapping[str, Parent]
    warnings: tuple[str, ...]
    facts: Facts
    loaded: Loaded
    overlaps: tuple[Overlap, ...] = ()


def check(loaded: Loaded, *, runs: Path = Path("runs")) -> Checked:
    """Check parents, stages, tasks, disk and memory.

    Args:
        loaded: A config that agrees with the schema.
        runs: Folder that holds the runs.

    Raises:
        ConfigError: Everything that is wrong, at once.
    """
    from evolve.score.handed import with_items, without_items
    from evolve.weights.remarks import remarks

    parents, models, problems = open_parents(loaded)
    if not problems:
        problems += stage_problems(loaded, models)
    score = loaded.config.score
    scored = _Scored([], {}, [])
    if score is not None:
        scored = _tasks(loaded, score)
        problems += scored.problems
    problems += _search_problems(loaded, scored)
    loaded = loaded if problems else with_items(loaded, scored.tasks)
    problems = problems or without_items(loaded)
    if problems:
        raise ConfigError(problems)
    facts = _facts(loaded, models, scored.items, runs)
    shared = contamination.check(loaded, scored.tasks, scored.scorers)
    problems = [*_resources(loaded, facts, runs), *shared.problems]
    if problems:
        raise ConfigError(problems)
    warnings = (*remarks(parents, models), *_warnings(loaded, facts), *shared.warnings)
    return Checked(parents, warnings, facts, loaded, shared.overlaps)


def open_parents(loaded: Loaded) -> tuple[dict[str, Parent], dict[str, Model], list[Problem]]:
    """Resolve every model of a config and read its headers.

    Returns:
        Name to parent, name to model, and what is wrong with those that are missing in them.
    """
    from evolve.weights.hub import resolve
    from evolve.weights.reader import open_model
    from evolve.weights.skeleton import unexplained

    parents: dict[str, Parent] = {}
    models: dict[str, Model] = {}
    problems = []
    for name, source in loaded.config.models.items():
        try:
            parent = resolve(name, source)
            models[name] = open_model(parent.path)
            parents[name] = parent
            for message in unexplained(models[name]):
                problems.append(loaded.problem(("models", name), f"{source}: {message}"))
        except ModelError as error:
            message = str(error).removeprefix(f"models.{name}: ")
            problems.append(loaded.problem(("models", name), message))
    return parents, models, problems


def stage_problems(loaded: Loaded, models: Mapping[str, Model]) -> list[Problem]:
    """Return what keeps the stages from being built out of ``models``."""
    from evolve.stages.pipeline import check as check_stages

    return [loaded.problem(path, message) for path, message in check_stages(loaded.stages, models)]


class _Scored(NamedTuple):
    """Tasks, the items of each task and scorer on both splits, what is wrong with them, scorers by name."""

    tasks: list[LoadedTask]
    items: dict[str, tuple[int, int]]
    problems: list[Problem]
    scorers: Mapping[str, ModelScorer] = MappingProxyType({})


def _search_problems(loaded: Loaded, scored: _Scored) -> list[Problem]:
    from evolve.search.checks import part_problems, sampler_problems
    from evolve.space.space import derive

    config = loaded.config
    found = sampler_problems(config.search, derive(loaded).genes)
    if config.score is not None:
        found += part_problems(config.search, config.score, scored.tasks, tuple(scored.scorers))
    return [loaded.problem(path, message) for path, message in found]


def _tasks(loaded: Loaded, score: ScoreConfig) -> _Scored:
    from evolve.score.scorers.base import make_scorers
    from evolve.score.tasks import load_tasks, sizes

    tasks, found = load_tasks(score) if score.tasks else ([], [])
    scorers, wrong = make_scorers(score)
    items = {name: (found["search"], found["holdout"]) for name, found in sizes(tasks).items()}
    items |= {name: (one.sizes["search"], one.sizes["holdout"]) for name, one in scorers.items()}
    problems = [loaded.problem(("score", *path), message) for path, message in [*found, *wrong]]
    return _Scored(tasks, items, problems, scorers)


def _facts(
    loaded: Loaded, models: Mapping[str, Model], items: Mapping[str, tuple[int, int]], runs: Path
) -> Facts:
    from evolve.search.population import most_trials, population_of
    from evolve.space.space import derive
    from evolve.stages.pipeline import outputs

    config = loaded.config
    space = derive(loaded).genes
    genes = len(space)
    population = population_of(config.search, max(genes, 1))
    made = outputs(loaded.stages, models)
    largest = max([*models.values(), *made], key=_bytes)
    parameters = _parameters(largest)
    evaluators = config.engine.evaluators or _evaluators(config.engine.cpus, config.engine.gpus)
    if config.engine.kind == "inline":
        evaluators = 1
    most = most_trials(config.search, space) if space else None
    trials = config.search.trials if most is None else min(most, config.search.trials)
    width = _engine_bytes(config.score)
    shares = _shares(config.score, stacked=loaded.stacked)
    held = max([*models.values(), *made], key=lambda model: _parameters(model, once=shares))
    once = _parameters(held, once=shares)
    weights = once * (width or _bytes(held) / max(1, _parameters(held)))
    widest = max((spec.numel for spec in largest.specs.values()), default=0)
    memory = _RUNTIME_BYTES + round(weights) + 4 * widest * (len(models) + 1)
    return Facts(
        genes=genes,
        population=population,
        generations=1 + math.ceil(max(0, trials - 1) / population),
        trials=trials,
        evaluators=evaluators,
        parameters=parameters,
        model_bytes=_bytes(largest),
        memory=memory,
        memory_free=free_memory(),
        disk=_bytes(largest) + trials * 300_000,
        disk_free=shutil.disk_usage(_existing(runs)).free,
        items=dict(items),
        seconds=_seconds(loaded, trials, parameters, _bytes(largest), items) / min(evaluators, population),
        most=most,
    )


def _seconds(
    loaded: Loaded, trials: int, parameters: int, weights: int, items: Mapping[str, tuple[int, int]]
) -> float:
    """Return the rough time of everything that is built and scored, on one evaluator."""
    engine, score = loaded.config.engine, loaded.config.score
    speed = _GPU_FLOPS if _gpus() and engine.gpus != 0 else _CPU_FLOPS_PER_CORE * engine.cpus
    load = weights * (len(loaded.config.models) + 1) / _SWAP_BYTES_PER_SECOND + _OVERHEAD_SECONDS
    search, holdout = (
        load + 2 * parameters * _TOKENS_PER_ITEM * sum(sizes[which] for sizes in items.values()) / speed
        for which in (0, 1)
    )
    share, loads = _asked(loaded.config.search)
    baselines = len(loaded.config.models) + 1
    finalists = baselines + min(score.holdout.top, trials) if score and score.holdout.items else 0
    if score and score.holdout.items:
        finalists += score.holdout.seeds * (1 + score.holdout.ablations * len(loaded.stages)) - 1
    return trials * (loads * load + share * (search - load)) + baselines * search + finalists * holdout


def _asked(search: SearchConfig) -> tuple[float, float]:
    """Return the share of the items that a candidate is asked, and how often it is loaded, about.

    Nobody knows beforehand how far the items grow: the share is the geometric mean of the first one and all,
    and the product of both where candidates race on items that grow.
    """
    racing, growth, estimator = search.racing, search.items_growth, search.estimator
    firsts = [block.first for block in (racing, growth) if block is not None]
    if not firsts:
        return (estimator.anchors if estimator is not None else 1.0), 1.0
    return math.sqrt(math.prod(firsts)), 2.0 if racing is not None else 1.0


def _resources(loaded: Loaded, facts: Facts, runs: Path) -> list[Problem]:
    problems = []
    if facts.disk > facts.disk_free:
        problems.append(
            Problem(
                loaded.source,
                "",
                f"the run needs about {_gb(facts.disk)} on the disk of {runs}, {_gb(facts.disk_free)} are "
                "free: free some space, or name another folder with --runs",
            )
        )
    free = facts.memory_free
    if free is not None and facts.memory * facts.evaluators > free and not os.environ.get("RAY_ADDRESS"):
        problems.append(
            loaded.problem(
                ("engine",),
                f"{facts.evaluators} evaluators need about {_gb(facts.memory)} of memory each, {_gb(free)} "
                "are free: set engine.evaluators lower, or use smaller models",
            )
        )
    return problems


def _warnings(loaded: Loaded, facts: Facts) -> list[str]:
    if not facts.genes:
        return []
    found = []
    if facts.most is not None:
        if facts.trials < facts.most:
            found.append(
                f"sampler {loaded.config.search.sampler} takes {facts.most} trials here: with search.trials "
                f"{facts.trials} it does not come to its end"
            )
    elif facts.population % facts.evaluators:
        found.append(
            f"the population of {facts.population} is no multiple of the {facts.evaluators} evaluators: "
            "some wait at the end of each generation; set search.population to "
            f"{math.ceil(facts.population / facts.evaluators) * facts.evaluators}"
        )
    if facts.most is None and facts.trials < 10 * facts.population:
        found.append(
            f"{facts.trials} trials are {facts.trials / facts.population:.1f} generations of "
            f"{facts.population}; {facts.genes} genes want at least 10: set search.trials to "
            f"{10 * facts.population}, or search fewer genes"
        )
    if loaded.config.score is not None and loaded.config.score.holdout.items == 0:
        found.append(
            "without a holdout the report has only scores that the search has chosen by: "
            "set score.holdout.items"
        )
    return found


def _bytes(model: Model) -> int:
    return sum(spec.numel * _BYTES.get(spec.dtype, 1) for spec in model.specs.values())


def _parameters(model: Model, *, once: bool = False) -> int:
    """Count the parameters; with ``once`` those that equal others by construction are left out."""
    return sum(spec.numel for name, spec in model.specs.items() if not (once and name in model.same))


def _shares(score: ScoreConfig | None, *, stacked: bool) -> bool:
    """Whether the engine keeps equal tensors once."""
    from evolve.score.engines.choose import choose_backend

    return score is not None and choose_backend(score, stacked=stacked) == "hf"


def _engine_bytes(score: ScoreConfig | None) -> int | None:
    """Return bytes per parameter in the engine, or None: as in the file."""
    if score is None:
        return None
    if score.dtype != "auto":
        return _BYTES[score.dtype]
    return None if _gpus() else 4


def _evaluators(cpus: float, gpus: float | None) -> int:
    """Return how many evaluators fit on this machine, as the engine will count them."""
    devices = _gpus()
    if gpus is None:
        gpus = 1.0 if devices else 0.0
    room = devices / gpus if gpus else (os.cpu_count() or 1) / cpus
    return max(1, int(room))


def _gpus() -> int:
    """Count the GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return sum(1 for file in Path("/dev").glob("nvidia[0-9]*"))


def free_memory(*, swap: bool = False) -> int | None:
    """Return the free memory of this machine in bytes, ``swap`` with what it can page out, or None.

    None: it does not say.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    kilobytes = values.get("MemAvailable", "").split()
    if not kilobytes:
        return None
    paged = values.get("SwapFree", "").split()[:1] if swap else []
    return sum(int(number) for number in (kilobytes[0], *paged)) * 1024


def _existing(folder: Path) -> Path:
    """Return the folder, or the closest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

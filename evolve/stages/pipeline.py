"""Runs a recipe: wires stages to the models and outputs that they name, and guards the result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from evolve.config.files import located
from evolve.errors import CandidateError, UserError
from evolve.registry import STAGES, did_you_mean
from evolve.stages import history
from evolve.stages.base import Stage
from evolve.stages.guard import guarded
from evolve.stages.memory import TRAINED_BYTES, least_bytes, numbers
from evolve.types import content_hash, without_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from evolve.config.values import StageBlock
    from evolve.stages.memo import Memo
    from evolve.types import Recipe, Training
    from evolve.weights.model import Model


_MOST_SHAPES = 16
"""Most combinations of its inputs' shapes that a stage is checked with."""


@dataclass(frozen=True)
class _Step:
    """A stage with its inputs resolved.

    Attributes:
        place: Such as ``pipeline.0.merge``.
        stage: The implementation.
        block: Its block, ``model`` filled in with the output before where it was absent.
        inputs: Names that it reads, in order.
        output: The name of its output; one that nobody can write where it has none.
        problems: ``(path, message)``; with one in it the step cannot run.
    """

    place: str
    stage: type[Stage]
    block: StageBlock
    inputs: tuple[str, ...]
    output: str
    problems: list[tuple[str, str]] = field(default_factory=list)


def check(stages: Sequence[tuple[str, StageBlock]], models: Mapping[str, Model]) -> list[tuple[str, str]]:
    """Return ``(dotted path, message with the mend)`` for everything that keeps the stages from being built.

    Names first, then each stage's own check against the headers of its inputs. Blocks may hold ranges.
    Where an earlier stage has problems, its output is taken to look like the model that it starts from.
    """
    return _walk(stages, models)[0]


def outputs(stages: Sequence[tuple[str, StageBlock]], models: Mapping[str, Model]) -> list[Model]:
    """Return the headers of what each stage makes, in order, as far as they are known."""
    return _walk(stages, models)[1]


def _walk(
    stages: Sequence[tuple[str, StageBlock]], models: Mapping[str, Model]
) -> tuple[list[tuple[str, str]], list[Model]]:
    """Go through the stages. A name has several shapes where a stage that changes it may be off."""
    found: list[tuple[str, str]] = []
    made: list[Model] = []
    known: dict[str, tuple[Model, ...]] = {name: (model,) for name, model in models.items()}
    for step in _wire(stages, models):
        problems = dict.fromkeys(step.problems)
        shapes: dict[str, Model] = {}
        if not problems and all(name in known for name in step.inputs):
            for inputs in islice(product(*(known[name] for name in step.inputs)), _MOST_SHAPES):
                more, shape = _look(step, dict(zip(step.inputs, inputs, strict=True)))
                problems |= dict.fromkeys(more)
                if shape is not None:
                    shapes.setdefault(shape.architecture, shape)
        if not shapes or step.block.enabled is not True:
            for shape in known.get(_starts_from(step), ()):
                shapes.setdefault(shape.architecture, shape)
        if shapes:
            known[step.output] = tuple(shapes.values())
        made += shapes.values()
        found += problems
    return found, made


def _look(step: _Step, available: Mapping[str, Model]) -> tuple[list[tuple[str, str]], Model | None]:
    """Check one stage. Returns its problems, and the headers of its output where it has no problems."""
    problems = [
        (f"{step.place}.{path}" if path else step.place, message)
        for path, message in step.stage.check(step.block, available)
    ]
    if problems or step.block.enabled is False:
        return problems, None
    try:
        return [], step.stage.outline(step.block, available)
    except CandidateError as error:
        return [(step.place, str(error))], None


def prepare(stages: Sequence[tuple[str, StageBlock]], models: Mapping[str, Model]) -> None:
    """Do what every candidate needs, before the first one: gather statistics of the models.

    Args:
        stages: Blocks that may hold ranges, the content of data files filled in.
        models: Name to model, with contents.

    Raises:
        UserError: It cannot be done.
    """
    for step in _wire(stages, models):
        if not step.block.measured or step.block.enabled is False or step.problems:
            continue
        try:
            step.stage.prepare(step.block, {name: models[name] for name in step.block.measured})
        except CandidateError as error:
            raise UserError(f"{step.place}: {error}") from error


def build(
    recipe: Recipe,
    parents: Mapping[str, Model],
    *,
    seed: int = 0,
    folder: Path | None = None,
    memo: Memo | None = None,
    told: Callable[[Training], None] | None = None,
) -> Model:
    """Return the model that ``recipe`` describes. Its tensors are computed when they are read.

    A recipe without stages is its one model. A tensor with a NaN or infinite value raises when it is read.

    Args:
        recipe: All values fixed.
        parents: Name to model, at least those that the recipe names.
        seed: For stages whose block has none.
        memo: Keeps what the next candidates over the same parents need again; None: nothing is kept.
        folder: What the paths of data files are relative to; absent: the working directory.
        told: Gets what each stage that trains has shown, also where its output was there already.

    Raises:
        CandidateError: ``invalid_recipe`` here; ``non_finite`` and what a stage raises, from ``tensor()``.
    """
    if missing := sorted(set(recipe.models) - set(parents)):
        raise CandidateError(
            "invalid_recipe", f"the recipe needs model {missing[0]!r}{did_you_mean(missing[0], parents)}"
        )
    # The same object where it can be: what a memo keeps belongs to it.
    used = {
        name: parents[name] if parents[name].content == content else replace(parents[name], content=content)
        for name, content in recipe.models.items()
    }
    pipeline = located(recipe.pipeline, folder or Path.cwd())
    if not pipeline:
        if len(used) != 1:
            raise CandidateError("invalid_recipe", f"a recipe without stages has one model, not {len(used)}")
        (name, model), *_ = used.items()
        return guarded(model, name, used)
    known = dict(used)
    output = ""
    for step in _wire(_blocks(pipeline), used):
        if step.problems:
            raise CandidateError("invalid_recipe", "; ".join(": ".join(found) for found in step.problems))
        output = step.output
        if step.block.enabled is False:
            known[output] = known[_starts_from(step)]
            continue
        inputs = {name: known[name] for name in step.inputs}
        made = step.stage.run(step.block, inputs, seed=seed, memo=memo)
        if told is not None and _trains(step.stage, step.block):
            label = step.block.name or step.place.rpartition(".")[2]
            if (shown := history.shown(label, made)) is not None:
                told(shown)
        if not made.content:
            made = replace(made, content=_identity(step, inputs, seed))
        known[output] = guarded(made, step.place, used)
    result = known[output]
    # A last stage that is off hands a parent through, which nothing has guarded yet.
    return guarded(result, output, used) if any(result is parent for parent in used.values()) else result


def _identity(step: _Step, inputs: Mapping[str, Model], seed: int) -> str:
    """Return what stands for a model that is computed: all that decides its tensors, and nothing else."""
    kind, schema = step.place.rpartition(".")[2], type(step.block)
    plain = schema.effective(
        step.block.model_dump(mode="json", exclude_none=True, exclude={"name", "enabled"})
    )
    drawn = schema.draws(plain)
    own = plain.pop("seed", seed)
    decides = {
        "kind": kind,
        "version": getattr(step.stage, "version", Stage.version),
        "block": without_paths(plain),
        "inputs": {name: model.content for name, model in inputs.items()},
        **({"seed": own} if drawn else {}),
    }
    return f"made:{content_hash(decides)}"


def outline(recipe: Recipe, parents: Mapping[str, Model]) -> Model:
    """Return config, specs and files of what a recipe builds; no tensor is read.

    Raises:
        CandidateError: It cannot be built.
    """
    known = {name: parents[name] for name in recipe.models}
    blocks = list(_blocks(recipe.pipeline))
    if not blocks:
        return next(iter(known.values()))
    problems, made = _walk(blocks, known)
    if problems or not made:
        raise CandidateError("invalid_recipe", "; ".join(": ".join(found) for found in problems))
    return made[-1]


def trained(recipe: Recipe) -> int:
    """Return how many stages of a recipe train; 0 also for a recipe that cannot be built."""
    try:
        return sum(
            block.enabled is not False and _trains(STAGES.load(kind), block)
            for kind, block in _blocks(recipe.pipeline)
        )
    except (CandidateError, ValueError):
        return 0


def spreads(recipe: Recipe) -> bool:
    """Whether several processes may train what a recipe trains."""
    kinds = [
        (STAGES.load(kind), block) for kind, block in _blocks(recipe.pipeline) if block.enabled is not False
    ]
    training = [(stage, block) for stage, block in kinds if _trains(stage, block)]
    return bool(training) and all(
        getattr(stage, "spreads", Stage.spreads)(block) for stage, block in training
    )


def training_bytes(recipe: Recipe, parents: Mapping[str, Model], *, least: bool = False) -> int:
    """Return how much memory training takes at most, about; 0 where no stage trains.

    That is weights, gradients and Adam's two moments in fp32 of the model that is trained, and what its stage
    needs beside it. Adapters take less; activations come on top.

    Args:
        recipe: All values fixed.
        parents: Name to model, at least those that the recipe names.
        least: Whether to count only what no training can do without.
    """
    if not trained(recipe):
        return 0
    most = 0
    try:
        known = {name: parents[name] for name in recipe.models}
        for step in _wire(_blocks(recipe.pipeline), known):
            if step.block.enabled is False:
                known[step.output] = known[_starts_from(step)]
                continue
            inputs = {name: known[name] for name in step.inputs}
            known[step.output] = step.stage.outline(step.block, inputs)
            if not _trains(step.stage, step.block):
                continue
            width = least_bytes(step.block) if least else TRAINED_BYTES
            extra = getattr(step.stage, "extra_training_bytes", Stage.extra_training_bytes)
            most = max(most, width * numbers(known[step.output]) + extra(step.block, inputs))
    except (CandidateError, KeyError, ValueError):  # building it says what is wrong
        return 0
    return most


def _trains(stage: type[Stage], block: StageBlock) -> bool:
    return bool(getattr(stage, "trains", Stage.trains)(block))


def _blocks(pipeline: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, StageBlock]]:
    for number, entry in enumerate(pipeline):
        if len(entry) != 1:
            raise CandidateError("invalid_recipe", f"pipeline.{number}: one stage an entry, not {len(entry)}")
        ((kind, raw),) = entry.items()
        try:
            block = STAGES.load(kind).block.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(map(str, ("pipeline", number, kind, *first["loc"])))
            raise CandidateError("invalid_recipe", f"{path}: {first['msg']}") from error
        except UserError as error:
            raise CandidateError("invalid_recipe", f"pipeline.{number}: {error}") from error
        if not isinstance(block.enabled, bool):
            raise CandidateError("invalid_recipe", f"pipeline.{number}.{kind}.enabled: must be true or false")
        yield kind, block


def _wire(stages: Iterable[tuple[str, StageBlock]], models: Mapping[str, Model]) -> list[_Step]:
    """Resolve every name; the problems that are found stand in the steps."""
    steps: list[_Step] = []
    known = dict.fromkeys(models, "a model")
    blocks = list(stages)
    later = {block.name for _, block in blocks if block.name}
    before = next(iter(models)) if len(models) == 1 else None
    gone_through: dict[str | None, frozenset[str]] = {}
    for number, (kind, original) in enumerate(blocks):
        place = f"pipeline.{number}.{kind}"
        problems: list[tuple[str, str]] = []
        stage, block = STAGES.load(kind), original
        if _wants_model(block):
            if before is None:
                problems.append((f"{place}.model", f"say which model it starts from: {', '.join(models)}"))
            block = block.model_copy(update={"model": before})
        inputs = stage.inputs(block) if not problems else ()
        for name in inputs:
            if name not in known:
                what = "is the output of this or a later stage" if name in later else "is unknown"
                mend = (
                    "; move that stage up" if name in later else did_you_mean(name, filter(_writable, known))
                )
                problems.append((_path_of(name, block, place), f"model {name!r} {what}{mend}"))
        problems += [
            (
                _path_of(name, block, place),
                f"{name!r} is the output of a stage, and statistics are gathered of models: build that "
                "first, and name its folder",
            )
            for name in block.measured
            if known.get(name, "a model") != "a model"
        ]
        kinds = gone_through.get(getattr(block, "model", None), frozenset()) if not problems else None
        problems += [
            (".".join(map(str, (place, *path))), message)
            for path, needed, message in block.needs()
            if kinds is not None and needed not in kinds
        ]
        output = block.name or f"\0{place}"
        gone_through[output] = (kinds or frozenset()) | {kind}
        if output in known:
            problems.append((f"{place}.name", f"{output!r} is already {known[output]}; choose another name"))
        known.setdefault(output, f"the output of {place}")
        steps.append(_Step(place, stage, block, inputs, output, problems))
        before = output
    read = {name for step in steps for name in step.inputs}
    for step in steps[:-1]:
        if step.output not in read:
            named = f"the output {step.output!r}" if _writable(step.output) else "the output"
            step.problems.append(
                (
                    step.place,
                    f"nobody uses {named} of this stage; name it in a later stage, or delete the stage",
                )
            )
    return steps


def _wants_model(block: StageBlock) -> bool:
    return "model" in type(block).model_fields and getattr(block, "model", None) is None


def _writable(name: str) -> bool:
    return not name.startswith("\0")


def _starts_from(step: _Step) -> str:
    """Return the model that a stage changes: what its output is when the stage is off."""
    for key in ("model", "base_model"):
        name = getattr(step.block, key, None)
        if isinstance(name, str):
            return name
    return step.inputs[0] if step.inputs else ""


def _path_of(name: str, block: StageBlock, place: str) -> str:
    """Return where ``name`` stands in the block, for an error that points at it."""

    def search(value: Any, path: str) -> str | None:
        if value == name:
            return path
        if isinstance(value, dict):
            entries: Iterable[tuple[Any, Any]] = ((k, v) for k, v in value.items() if k != "name")
        elif isinstance(value, list | tuple):
            entries = enumerate(value)
        else:
            return None
        return next((hit for key, entry in entries if (hit := search(entry, f"{path}.{key}"))), None)

    return search(block.model_dump(), place) or place

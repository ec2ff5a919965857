"""The merge stage: a block and its input models become a model that is computed tensor by tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NoReturn, cast

from evolve.errors import CandidateError
from evolve.registry import MERGE_METHODS
from evolve.stages.merge.block import MergeBlock
from evolve.stages.merge.fit import differing_tensors, layer_problems, outside
from evolve.stages.merge.headers import (
    filter_problems,
    missing_values,
    output_config,
    output_specs,
    output_types,
    type_problems,
)
from evolve.stages.merge.layout import make_layout
from evolve.stages.merge.plan import Plan, repeated
from evolve.stages.merge.residual import scale_problem
from evolve.stages.merge.stacked import changed_layers
from evolve.stages.merge.statistics import corpus_problems, gathered
from evolve.weights.model import Model
from evolve.weights.resident import at_home

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.values import StageBlock
    from evolve.stages.memo import Memo
    from evolve.stages.merge.layout import Layout
    from evolve.stages.merge.values import Path

NO_LAYER = "every slice is off: the model would have no layer"


class MergeStage:
    """Merges models of one architecture, and stacks their layers."""

    block: ClassVar[type[StageBlock]] = MergeBlock

    @staticmethod
    def inputs(block: StageBlock) -> tuple[str, ...]:
        """Return the models in the order of the config, then the base if it is not among them."""
        return cast("MergeBlock", block).names

    @staticmethod
    def check(block: StageBlock, models: Mapping[str, Model]) -> list[tuple[str, str]]:
        """Compare the models' headers, and see that each tensor gets its parameters."""
        from evolve.stages.merge.vocabulary import VocabularyError, aligned

        merge = cast("MergeBlock", block)
        if _empty(merge):
            return [(".".join(map(str, merge.key)), NO_LAYER)]
        try:
            inputs = aligned(merge, _given(merge, models))
        except VocabularyError as error:
            return list(error.problems)
        found = [(merge.listed(path), message) for path, message in _problems(merge, models, inputs)]
        listed = [(".".join(map(str, path)), message) for path, message in dict.fromkeys(found)]
        return [*listed, *corpus_problems(merge)]

    @staticmethod
    def outline(block: StageBlock, models: Mapping[str, Model]) -> Model:
        """Return config, specs and files of the result. Slices that the search may switch off are in it."""
        from evolve.stages.merge.vocabulary import aligned

        merge = cast("MergeBlock", block)
        given = _given(merge, models)
        inputs = aligned(merge, given)
        layout = make_layout(merge, inputs)
        # Types are those of the models as they are: a filled row may widen a table, not the result.
        specs = output_specs(layout, output_types(merge, layout, given), inputs)
        config = output_config(layout, specs, inputs)
        donor = inputs[merge.donor or merge.reference]
        return Model(config, specs, _refuse, donor.files, same=repeated(merge, layout))

    @staticmethod
    def prepare(block: StageBlock, models: Mapping[str, Model]) -> None:
        """Gather the statistics of the models, so that no candidate has to."""
        gathered(cast("MergeBlock", block), models)

    @staticmethod
    def run(block: StageBlock, models: Mapping[str, Model], *, seed: int, memo: Memo | None = None) -> Model:
        """Return the merged model; its tensors are computed when they are asked for."""
        from evolve.stages.merge.vocabulary import VocabularyError, aligned, aligned_statistics

        merge = cast("MergeBlock", block)
        if _empty(merge):
            raise CandidateError("invalid_recipe", NO_LAYER)
        given = _given(merge, models)
        if not MERGE_METHODS.load(merge.merge_method).stored:
            # Such methods run on the CPU: what stays on a GPU would be brought back for every candidate.
            given = {name: at_home(model) for name, model in given.items()}
        try:
            inputs = aligned(merge, given, memo)
        except VocabularyError as error:
            raise CandidateError("invalid_recipe", str(error)) from error
        layout = _checked_layout(merge, given, inputs)
        types = output_types(merge, layout, given)
        specs = output_specs(layout, types, inputs)
        config = output_config(layout, specs, inputs)
        if layout.sliced and (changed := next(changed_layers(layout, inputs, config), "")):
            raise CandidateError("invalid_recipe", changed)
        plan = Plan(
            merge,
            layout,
            inputs,
            seed=seed if merge.seed is None else merge.seed,
            types=types,
            statistics=aligned_statistics(merge, given, gathered(merge, given)),
            memo=memo,
        )
        files = inputs[merge.donor or merge.reference].files
        return Model(config, specs, plan, files, finite=True, same=plan.same())


def _given(merge: MergeBlock, models: Mapping[str, Model]) -> dict[str, Model]:
    return {name: models[name] for name in merge.names}


def _empty(merge: MergeBlock) -> bool:
    return all(part.enabled is False for part in merge.parts)


def _refuse(name: str) -> NoReturn:
    raise TypeError(f"{name} was asked for, but only the headers of this model are known")


def _comparable(merge: MergeBlock, models: Mapping[str, Model]) -> dict[str, Model]:
    """Return what of the models must be alike: of slices, all but the layers."""
    return {name: outside(model) for name, model in models.items()} if merge.sliced else dict(models)


def _checked_layout(merge: MergeBlock, given: Mapping[str, Model], inputs: Mapping[str, Model]) -> Layout:
    """Return the layout of a recipe.

    Args:
        merge: The block.
        given: The models as they are: their types decide on those of the result.
        inputs: The models with the vocabulary of the result.

    Raises:
        CandidateError: The models do not fit each other.
    """
    problems = differing_tensors(_comparable(merge, inputs))
    problems = problems or [message for _, message in layer_problems(merge, inputs)]
    if problems:
        raise CandidateError("build", "; ".join(problems))
    layout = make_layout(merge, inputs)
    if problems := type_problems(merge, layout, given):
        raise CandidateError("build", "; ".join(problems))
    return layout


def _problems(
    merge: MergeBlock, given: Mapping[str, Model], inputs: Mapping[str, Model]
) -> list[tuple[Path, str]]:
    """Return what is wrong, at the paths of the slices that a stack stands for."""
    from evolve.weights.compat import differences

    found: list[tuple[Path, str]] = [
        (merge.key, message) for message in differences(_comparable(merge, inputs))
    ]
    fitting = layer_problems(merge, inputs)
    found += fitting
    if fitting and merge.sliced:
        return found
    layout = make_layout(merge, inputs)
    if not found:
        found = [(merge.key, message) for message in type_problems(merge, layout, given)]
    if layout.sliced:
        found += _stacking_problems(merge, layout, inputs)
    return [*found, *filter_problems(layout), *missing_values(merge, layout)]


def _stacking_problems(
    merge: MergeBlock, layout: Layout, models: Mapping[str, Model]
) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    message = scale_problem(layout.reference)
    if message:
        found = [((*part.path, "scale"), message) for part in layout.parts if part.scale != 1]
    try:
        types = output_types(merge, layout, models)
        config = output_config(layout, output_specs(layout, types, models), models)
        found += [(merge.key, changed) for changed in list(changed_layers(layout, models, config))[:3]]
    except CandidateError as error:
        found.append((merge.key, str(error)))
    return found

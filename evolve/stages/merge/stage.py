"""The merge stage: a block and its input models become a model that is computed tensor by tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

from evolve.errors import CandidateError
from evolve.stages.merge.block import MergeBlock
from evolve.stages.merge.headers import (
    differing_tensors,
    filter_problems,
    missing_values,
    output_config,
    output_types,
    type_problems,
)
from evolve.stages.merge.plan import Plan
from evolve.stages.merge.statistics import corpus_problems, gathered
from evolve.weights.model import Model, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.values import StageBlock
    from evolve.stages.memo import Memo


class MergeStage:
    """Merges models of one architecture."""

    block: ClassVar[type[StageBlock]] = MergeBlock

    @staticmethod
    def inputs(block: StageBlock) -> tuple[str, ...]:
        """Return the models in the order of the config, then the base if it is not among them."""
        merge = cast("MergeBlock", block)
        names = [entry.model for entry in merge.models]
        return tuple(dict.fromkeys(names if merge.base_model is None else [*names, merge.base_model]))

    @staticmethod
    def check(block: StageBlock, models: Mapping[str, Model]) -> list[tuple[str, str]]:
        """Compare the models' headers, and see that each tensor gets its parameters."""
        from evolve.stages.merge.vocabulary import VocabularyError, aligned
        from evolve.weights.compat import differences

        merge = cast("MergeBlock", block)
        given = {name: models[name] for name in MergeStage.inputs(merge)}
        try:
            inputs = aligned(merge, given)
        except VocabularyError as error:
            return list(error.problems)
        found = [("models", message) for message in differences(inputs)]
        if not found:
            found = [("models", message) for message in type_problems(merge, given)]
        reference = inputs[merge.reference]
        found += corpus_problems(merge)
        return [*found, *filter_problems(merge, reference), *missing_values(merge, reference)]

    @staticmethod
    def outline(block: StageBlock, models: Mapping[str, Model]) -> Model | None:
        """Return the model that gives the config, with the vocabulary and the files of the result."""
        from evolve.stages.merge.vocabulary import aligned

        merge = cast("MergeBlock", block)
        given = {name: models[name] for name in MergeStage.inputs(merge)}
        inputs = aligned(merge, given)
        return replace(inputs[merge.reference], files=inputs[merge.donor or merge.reference].files)

    @staticmethod
    def prepare(block: StageBlock, models: Mapping[str, Model]) -> None:
        """Gather the statistics of the models, so that no candidate has to."""
        gathered(cast("MergeBlock", block), models)

    @staticmethod
    def run(block: StageBlock, models: Mapping[str, Model], *, seed: int, memo: Memo | None = None) -> Model:
        """Return the merged model; its tensors are computed when they are asked for."""
        from evolve.stages.merge.vocabulary import VocabularyError, aligned, aligned_statistics

        merge = cast("MergeBlock", block)
        given = {name: models[name] for name in MergeStage.inputs(merge)}
        try:
            inputs = aligned(merge, given, memo)
        except VocabularyError as error:
            raise CandidateError("invalid_recipe", str(error)) from error
        # Of the models as they are: a filled row may widen a table, and that must not widen the result.
        problems = differing_tensors(inputs) or type_problems(merge, given)
        if problems:
            raise CandidateError("build", "; ".join(problems))
        reference = inputs[merge.reference]
        types = output_types(merge, given)
        plan = Plan(
            merge,
            inputs,
            seed=seed if merge.seed is None else merge.seed,
            types=types,
            statistics=aligned_statistics(merge, given, gathered(merge, given)),
            memo=memo,
        )
        return Model(
            config=output_config(reference, types),
            specs={name: TensorSpec(spec.shape, types[name]) for name, spec in reference.specs.items()},
            tensor=plan.tensor,
            files=inputs[merge.donor or merge.reference].files,
            finite=True,
        )

"""The merge stage: a block and its input models become a model that is computed tensor by tensor."""

from __future__ import annotations

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
        from evolve.weights.compat import differences

        merge = cast("MergeBlock", block)
        inputs = {name: models[name] for name in MergeStage.inputs(merge)}
        found = [("models", message) for message in differences(inputs)]
        if not found:
            found = [("models", message) for message in type_problems(merge, inputs)]
        reference = models[merge.reference]
        found += corpus_problems(merge)
        return [*found, *filter_problems(merge, reference), *missing_values(merge, reference)]

    @staticmethod
    def prepare(block: StageBlock, models: Mapping[str, Model]) -> None:
        """Gather the statistics of the models, so that no candidate has to."""
        gathered(cast("MergeBlock", block), models)

    @staticmethod
    def run(block: StageBlock, models: Mapping[str, Model], *, seed: int, memo: Memo | None = None) -> Model:
        """Return the merged model; its tensors are computed when they are asked for."""
        merge = cast("MergeBlock", block)
        inputs = {name: models[name] for name in MergeStage.inputs(merge)}
        problems = differing_tensors(inputs) or type_problems(merge, inputs)
        if problems:
            raise CandidateError("build", "; ".join(problems))
        reference = models[merge.reference]
        donor = merge.donor
        if donor is None:
            message = f"tokenizer_source {merge.tokenizer_source!r} is not one of the merged models"
            raise CandidateError("invalid_recipe", message)
        types = output_types(merge, inputs)
        plan = Plan(
            merge,
            inputs,
            seed=seed if merge.seed is None else merge.seed,
            types=types,
            statistics=gathered(merge, inputs),
            memo=memo,
        )
        return Model(
            config=output_config(reference, types),
            specs={name: TensorSpec(spec.shape, types[name]) for name, spec in reference.specs.items()},
            tensor=plan.tensor,
            files=models[donor].files,
            finite=True,
        )

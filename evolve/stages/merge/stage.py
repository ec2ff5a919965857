"""The merge stage: a block and its input models become a model that is computed tensor by tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NoReturn, cast

from evolve.errors import CandidateError
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
from evolve.weights.model import Model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.values import StageBlock
    from evolve.stages.merge.layout import Layout
    from evolve.stages.merge.values import Path


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
        merge = cast("MergeBlock", block)
        found = [(merge.listed(path), message) for path, message in _problems(merge, models)]
        return [(".".join(map(str, path)), message) for path, message in dict.fromkeys(found)]

    @staticmethod
    def headers(block: StageBlock, models: Mapping[str, Model]) -> Model:
        """Return config and specs of the result. Slices that the search may switch off are in it."""
        merge = cast("MergeBlock", block)
        layout = make_layout(merge, models)
        types = output_types(merge, layout, models)
        specs = output_specs(layout, types, models)
        donor = models[merge.donor or merge.reference]
        config = output_config(layout, specs, models)
        return Model(config, specs, _refuse, donor.files, repeated(merge, layout))

    @staticmethod
    def run(block: StageBlock, models: Mapping[str, Model], *, seed: int) -> Model:
        """Return the merged model; its tensors are computed when they are asked for."""
        merge = cast("MergeBlock", block)
        layout = _checked_layout(merge, models)
        donor = merge.donor
        if donor is None:
            message = f"tokenizer_source {merge.tokenizer_source!r} is not one of the merged models"
            raise CandidateError("invalid_recipe", message)
        types = output_types(merge, layout, models)
        specs = output_specs(layout, types, models)
        config = output_config(layout, specs, models)
        if layout.sliced and (changed := next(changed_layers(layout, models, config), "")):
            raise CandidateError("invalid_recipe", changed)
        plan = Plan(merge, layout, models, seed=seed if merge.seed is None else merge.seed, types=types)
        return Model(config, specs, plan.tensor, models[donor].files, plan.same())


def _refuse(name: str) -> NoReturn:
    raise TypeError(f"{name} was asked for, but only the headers of this model are known")


def _checked_layout(merge: MergeBlock, models: Mapping[str, Model]) -> Layout:
    """Return the layout of a recipe.

    Raises:
        CandidateError: No layer is left, or the models do not fit each other.
    """
    if not any(part.enabled is not False for part in merge.parts):
        raise CandidateError("invalid_recipe", "every slice is off: the model would have no layer")
    inputs = {name: models[name] for name in merge.names}
    if merge.sliced:
        inputs = {name: outside(model) for name, model in inputs.items()}
    problems = differing_tensors(inputs) or [message for _, message in layer_problems(merge, models)]
    if problems:
        raise CandidateError("build", "; ".join(problems))
    layout = make_layout(merge, models)
    if problems := type_problems(merge, layout, models):
        raise CandidateError("build", "; ".join(problems))
    return layout


def _problems(merge: MergeBlock, models: Mapping[str, Model]) -> list[tuple[Path, str]]:
    """Return what is wrong, at the paths of the slices that a stack stands for."""
    from evolve.weights.compat import differences

    if not any(part.enabled is not False for part in merge.parts):
        return [(merge.key, "every slice is off: the model would have no layer")]
    inputs = {name: models[name] for name in merge.names}
    if merge.sliced:
        inputs = {name: outside(model) for name, model in inputs.items()}
    found: list[tuple[Path, str]] = [(merge.key, message) for message in differences(inputs)]
    fitting = layer_problems(merge, models)
    found += fitting
    layout = None if fitting and merge.sliced else make_layout(merge, models)
    if layout is None:
        return found
    if not found:
        found = [(merge.key, message) for message in type_problems(merge, layout, models)]
    if layout.sliced:
        found += _stacking_problems(merge, layout, models)
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

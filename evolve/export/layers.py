"""Slices as mergekit's YAML can say them: the factors of hidden states become factors of tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.stages.merge.residual import Output
    from evolve.types import Parent

_MEND = "use --to recipe, which `evolve build` reads, or --to model"


def sliced(block: Mapping[str, Any]) -> bool:
    """Whether a merge is one of slices."""
    return bool(slices_of(block))


def slices_of(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the slices of a merge, wherever they stand; none for whole models."""
    modules = [module.get("slices") for module in block.get("modules", {}).values()]
    found: list[dict[str, Any]] = block.get("slices") or next(filter(None, modules), [])
    return found


def for_mergekit(block: dict[str, Any], parents: Mapping[str, Parent]) -> dict[str, Any]:
    """Return a merge of slices without what mergekit does not have, and with the same result.

    Without a base mergekit takes config and tokenizer from any of the models, another from run to run; the
    one that gave ours is named.

    Raises:
        UserError: mergekit has no way to say it.
    """
    pieces = slices_of(block)
    first = pieces[0]["sources"][0]["model"]
    reference = block.get("base_model", first)
    folded = _folded(block, pieces, parents[reference])
    if "slices" in block:
        block = {**block, "slices": folded}
    else:
        modules = {name: {**module, "slices": folded} for name, module in block["modules"].items()}
        block = {**block, "modules": modules}
    return {**block, "base_model": reference} if _without_base(block) else block


def _without_base(block: Mapping[str, Any]) -> bool:
    from evolve.registry import MERGE_METHODS

    return MERGE_METHODS.load(block["merge_method"]).base == "none"


def _folded(
    block: Mapping[str, Any], pieces: list[dict[str, Any]], reference: Parent
) -> list[dict[str, Any]]:
    """Replace the scales of slices by the parameter ``scale`` of passthrough on what their layers add."""
    if all(piece.get("scale", 1) == 1 for piece in pieces):
        return [{key: value for key, value in piece.items() if key != "scale"} for piece in pieces]
    if block["merge_method"] != "passthrough":
        raise UserError(
            f"the slices have scales, which mergekit knows for passthrough alone and not for "
            f"{block['merge_method']}: {_MEND}"
        )
    output = _output(reference)
    wider = [
        block.get("parameters", {}),
        *(one.get("parameters", {}) for one in block.get("modules", {}).values()),
    ]
    result, total = [], 1.0
    for piece in pieces:
        total *= piece.get("scale", 1)
        (source,) = piece["sources"]
        given = [source.get("parameters", {}), piece.get("parameters", {}), *reversed(wider)]
        own = next((values["scale"] for values in given if "scale" in values), 1)
        scale = _times(own, 1 / total, output)
        source = {**source, "parameters": {**source.get("parameters", {}), "scale": scale}}
        result.append({**{key: value for key, value in piece.items() if key != "scale"}, "sources": [source]})
    return result


def _output(reference: Parent) -> Output:
    from evolve.stages.merge.residual import OUTPUTS

    kind = json.loads((Path(reference.path) / "config.json").read_text(encoding="utf-8")).get("model_type")
    output = OUTPUTS.get(kind)
    if output is None or output.shift:
        raise UserError(f"mergekit cannot scale what the layers of {kind} models add: {_MEND}")
    return output


def _times(value: Any, factor: float, output: Output) -> Any:
    """Return a value of ``scale`` that is multiplied for the tensors through which layers add."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        raise UserError(
            "a slice has a scale and a list of filters for passthrough's own scale, and mergekit has no "
            f"filter for both: {_MEND}"
        )
    if factor == 1:
        return value
    scaled = [number * factor for number in value] if isinstance(value, list) else value * factor
    return [*({"filter": part, "value": scaled} for part in output.parts), {"value": value}]

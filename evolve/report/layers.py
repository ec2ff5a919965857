"""The parameters of a recipe, layer by layer: what a gradient over depth says at each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evolve.types import Recipe


@dataclass(frozen=True)
class Profile:
    """One parameter over the depth.

    Attributes:
        model: The model that it belongs to, or the stage where it is one for all.
        name: Name of the parameter, with the filter behind it where there is one.
        values: Its value at each layer, the first layer first.
    """

    model: str
    name: str
    values: tuple[float, ...]


def profiles(recipe: Recipe, layers: int) -> list[Profile]:
    """Return every numeric parameter of every merge in a recipe.

    Args:
        recipe: All values fixed.
        layers: How many layers the models have.
    """
    found = []
    for number, entry in enumerate(recipe.pipeline):
        for kind, block in entry.items():
            stage = block.get("name") or (kind if len(recipe.pipeline) == 1 else f"{kind} {number + 1}")
            owners = [(str(model.get("model")), model.get("parameters")) for model in _models(block)]
            for owner, parameters in [*owners, (f"all ({stage})", block.get("parameters"))]:
                for name, values in _values(parameters, layers):
                    found.append(Profile(owner, name, values))
    return found


def _models(block: dict[str, Any]) -> list[dict[str, Any]]:
    models = block.get("models")
    return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []


def _values(parameters: Any, layers: int) -> Iterator[tuple[str, tuple[float, ...]]]:
    for name, value in parameters.items() if isinstance(parameters, dict) else ():
        parts = value if isinstance(value, list) and any(isinstance(part, dict) for part in value) else None
        if parts is None:
            points = [("", value)]
        else:
            points = [(part.get("filter") or "the rest", part.get("value")) for part in parts]
        for which, one in points:
            over = _over_depth(one, layers)
            if over is not None:
                yield f"{name} ({which})" if which else name, over


def _over_depth(value: Any, layers: int) -> tuple[float, ...] | None:
    from evolve.tensors.gradient import at_depth, depth

    points: Sequence[Any] = value if isinstance(value, list) else [value]
    if not points or not all(isinstance(p, int | float) and not isinstance(p, bool) for p in points):
        return None
    return tuple(at_depth(points, depth(layer, layers)) for layer in range(layers))

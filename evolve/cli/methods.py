"""What ``evolve ls methods`` prints: the merge methods with their parameters, defaults, ranges and papers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType

    from evolve.stages.merge.base import MergeMethod, Param


def described() -> list[dict[str, Any]]:
    """Return one object a method."""
    from evolve.registry import MERGE_METHODS

    return [_method(name, MERGE_METHODS.load(name)) for name in MERGE_METHODS.names()]


def _method(name: str, method: type[MergeMethod]) -> dict[str, Any]:
    fewest, most = method.models
    return {
        "method": name,
        "about": (method.__doc__ or "").strip().partition("\n")[0],
        "paper": method.paper,
        "base": method.base,
        "fewest_models": fewest,
        "most_models": most,
        "parameters": [
            *(_parameter(param, "model") for param in method.per_model),
            *(_parameter(param, "merge") for param in method.shared),
        ],
    }


def _parameter(param: Param, of: str) -> dict[str, Any]:
    low, high = param.suggest or (None, None)
    return {
        "parameter": param.name,
        "of": of,
        "kind": param.kind,
        "required": param.default is None,
        "default": param.default,
        "low": param.low,
        "high": param.high,
        "suggest_low": low,
        "suggest_high": high,
        "doc": param.doc,
    }


def flat(methods: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one object a parameter, for CSV; a method without any is one object too."""
    for method in methods:
        own = {key: value for key, value in method.items() if key != "parameters"}
        for parameter in method["parameters"] or [{}]:
            yield {**own, **parameter}


def tables(methods: Iterable[dict[str, Any]]) -> list[RenderableType]:
    """Return a table of the parameters and one of the papers: together they would not fit on a terminal."""
    from evolve.cli.output import table

    rows: list[list[str]] = []
    papers: list[list[str]] = []
    for method in methods:
        head = [method["method"], _inputs(method)]
        for parameter in method["parameters"] or [None]:
            rows.append([*head, *_cells(parameter)])
            head = ["", ""]
        papers.append([method["method"], method["paper"]])
    columns = ["method", "models", "parameter", "of", "default", "range", "search"]
    return [table(columns, rows), table(["method", "paper"], papers)]


def _inputs(method: dict[str, Any]) -> str:
    """Return how many models there are, beside the base; in brackets a base that may be left out."""
    fewest, most = method["fewest_models"], method["most_models"]
    count = str(fewest) if fewest == most else f"{fewest} to {most}" if most else f"{fewest}+"
    base = {"required": "base, ", "optional": "(base), ", "none": ""}[method["base"]]
    return base + count


def _cells(parameter: dict[str, Any] | None) -> list[str]:
    if parameter is None:
        return ["-"] * 5
    return [
        parameter["parameter"],
        parameter["of"],
        "required" if parameter["required"] else _value(parameter["default"]),
        "switch" if parameter["kind"] == "bool" else _span(parameter["low"], parameter["high"]) or "any",
        _span(parameter["suggest_low"], parameter["suggest_high"]),
    ]


def _value(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _span(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"from {low:g}"
    return "" if high is None else f"up to {high:g}"

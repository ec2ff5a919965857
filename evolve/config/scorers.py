"""The blocks of ``score.scorers``: each kind of scorer brings its own schema."""

from __future__ import annotations

from typing import Any

from evolve.config.messages import Complaint, complaints, describe
from evolve.registry import SCORERS, did_you_mean


def scorer_complaints(data: dict[str, Any]) -> tuple[list[Complaint], dict[str, Any]]:
    """Return what is wrong with the scorers of a plain config, and the config without those.

    The schema of the whole config reports the rest; in it each wrong scorer is replaced by one that is right.
    """
    score = data.get("score")
    entries = score.get("scorers") if isinstance(score, dict) else None
    if not isinstance(score, dict) or not isinstance(entries, list):
        return [], data
    found: list[Complaint] = []
    kept = []
    for index, entry in enumerate(entries):
        wrong = _of_entry(entry)
        found += [
            Complaint(("score", "scorers", index, *path), message, at_key) for path, message, at_key in wrong
        ]
        kept.append({"size": {"name": f"scorer {index}"}} if wrong else entry)
    return found, {**data, "score": {**score, "scorers": kept}}


def named_models(data: dict[str, Any]) -> dict[str, Any]:
    """Return a plain config that is right, with names of ``models`` in its scorers' blocks replaced.

    A scorer gets its block alone, and a name of the config would tell it nothing.
    """
    score, models = data.get("score"), data.get("models") or {}
    if not isinstance(score, dict) or not score.get("scorers"):
        return data
    entries = [
        {kind: {**raw, **_replaced(kind, raw, models)} for kind, raw in entry.items()}
        for entry in score["scorers"]
    ]
    return {**data, "score": {**score, "scorers": entries}}


def _replaced(kind: str, raw: dict[str, Any], models: dict[str, Any]) -> dict[str, Any]:
    keys = SCORERS.load(kind).block.models
    return {key: models[raw[key]] for key in keys if raw.get(key) in models}


def _of_entry(entry: Any) -> list[Complaint]:
    known = ", ".join(SCORERS.names())
    if not isinstance(entry, dict) or len(entry) != 1:
        message = f"expected one scorer, such as `- size: {{...}}` (known: {known}), got {describe(entry)}"
        return [Complaint((), message)]
    [(kind, raw)] = entry.items()
    if kind not in SCORERS:
        return [Complaint((kind,), f"unknown scorer{did_you_mean(kind, SCORERS.names())}", at_key=True)]
    if not isinstance(raw, dict):
        return [Complaint((kind,), f"expected a mapping (key: value), got {describe(raw)}")]
    return [
        Complaint((kind, *path), message, at_key)
        for path, message, at_key in complaints(SCORERS.load(kind).block, raw)
    ]

"""The tables of forgetting.py, as functions of what it has measured.

An entry has the arm, the seed, ``alpha`` (None: the arm as it is; a number: interpolated so far from the
start towards it) and bits per byte of every text. The entry of the start has no seed.
"""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from report import mean

from evolve.score.forgetting import Change, change, pareto

if TYPE_CHECKING:
    from collections.abc import Sequence

    Entries = list[dict[str, Any]]

DOMAIN, GENERAL = "licences", "docstrings"
TEXTS = (DOMAIN, GENERAL, "topics")
SHARES = (0.25, 0.5, 0.75, 0.95)
"""Gains at which arms are compared, as shares of what the yardstick gains at least."""
YARDSTICK, CONTROL = "no_replay", "control"


def pair(entry: dict[str, Any]) -> tuple[float, float]:
    return entry[DOMAIN], entry[GENERAL]


def by_seed(found: Entries, arm: str, alpha: float | None = None) -> dict[int, dict[str, Any]]:
    """Return seed to entry of an arm."""
    return {entry["seed"]: entry for entry in found if entry["arm"] == arm and entry.get("alpha") == alpha}


def arms_of(found: Entries) -> list[str]:
    return [arm for arm in dict.fromkeys(entry["arm"] for entry in found) if arm != "start"]


def arms_table(found: Entries) -> list[str]:
    """Return every arm against the start, and against the control of its own seed."""
    start, control = found[0], by_seed(found, CONTROL)
    lines = [
        f"| arm | {' | '.join(TEXTS)} | gain | forgetting | gain over control | forgetting over control |",
        f"|---|{'---|' * (len(TEXTS) + 4)}",
        f"| start | {' | '.join(f'{start[name]:.3f}' for name in TEXTS)} | | | | |",
    ]
    points: dict[str, Change] = {}
    for arm in arms_of(found):
        entries = by_seed(found, arm)
        moves = [change(pair(start), pair(entry)) for entry in entries.values()]
        beside = [
            change(pair(control[seed]), pair(entry)) for seed, entry in entries.items() if seed in control
        ]
        points[arm] = Change(*map(statistics.mean, zip(*moves, strict=True)))
        cells = [mean([entry[name] for entry in entries.values()]) for name in TEXTS]
        cells += [mean([getattr(one, key) for one in moves]) for key in Change._fields]
        known = beside and arm != CONTROL
        cells += [mean([getattr(one, key) for one in beside]) if known else "" for key in Change._fields]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    trained = [arm for arm in points if arm != CONTROL]
    front = ", ".join(trained[place] for place in pareto([points[arm] for arm in trained]))
    return [*lines, "", f"front: {front}"]


def line_of(found: Entries, arm: str, seed: int) -> list[Change]:
    """Return the way from the start to an arm as it was measured, the start first."""
    start = found[0]
    mine = [entry for entry in found if entry["arm"] == arm and entry["seed"] == seed]
    alphas = {1.0 if entry.get("alpha") is None else entry["alpha"]: entry for entry in mine}
    return [Change(0.0, 0.0), *(change(pair(start), pair(alphas[alpha])) for alpha in sorted(alphas))]


def forgetting_at(line: Sequence[Change], gain: float) -> float | None:
    """Return what is forgotten where a way from the start first reaches a gain; None: it never does.

    Between two points of the way it is interpolated linearly.
    """
    for one, two in pairwise(line):
        if one.gain <= gain <= two.gain:
            share = (gain - one.gain) / (two.gain - one.gain) if two.gain > one.gain else 0.0
            return one.forgetting + share * (two.forgetting - one.forgetting)
    return None


def matched_table(found: Entries, shares: Sequence[float] = SHARES) -> list[str]:
    """Return what each arm forgets at the same gains, and its difference from no_replay of the same seed.

    Only arms that were interpolated are compared: the others have no way from the start.
    """
    swept = [arm for arm in arms_of(found) if any(e.get("alpha") for e in found if e["arm"] == arm)]
    whole = by_seed(found, YARDSTICK)
    if YARDSTICK not in swept or not whole:
        return []
    start = found[0]
    least = min(change(pair(start), pair(entry)).gain for entry in whole.values())
    gains = [share * least for share in shares]
    head = " | ".join(f"at gain {gain:.3f} | minus {YARDSTICK}" for gain in gains)
    lines = [f"| arm | {head} |", f"|---|{'---|' * (2 * len(gains))}"]
    for arm in swept:
        seeds = [seed for seed in by_seed(found, arm) if seed in whole]
        ways = [(line_of(found, arm, seed), line_of(found, YARDSTICK, seed)) for seed in seeds]
        cells: list[str] = []
        for gain in gains:
            both = [(forgetting_at(mine, gain), forgetting_at(other, gain)) for mine, other in ways]
            known = [(mine, other) for mine, other in both if mine is not None and other is not None]
            if not known or len(known) < len(both):
                cells += [f"reached in {len(known)} of {len(both)}", ""]
                continue
            cells.append(mean([mine for mine, _ in known]))
            cells.append("" if arm == YARDSTICK else mean([mine - other for mine, other in known]))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def drift_table(found: Entries) -> list[str]:
    """Return the divergence from the start beside EWC's quadratic form, both in thousandths of a nat."""
    lines = ["| arm | KL to the start | 1/2 sum F d^2 | ratio |", "|---|---|---|---|"]
    for arm in arms_of(found):
        entries = [entry for entry in by_seed(found, arm).values() if "kl" in entry]
        if entries:
            cells = [mean([1000 * entry[key] for entry in entries]) for key in ("kl", "penalty")]
            cells.append(mean([entry["kl"] / entry["penalty"] for entry in entries]))
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else []

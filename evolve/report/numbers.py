"""How numbers are written for people: never a score without its uncertainty."""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""Standard errors on each side of a 95 % interval."""

MISSING = "-"


def number(value: float | None, digits: int = 4) -> str:
    """Return a score alone, or ``-`` where there is none."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def interval(value: float | None, low: float | None, high: float | None, digits: int = 4) -> str:
    """Return ``0.7125 [0.6841, 0.7392]``: a score and its 95 % interval."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{_shown(value, digits)} {_ends(low, high, digits, '')}"


def difference(value: float | None, low: float | None, high: float | None, digits: int = 4) -> str:
    """Return ``+0.0310 [+0.0040, +0.0580]``: a difference and its 95 % interval."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{_shown(value, digits, '+')} {_ends(low, high, digits, '+')}"


def score(value: float | None, stderr: float | None, digits: int = 4) -> str:
    """Return ``value ± half-width`` of the normal 95 % interval, where only a standard error is known."""
    if value is None or not math.isfinite(value):
        return MISSING
    half = "?" if stderr is None or not math.isfinite(stderr) else f"{Z95 * stderr:.{digits}f}"
    return f"{value:.{digits}f} ± {half}"


def _ends(low: float | None, high: float | None, digits: int, sign: str) -> str:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return "[?]"
    return f"[{_shown(low, digits, sign)}, {_shown(high, digits, sign)}]"


def _shown(value: float, digits: int, sign: str = "") -> str:
    """Return a number that is never -0.0000: rounding leaves such where two sums should be equal."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def duration(seconds: float | None) -> str:
    """Return ``1 h 05 min``, ``3 min 20 s``, ``12 s`` or ``0.4 s``."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float | None) -> str:
    """Return bytes with a unit: ``269.0 MB``."""
    if count is None:
        return MISSING
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def failures(failed: dict[str, int]) -> str:
    """Return ``timeout 2, build 1``, the most frequent first; empty without failures."""
    counts = sorted(failed.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{kind} {count}" for kind, count in counts if count)


def finite(value: float) -> float | None:
    """Return ``value``, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None

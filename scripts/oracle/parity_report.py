"""What mergekit_parity.py found, as values, and as tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from parity_defects import MENDED, ONLY_FLOAT32, WRONG

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LIMIT = 1e-6
COARSE = {("della", "d"): 1e-5, ("della_linear", "d"): 1e-5}
"""Where our own arithmetic is coarser than a float32. DELLA's probabilities are multiples of 2**-24, by which
is divided: near 0, where mergekit has an error and we go on, that is more than 1e-6 of the result."""


@dataclass(frozen=True)
class Compared:
    """A merge in which mergekit is right, by both.

    Attributes:
        architecture: Of the models.
        method: The merge method.
        case: Name of its parameters.
        letters: What of mergekit's was turned round, injected or left out for it.
        float32: Largest relative difference from mergekit's merge in float32; infinite without one.
        float64: From its merge in float64.
        error: Why there is no comparison, or an empty text.
    """

    architecture: str
    method: str
    case: str
    letters: str
    float32: float
    float64: float
    error: str = ""

    @property
    def rounded(self) -> bool:
        """Whether mergekit's own float32 is what differs, and is known to."""
        return self.method in ONLY_FLOAT32 and self.float32 > LIMIT

    @property
    def shown(self) -> float:
        """The difference that counts."""
        return self.float64 if self.rounded else max(self.float32, self.float64)

    @property
    def marks(self) -> str:
        """The letters of this cell."""
        return "".join(sorted({*self.letters, *(ONLY_FLOAT32[self.method] if self.rounded else "")}))


@dataclass(frozen=True)
class Judged:
    """A merge in which mergekit is wrong: how far each of the two is from the formula in float64.

    ``theirs`` is what mergekit says, where it merges nothing.
    """

    architecture: str
    method: str
    letter: str
    ours: float
    theirs: float | str


@dataclass
class Findings:
    """All of them, and what was remarkable about architectures."""

    compared: list[Compared] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """Return what nobody has disclosed."""
        found = [
            f"{one.architecture}: {one.method} ({one.case}): {one.error or f'{one.shown:.2e}'}"
            for one in self.compared
            if one.error or not one.shown <= LIMIT
        ]
        found += [
            f"{one.architecture}: {one.method} ({one.letter}): we are {one.ours:.2e} from the formula"
            for one in self.judged
            if not one.ours <= COARSE.get((one.method, one.letter), LIMIT)
        ]
        seen = {(one.letter, one.method) for one in self.judged}
        shown = {(one.letter, one.method) for one in self.judged if not _right(one.theirs)}
        found += [
            f"{method}: {letter}: mergekit is right everywhere: {WRONG[letter]}?"
            for letter, method in sorted(seen - shown)
        ]
        return found

    def as_json(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "limit": LIMIT,
            "compared": [{**asdict(one), "shown": one.shown, "marks": one.marks} for one in self.compared],
            "judged": [asdict(one) for one in self.judged],
            "wrong": WRONG,
            "notes": self.notes,
            "faults": self.faults(),
        }


def _right(theirs: float | str) -> bool:
    return not isinstance(theirs, str) and theirs <= LIMIT


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int) -> str:
    """Return a table in Markdown; after the first ``texts`` columns come numbers."""
    rule = ["---" if place < texts else "---:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def differences(findings: Findings) -> str:
    """Return the largest difference of each method and architecture, in units of 1e-7."""
    columns = list(dict.fromkeys(one.architecture for one in findings.compared))
    methods = list(dict.fromkeys(one.method for one in findings.compared))
    rows = []
    for method in methods:
        ours = [one for one in findings.compared if one.method == method]
        cells = [_cell([one for one in ours if one.architecture == name]) for name in columns]
        count = len({one.case for one in ours})
        rows.append([f"`{method}`", str(count), *cells, _cell(ours)])
    head = [f"{name}*" if name in findings.notes else name for name in columns]
    return table(["method", "cases", *head, "largest"], rows, texts=1)


def _cell(found: Sequence[Compared]) -> str:
    if not found:
        return ""
    if any(one.error for one in found):
        return "error"
    worst = max(one.shown for one in found)
    marks = "".join(sorted({mark for one in found for mark in one.marks}))
    return f"{worst * 1e7:.1f}{' ' if marks else ''}{marks}"


def legend(findings: Findings) -> list[str]:
    """Return what the marks of the table mean."""
    lines = [
        f"\\* {architecture}: {note}; so mergekit is told the names of the tensors"
        for architecture, note in findings.notes.items()
    ]
    for mark in sorted({mark for one in findings.compared for mark in one.marks}):
        line = f"{mark}: {WRONG[mark]}; {MENDED[mark]}"
        rounded = [one.float32 for one in findings.compared if one.rounded and mark in one.marks]
        lines.append(f"{line} (in float32 up to {max(rounded):.1e} apart)" if rounded else line)
    return lines


def verdicts(findings: Findings) -> str:
    """Return where mergekit is wrong: the largest distances of both from the formulas."""
    rows = []
    for letter, method in sorted({(one.letter, one.method) for one in findings.judged}):
        group = [one for one in findings.judged if (one.letter, one.method) == (letter, method)]
        wrong = [one for one in group if not _right(one.theirs)]
        errors = sorted({one.theirs for one in group if isinstance(one.theirs, str)})
        numbers = [one.theirs for one in group if not isinstance(one.theirs, str)]
        theirs = "; ".join([*([f"{max(numbers):.1e}"] if numbers else []), *errors])
        ours = f"{max(one.ours for one in group):.1e}"
        rows.append([letter, f"`{method}`", WRONG[letter], ours, theirs, f"{len(wrong)} of {len(group)}"])
    return table(["", "method", "what mergekit does", "we", "mergekit", "wrong in"], rows, texts=3)

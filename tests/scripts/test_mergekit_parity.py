"""The table of differences from mergekit: what counts as one, and the script on a few methods."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.stages.merge import mergekit

if TYPE_CHECKING:
    from types import ModuleType

ORACLE = Path(__file__).parents[2] / "scripts" / "oracle"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ORACLE)
    import parity_report

    return parity_report


def test_every_method_has_cases(report: ModuleType) -> None:
    import parity_cases
    from parity_defects import WRONG, defects

    found = [(case.method, case.name) for case in parity_cases.cases("self_attn", "mlp")]
    assert len(found) == len(set(found))
    assert len({method for method, _ in found}) == 20
    assert {defect.letter for defect in defects()} | {"l"} == set(WRONG)


def test_what_nobody_disclosed_is_a_fault(report: ModuleType) -> None:
    good = report.Compared("llama", "ties", "whole", "", 1e-7, 2e-7)
    known = report.Compared("llama", "arcee_fusion", "one", "", 0.1, 1e-7)
    right = report.Judged("llama", "ties", "b", 1e-7, 20.0)
    elsewhere = report.Judged("gpt2", "ties", "b", 1e-7, 0.0)
    assert report.Findings([good, known], [right, elsewhere]).faults() == []
    for fault in (
        report.Compared("llama", "ties", "whole", "", 2e-6, 1e-7),
        report.Compared("llama", "arcee_fusion", "one", "", 1e-7, 0.1),
        report.Compared("llama", "ties", "whole", "", float("nan"), 1e-7),
        report.Compared("llama", "ties", "whole", "", 0.0, 0.0, "mergekit fails"),
    ):
        assert len(report.Findings([good, fault]).faults()) == 1, fault
    assert len(report.Findings([], [report.Judged("llama", "ties", "b", 1e-5, 20.0)]).faults()) == 1
    assert len(report.Findings([], [elsewhere]).faults()) == 1


def test_a_difference_is_that_of_the_worst_tensor(report: ModuleType) -> None:
    from parity_run import largest

    one = {"x": torch.tensor([1.0, 4.0]), "y": torch.tensor([1e-3])}
    assert largest(one, one) == 0
    assert largest(one, {**one, "y": torch.tensor([2e-3])}) == pytest.approx(0.5)
    assert largest(one, {**one, "x": torch.tensor([2.0, 4.0])}) == pytest.approx(0.25)
    assert largest(one, {"x": one["x"]}) == float("inf")
    assert largest(one, {**one, "y": torch.tensor([float("nan")])}) == float("inf")
    assert largest(one, {**one, "y": torch.tensor([0.0])}) == float("inf")


def compared(folder: Path, *options: object) -> tuple[list[str], dict[str, Any]]:
    """Run the script; return the lines that it printed, and what it wrote for programs."""
    reason = mergekit.make_environment()
    if reason:
        pytest.skip(f"no mergekit environment: {reason}")
    command = [sys.executable, ORACLE / "mergekit_parity.py", "--mergekit", mergekit.PYTHON.parents[1]]
    command += [*options, "--json", folder / "found"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "found").read_text())
    assert found["faults"] == []
    assert max(one["shown"] for one in found["compared"]) <= found["limit"] == 1e-6
    return done.stdout.splitlines(), found


@pytest.mark.slow
def test_the_script_on_two_architectures(tmp_path: Path) -> None:
    methods = ["ties", "nuslerp", "della", "arcee_fusion"]
    lines, found = compared(tmp_path, "--architectures", "gpt2", "gpt_neox", "--methods", *methods)
    assert "| method | cases | gpt2 | gpt_neox* | largest |" in lines
    assert [line for line in lines if line.startswith("\\* gpt_neox: mergekit fails: ")]
    for method in methods:
        assert [line for line in lines if line.startswith(f"| `{method}` |")], method
    assert lines[-1] == "0 undisclosed differences"
    assert {one["method"] for one in found["compared"]} == set(methods)
    assert {one["letter"] for one in found["judged"]} == set("abcdgh")


@pytest.mark.slow
def test_the_script_on_every_architecture(tmp_path: Path) -> None:
    """Four kinds of methods; all 20 take four minutes on two idle cores, by the command of docs/parity.md."""
    from tests.architectures import ARCHITECTURES

    methods = ["slerp", "ties", "dare_ties", "karcher"]
    _, found = compared(tmp_path, "--methods", *methods)
    seen = {(one["architecture"], one["method"]) for one in found["compared"]}
    assert seen == {(architecture, method) for architecture in ARCHITECTURES for method in methods}

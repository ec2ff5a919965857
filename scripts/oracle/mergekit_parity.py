"""How far our merges are from mergekit 0.1.5's: every method, on tiny random models of many architectures.

    scripts/oracle/mergekit_env.sh
    python scripts/oracle/mergekit_parity.py --mergekit .venv-mergekit
        [--methods linear ties] [--architectures llama gpt2] [--seed 0] [--json FILE]

Both merge the same float32 models by the same configs. A difference is max |ours - theirs| / max |theirs| of
a tensor; the largest of all tensors and cases is printed, from mergekit's arithmetic in float32 and in
float64. Ours is float32 in both. The random numbers of DARE and DELLA are injected into mergekit.

Where mergekit is wrong, both are held against a formula in float64. Exits with 1 if a difference above 1e-6
has no such reason, if we are farther than that from a formula, or if mergekit is right where we say that it
is not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from parity_cases import cases  # noqa: E402
from parity_defects import LEFT_OUT, TURNED, Defect, Place, defects  # noqa: E402
from parity_models import parts  # noqa: E402
from parity_report import Compared, Findings, Judged, differences, legend, verdicts  # noqa: E402
from parity_run import Bench, Mergekit, MergekitError, distance, largest  # noqa: E402

from evolve.errors import CandidateError  # noqa: E402
from tests.architectures import ARCHITECTURES  # noqa: E402

if TYPE_CHECKING:
    from parity_cases import Case
    from parity_run import Tensors

METHODS = tuple(dict.fromkeys(case.method for case in cases("", "")))


def foreign(bench: Bench) -> str:
    """Return what mergekit makes of such an architecture that we do not, or an empty text."""
    recipe = {"merge_method": "passthrough", "models": [{"model": "one"}]}
    ours = bench.ours(recipe)
    try:
        theirs = bench.theirs(recipe, "float32")
    except MergekitError as error:
        return f"mergekit fails: {error}".splitlines()[0].partition(" in model ")[0]
    others = [name for name in theirs if name not in ours]
    lacking = [name for name in ours if name not in theirs]
    if not others and not lacking:
        return ""
    return f"mergekit has {_some(others)}, not {_some(lacking)}"


def _some(names: list[str]) -> str:
    return f"{len(names)} tensors like {names[0]}" if names else "none"


def compare(bench: Bench, case: Case) -> Compared:
    """Merge by both, mergekit in float32 and in float64."""
    recipe = case.recipe
    if case.theirs:
        recipe = {**recipe, "parameters": {**recipe.get("parameters", {}), **case.theirs}}
    without, letter = LEFT_OUT.get((case.method, bench.architecture), ("", ""))
    letters = letter + ("c" if case.inject == "divide" else "") + (TURNED[case.method] if case.theirs else "")
    gaps = {"float32": float("inf"), "float64": float("inf")}
    error = ""
    try:
        ours = bench.ours(case.recipe)
        if without:
            ours = {name: tensor for name, tensor in ours.items() if without not in name}
        for dtype in gaps:
            theirs = bench.theirs(recipe, dtype, inject=case.inject, names=list(ours) if without else None)
            gaps[dtype] = largest(ours, theirs)
    except CandidateError as failed:
        error = f"we fail: {failed}"
    except MergekitError as failed:
        error = f"mergekit fails: {failed}".splitlines()[0]
    return Compared(bench.architecture, case.method, case.name, letters, **gaps, error=error)


def judge(bench: Bench, defect: Defect) -> Judged:
    """Hold both against the formula."""
    right = {
        name: defect.formula(Place(models, lambda model, name=name: bench.words(model, name)))
        for name, models in bench.tensors.items()
    }
    theirs: float | str
    try:
        theirs = _farthest(bench.theirs(defect.recipe, "float32", inject=defect.inject), right)
    except MergekitError as error:
        theirs = str(error).splitlines()[0].partition(". ")[0]
    ours = _farthest(bench.ours(defect.recipe), right)
    return Judged(bench.architecture, str(defect.recipe["merge_method"]), defect.letter, ours, theirs)


def _farthest(merged: Tensors, right: dict[str, Any]) -> float:
    return max(
        distance(merged[name], tensor) if name in merged else float("inf") for name, tensor in right.items()
    )


def look(bench: Bench, methods: list[str], findings: Findings) -> None:
    """Add what there is to find of one architecture."""
    note = foreign(bench)
    if note:
        findings.notes[bench.architecture] = note
        bench.names = list(bench.models["base"].specs)
    for case in cases(*parts(bench.architecture)):
        if case.method in methods:
            findings.compared.append(compare(bench, case))
    for defect in defects():
        if defect.recipe["merge_method"] in methods:
            findings.judged.append(judge(bench, defect))


def show(findings: Findings) -> None:
    """Print everything."""
    print("Largest relative difference, in units of 1e-7 (the limit is 10)\n")
    print(differences(findings))
    print("", *legend(findings), sep="\n")
    if findings.judged:
        print("\nWhere mergekit is wrong: largest distance from a formula in float64\n")
        print(verdicts(findings))
    faults = findings.faults()
    print(f"\n{len(faults)} undisclosed differences", *faults, sep="\n  ")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = os.environ.get("MERGEKIT_VENV", ROOT / ".venv-mergekit")
    parser.add_argument("--mergekit", type=Path, default=Path(default), help="its environment")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument(
        "--architectures", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES)
    )
    parser.add_argument("--seed", type=int, default=0, help="of the models and of what is drawn")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not (arguments.mergekit / "bin" / "python").exists():
        parser.error(f"no environment in {arguments.mergekit}: scripts/oracle/mergekit_env.sh makes one")
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    findings = Findings()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with Mergekit(arguments.mergekit, folder / "mergekit.log") as mergekit:
            for architecture in arguments.architectures:
                print(architecture, file=sys.stderr, flush=True)
                bench = Bench(architecture, folder / architecture, mergekit, arguments.seed)
                look(bench, arguments.methods, findings)
    show(findings)
    if arguments.json:
        arguments.json.write_text(json.dumps(findings.as_json(), indent=1) + "\n")
    return 1 if findings.faults() else 0


if __name__ == "__main__":
    sys.exit(main())

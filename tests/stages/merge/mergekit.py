"""mergekit as an oracle: runs it in its own environment and reads what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from evolve.stages.merge.plan import tensor_seed
from evolve.tensors.random import draws
from tests.tensors.rules import drop

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evolve.weights.model import Model

ROOT = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("MERGEKIT_VENV", ROOT / ".venv-mergekit")) / "bin" / "python"


def make_environment() -> str:
    """Make the environment if it is missing. Returns why that is not possible, or an empty text."""
    try:
        done = subprocess.run(
            [ROOT / "scripts" / "oracle" / "mergekit_env.sh"],
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (
        "" if done.returncode == 0 else f"scripts/oracle/mergekit_env.sh failed: {done.stderr.strip()[-400:]}"
    )


def run(jobs: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Run mergekit on jobs as scripts/oracle/mergekit_merge.py describes them."""
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(list(jobs)))
    done = subprocess.run(
        [PYTHON, ROOT / "scripts" / "oracle" / "mergekit_merge.py", listed],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a model that mergekit wrote."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def write_masks(
    target: Path,
    models: Mapping[str, Model],
    paths: Mapping[str, Path],
    densities: Mapping[str, float],
    *,
    seed: int,
) -> Path:
    """Write the masks that our DARE draws for these models, one density for each."""
    masks = {}
    for name, density in densities.items():
        for tensor, spec in models[name].specs.items():
            ones = torch.ones(spec.shape)
            kept = drop(ones, density, tensor_seed(seed, name, tensor), rescale=False)
            masks[f"{paths[name]}|{tensor}"] = kept > 0
    save_file(masks, target)
    return target


def write_ranked_masks(
    target: Path,
    models: Mapping[str, Model],
    paths: Mapping[str, Path],
    settings: Mapping[str, tuple[float, float]],
    *,
    base: str,
    seed: int,
) -> Path:
    """Write what stays in DELLA with these densities and epsilons, one of each for each model."""
    masks = {}
    for name, (density, epsilon) in settings.items():
        for tensor, spec in models[name].specs.items():
            delta = models[name].tensor(tensor) - models[base].tensor(tensor)
            rows = delta.reshape(-1, spec.shape[-1])
            ranks = rows.abs().argsort(dim=1, descending=True, stable=True).argsort(dim=1).double()
            chances = density + epsilon * (1 - 2 * ranks / (rows.shape[1] - 1))
            limits = (torch.round(chances.clamp(0, 1) * 2**24) * 2**8).reshape(spec.shape)
            drawn = draws(tensor_seed(seed, name, tensor), 0, spec.numel).astype("int64")
            masks[f"{paths[name]}|{tensor}"] = torch.from_numpy(drawn).reshape(spec.shape) < limits
    save_file(masks, target)
    return target

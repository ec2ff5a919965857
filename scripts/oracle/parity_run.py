"""Merges of one architecture by us and by mergekit, for mergekit_parity.py, and how far apart they are."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from parity_models import make_models, write_words
from safetensors.torch import load_file

from evolve.errors import CandidateError
from evolve.stages.merge import MergeStage
from evolve.stages.merge.block import MergeBlock
from evolve.weights.reader import open_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from evolve.weights.model import Model

Tensors = dict[str, torch.Tensor]


class MergekitError(Exception):
    """mergekit has refused a merge, or failed in it."""


class Mergekit:
    """mergekit in a process of its own, in the environment ``venv``."""

    def __init__(self, venv: Path, log: Path) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [venv / "bin" / "python", Path(__file__).with_name("mergekit_serve.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )

    def __enter__(self) -> Mergekit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def merge(self, job: Mapping[str, Any]) -> Tensors:
        """Return the tensors of the file that mergekit writes.

        Raises:
            MergekitError: It writes none.
        """
        assert self._process.stdin and self._process.stdout
        shutil.rmtree(job["out"], ignore_errors=True)
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"mergekit's process has ended:\n{self._log.read_text()[-2000:]}")
        error = json.loads(answer)["error"]
        if error is not None:
            raise MergekitError(error)
        found: Tensors = {}
        for file in sorted(Path(job["out"]).glob("*.safetensors")):
            found.update(load_file(file))
        return found


@dataclass
class Bench:
    """The models of one architecture, ready to be merged by both.

    Attributes:
        architecture: Its name.
        folder: For what is written.
        mergekit: The peer.
        seed: Of the models, and of what DARE and DELLA draw.
        names: The tensors that mergekit is told to merge; None for those that it knows of.
    """

    architecture: str
    folder: Path
    mergekit: Mergekit
    seed: int = 0
    names: list[str] | None = None

    def __post_init__(self) -> None:
        self.paths = make_models(self.folder, self.architecture, self.seed)
        self.models: dict[str, Model] = {name: open_model(path) for name, path in self.paths.items()}
        self._words_file = self.folder / "words.safetensors"
        self._words = write_words(self._words_file, self.models, self.paths, self.seed)

    @cached_property
    def tensors(self) -> dict[str, dict[str, Any]]:
        """The models' tensors in float64 as numpy has it: tensor to model to values."""
        first = self.models["base"].specs
        return {
            name: {model: found.tensor(name).double().numpy() for model, found in self.models.items()}
            for name in first
        }

    def words(self, model: str, tensor: str) -> Any:
        """Return our random numbers of one tensor of a model."""
        return self._words[f"{self.paths[model]}|{tensor}"].numpy()

    def ours(self, recipe: Mapping[str, Any]) -> Tensors:
        """Return our merge in float32.

        Raises:
            CandidateError: We refuse it, or fail.
        """
        block = MergeBlock.model_validate({**recipe, "dtype": "float32"})
        problems = [*block.problems(), *MergeStage.check(block, self.models)]
        if problems:
            raise CandidateError("invalid_recipe", str(problems))
        return dict(MergeStage.run(block, self.models, seed=self.seed).tensors())

    def theirs(
        self, recipe: Mapping[str, Any], dtype: str, *, inject: str = "", names: list[str] | None = None
    ) -> Tensors:
        """Return mergekit's merge with arithmetic and result in ``dtype``, by our names.

        Raises:
            MergekitError: There is none.
        """
        config = {**recipe, "dtype": dtype}
        config["models"] = [{**entry, "model": str(self.paths[entry["model"]])} for entry in recipe["models"]]
        if "base_model" in recipe:
            config["base_model"] = str(self.paths[recipe["base_model"]])
        job = {
            "config": config,
            "out": str(self.folder / "merged"),
            "words": str(self._words_file) if inject else None,
            "divide": inject == "divide",
            "names": names or self.names,
        }
        return self.mergekit.merge(job)


def largest(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Return the largest difference in a model: of any tensor the largest one over the largest number there.

    NaN in either is infinitely far away, and so is a tensor that only one of the two has.
    """
    if set(ours) != set(theirs):
        return float("inf")
    return max(distance(ours[name], theirs[name]) for name in ours)


def distance(ours: Any, theirs: Any) -> float:
    """Return max |ours - theirs| / max |theirs|, computed in float64."""
    one, two = (torch.as_tensor(tensor).double() for tensor in (ours, theirs))
    if one.shape != two.shape:
        return float("inf")
    gap, size = (one - two).abs().max().item(), two.abs().max().item()
    if gap == 0:
        return 0.0
    return gap / size if size > 0 and gap == gap else float("inf")

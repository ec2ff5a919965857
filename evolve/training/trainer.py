"""The trainer of all stages: transformers' Trainer over rows in their order, with an objective of ours.

What it adds to transformers': the loss of a step has one denominator, the tokens that count in the whole
step; rows are gone over in the order in which they stand; a checkpoint is written every minute and taken only
if it is whole, so that a run that is killed goes on and ends with the same bits; a loss that is not finite
ends the run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from evolve.errors import CandidateError
from evolve.training import ranks
from evolve.training.rows import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from evolve.training.arguments import TrainingArgs
    from evolve.training.rows import Row

logger = logging.getLogger(__name__)

COMPLETE = "complete"
"""Name of the empty file that a checkpoint gets last."""


class Objective(Protocol):
    """What is trained for."""

    def prepare(self, network: Any, rows: Sequence[Row], *, step: int) -> Sequence[Row]:
        """Return the rows that a step is trained on, for those that stand in the data.

        Here a student may write its own. Draws depend on ``step`` and the rows alone, never on a state.
        """
        ...

    def loss(
        self, network: Any, rows: Sequence[Row], *, num_items: int
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Return the loss of a part of a step, a scalar with its gradient, and numbers for the log.

        Args:
            network: As transformers' Trainer wraps it, in training mode.
            rows: At least one.
            num_items: Tokens that count in the whole step. The losses of its parts add up to its loss.
        """
        ...


def _full(_progress: float, _name: str) -> float:
    return 1.0


def _all(_progress: float, _name: str) -> None:
    return None


@dataclass(frozen=True)
class Control:
    """Which parameters are trained when, and how fast.

    Attributes:
        rate: (share of the steps done, name of a parameter) to the factor of its learning rate; 0: it rests.
        rows: The same to the rows of a matrix that are trained, the others rest; None: all are.
    """

    rate: Callable[[float, str], float] = _full
    rows: Callable[[float, str], range | None] = _all


@dataclass(frozen=True)
class History:
    """What a run showed.

    Attributes:
        log: One mapping for each logged step: ``step``, ``loss`` (nats per token that counts, averaged since
            the line before), ``learning_rate``, ``grad_norm``, and the objective's numbers.
        steps: Steps of the run.
        tokens: Tokens that were gone over, padding left out.
        seconds: Of training, over all starts.
    """

    log: tuple[Mapping[str, float], ...]
    steps: int
    tokens: int
    seconds: float

    def as_plain(self) -> dict[str, Any]:
        """Return plain data for a file."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "log": [dict(line) for line in self.log],
        }


@dataclass(frozen=True)
class Settings:
    """How a run is trained, beside its ``training_args``.

    Attributes:
        arguments: With every value fixed.
        seed: Of dropout and of what is drawn in a step.
        folder: Where checkpoints are; the same folder goes on with them.
        name: For the log and the progress.
        save_seconds: A checkpoint is written after the step that ends so many seconds after the last one.
        control: Which parameters rest.
    """

    arguments: TrainingArgs
    seed: int
    folder: Path
    name: str = "training"
    save_seconds: float = 60.0
    control: Control = field(default_factory=Control)


def steps_of(rows: int, arguments: TrainingArgs) -> int:
    """Return the number of steps of so many rows."""
    batch = int(_number(arguments.per_device_train_batch_size)) * int(
        _number(arguments.gradient_accumulation_steps)
    )
    return max(1, math.ceil(rows / batch))


def train(network: Any, rows: Sequence[Row], objective: Objective, settings: Settings) -> History:
    """Train a network in place on rows, in their order, once.

    Called again with the same folder after it was killed, it goes on from the last whole checkpoint, and ends
    with the bits that an undisturbed run ends with (at one number of threads and processes, on one kind of
    device). In a group of processes (:mod:`evolve.training.ranks`) all call it with the same arguments.

    Args:
        network: A causal language model of transformers, perhaps with adapters; float32 on a CPU. Parameters
            that need no gradient rest.
        rows: At least one.
        objective: Gives the loss.
        settings: See there.

    Raises:
        CandidateError: ``non_finite`` where a loss or a gradient is; ``build`` where nothing can be trained.
    """
    from evolve.training.loop import make_trainer, quiet

    if not rows:
        raise CandidateError("build", f"{settings.name}: there is no training data")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise CandidateError("build", f"{settings.name}: every parameter is frozen, nothing can be trained")
    _require_something(network, steps_of(len(rows), settings.arguments), settings)
    settings.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with ranks.first():
        checkpoint = last_whole(settings.folder)
    before = 0.0 if checkpoint is None else _seconds(checkpoint)
    trainer = make_trainer(network, rows, objective, settings, spent=before)
    if checkpoint is not None:
        logger.info("%s: goes on from step %s", settings.name, checkpoint.name.rpartition("-")[2])
    with quiet():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    network.eval()
    log = tuple(_line(entry) for entry in trainer.state.log_history if "loss" in entry)
    if any(not math.isfinite(line["loss"]) for line in log):
        raise CandidateError("non_finite", f"{settings.name}: the loss is not finite")
    return History(
        log=log,
        steps=int(trainer.state.global_step),
        tokens=sum(len(row) for row in rows),
        seconds=before + time.monotonic() - began,
    )


def _require_something(network: Any, steps: int, settings: Settings) -> None:
    """Raise where a step has nothing that is trained."""
    if settings.control == Control():
        return
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    for step in range(steps):
        if not any(settings.control.rate(step / steps, name) > 0 for name in trained):
            raise CandidateError(
                "build",
                f"{settings.name}: nothing is trained in step {step + 1} of {steps}: phases, "
                "gradual_unfreezing, peft_config and frozen parameters leave nothing together",
            )


def last_whole(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a folder; broken ones are deleted.

    Checkpoints hold pickles of torch. They are read with ``weights_only``, and only out of this folder, which
    nobody but evolve writes.
    """
    found = sorted(
        (path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    whole = [path for path in found if (path / COMPLETE).exists()]
    for path in found:
        if path not in whole:
            shutil.rmtree(path, ignore_errors=True)
    return whole[-1] if whole else None


def mark_whole(checkpoint: Path, seconds: float) -> None:
    """Say that a checkpoint is whole: everything in it is on the disk before its mark is."""
    for path in checkpoint.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    partial = checkpoint / f".{COMPLETE}"
    partial.write_text(json.dumps({"seconds": seconds}))
    partial.rename(checkpoint / COMPLETE)


def count_items(rows: Sequence[Row]) -> int:
    """Return how many tokens of some rows count; the first of a row never does."""
    return sum(int((row.labels[1:] != IGNORED).sum()) for row in rows)


def _seconds(checkpoint: Path) -> float:
    return float(json.loads((checkpoint / COMPLETE).read_text())["seconds"])


def _line(entry: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in entry.items() if isinstance(value, int | float)}


def _number(value: Any) -> float:
    if isinstance(value, int | float):
        return value
    raise TypeError(f"a range has no place here: {value!r}")

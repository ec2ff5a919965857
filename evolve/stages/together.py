"""The trainings of a recipe in several processes, one for each GPU, in a group that accelerate joins.

Each process builds the same recipe. Where a stage trains they do it together (:mod:`evolve.training.ranks`),
and the first one keeps the model where every other process looks for it, too. So whoever asked builds the
recipe afterwards as ever, and finds its stages trained.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError, UserError
from evolve.generate.owners import dead, process
from evolve.types import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.types import FailureKind

logger = logging.getLogger(__name__)

PROCESSES = "EVOLVE_TRAINING_PROCESSES"
"""Environment variable: how many processes train one model. Absent: one for each GPU that can be seen."""
_FAILED = "failed.json"
_PATIENCE = 7 * 24 * 3600
"""Seconds that processes wait for each other: one may ask a teacher for text all night."""


def processes() -> int:
    """Return how many processes train one model here.

    Raises:
        UserError: The environment variable is no whole number above 0.
    """
    given = os.environ.get(PROCESSES)
    if given is not None:
        if not given.isascii() or not given.isdigit() or int(given) < 1:
            raise UserError(f"{PROCESSES} must be a whole number of at least 1, got {given!r}")
        return int(given)
    import torch

    return max(1, torch.cuda.device_count())


def train_together(
    recipe: Recipe, paths: Mapping[str, str], *, seed: int = 0, folder: Path | None = None
) -> None:
    """Train what a recipe trains, in several processes; does nothing where one is enough.

    Args:
        recipe: All values fixed.
        paths: Name of each parent to where it is, as :func:`~evolve.weights.reader.open_model` takes it.
        seed: For stages whose block has none.
        folder: What the paths of data files are relative to; absent: the working directory.

    Raises:
        CandidateError: The first failure of one of them.
        UserError: The environment variable is wrong.
    """
    import torch

    from evolve.stages.pipeline import spreads

    number = processes()
    if number == 1 or not spreads(recipe):
        return
    logger.info("training in %d processes", number)
    job = {
        "recipe": recipe.text,
        "paths": {name: paths[name] for name in recipe.models},
        "seed": seed,
        "folder": str((folder or Path.cwd()).resolve()),
        "threads": max(1, torch.get_num_threads() // number),
        "owner": process(),
    }
    with tempfile.TemporaryDirectory(prefix="evolve-") as place:
        file = Path(place) / "job.json"
        file.write_text(json.dumps(job))
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
        found = _run([sys.executable, "-m", *launch, "-m", __name__, str(file)])
        failed = Path(place) / _FAILED
        if failed.exists():
            said = json.loads(failed.read_text())
            raise CandidateError(said["kind"], said["message"])
        if found:
            raise CandidateError(
                "build", f"a training in {number} processes ended with {found}; {PROCESSES}=1 trains in one"
            )


def _run(command: list[str]) -> int:
    """Run a command to its end; whatever ends the wait ends the command."""
    with subprocess.Popen(command, stdout=sys.stderr.fileno() if _has_stderr() else None) as running:
        try:
            return running.wait()
        except BaseException:
            running.terminate()  # it hands that on to the processes that it has started
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                running.kill()
            raise


def _has_stderr() -> bool:
    try:
        return sys.stderr.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False


def _watch(owner: str) -> None:
    """End this process when the one that asked for it has died: a kill leaves no training behind."""

    def watch() -> None:
        while not dead(owner):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(file: str) -> int:
    """Build the recipe of a job in a group of processes. Returns the exit code."""
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    from evolve.stages.pipeline import build
    from evolve.weights.reader import open_model

    job: dict[str, Any] = json.loads(Path(file).read_text())
    _watch(job["owner"])
    torch.set_num_threads(job["threads"])
    if not torch.cuda.is_available():
        # Trainer asks accelerate again, and this is how it learns that a group of CPUs is meant.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(seconds=_PATIENCE))
    level = logging.INFO if state.is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    recipe = Recipe(job["recipe"])
    try:
        parents = {name: open_model(path) for name, path in job["paths"].items()}
        build(recipe, parents, seed=job["seed"], folder=Path(job["folder"]))
    except (CandidateError, UserError) as error:
        return _fail(file, getattr(error, "kind", "build"), str(error))
    except (torch.OutOfMemoryError, MemoryError) as error:
        return _fail(file, "oom", str(error))
    state.wait_for_everyone()
    state.destroy_process_group()
    return 0


def _fail(file: str, kind: FailureKind, message: str) -> int:
    failed = Path(file).with_name(_FAILED)
    partial = failed.with_name(f"{_FAILED}.{os.getpid()}")
    partial.write_text(json.dumps({"kind": kind, "message": message}))
    with contextlib.suppress(FileExistsError):  # the first one counts
        os.link(partial, failed)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

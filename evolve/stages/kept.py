"""What a stage has trained, kept on the disk and found again by what decided it.

Two candidates of a search whose recipes agree in a stage share its output, and a search that is resumed
trains nothing twice. The key holds the contents of the inputs and data files, the values of the block, the
seed, the version of the stage and the kind of device; neither names of files nor the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError, UserError
from evolve.training import ranks
from evolve.types import content_hash, without_paths
from evolve.weights.files import cache_folder
from evolve.weights.locked import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from evolve.weights.model import Model

logger = logging.getLogger(__name__)

_GIB = 1 << 30
LIMIT = "EVOLVE_STAGES_GIB"
"""Environment variable: most GiB of trained models and unfinished trainings that are kept; the least recently
used go first."""
_DEFAULT_GIB = 50.0
_WORK = ".work"
"""Ending of the folder of a training that is not finished."""
LOG = "training.json"
"""File of a trained model with its loss curve."""


def stage_key(
    kind: str, version: int, block: Mapping[str, Any], inputs: Mapping[str, Model], seed: int
) -> str:
    """Return the key of a stage's output.

    Args:
        kind: Such as ``distill``.
        version: Of the stage's arithmetic.
        block: Plain, every value fixed, without what has no effect.
        inputs: Name in the block to model; each must have a content.
        seed: Where the block has none.

    Raises:
        CandidateError: A model's content is not known.
    """
    import torch

    unknown = [name for name, model in inputs.items() if not model.content]
    if unknown:
        raise CandidateError("build", f"{kind}: the content of model {unknown[0]!r} is not known")
    plain = {
        key: value for key, value in without_paths(dict(block)).items() if key not in ("name", "enabled")
    }
    contents = {name: model.content for name, model in inputs.items()}
    return content_hash(
        {
            "kind": kind,
            "version": version,
            "block": _anonymous(plain, contents),
            "seed": plain.get("seed", seed),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        }
    )


def _anonymous(value: Any, contents: Mapping[str, str]) -> Any:
    """Return plain data in which models stand by their contents: what they are called decides nothing."""
    if isinstance(value, dict):
        return {
            key: contents[item]
            if key == "model" and isinstance(item, str) and item in contents
            else _anonymous(item, contents)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_anonymous(item, contents) for item in value]
    return value


def trained(key: str, make: Callable[[Path], tuple[Model, Mapping[str, str]]]) -> Model:
    """Return the model that is kept under a key, made now where it is not there.

    Whoever comes first makes it; others wait, in other processes too. A maker that is killed leaves its work
    folder, with which the next one goes on. Its folder is not pruned as long as the model, or anything that
    reads its tensors, lives in any process of this machine.

    Args:
        key: See :func:`stage_key`.
        make: Gets the work folder, returns the model, and texts of files beside it.

    Raises:
        UserError: The cache cannot be written.
        CandidateError: What ``make`` raises; the work folder is then removed, as for a value or type error.
    """
    from evolve.weights.reader import open_model
    from evolve.weights.writer import write_model

    home = _home()
    out, work = home / key, home / f"{key}{_WORK}"
    # Of processes that train together the first has the lock, the folder and the last word.
    with locked(home / f"{key}.lock") if ranks.rank() == 0 else contextlib.nullcontext():
        if not ranks.agreed(out.exists()):
            try:
                model, extra = make(work)
            except (CandidateError, ValueError, TypeError):
                # Started again it ends the same; what an interrupt, a full disk or memory ends goes on.
                if ranks.rank() == 0:
                    shutil.rmtree(work, ignore_errors=True)
                raise
            if ranks.rank() == 0:
                write_model(model, out, extra=extra)
                shutil.rmtree(work, ignore_errors=True)
                _prune(home, keep=key)
            ranks.wait()
        else:
            logger.info("found what was trained before: %s", key)
        os.utime(out)
        model = open_model(str(out))
        held = _Held(model.tensor, home / f"{key}.use")
        return replace(model, tensor=held, content=f"stage:{key}")


class _Held:
    """The tensors of a kept model. Files are mapped on the first read, so the folder must stay until then."""

    def __init__(self, read: Callable[[str], Tensor], use: Path) -> None:
        self._read = read
        descriptor = os.open(use, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)

    def __call__(self, name: str) -> Tensor:
        return self._read(name)


def log_of(model: Model) -> Path | None:
    """Return the file with the loss curve of a trained model, or None."""
    from evolve.weights.files import folder_of

    path = folder_of(model.files) / LOG
    return path if path.is_file() else None


def _home() -> Path:
    try:
        home = cache_folder("stages")
        home.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"no folder for what stages train: {error}; set XDG_CACHE_HOME to one that can be written"
        ) from error
    return home


def _prune(home: Path, *, keep: str) -> None:
    """Delete what was used least recently until the rest fits the limit; what is in use stays."""
    try:
        limit = float(os.environ.get(LIMIT, _DEFAULT_GIB)) * _GIB
    except ValueError as error:
        raise UserError(f"{LIMIT} must be a number of GiB, got {os.environ[LIMIT]!r}") from error
    sizes = {path: _size(path) for path in home.iterdir() if path.is_dir() and not path.name.startswith(".")}
    whole = sum(size for size, _ in sizes.values())
    for path in sorted(sizes, key=lambda one: sizes[one][1]):
        name = path.name.removesuffix(_WORK)
        if whole <= limit or name == keep:
            continue
        with (
            locked(home / f"{name}.lock", wait=False) as free,
            locked(home / f"{name}.use", wait=False) as unused,
        ):
            # The work of a training that was killed is not in use, nor is the lock of its model.
            if free and (unused or path.suffix == _WORK):
                shutil.rmtree(path, ignore_errors=True)
                whole -= sizes[path][0]


def _size(folder: Path) -> tuple[int, float]:
    """Return the bytes of a folder and when it was used last; zeros where another process deletes it."""
    total, used = 0, 0.0
    with contextlib.suppress(FileNotFoundError):
        used = folder.stat().st_mtime
        for file in folder.rglob("*"):
            total += file.stat().st_size if file.is_file() else 0
    return total, used

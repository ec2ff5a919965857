"""Statistics of models on disk: gathered once, found again by the content of model and text."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from evolve.errors import ModelError, UserError
from evolve.types import content_hash
from evolve.weights.files import cache_folder
from evolve.weights.header import make_header, nbytes, read_header
from evolve.weights.model import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

logger = logging.getLogger(__name__)

Kind: TypeAlias = Literal["fisher", "gram"]

_VERSION = 2
"""Changes with the arithmetic: files of another version are not used."""

_MEAN = "mean of all values"
_PARTIAL = ".partial"


class Source(NamedTuple):
    """Where the statistics of a tensor are.

    Attributes:
        stored: Name of the tensor in the file that holds them; several tensors may have the same ones.
        input_axis: Which axis of the model's tensor belongs to the inputs of its layer.
    """

    stored: str
    input_axis: int = 1


class Statistics:
    """The statistics of one model, in a file. Tensors are views of a memory map; nobody may write to them.

    Safe to use from any number of threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _map(path)
        self._lock = threading.Lock()
        listed = json.loads(self._file.metadata()["sources"])
        self._sources = {name: Source(*source) for name, source in listed.items()}
        self.mean = float(self._file.get_tensor(_MEAN))
        """Mean of all stored values."""

    def get(self, name: str) -> tuple[Tensor, int] | None:
        """Return what is known of a model's tensor, float32, and its input axis; None: nothing is."""
        source = self._sources.get(name)
        if source is None:
            return None
        with self._lock:
            tensor: Tensor = self._file.get_tensor(source.stored)
        return tensor, source.input_axis


class Draft(NamedTuple):
    """What a file of statistics will hold.

    Attributes:
        shapes: Name to shape of what is stored; float32.
        sources: Tensor of the model to where its statistics are.
    """

    shapes: Mapping[str, tuple[int, ...]]
    sources: Mapping[str, Source]


def default_folder() -> Path:
    """Return the folder where statistics are kept: ``$XDG_CACHE_HOME/evolve/statistics``.

    Raises:
        UserError: The user has no home folder.
    """
    try:
        return cache_folder("statistics")
    except RuntimeError as error:
        raise UserError(f"no folder for statistics: {error}; set XDG_CACHE_HOME") from error


def find_or_gather(
    folder: Path,
    kind: Kind,
    key: Mapping[str, Any],
    draft: Callable[[], Draft],
    fill: Callable[[Mapping[str, Tensor]], None],
) -> Statistics:
    """Return the statistics that are stored under ``key``, after gathering them where they are not.

    Whoever comes first gathers; others, in other processes too, wait for the file. It gets its name when it
    is whole; what a killed process leaves has another name, and the next one removes it.

    Args:
        folder: Where the files are.
        kind: What is gathered.
        key: Everything that decides the values, as plain data.
        draft: Says what the file will hold.
        fill: Fills the tensors of the draft, which are zero and memory-mapped from the file.

    Raises:
        UserError: The folder cannot be written, or is full.
    """
    path = folder / kind / f"{content_hash({'version': _VERSION, 'kind': kind, **key})}.safetensors"
    if (found := _open(path)) is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if (found := _open(path)) is not None:
                return found
            for stale in path.parent.glob(f".{path.name}.*{_PARTIAL}"):
                stale.unlink(missing_ok=True)
            _write(path, draft(), fill)
    except OSError as error:
        mend = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Make it writable"
        raise UserError(
            f"statistics cannot be kept in {path.parent}: {error.strerror or error}. {mend}, or set "
            "XDG_CACHE_HOME to another folder"
        ) from error
    return Statistics(path)


def _map(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def _open(path: Path) -> Statistics | None:
    if not path.exists():
        return None
    try:
        read_header(path)
        return Statistics(path)
    except (ModelError, KeyError, ValueError, TypeError) as error:
        logger.warning("%s is damaged and is gathered again: %s", path, error)
        path.unlink(missing_ok=True)
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that dies with its process. The empty file stays: removing it would let two hold it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process gathers %s; waiting for it", path.stem)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, draft: Draft, fill: Callable[[Mapping[str, Tensor]], None]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with _mapped(partial, draft) as (tensors, mean):
            fill(tensors)
            mean.fill_(_mean(tensors))
        partial.rename(path)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _mapped(path: Path, draft: Draft) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Make a file of zeros and yield its tensors, which are views of it; wait until it is on the disk."""
    import torch

    specs = {_MEAN: TensorSpec((), "float64")}
    specs |= {name: TensorSpec(shape, "float32") for name, shape in draft.shapes.items()}
    header = make_header(specs, {"sources": json.dumps(draft.sources)})
    size = len(header) + sum(nbytes(spec) for spec in specs.values())
    with path.open("xb+") as file:
        # A hole in the file that the disk has no room for would kill the process at a later write.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        file.write(header)
        file.flush()
        whole = np.memmap(file, np.uint8, "r+", shape=(size,))
        views = {}
        position = len(header)
        for name, spec in specs.items():
            end = position + nbytes(spec)
            views[name] = torch.from_numpy(whole[position:end].view(spec.dtype).reshape(spec.shape))
            position = end
        mean = views.pop(_MEAN)
        yield views, mean
        whole.flush()
        os.fsync(file.fileno())


def _mean(tensors: Mapping[str, Tensor]) -> float:
    count = sum(tensor.numel() for tensor in tensors.values())
    total = 0.0
    for tensor in tensors.values():
        values = tensor.reshape(-1).numpy()
        total += float(np.add.reduce(values, dtype=np.float64))
    return total / count if count else 0.0

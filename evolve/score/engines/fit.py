"""From a model to what an engine loads: tensors in its dtype, side files, and errors as a candidate's."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError
from evolve.weights.network import hf_config as hf_config
from evolve.weights.network import match as match
from evolve.weights.network import parameter_names as parameter_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, dtype

    from evolve.weights.model import Model

_MESSAGE = 500
_DEAD = frozenset({"EngineDeadError", "EngineGenerateError"})
_NO_WORKER = "Executor failed."
"""What vLLM's executor says of a RuntimeError where a worker process has ended."""


def rounded(model: Model, name: str, target: dtype) -> Tensor:
    """Compute one tensor and return what would be exported, in the engine's dtype.

    It is rounded to the dtype of its spec first: what is scored is what is exported.
    """
    import torch

    spec = model.specs[name]
    tensor = model.tensor(name)
    if tuple(tensor.shape) != spec.shape:
        raise CandidateError("build", f"{name} came out as {list(tensor.shape)}, not {list(spec.shape)}")
    tensor = tensor.to(getattr(torch, spec.dtype))
    return tensor.to(target) if tensor.is_floating_point() else tensor


class Stream:
    """The named tensors of a model, for a consumer that must not be interrupted.

    An error on the way does not come out of the iterator: zeros follow to the end, and ``error`` holds it.
    """

    def __init__(self, model: Model, names: Iterable[str], target: dtype) -> None:
        self._model = model
        self._names = tuple(names)
        self._target = target
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        import torch

        for name in self._names:
            if self.error is None:
                try:
                    yield name, rounded(self._model, name, self._target)
                    continue
                except Exception as error:
                    self.error = error
            yield name, torch.zeros(self._model.specs[name].shape, dtype=self._target)

    def check(self) -> None:
        """Raise what went wrong, as a CandidateError."""
        if self.error is not None:
            raise as_candidate_error(self.error, "build") from self.error


def as_candidate_error(error: Exception, kind: Any) -> CandidateError:
    """Return ``error`` as the failure of a candidate; running out of memory is a kind of its own."""
    if isinstance(error, CandidateError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        kind = "oom"
    text = " ".join(str(error).split())[:_MESSAGE]
    return CandidateError(kind, f"{type(error).__name__}: {text}", retryable=died(error))


def died(error: BaseException | None) -> bool:
    """Whether an engine, or a process of it, went away: that says nothing of the candidate.

    Judged by names, for vLLM is not imported where another engine runs, and by a lost pipe.
    """
    while error is not None:
        if type(error).__name__ in _DEAD or isinstance(error, ConnectionError | EOFError):
            return True
        if str(error) == _NO_WORKER:
            return True
        error = error.__cause__
    return False


def side_files(model: Model) -> dict[str, bytes]:
    """Return the content of the model's tokenizer and other side files by relative name."""
    from evolve.weights.files import read_side_files

    return read_side_files(model.files)


def write_side_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write side files into ``folder``."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def side_key(files: Mapping[str, bytes]) -> str:
    """Return a hash of the side files: a change of tokenizer needs a new engine."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()

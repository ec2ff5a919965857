"""Does a model's set of tensors fit its config? Answered before the first tensor is computed."""

from __future__ import annotations

import copy
import hashlib
import re
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, dtype

    from evolve.weights.model import Model, TensorSpec

_SHOWN = 3
_MESSAGE = 500


def hf_config(model: Model) -> Any:
    """Return the model's config as a transformers config object.

    Raises:
        CandidateError: transformers does not know the model type, or refuses the values.
    """
    from transformers import CONFIG_MAPPING

    kind = model.config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise CandidateError("engine", f"config.json: transformers does not know model_type {kind!r}")
    try:
        return CONFIG_MAPPING[kind].from_dict(copy.deepcopy(dict(model.config)))
    except (TypeError, ValueError, KeyError) as error:
        raise CandidateError("engine", f"config.json: {error}") from error


def parameter_names(model: Model) -> dict[str, str] | None:
    """Map each tensor of ``model`` to the parameter that transformers keeps it in.

    Tensors that the architecture is known to carry without using them are left out. None means that
    transformers converts the tensors of this architecture when it loads them, so that only a real load works.

    Raises:
        CandidateError: Tensors are missing, left over, or of the wrong shape.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping

    config = hf_config(model)
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise CandidateError("engine", f"config.json: {error}") from error
    tied = frozenset(getattr(skeleton, "all_tied_weights_keys", None) or ())
    wanted = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items() if name not in tied}
    unused = [re.compile(key) for key in skeleton._keys_to_ignore_on_load_unexpected or ()]
    try:
        return match(model.specs, wanted, f"{skeleton.base_model_prefix}.", unused)
    except CandidateError:
        if get_model_conversion_mapping(skeleton, add_legacy=False):
            return None
        raise


def match(
    specs: Mapping[str, TensorSpec],
    wanted: Mapping[str, tuple[int, ...]],
    prefix: str = "",
    unused: Iterable[re.Pattern[str]] = (),
) -> dict[str, str]:
    """Pair the tensors of ``specs`` with the parameters ``wanted``, whose names may begin with ``prefix``."""
    names: dict[str, str] = {}
    extra: list[str] = []
    for name in specs:
        if name in wanted:
            names[name] = name
        elif prefix + name in wanted:
            names[name] = prefix + name
        elif not any(pattern.search(name) for pattern in unused):
            extra.append(name)
    missing = sorted(wanted.keys() - names.values())
    bad = [
        f"{name} is {list(specs[name].shape)}, not {list(wanted[own])}"
        for name, own in names.items()
        if specs[name].shape != wanted[own]
    ]
    problems = [
        f"{title} {_few(found)}"
        for title, found in (("missing:", missing), ("unknown:", extra), ("wrong shape:", bad))
        if found
    ]
    if problems:
        raise CandidateError("engine", f"the tensors do not fit config.json: {'; '.join(problems)}")
    return names


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
    return CandidateError(kind, f"{type(error).__name__}: {text}")


def side_files(model: Model) -> dict[str, bytes]:
    """Return the content of the model's tokenizer and other side files by relative name."""
    from evolve.weights import files

    found = files.side_files(model.files)
    return {path.relative_to(model.files).as_posix(): path.read_bytes() for path in found}


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


def _few(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

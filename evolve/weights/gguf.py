"""A GGUF file as a parent: dequantised once by transformers, into the user's cache, as a model folder."""

from __future__ import annotations

import fcntl
import json
import logging
import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import MissingDependency, ModelError, some
from evolve.weights.content import file_digest
from evolve.weights.files import CONFIG, cache_folder, read_json
from evolve.weights.partial import move_in, partial_folder, sync_tree, write_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

# Part of the folder's name: another number, and everything is converted anew.
_FORMAT = 1
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
# Frequencies of llama3's rope scaling, which transformers' conversion passes over.
_ROPE = re.compile(r"rope_(freqs|factors_\w+)\.weight")
_MEND = "Name the original model instead of the GGUF file"


def is_gguf(source: str) -> bool:
    """Whether a source names a GGUF file."""
    return source.lower().endswith(".gguf")


def converted(file: Path) -> Path:
    """Return a model folder with the weights of a GGUF file, in float32.

    Quantised weights are dequantised, which is exact in float32 but for the last bits: the model computes
    what the file says, not what the model before quantisation said. The folder is in the user's cache, named
    by the file's content; a conversion that was killed leaves nothing that is used. Converting loads the
    whole model into memory.

    Raises:
        ModelError: The file is damaged, split, or of an architecture that transformers does not convert.
        MissingDependency: The package ``gguf`` is not installed.
    """
    if split := _SPLIT.search(file.name):
        raise ModelError(
            f"{file} is one of {int(split[2])} parts: merge them first "
            f"(llama-gguf-split --merge FIRST_PART WHOLE.gguf) and name the whole"
        )
    try:
        out = cache_folder("gguf") / f"{file_digest(file)[:32]}-{_FORMAT}"
        out.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"{file}: no cache folder to convert it into ({error}): set XDG_CACHE_HOME"
        ) from error
    with _turn(out):
        if not (out / CONFIG).is_file():
            _convert(file, out)
    return out


@contextmanager
def _turn(out: Path) -> Iterator[None]:
    """Let one process at a time convert a file; the others find it done."""
    with (out.parent / f"{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _convert(file: Path, out: Path) -> None:
    stored = _read(file)
    need = 4 * sum(stored.tensors.values())
    free = shutil.disk_usage(out.parent).free
    if free < need:
        raise ModelError(
            f"{file} takes {need / 1e9:.1f} GB when it is dequantised, {out.parent} has {free / 1e9:.1f} GB "
            "free: set XDG_CACHE_HOME to a folder on another disk"
        )
    logger.warning("dequantising %s to float32, %.1f GB in %s; this is done once", file, need / 1e9, out)
    model, tokenizer = _load(file)
    _require_all(file, model, stored)
    try:
        with partial_folder(out) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            _finish_config(folder)
            sync_tree(folder)
            move_in(folder, out)
    except OSError as error:
        raise ModelError(f"{file} cannot be converted into {out}: {error.strerror or error}") from error


class _Stored(NamedTuple):
    """What a file says of itself: its architecture, and tensor to its number of elements."""

    architecture: str
    tensors: dict[str, int]


def _read(file: Path) -> _Stored:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingDependency("a GGUF parent", "gguf>=0.10") from error
    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
        return _Stored(architecture, {tensor.name: int(tensor.n_elements) for tensor in reader.tensors})
    # The reader raises whatever its parsing stumbles over.
    except Exception as error:
        raise ModelError(
            f"{file} is no GGUF file, or is damaged ({error}). Copy or download it again"
        ) from error


def _load(file: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model, info = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
    # transformers raises many things at files that it does not convert.
    except Exception as error:
        raise ModelError(
            f"{file}: transformers cannot convert it ({type(error).__name__}: {error}). {_MEND}"
        ) from error
    for key in ("missing_keys", "mismatched_keys"):
        if found := sorted(map(str, info.get(key) or ())):
            raise ModelError(
                f"{file}: transformers' conversion leaves {some(found)} without a value. {_MEND}"
            )
    # The marks of a quantized model, which no longer holds: save_pretrained would refuse or repeat them.
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            setattr(model, mark, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    return model, tokenizer


def _require_all(file: Path, model: Any, stored: _Stored) -> None:
    """Raise if the file has a tensor that the conversion passes over."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    kind = TENSOR_PROCESSORS.get(stored.architecture, TensorProcessor)
    # Fused experts are known without the suffix.
    known = get_gguf_hf_weights_map(model, kind(config=model.config.to_dict()))
    left = sorted(
        {name for name in stored.tensors if not {name, name.removesuffix(".weight")} & known.keys()}
    )
    ropes = [name for name in left if _ROPE.fullmatch(name)]
    if ropes:
        raise ModelError(
            f"{file} holds {ropes[0]}, scaled rotary frequencies that transformers' conversion passes over: "
            f"the model would compute something else. {_MEND}"
        )
    if left:
        raise ModelError(f"{file} holds {some(left)}, which transformers' conversion passes over. {_MEND}")


def _finish_config(folder: Path) -> None:
    config = read_json(folder / CONFIG)
    for key in ("_name_or_path", "_model_name_or_path", "transformers_version", "quantization_config"):
        config.pop(key, None)
    write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")

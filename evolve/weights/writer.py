"""Writes a model as a folder that transformers loads: streamed, and complete or absent."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError, UserError
from evolve.weights.files import CONFIG, INDEX, WEIGHTS, contents, side_files, unknown_entries
from evolve.weights.header import itemsize, make_header, nbytes
from evolve.weights.partial import move_in, partial_folder, sync_tree, write_text
from evolve.weights.prefetch import prefetched

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.weights.model import Model, TensorSpec

# Room for headers, the index and the side files' rounding to blocks.
_SLACK = 16 << 20
# After so many bytes memory is given back.
_SETTLE = 64 << 20
# Linux writes at most 2 GiB at once.
_CHUNK = 1 << 30
_THREADS = min(2, os.cpu_count() or 1)
_WRITTEN = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors")


SHARD_BYTES = 5_000_000_000
"""Largest file of weights, unless told otherwise."""


@dataclass(frozen=True)
class Target:
    """Where a model is written, and how; the fields are arguments of :func:`write_model`."""

    out: Path
    shard_bytes: int = SHARD_BYTES
    replace: bool = False


def write_model(
    model: Model,
    out: Path | str,
    *,
    extra: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
) -> None:
    """Write ``model`` into the new folder ``out``, with few tensors in memory at a time.

    These are the one that is written, and those that follow it, one for each of at most two threads.

    Everything goes into a hidden folder beside ``out``, which is renamed at the end. When writing fails
    nothing stays; when the process is killed a hidden ``.NAME.*.partial`` stays, and the next write into the
    same parent folder removes it.

    Args:
        model: The model. Side files (tokenizer, chat template, ...) are copied from ``model.files``.
        out: Must not exist, or be an empty folder.
        extra: Name to content of further text files, such as a model card.
        shard_bytes: Largest safetensors file, its header aside; a larger tensor gets a file of its own.
        replace: Whether ``out`` may be a model's folder, whose place the new one takes when it is finished.

    Raises:
        ValueError: A name in ``extra`` cannot be used.
        UserError: The target is taken, or the disk is full or refuses.
        CandidateError: The model's tensors are not what its specs say, or cannot be computed.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100  resolve() would follow a link that is to be replaced
    extra = dict(extra or {})
    for name in extra:
        if Path(name).name != name or name == CONFIG or name.endswith((".safetensors", INDEX)):
            raise ValueError(f"extra file {name!r} must be a plain name, and neither weights nor config")
    try:
        require_free(out, replace=replace)
        out.parent.mkdir(parents=True, exist_ok=True)
        _require_space(model, out.parent)
        with partial_folder(out) as folder:
            # A model that a killed writer had put away is back now.
            require_free(out, replace=replace)
            _write_weights(model, folder, shard_bytes)
            _write_side_files(model, folder, extra)
            # Last, so that a folder without it is not finished.
            write_text(folder / CONFIG, json.dumps(_config(model), indent=2, sort_keys=True) + "\n")
            sync_tree(folder)
            # Writing takes long: what came into the old folder meanwhile must not go with it.
            move_in(folder, out, replace=require_free(out, replace=replace))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}{_mend(error)}") from error


def require_free(out: Path, *, replace: bool = False) -> bool:
    """Check that ``out`` may be written, and return whether there is a model to replace.

    Raises:
        UserError: It is taken by something else than a model's folder, or by one that must stay.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another folder, or delete it first")
    if not out.is_dir() or not any(out.iterdir()):
        return False
    if not replace:
        raise UserError(f"{out} is not empty: choose another folder, or delete it first")
    if out.is_symlink() or not (out / CONFIG).is_file() or not any(out.glob("*.safetensors")):
        raise UserError(
            f"{out} is no model's folder, so it is not replaced: choose another, or delete it first"
        )
    if others := _others(out):
        raise UserError(
            f"{out} holds more than a model ({', '.join(others[:3])}), so it is not replaced: choose another "
            "folder, or move these away first"
        )
    return True


def _others(out: Path) -> list[str]:
    """Return what a model's folder holds that is never written here, sorted."""
    known = set(side_files(out))
    inside = [path for folder in {path.parent for path in known} - {out} for path in folder.iterdir()]
    others = [path for path in inside if path not in known]
    others += [path for path in out.glob("*.safetensors") if not _WRITTEN.fullmatch(path.name)]
    return sorted({*unknown_entries(out), *(path.relative_to(out).as_posix() for path in others)})


def _require_space(model: Model, parent: Path) -> None:
    need = sum(nbytes(spec) for spec in model.specs.values())
    for content in contents(model.files).values():
        need += len(content) if isinstance(content, bytes) else content.stat().st_size
    need += _SLACK
    free = shutil.disk_usage(parent).free
    if free < need:
        raise UserError(
            f"not enough space in {parent}: needed {need / 1e9:.2f} GB, free {free / 1e9:.2f} GB. "
            "Delete something, or choose a folder on another disk"
        )


def _write_weights(model: Model, folder: Path, shard_bytes: int) -> None:
    # Wide types first keeps every tensor aligned, also behind one with an odd number of bytes.
    shards = [
        dict(sorted(shard.items(), key=lambda item: -itemsize(item[1].dtype)))
        for shard in _split(model.specs, shard_bytes)
    ]
    in_order = {name: spec for shard in shards for name, spec in shard.items()}
    model = prefetched(replace(model, specs=in_order), _THREADS)
    if len(shards) == 1:
        _write_shard(model, folder / WEIGHTS, shards[0])
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(model, folder / name, shard)
        places.update(dict.fromkeys(shard, name))
    total = sum(nbytes(spec) for spec in model.specs.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _split(specs: Mapping[str, TensorSpec], shard_bytes: int) -> list[dict[str, TensorSpec]]:
    shards: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + nbytes(spec) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += nbytes(spec)
    return shards


def _write_shard(model: Model, path: Path, specs: Mapping[str, TensorSpec]) -> None:
    with path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(make_header(specs)))
        pending = 0
        for name, spec in specs.items():
            _write_all(file.fileno(), _bytes_of(name, model.tensor(name), spec))
            pending += nbytes(spec)
            if pending >= _SETTLE:
                pending = 0
                _settle(file.fileno())
        os.fsync(file.fileno())


def _settle(descriptor: int) -> None:
    """Keep memory from growing with the file: bring it to the disk, give freed blocks back to the system.

    Tensors of many sizes leave holes in glibc's heaps that it keeps: in a merge of 1.5 GB, more than 1 GB.
    """
    os.fdatasync(descriptor)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in other C libraries
    if trim is not None:
        trim(0)


def _bytes_of(name: str, tensor: Tensor, spec: TensorSpec) -> memoryview:
    import torch

    if tuple(tensor.shape) != spec.shape or tensor.dtype != getattr(torch, spec.dtype):
        raise CandidateError(
            "build",
            f"tensor {name} is {tensor.dtype} {tuple(tensor.shape)}, expected {spec.dtype} {spec.shape}",
        )
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data[:_CHUNK]) :]


def _write_side_files(model: Model, folder: Path, extra: Mapping[str, str]) -> None:
    for name, content in contents(model.files).items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            shutil.copyfile(content, target)
    for name, text in extra.items():
        write_text(folder / name, text)


def _config(model: Model) -> dict[str, Any]:
    """Return config.json with the dtype of the weights, and without the path the model was loaded from."""
    config = {key: value for key, value in model.config.items() if key != "_name_or_path"}
    counts: dict[str, int] = {}
    for spec in model.specs.values():
        if "float" in spec.dtype:
            counts[spec.dtype] = counts.get(spec.dtype, 0) + spec.numel
    if counts:
        dtype = max(counts, key=lambda name: counts[name])
        # transformers 5 writes dtype; older readers know torch_dtype only.
        config["dtype"] = dtype
        if "torch_dtype" in config:
            config["torch_dtype"] = dtype
    return config


def _mend(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return ". Delete something, or choose a folder on another disk"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return ". Choose a folder that you may write to"
    if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
        return ". Something else was written there meanwhile: choose another folder"
    return ""

"""The safetensors header: read without the weights, checked against the file's size."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError
from evolve.weights.model import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# The format's own bound; a length beyond it is a damaged file, not a large model.
_LONGEST_HEADER = 100_000_000

_TYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_CODES = {name: code for code, (name, _) in _TYPES.items()}
_SIZES = dict(_TYPES.values())


@dataclass(frozen=True)
class Header:
    """What one safetensors file says it holds.

    Attributes:
        path: The file.
        specs: Tensor name to spec, in the order of the bytes.
        size: Size of the file in bytes.
        mtime_ns: Its modification time.
    """

    path: Path
    specs: Mapping[str, TensorSpec]
    size: int
    mtime_ns: int


def nbytes(spec: TensorSpec) -> int:
    """Return the bytes that a tensor takes."""
    return spec.numel * itemsize(spec.dtype)


def itemsize(dtype: str) -> int:
    """Return the bytes of one element of ``dtype``."""
    return _SIZES[dtype]


def read_header(path: Path) -> Header:
    """Read and check the header of ``path``.

    Raises:
        ModelError: The file is missing, truncated, damaged or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise ModelError(
                    f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"
                )
            if len(start) < 8 or length > min(stat.st_size - 8, _LONGEST_HEADER):
                raise ModelError(_damaged(path, f"its {stat.st_size:,} bytes end inside the header"))
            raw = file.read(length)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        ordered = sorted(entries.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
        specs = {name: _spec(entry) for name, entry in ordered}
        ends = [entry["data_offsets"] for _, entry in ordered]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(_damaged(path, f"its header is not what safetensors writes ({error!r})")) from error
    position = 0
    for (name, spec), (begin, end) in zip(specs.items(), ends, strict=True):
        if begin != position or end - begin != nbytes(spec):
            raise ModelError(_damaged(path, f"the bytes of tensor {name!r} do not fit its shape"))
        position = end
    expected = 8 + length + position
    if expected != stat.st_size:
        raise ModelError(
            _damaged(path, f"its header promises {expected:,} bytes, the file has {stat.st_size:,}")
        )
    return Header(path, specs, stat.st_size, stat.st_mtime_ns)


def make_header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the length and the header of a file that holds ``specs`` in their order, and ``metadata``."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position = 0
    for name, spec in specs.items():
        end = position + nbytes(spec)
        shape = list(spec.shape)
        entries[name] = {"dtype": _CODES[spec.dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    # Padded with spaces to 8 bytes, as the format asks for, so that the data is aligned.
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(entry["shape"])
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"shape {shape}")
    code = entry["dtype"]
    if code not in _TYPES:
        raise ValueError(f"unknown dtype {code}")
    return TensorSpec(shape, _TYPES[code][0])


def _damaged(path: Path, why: str) -> str:
    return f"{path} is truncated or damaged: {why}. Copy or download it again"

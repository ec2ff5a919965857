"""What vLLM needs of the process that it runs in, and what its start leaves behind there, taken back."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from evolve.score.engines.vllm_classes import give_classes_back
from evolve.stages.vllm_environment import QUIET

if TYPE_CHECKING:
    from collections.abc import Iterator


def prepare_environment(threads: int) -> None:
    """Set what vLLM reads from the environment. A name that the user has set keeps its value."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # A weight iterator cannot cross into another process.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "VLLM_LOGGING_LEVEL" not in os.environ:
        # Each swap would warn of layers without weights of their own, such as a tied head.
        logging.getLogger("vllm").setLevel(logging.ERROR)


@contextlib.contextmanager
def contained(threads: int) -> Iterator[None]:
    """Set the number of threads, and take back what a start of vLLM leaves behind in the process.

    Its CPU worker replaces ``torch.set_num_threads``, and preloads libraries into all later children. Of some
    architectures it changes transformers' classes.
    """
    import torch

    setter, preload = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    setter(threads)
    try:
        with _searchable():
            yield
    finally:
        give_classes_back()
        torch.set_num_threads = setter
        os.environ.pop("LD_PRELOAD", None)
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload


@contextlib.contextmanager
def _searchable() -> Iterator[None]:
    """Let vLLM search all modules for its kernels, also where a merge has loaded llvmlite.

    Its start looks at the ``__dict__`` of everything. llvmlite's library answers to any name, this one too,
    with a function that is no mapping, and the start would fail.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    kind: Any = type(getattr(ffi, "lib", None))
    original = getattr(kind, "__getattr__", None)
    if original is None:
        yield
        return

    def without_dict(library: Any, name: str) -> Any:
        if name == "__dict__":
            raise AttributeError(name)
        return original(library, name)

    kind.__getattr__ = without_dict
    try:
        yield
    finally:
        kind.__getattr__ = original


def release() -> None:
    """Take down vLLM's process group, which the next start in this process would trip over."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()

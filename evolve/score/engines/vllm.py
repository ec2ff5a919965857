"""The vLLM engine: one start for a whole search, a candidate's weights are streamed into it.

The engine lives in this process, so that a generator can feed it, and starts with dummy weights: nothing
but config and tokenizer is written to disk. Architectures for which tests show that a swap equals a fresh
start are in ``SWAPPABLE``. Any other is written to a temporary folder and gets a new engine for each model.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import CandidateError, MissingDependency, UserError
from evolve.score.engines.choose import choose_dtype, vllm_device, vllm_version
from evolve.score.engines.fit import (
    Stream,
    as_candidate_error,
    parameter_names,
    side_files,
    side_key,
    write_side_files,
)
from evolve.score.engines.tokens import Memos
from evolve.score.engines.vllm_process import contained, prepare_environment, release
from evolve.score.engines.vllm_rows import only_asked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evolve.config.schema import ScoreConfig
    from evolve.weights.model import Model

logger = logging.getLogger(__name__)

SWAPPABLE = frozenset({"llama", "qwen2", "qwen3", "mistral", "gpt2"})
"""``model_type`` of the architectures whose weights can be replaced in a running engine."""

_GIB = 1 << 30
_BLOCK = 32
_CACHED_TOKENS = 1 << 15

# With any of these the weights are not plainly in this process, or not as they are in files.
_SEVERAL_WORKERS = frozenset({"tensor_parallel_size", "pipeline_parallel_size"})
_NO_SWAP_ARGS = _SEVERAL_WORKERS | {"quantization", "load_format"}


class _Identity(NamedTuple):
    """As long as it stays the same, a running engine can take the model."""

    architecture: str
    side: str
    dtype: str


def open_engine(config: ScoreConfig, model: Model, threads: int) -> VllmEngine:
    """Start an engine with ``model`` loaded.

    Args:
        config: How to score; ``engine_args`` go to vLLM's ``LLM``.
        model: The first model.
        threads: CPU threads of this engine.

    Raises:
        MissingDependency: vLLM is not installed.
        UserError: ``engine_args`` ask for data parallelism.
        CandidateError: The model does not fit, or vLLM does not start with it.
    """
    if vllm_version() is None:
        raise MissingDependency("score.backend: vllm", "vllm")
    if int(config.engine_args.get("data_parallel_size", 1)) > 1:
        raise UserError(
            "score.engine_args.data_parallel_size: lm-eval would shut down Ray; use engine.evaluators instead"
        )
    engine = VllmEngine(config, threads)
    try:
        engine.load(model)
    except BaseException:
        engine.close()
        raise
    return engine


def memory_share(config: ScoreConfig) -> float:
    """Return the share of a GPU's memory that vLLM takes for itself; it does not start where less is free."""
    from vllm.config import CacheConfig

    given = config.engine_args.get("gpu_memory_utilization")
    return float(CacheConfig().gpu_memory_utilization if given is None else given)


class VllmEngine:
    """A vLLM engine in this process. See :class:`evolve.score.engines.base.Engine`."""

    def __init__(self, config: ScoreConfig, threads: int) -> None:
        self._config = config
        self._threads = max(1, threads)
        self._device = vllm_device()
        self._running: Any = None
        self._identity: _Identity | None = None
        self._names: dict[str, str] | None = None
        self._loaded = False
        self._asleep = False
        self._home = tempfile.TemporaryDirectory(prefix="evolve-engine-", ignore_cleanup_errors=True)
        self.starts = 0
        self._memos = Memos()
        self._model: Model | None = None

    @property
    def lm(self) -> Any:
        """The LM for the model that is loaded now."""
        if self._running is None or not self._loaded:
            raise CandidateError("engine", "the engine holds no model: the last load failed")
        return self._running

    @property
    def model(self) -> Model:
        """The model that is loaded now."""
        if self._model is None or not self._loaded:
            raise CandidateError("engine", "the engine holds no model: the last load failed")
        return self._model

    def load(self, model: Model) -> None:
        """Replace the weights, or start again where the engine cannot take them."""
        self.wake()
        files = side_files(model)
        identity = _Identity(
            model.architecture, side_key(files), choose_dtype(self._config, model, self._device)
        )
        fresh = self._running is None or identity != self._identity or self._stalled()
        names = self._names
        if fresh:
            names = parameter_names(model) if self._swappable(model) else None
        self._loaded = False
        if names is None:
            self._start_from_weights(model, identity.dtype)
        else:
            if fresh:
                self._start_with_dummies(model, files, identity)
                self._names = names
            self._swap(model, names)
        self._loaded, self._model = True, model

    def sleep(self, *, short: bool = False) -> None:
        """Put a GPU's engine to sleep where it was started with ``enable_sleep_mode``, else stop it.

        On a CPU the engine keeps its memory, unless that is short. A stopped engine starts with the next
        ``load``.
        """
        self._loaded, self._model = False, None
        if self._running is None or (self._device == "cpu" and not short):
            return
        # Without an identity it starts again for the next model anyway.
        can = self._config.engine_args.get("enable_sleep_mode") and self._identity is not None
        if short or self._device == "cpu" or not can:
            self._stop()
        elif not self._asleep:
            try:
                # Level 2 keeps no weights: the next load brings all of them.
                self._running.model.sleep(level=2)
                self._asleep = True
            except Exception:
                logger.warning("vLLM did not fall asleep, and is stopped", exc_info=True)
                self._stop()

    def wake(self) -> None:
        """Wake the engine, if it sleeps; where it does not wake, the next ``load`` starts it again."""
        if not self._asleep:
            return
        self._asleep = False
        try:
            self._running.model.wake_up()
        except Exception:
            logger.warning("vLLM did not wake up, and is stopped", exc_info=True)
            self._stop()

    def close(self) -> None:
        """Stop the engine and give its memory back."""
        self._stop()
        self._home.cleanup()

    def _swap(self, model: Model, names: Iterable[str]) -> None:
        """Stream the weights in. The loader gets every tensor, whatever happens, or it cannot go on."""
        import torch

        assert self._identity is not None
        stream = Stream(model, names, getattr(torch, self._identity.dtype))
        llm = self._running.model
        try:
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(stream)})
            llm.collective_rpc(_settle)
            clean = llm.reset_prefix_cache()
        except BaseException as error:
            self._stop()
            if isinstance(error, Exception):
                raise as_candidate_error(error, "engine") from error
            raise
        if not clean:
            self._stop()
            raise CandidateError("engine", "the prefix cache could not be emptied", retryable=True)
        stream.check()

    def _swappable(self, model: Model) -> bool:
        return (
            model.config.get("model_type") in SWAPPABLE
            and "quantization_config" not in model.config
            and self._config.engine_args.keys().isdisjoint(_NO_SWAP_ARGS)
        )

    def _stalled(self) -> bool:
        """Whether requests of an interrupted call are left in the engine."""
        return bool(self._running.model.llm_engine.has_unfinished_requests())

    def _start_with_dummies(self, model: Model, files: Mapping[str, bytes], identity: _Identity) -> None:
        folder = self._new_folder()
        try:
            folder.mkdir()
            write_side_files(files, folder)
            (folder / "config.json").write_text(json.dumps(dict(model.config)), encoding="utf-8")
        except OSError as error:
            raise as_candidate_error(error, "engine") from error
        self._start(folder, model, identity.dtype, {"load_format": "dummy"})
        self._identity = identity

    def _start_from_weights(self, model: Model, dtype: str) -> None:
        from evolve.weights.writer import write_model

        folder = self._new_folder()
        try:
            write_model(model, folder)
        except Exception as error:
            raise as_candidate_error(error, "build") from error
        self._start(folder, model, dtype, {})

    def _start(self, folder: Path, model: Model, dtype: str, more: Mapping[str, Any]) -> None:
        self._stop()
        for old in folder.parent.iterdir():
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        prepare_environment(self._threads)
        try:
            with contained(self._threads):
                from evolve.score.engines.vllm_lm import lm_class

                arguments = self._arguments(model, dtype) | dict(more)
                lm = lm_class()(pretrained=str(folder), **arguments)
        except BaseException as error:
            release()
            if isinstance(error, Exception):
                raise as_candidate_error(error, "engine") from error
            raise
        lm.call_seed = self._config.seed
        lm.memo = self._memos.of(side_key(side_files(model)))
        one = self._config.engine_args.keys().isdisjoint(_SEVERAL_WORKERS)
        if not one or not all(lm.model.collective_rpc(only_asked)):
            _say_whole_prompts()
        self._running = lm
        logger.info("vLLM started on %s in %s", self._device, dtype)

    def _arguments(self, model: Model, dtype: str) -> dict[str, Any]:
        """Return the arguments of lm-eval's VLLM, most of which it hands on to vLLM's LLM."""
        arguments: dict[str, Any] = {
            "dtype": dtype,
            "seed": self._config.seed,
            "batch_size": "auto",
            "tensor_parallel_size": 1,
            "max_model_len": self._config.max_length,
            "trust_remote_code": False,
        }
        if self._device == "cpu":
            arguments |= {"enforce_eager": True, "block_size": _BLOCK}
            if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
                length = self._config.engine_args.get("max_model_len", self._config.max_length)
                arguments["kv_cache_memory_bytes"] = _cache_bytes(model, dtype, length)
        return arguments | self._config.engine_args

    def _stop(self) -> None:
        running, self._running = self._running, None
        self._loaded = self._asleep = False
        self._identity = None
        if running is None:
            return
        running.model.llm_engine.engine_core.shutdown()
        running.model = None
        del running
        release()

    def _new_folder(self) -> Path:
        self.starts += 1
        return Path(self._home.name) / str(self.starts)


@functools.cache
def _say_whole_prompts() -> None:
    """Warn, once in a process, that scoring takes longer than it could."""
    logger.warning(
        "vLLM computes log-probabilities of whole prompts here, not of continuations alone: that takes its "
        "first model runner in one process (VLLM_USE_V2_MODEL_RUNNER=0) and logprobs_mode raw_logprobs"
    )


def _settle(worker: Any) -> None:
    """Clear up in the worker what a reload leaves behind.

    On a CPU a tied head keeps a packed copy of the old embeddings: it is packed again. The KV cache is
    zeroed: attention multiplies the unused rest of a block by 0, so a NaN that an earlier candidate left
    there would become a NaN of this one.
    """
    head = getattr(worker.get_model(), "lm_head", None)
    method = getattr(head, "quant_method", None)
    if method is not None:
        method.process_weights_after_loading(head)
    for cache in worker.model_runner.kv_caches:
        cache.zero_()


def _cache_bytes(model: Model, dtype: str, max_length: int | None) -> int:
    """Return the size of the KV cache: for many sequences up to 1 GiB, for one longest sequence always."""
    import torch

    from evolve.score.engines.fit import hf_config

    config = hf_config(model).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    length = max_length or getattr(config, "max_position_embeddings", None) or 2048
    per_token = 2 * config.num_hidden_layers * heads * width * getattr(torch, dtype).itemsize
    return int(max(per_token * (length + 2 * _BLOCK), min(per_token * _CACHED_TOKENS, _GIB)))

"""The transformers engine: one model in this process, whose parameters are overwritten in place."""

from __future__ import annotations

import gc
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import CandidateError
from evolve.score.engines.choose import choose_dtype
from evolve.score.engines.fit import (
    as_candidate_error,
    hf_config,
    parameter_names,
    side_files,
    side_key,
    write_side_files,
)
from evolve.score.engines.hf_lm import lm_class
from evolve.score.engines.tokens import Memos

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.schema import ScoreConfig
    from evolve.weights.model import Model

logger = logging.getLogger(__name__)

_IN_PLACE_ARGS = frozenset({"attn_implementation"})


class _Identity(NamedTuple):
    """As long as it stays the same, the parameters can be overwritten in place."""

    architecture: str
    side: str
    dtype: str
    same: tuple[tuple[str, str], ...]


def open_engine(config: ScoreConfig, model: Model, threads: int) -> HfEngine:
    """Build the model and load its weights.

    Args:
        config: How to score; ``engine_args`` go to transformers' ``from_pretrained``.
        model: The first model.
        threads: CPU threads of this engine.

    Raises:
        CandidateError: The model does not fit, or transformers cannot build it.
    """
    engine = HfEngine(config, threads)
    try:
        engine.load(model)
    except BaseException:
        engine.close()
        raise
    return engine


class HfEngine:
    """A transformers model in this process. See :class:`evolve.score.engines.base.Engine`."""

    def __init__(self, config: ScoreConfig, threads: int) -> None:
        import torch

        torch.set_num_threads(max(1, threads))
        self._config = config
        self._device = _device()
        self._lm: Any = None
        self._identity: _Identity | None = None
        self._names: dict[str, str] = {}
        self._loaded = False
        self._asleep = False
        self._memos = Memos()
        self._model: Model | None = None
        self.starts = 0

    @property
    def lm(self) -> Any:
        """The LM for the model that is loaded now."""
        if self._lm is None or not self._loaded:
            raise CandidateError("engine", "the engine holds no model: the last load failed")
        return self._lm

    @property
    def model(self) -> Model:
        """The model that is loaded now."""
        if self._model is None or not self._loaded:
            raise CandidateError("engine", "the engine holds no model: the last load failed")
        return self._model

    def load(self, model: Model) -> None:
        """Overwrite the parameters, or build the model again where the architecture changed."""
        self.wake()
        files = side_files(model)
        identity = _Identity(
            model.architecture,
            side_key(files),
            choose_dtype(self._config, model, self._device),
            tuple(sorted(model.same.items())),
        )
        fresh = self._lm is None or identity != self._identity
        names = parameter_names(model) if fresh else self._names
        self._loaded = False
        if names is None or not self._config.engine_args.keys() <= _IN_PLACE_ARGS:
            self._build_from_files(model, identity.dtype)
        else:
            if fresh:
                self._build(model, files, identity, names)
                # Equal tensors share one storage, which is written once.
                self._names = {name: own for name, own in names.items() if name not in model.same}
            self._copy(model)
        self._loaded, self._model = True, model

    def sleep(self, *, short: bool = False) -> None:
        """Move the weights to the CPU, to be overwritten later; drop the model where memory is short."""
        self._loaded, self._model = False, None
        if self._lm is None or self._asleep:
            if short:
                self._drop()
            return
        if short or hasattr(self._lm.model, "hf_device_map"):
            self._drop()
        elif self._device != "cpu":
            self._lm.model.to("cpu")
            self._asleep = True
            self._empty_cache()

    def wake(self) -> None:
        """Move the weights back to where the engine computes."""
        if self._asleep:
            self._asleep = False
            self._lm.model.to(self._device)

    def close(self) -> None:
        """Drop the model."""
        self._drop()

    def _copy(self, model: Model) -> None:
        state = self._lm.model.state_dict()
        try:
            model.fill({name: state[own] for name, own in self._names.items()})
        except Exception as error:
            raise as_candidate_error(error, "build") from error

    def _build(
        self, model: Model, files: Mapping[str, bytes], identity: _Identity, names: Mapping[str, str]
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.initialization import no_init_weights

        self._drop()
        try:
            # Every parameter is overwritten, so initial values would be wasted work.
            with no_init_weights():
                network = AutoModelForCausalLM.from_config(
                    hf_config(model), dtype=getattr(torch, identity.dtype), **self._config.engine_args
                )
            network.tie_weights()
            _share(
                network,
                {
                    names[name]: names[first]
                    for name, first in model.same.items()
                    if {name, first} <= names.keys()
                },
            )
            self._wrap(network, files)
        except Exception as error:
            raise as_candidate_error(error, "engine") from error
        self._identity = identity

    def _build_from_files(self, model: Model, dtype: str) -> None:
        """Let transformers load a folder: for what only ``from_pretrained`` understands."""
        import torch
        from transformers import AutoModelForCausalLM

        from evolve.weights.writer import write_model

        self._drop()
        with tempfile.TemporaryDirectory(prefix="evolve-engine-", ignore_cleanup_errors=True) as home:
            folder = Path(home) / "model"
            try:
                write_model(model, folder)
            except Exception as error:
                raise as_candidate_error(error, "build") from error
            arguments = {"dtype": getattr(torch, dtype)} | self._config.engine_args
            try:
                network, info = AutoModelForCausalLM.from_pretrained(
                    folder, output_loading_info=True, **arguments
                )
                if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
                    raise CandidateError("engine", f"tensors do not fit config.json: {', '.join(wrong[:3])}")
                self._wrap(network, side_files(model))
            except Exception as error:
                raise as_candidate_error(error, "engine") from error

    def _wrap(self, network: Any, files: Mapping[str, bytes]) -> None:
        from transformers import AutoTokenizer, GenerationConfig

        with tempfile.TemporaryDirectory(prefix="evolve-engine-") as home:
            write_side_files(files, Path(home))
            network.config.to_json_file(Path(home) / "config.json")
            tokenizer = AutoTokenizer.from_pretrained(home)
            if "generation_config.json" in files:
                network.generation_config = GenerationConfig.from_pretrained(home)
        if not hasattr(network, "hf_device_map"):
            network.to(self._device)
        network.eval()
        self._lm = lm_class()(
            pretrained=network,
            tokenizer=tokenizer,
            batch_size=self._config.batch_size,
            max_length=self._config.max_length,
            # The softmax of a bfloat16 model in bfloat16 would lose two of three digits.
            softmax_dtype="float32",
        )
        self.starts += 1
        self._lm.call_seed = self._config.seed
        self._lm.memo = self._memos.of(side_key(files))
        logger.info("transformers model built on %s", self._device)

    def _drop(self) -> None:
        self._lm = None
        self._identity = None
        self._loaded = self._asleep = False
        gc.collect()
        self._empty_cache()

    def _empty_cache(self) -> None:
        import torch

        if self._device == "cuda":
            torch.cuda.empty_cache()
        elif self._device == "mps":
            torch.mps.empty_cache()


def _share(network: Any, same: Mapping[str, str]) -> None:
    """Put one parameter (or buffer) in two places: name to the name of the one that takes its place."""
    for name, first in same.items():
        (path, _, own), (above, _, source) = name.rpartition("."), first.rpartition(".")
        module = network.get_submodule(path)
        table = module._parameters if own in module._parameters else module._buffers
        table[own] = getattr(network.get_submodule(above), source)


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

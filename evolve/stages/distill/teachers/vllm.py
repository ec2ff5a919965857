"""A teacher in a vLLM engine: its k best tokens at every place, with the memory and the speed of vLLM.

The engine runs in a process of its own, so that closing it gives all memory back. Its numbers are raw
log-probabilities at temperature 1: vLLM applies no temperature to those of a prompt.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from evolve.config.values import SearchInt  # noqa: TC001 - pydantic reads it at run time.
from evolve.errors import CandidateError, MissingDependency
from evolve.stages.distill.teachers.base import TeacherBlock
from evolve.stages.vllm_environment import QUIET

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from evolve.stages.distill.generation import Completion, Generation
    from evolve.stages.distill.signals import Signals
    from evolve.stages.distill.teachers.base import Batch, Opening
    from evolve.weights.model import Model

logger = logging.getLogger(__name__)

_BLOCK = 32
_CACHED_TOKENS = 1 << 15
_GIB = 1 << 30
_BESIDE = 2 * _GIB
"""What an engine on a GPU takes beside the weights: activations, graphs, some cache."""


class VllmTeacherBlock(TeacherBlock):
    """A model in a vLLM engine, which gives its k best tokens."""

    kind: Literal["vllm"]
    model: str = Field(min_length=1)
    """The teacher: a stage before, or any of ``models``."""
    top_k: SearchInt = 64
    """Tokens a place; what they leave is one bucket."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Go to vLLM's ``LLM``. On a GPU ``gpu_memory_utilization`` is half of what the student leaves free, more
    where the teacher's weights need it, unless it is given here."""


class VllmTeacher:
    """See the text of the module."""

    block: ClassVar[type[TeacherBlock]] = VllmTeacherBlock
    gives: ClassVar[frozenset[str]] = frozenset({"scores", "text"})

    def __init__(self, block: VllmTeacherBlock, opening: Opening) -> None:
        if opening.model is None:
            raise CandidateError("invalid_recipe", f"teacher.model: there is no model {block.model!r}")
        if opening.temperature != 1.0:
            raise CandidateError(
                "invalid_recipe",
                f"teacher.kind vllm: a loss is at temperature {opening.temperature:g}, and vLLM gives the "
                "log-probabilities of a prompt at temperature 1 alone: use temperature 1, or kind: hf",
            )
        if not isinstance(block.top_k, int):
            raise ValueError("top_k must be fixed")
        self._k = min(block.top_k, opening.student.size)
        self._vocabulary = opening.student.size
        self._device = opening.device
        self._home = tempfile.TemporaryDirectory(prefix="evolve-teacher-", ignore_cleanup_errors=True)
        self._llm: Any = None
        try:
            self._llm = self._start(block, opening)
        except BaseException:
            self.close()
            raise

    def signals(self, batch: Batch, *, hidden: bool = False, attentions: bool = False) -> Signals:
        """Return the k best tokens of every document."""
        import numpy as np
        import torch
        from vllm import SamplingParams, TokensPrompt

        from evolve.stages.distill.signals import Signals, TopK

        if hidden or attentions:
            raise CandidateError(
                "invalid_recipe",
                "vLLM gives no hidden states and no attention maps: use kind: hf, or leave out the losses "
                "between layers",
            )
        spans = list(batch.spans())
        read = batch.tokens.cpu()
        # The last place of a document is answered by the token that would follow.
        rules = SamplingParams(
            temperature=0,
            max_tokens=1,
            logprobs=self._k,
            prompt_logprobs=self._k,
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,
            skip_reading_prefix_cache=True,
        )
        prompts = [TokensPrompt(prompt_token_ids=read[row, begin:end].tolist()) for row, begin, end in spans]
        tokens = torch.zeros((*batch.shape, self._k), dtype=torch.int64)
        log_p = torch.full((*batch.shape, self._k), float("-inf"))
        for (row, begin, end), output in zip(spans, self._run(prompts, rules), strict=True):
            # Place t is the distribution of token t + 1; the server's entry t is that of token t.
            prompt = best_by_rank(output.prompt_logprobs, self._k)[1:]
            follows = best_by_rank(output.outputs[0].logprobs, self._k)
            for place, (ids, values) in enumerate([*prompt, *follows]):
                known = ids < self._vocabulary
                tokens[row, begin + place, : len(ids)] = torch.from_numpy(np.where(known, ids, 0))
                log_p[row, begin + place, : len(ids)] = torch.from_numpy(
                    np.where(known, values, -np.inf).astype(np.float32)
                )
            assert begin + len(prompt) + len(follows) == end
        return Signals(TopK(tokens.to(self._device), log_p.to(self._device)))

    def complete(
        self, prompts: Sequence[Sequence[int]], settings: Generation, *, seed: int
    ) -> list[Completion]:
        """Return what the teacher writes behind each prompt. Seeded by prompt; not the draws of kind: hf."""
        from vllm import SamplingParams, TokensPrompt

        from evolve.stages.distill.generation import Completion, prompt_seeds

        rules = [
            SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                max_tokens=settings.max_new_tokens,
                seed=number,
                detokenize=False,
            )
            for number in prompt_seeds(prompts, seed)
        ]
        asked = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        found = (output.outputs[0] for output in self._run(asked, rules))
        return [Completion(tuple(one.token_ids), one.finish_reason == "stop") for one in found]

    def close(self) -> None:
        """Stop the engine's process and remove what was written for it."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
        self._home.cleanup()

    def _run(self, prompts: Any, rules: Any) -> Any:
        if self._llm is None:
            raise CandidateError("engine", "the teacher's engine is closed")
        try:
            return self._llm.generate(prompts, sampling_params=rules, use_tqdm=False)
        except Exception as error:
            raise CandidateError("engine", f"the teacher's engine broke: {error}") from error

    def _start(self, block: VllmTeacherBlock, opening: Opening) -> Any:
        cpu = _on_cpu()
        assert opening.model is not None
        folder = _folder(opening.model, Path(self._home.name) / "model")
        arguments: dict[str, Any] = {
            "max_logprobs": max(self._k, 1),
            "max_model_len": _room(opening.model, opening.max_length),
            "trust_remote_code": False,
            "disable_log_stats": True,
        }
        if cpu:
            arguments |= {"dtype": "float32", "enforce_eager": True, "block_size": _BLOCK}
            if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
                arguments["kv_cache_memory_bytes"] = _cache_bytes(
                    opening.model, int(arguments["max_model_len"])
                )
        elif "gpu_memory_utilization" not in block.engine_args:
            arguments["gpu_memory_utilization"] = _share_here(opening.model)
        with _environment(opening.threads):
            from vllm import LLM

            try:
                return LLM(model=str(folder), **arguments | block.engine_args)
            except Exception as error:
                text = " ".join(str(error).split())[:500]
                raise CandidateError("engine", f"vLLM does not start with the teacher: {text}") from error


def best_by_rank(found: Any, k: int) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return ids and log-probabilities of the k best tokens at each position of vLLM's flat table.

    The server puts the token that stands there before them; it is dropped unless it is among the k itself.
    Its log-probability is not lost where it matters: it is then one of the others.
    """
    import numpy as np

    answers = []
    for begin, end in zip(found.start_indices, found.end_indices, strict=True):
        best: dict[int, float] = {}
        for place in range(begin, end):
            rank = found.ranks[place]
            if rank is not None and 1 <= rank <= k:
                best.setdefault(found.token_ids[place], found.logprobs[place])
        pairs = sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[:k]
        answers.append((np.array([p[0] for p in pairs], np.int64), np.array([p[1] for p in pairs])))
    return answers


def _on_cpu() -> bool:
    for name in ("vllm", "vllm-cpu"):
        try:
            return "cpu" in version(name) or name == "vllm-cpu"
        except PackageNotFoundError:
            continue
    raise MissingDependency("teacher.kind: vllm", "vllm")


def _folder(model: Model, home: Path) -> Path:
    """Return the folder of a model that is on disk as it is, or write it."""
    from evolve.weights.content import content_of
    from evolve.weights.writer import write_model

    own = model.files
    if model.content and isinstance(own, Path) and (own / "config.json").is_file():
        with contextlib.suppress(Exception):
            if content_of(own) == model.content:
                return own
    write_model(model, home)
    return home


def _room(model: Model, length: int) -> int:
    """Return the longest sequence: a document and the token behind it, as far as the model has places."""
    places = model.config.get("max_position_embeddings") or model.config.get("n_positions")
    return min(length + 1, int(places)) if places else length + 1


def _cache_bytes(model: Model, length: int) -> int:
    from evolve.weights.network import hf_config

    config = hf_config(model).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * width * 4
    return int(max(per_token * (length + 2 * _BLOCK), min(per_token * _CACHED_TOKENS, _GIB)))


def memory_share(free: int, whole: int, weights: int) -> float:
    """Return the share of a GPU's memory that an engine may take beside a student that is trained there.

    Half of what is free: the student's gradients, its optimizer's moments and its activations are still to
    come. More where the weights need it, as far as there is some.

    Args:
        free: Bytes that are free, the student's weights loaded.
        whole: Bytes of the GPU.
        weights: Bytes of the teacher's weights.
    """
    return round(min(max(free / 2, weights + _BESIDE), 0.9 * free) / whole, 4)


def _share_here(model: Model) -> float:
    import torch

    from evolve.weights.header import nbytes

    free, whole = torch.cuda.mem_get_info()
    weights = sum(nbytes(spec) for name, spec in model.specs.items() if name not in model.same)
    return memory_share(free, whole, weights)


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Set what vLLM reads from the environment while it starts, and take it back.

    An engine that scores in this process has asked for the opposite of a process of its own.
    """
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        # A fork of a process with running threads may hang.
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
        "OMP_NUM_THREADS": str(max(1, threads)),
    }
    for name, value in QUIET.items():
        if name not in os.environ:
            wanted[name] = value
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, old in before.items():
            os.environ.pop(name, None)
            if old is not None:
                os.environ[name] = old

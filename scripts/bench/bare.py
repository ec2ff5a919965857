"""What an engine cannot do without: the same prompts through the model, nothing before and nothing after."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def bare_for(backend: str, lm: Any) -> Any:
    """Return the bare model of an engine's LM."""
    return BareVllm(lm) if backend == "vllm" else BareHf(lm)


class BareVllm:
    """Every prompt that the LM asked of vLLM, asked once more in one call of ``generate``."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm
        self._asked: list[tuple[Any, Any]] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note the prompts of all calls inside."""
        llm = self._lm.model
        original = llm.generate

        def generate(prompts: Any, sampling_params: Any = None, **more: Any) -> Any:
            each = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
            self._asked += zip(prompts, each, strict=True)
            return original(prompts, sampling_params=sampling_params, **more)

        llm.generate = generate
        try:
            yield
        finally:
            del llm.generate

    def seconds(self) -> float:
        """The same prompts with the same sampling parameters."""
        return self._generate([parameters for _, parameters in self._asked])

    def unshared_seconds(self) -> float:
        """The same prompts without the prefix cache, with log-probabilities of all their tokens."""
        return self._generate([_changed(one, skip_reading_prefix_cache=True) for _, one in self._asked])

    def shares(self) -> dict[str, float]:
        """Share of the time in which log-probabilities of the prompts are computed."""
        if all(one.prompt_logprobs is None for _, one in self._asked):
            return {}
        without = self._generate([_changed(one, prompt_logprobs=None) for _, one in self._asked])
        whole = self.seconds()
        return {"share of prompt log-probabilities": max(0.0, 1 - without / whole)}

    def _generate(self, parameters: list[Any]) -> float:
        llm = self._lm.model
        llm.reset_prefix_cache()
        prompts = [prompt for prompt, _ in self._asked]
        began = time.perf_counter()
        llm.generate(prompts, sampling_params=parameters, use_tqdm=False)
        return time.perf_counter() - began


def _changed(parameters: Any, **changes: Any) -> Any:
    found = parameters.clone()
    for key, value in changes.items():
        setattr(found, key, value)
    return found


class BareHf:
    """The tokenised prompts in padded batches, or the same calls of transformers' ``generate``."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm
        self._prompts: list[list[int]] = []
        self._generated: list[tuple[Any, dict[str, Any]]] = []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note the prompts of all calls inside."""
        lm, network = self._lm, self._lm.model
        tokens, generate = lm._loglikelihood_tokens, network.generate

        def watched_tokens(requests: Any, **more: Any) -> Any:
            self._prompts += [list(context) + list(asked)[:-1] for _, context, asked in requests]
            return tokens(requests, **more)

        def watched_generate(**more: Any) -> Any:
            self._generated.append(more)
            return generate(**more)

        lm._loglikelihood_tokens, network.generate = watched_tokens, watched_generate
        try:
            yield
        finally:
            del lm._loglikelihood_tokens, network.generate

    def seconds(self) -> float:
        """The batches of the LM where it keeps them, else every prompt whole."""
        plans = getattr(self._lm, "plans", None)
        if not self._prompts:
            return self._replies()
        if not plans:
            return self.unshared_seconds()
        began = time.perf_counter()
        for plan in plans:
            for batch in plan.batches:
                self._lm.forward(batch)
        return time.perf_counter() - began

    def unshared_seconds(self) -> float:
        """One pass of padded batches over all prompts, all logits."""
        if not self._prompts:
            return self._replies()
        return self._pass(self._lm.model)

    def shares(self) -> dict[str, float]:
        """Share of the head in a pass over whole prompts: the logits of every position."""
        body = getattr(self._lm.model, "base_model", None)
        if not self._prompts or body is None:
            return {}
        return {
            "share of the logits of whole prompts": max(
                0.0, 1 - self._pass(body) / self._pass(self._lm.model)
            )
        }

    def _pass(self, network: Any) -> float:
        import torch

        prompts = sorted(self._prompts, key=len, reverse=True)
        size = int(self._lm.batch_size)
        began = time.perf_counter()
        with torch.no_grad():
            for first in range(0, len(prompts), size):
                rows = prompts[first : first + size]
                batch = torch.zeros(len(rows), len(rows[0]), dtype=torch.long)
                for number, row in enumerate(rows):
                    batch[number, : len(row)] = torch.tensor(row)
                network(batch.to(self._lm.device))
        return time.perf_counter() - began

    def _replies(self) -> float:
        import torch

        began = time.perf_counter()
        for arguments in self._generated:
            criteria = arguments.get("stopping_criteria") or ()
            for one in criteria:  # lm-eval's remember which rows are done
                if hasattr(one, "done_tracker"):
                    one.done_tracker = [False] * len(one.done_tracker)
            with torch.no_grad():
                self._lm.model.generate(**arguments)
        return time.perf_counter() - began

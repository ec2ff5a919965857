"""What an engine cannot do without: the same prompts through the model, nothing before and nothing after."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SAMPLE = 4
"""Shares are measured on one in so many prompts."""


def bare_for(backend: str, lm: Any) -> Any:
    """Return the bare model of an engine's LM."""
    return BareVllm(lm) if backend == "vllm" else BareHf(lm)


def _share(without: Callable[[], None], whole: Callable[[], None]) -> float:
    """Return the share of CPU time that the second of two pieces of work has beyond the first."""
    marks = [time.process_time()]
    for work in (without, whole):
        work()
        marks.append(time.process_time())
    return max(0.0, 1 - (marks[1] - marks[0]) / (marks[2] - marks[1]))


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

    def run(self) -> None:
        """The same prompts with the same sampling parameters."""
        self._generate(self._asked)

    def run_unshared(self) -> None:
        """The same prompts without the prefix cache, with log-probabilities of all their tokens."""
        changes = {"skip_reading_prefix_cache": True, "extra_args": None}
        self._generate([(prompt, _changed(one, **changes)) for prompt, one in self._asked])

    def shares(self) -> dict[str, float]:
        """Share of the time for log-probabilities of the prompts: as vLLM computes them, and here."""
        some = [(prompt, one) for prompt, one in self._asked if one.prompt_logprobs is not None][::_SAMPLE]
        if not some:
            return {}
        found = {}
        for figure, extra in (("all tokens", None), ("the continuation only", ...)):
            whole = [
                (p, _changed(one, skip_reading_prefix_cache=True, **({} if extra else {"extra_args": None})))
                for p, one in some
            ]
            without = [(p, _changed(one, prompt_logprobs=None)) for p, one in whole]
            found[f"share of prompt log-probabilities, {figure}"] = _share(
                lambda asked=without: self._generate(asked), lambda asked=whole: self._generate(asked)
            )
        return found

    def forget(self) -> None:
        """Empty the prefix cache: nobody may find the prompts of the one before."""
        self._lm.model.reset_prefix_cache()

    def _generate(self, asked: list[tuple[Any, Any]]) -> None:
        llm = self._lm.model
        self.forget()
        prompts, parameters = zip(*asked, strict=True)
        llm.generate(list(prompts), sampling_params=list(parameters), use_tqdm=False)


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

    def run(self) -> None:
        """The batches of the LM, each once through the model."""
        if not self._prompts:
            self._replies()
        for plan in self._lm.plans:
            for batch in plan.batches:
                self._lm.forward(batch)

    def run_unshared(self) -> None:
        """One pass of padded batches over all prompts, all logits."""
        if self._prompts:
            self._pass(self._lm.model, self._prompts)
        else:
            self._replies()

    def forget(self) -> None:
        """Do nothing: no call of the model leaves anything behind."""

    def shares(self) -> dict[str, float]:
        """Share of the logits of every position in a pass over whole prompts."""
        body = getattr(self._lm.model, "base_model", None)
        if not self._prompts or body is None:
            return {}
        some = self._prompts[::_SAMPLE]
        share = _share(lambda: self._pass(body, some), lambda: self._pass(self._lm.model, some))
        return {"share of the logits in whole prompts": share}

    def _pass(self, network: Any, prompts: list[list[int]]) -> None:
        import torch

        ordered = sorted(prompts, key=len, reverse=True)
        size = int(self._lm.batch_size)
        with torch.no_grad():
            for first in range(0, len(ordered), size):
                rows = ordered[first : first + size]
                batch = torch.zeros(len(rows), len(rows[0]), dtype=torch.long)
                for number, row in enumerate(rows):
                    batch[number, : len(row)] = torch.tensor(row)
                network(batch.to(self._lm.device))

    def _replies(self) -> None:
        import torch

        for arguments in self._generated:
            for one in arguments.get("stopping_criteria") or ():
                if hasattr(one, "done_tracker"):  # lm-eval's remember which rows are done
                    one.done_tracker = [False] * len(one.done_tracker)
            with torch.no_grad():
                self._lm.model.generate(**arguments)

"""Watches an lm-eval vLLM model: its start, its forward passes, and the prompts that it was asked."""

from __future__ import annotations

import time
from typing import Any


def cpu_seconds() -> float:
    """Return the CPU time of this process and its living children: other programs have no part in it."""
    import psutil

    me = psutil.Process()
    return float(sum(sum(one.cpu_times()[:2]) for one in (me, *me.children(recursive=True))))


class Spy:
    """Put on a model class before the first model of it is made; one model at a time.

    Attributes:
        ready: Instant at which the engine was ready.
        forward: Seconds inside vLLM's generate since the last ``clear``.
        asked: Prompts and sampling parameters of lm-eval's calls since the last ``clear``.
    """

    def __init__(self, model_class: Any) -> None:
        from vllm import LLM

        self.ready = 0.0
        self.forward = 0.0
        self.asked: list[tuple[Any, Any]] = []
        self._lm: Any = None
        self._inside = False
        self._generate = LLM.generate
        LLM.generate = self._watched_generate()
        model_class.__init__ = self._watched_start(model_class.__init__)
        # Ours asks through one method for both kinds of requests.
        name = "_run" if hasattr(model_class, "_run") else "_model_generate"
        setattr(model_class, name, self._watched_call(getattr(model_class, name)))

    def clear(self) -> None:
        self.forward, self.asked = 0.0, []

    def bare(self) -> tuple[float, float]:
        """Ask everything once more in one generate call, the prefix cache empty.

        Returns:
            Seconds by the clock, and of CPU time.
        """
        llm = self._lm.model
        llm.reset_prefix_cache()
        prompts, parameters = zip(*self.asked, strict=True)
        began, worked = time.perf_counter(), cpu_seconds()
        self._generate(llm, list(prompts), sampling_params=list(parameters), use_tqdm=False)
        return time.perf_counter() - began, cpu_seconds() - worked

    def _watched_start(self, start: Any) -> Any:
        def init(lm: Any, *args: Any, **more: Any) -> None:
            start(lm, *args, **more)
            self.ready, self._lm = time.perf_counter(), lm

        return init

    def _watched_call(self, call: Any) -> Any:
        def model_generate(lm: Any, *args: Any, **more: Any) -> Any:
            # Calls from elsewhere are no work of lm-eval's.
            self._inside = True
            try:
                return call(lm, *args, **more)
            finally:
                self._inside = False

        return model_generate

    def _watched_generate(self) -> Any:
        original = self._generate

        def generate(llm: Any, prompts: Any, sampling_params: Any = None, **more: Any) -> Any:
            if self._inside:
                each = (
                    sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
                )
                self.asked += zip(prompts, each, strict=True)
            began = time.perf_counter()
            try:
                return original(llm, prompts, sampling_params=sampling_params, **more)
            finally:
                self.forward += time.perf_counter() - began

        return generate

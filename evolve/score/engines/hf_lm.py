"""lm-eval's transformers model, as evolve uses it: it only computes.

Tokens, batches and masks of a list of requests are made at the first candidate and used by all others. The
beginning that requests have in common, such as the context of a multiple-choice item, is computed once, and
logits only where something is asked. Whether a model can share beginnings is tried out on it: not every
architecture takes a mask and positions, and what does not gets every sequence in a row of its own.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from evolve.score.engines.prefixes import Asked, Row, batches_of, rows_of
from evolve.score.engines.tokens import RemembersTokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

logger = logging.getLogger(__name__)

_LOGITS = 1 << 27
"""Most logits of a batch: 0.5 GiB in float32."""
_TOLERANCE = {"float32": 1e-4, "float64": 1e-6}
_ROUGH = 0.05


@dataclass(frozen=True)
class Batch:
    """Rows ready for the model.

    Attributes:
        tokens: ``[rows, width]``, padded with 0 on the right.
        depth: Position of each token, like ``tokens``; None where no row branches.
        end: Where the descendants of each token end, like ``tokens``; None where no row branches.
        places: ``[2, needed]``: row and column of the logits that are needed.
        where: ``[targets]``: which of ``places`` each target follows.
        targets: ``[targets]``: token.
        request: ``[targets]``: number of the request.
        read: Tokens that are no padding.
    """

    tokens: Tensor
    depth: Tensor | None
    end: Tensor | None
    places: Tensor
    where: Tensor
    targets: Tensor
    request: Tensor
    read: int


@dataclass(frozen=True)
class Plan:
    """The batches of a list of requests, and how much work they save.

    Attributes:
        batches: In the order of work.
        requests: Number of requests.
        whole: Tokens of all prompts, each on its own.
    """

    batches: tuple[Batch, ...]
    requests: int
    whole: int

    @property
    def read(self) -> int:
        """Tokens that are computed."""
        return sum(batch.read for batch in self.batches)

    @property
    def area(self) -> int:
        """Tokens that are computed, with the padding beside them."""
        return sum(batch.tokens.numel() for batch in self.batches)

    def __str__(self) -> str:
        share = 1 - self.read / self.area if self.area else 0.0
        return f"{self.requests} requests of {self.whole} tokens: {self.read} computed, padding {share:.0%}"


def make_batch(rows: Sequence[Row], requests: Sequence[Asked], device: Any) -> Batch:
    """Turn rows into tensors."""
    import torch

    width = max(len(row.tokens) for row in rows)
    needed: dict[tuple[int, int], int] = {}
    flat: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        for request, places in row.asked:
            for place, target in zip(places, requests[request].targets, strict=True):
                flat.append((needed.setdefault((number, place), len(needed)), target, request))

    def padded(lists: list[list[int]]) -> Tensor:
        return torch.tensor([[*one, *[0] * (width - len(one))] for one in lists], device=device)

    branches = any(row.branches for row in rows)
    where, targets, request = torch.tensor(flat, device=device).T
    return Batch(
        tokens=padded([row.tokens for row in rows]),
        depth=padded([row.depth for row in rows]) if branches else None,
        end=padded([row.end for row in rows]) if branches else None,
        places=torch.tensor(list(needed), device=device).T,
        where=where,
        targets=targets,
        request=request,
        read=sum(len(row.tokens) for row in rows),
    )


def tree_mask(end: Tensor) -> Tensor:
    """Return ``[rows, 1, query, key]``: whether the query sees the key. Every query sees itself."""
    import torch

    place = torch.arange(end.shape[1], device=end.device)
    query, key = place[:, None], place[None, :]
    seen = (key <= query) & (query < end[:, None, :])
    # Padding has end 0 and would see nothing, which some kernels turn into NaN.
    return (seen | (key == query)).unsqueeze(1)


class SharesPrefixes(RemembersTokens):
    """In front of lm-eval's ``HFLM``; see the text of the module."""

    call_seed = 0
    _can_share: bool | None = None

    @property
    def plans(self) -> tuple[Plan, ...]:
        """What was asked lately, oldest first."""
        return tuple(self._memo().plans.values())

    @property
    def work(self) -> Mapping[str, float]:
        """What the plans save: whole prompts beside tokens computed, and the share of padding in a pass."""
        plans = self.plans
        read, area = (sum(getattr(plan, name) for plan in plans) for name in ("read", "area"))
        if not area:
            return {}
        return {
            "tokens of whole prompts": float(sum(plan.whole for plan in plans)),
            "tokens computed": float(read),
            "share of padding": 1 - read / area,
            "positions with logits": float(
                sum(batch.places.shape[1] for plan in plans for batch in plan.batches)
            ),
        }

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Answer as lm-eval does, without a progress bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """Sum over the windows of each text, all windows in one list, so that batches are of like length."""
        tokens = [self.tok_encode(request.args[0]) for request in requests]
        return self._windows(tokens, self.max_length)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Answer as lm-eval does, seeded, without a progress bar."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.call_seed)
            return super().generate_until(requests, disable_tqdm=True)

    def write_tokens(self, tokens: Sequence[int], count: int) -> None:
        """Write exactly ``count`` tokens after a prompt, the most likely ones."""
        import torch

        prompt = torch.tensor([list(tokens)], device=self.device)
        with torch.no_grad():
            self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=count,
                max_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )

    def tok_batch_encode(self, strings: Any, *args: Any, **more: Any) -> Any:
        """Return the padded batch, as a copy: the model may write into it."""
        key = ("batch", self._special(), tuple(strings), args, tuple(sorted(more.items())))
        made = self._memo().get(
            key, lambda: super(SharesPrefixes, self).tok_batch_encode(strings, *args, **more)
        )
        return tuple(tensor.clone() for tensor in made)

    def _model_generate(self, context: Any, *args: Any, **more: Any) -> Any:
        return context if self.rehearses else super()._model_generate(context, *args, **more)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **more: Any) -> Any:
        if self.backend != "causal":
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **more)
        asked = [self._asked(context, continuation) for _, context, continuation in requests]
        plan = self._plan(asked, share=self._shares(asked))
        if self.rehearses:
            return [(0.0, False)] * plan.requests
        logger.info("%s", plan)
        return self.answers(plan)

    def _asked(self, context: Sequence[int], continuation: Sequence[int]) -> Asked:
        """Cut on the left what the model cannot read, as lm-eval does."""
        if not 0 < len(continuation) <= self.max_length:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens; it must have 1 to {self.max_length}"
            )
        whole = (*context, *continuation)[-(self.max_length + 1) :]
        return Asked(whole[:-1], tuple(continuation))

    def _plan(self, asked: Sequence[Asked], *, share: bool) -> Plan:
        # Models of other shapes ask for the same plan, as long as tokenizer and vocabulary stay the same.
        key = (share, self.batch_size, self._most_places(), str(self.device), tuple(asked))
        plan: Plan = self._memo().plan(key, lambda: self._make_plan(asked, share=share))
        return plan

    def _most_places(self) -> int:
        return max(1, _LOGITS // max(1, int(self.model.config.get_text_config().vocab_size)))

    def _make_plan(self, asked: Sequence[Asked], *, share: bool) -> Plan:
        rows = rows_of(asked, share=share)
        batches = batches_of(rows, size=int(self.batch_size), logits=self._most_places())
        return Plan(
            tuple(make_batch(batch, asked, self.device) for batch in batches),
            len(asked),
            sum(len(one.read) for one in asked),
        )

    def answers(self, plan: Plan) -> list[tuple[float, bool]]:
        """Return log-likelihood and whether it is the greedy continuation, for each request of a plan."""
        import torch

        total = torch.zeros(plan.requests, dtype=torch.float64)
        greedy = torch.ones(plan.requests, dtype=torch.bool)
        for batch in plan.batches:
            logits = self.forward(batch)
            best = logits.argmax(dim=-1)[batch.where] == batch.targets
            logits = torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
            values = logits[batch.where, batch.targets].cpu().double()  # MPS has no float64
            request = batch.request.cpu()
            total.index_add_(0, request, values)
            greedy[request[~best.cpu()]] = False
        return list(zip(total.tolist(), greedy.tolist(), strict=True))

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits ``[needed, vocabulary]`` at the places of a batch."""
        import torch

        more: dict[str, Any] = {}
        if batch.end is not None:
            mask = tree_mask(batch.end)
            if self.model.config._attn_implementation == "eager":
                lowest = torch.finfo(self.model.dtype).min
                mask = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device).masked_fill(
                    ~mask, lowest
                )
            more = {"attention_mask": mask, "position_ids": batch.depth}
        if "use_cache" in _parameters(self.model):
            more["use_cache"] = False
        row, column = batch.places
        with torch.no_grad(), _only_at(self.model.get_output_embeddings(), batch) as chosen:
            logits: Tensor = self.model(batch.tokens, **more).logits
        # A model that is spread over devices may end on another one.
        logits = logits.to(batch.tokens.device)
        return logits[0] if chosen else logits[row, column]

    def _shares(self, asked: Sequence[Asked]) -> bool:
        if max((len(one.read) for one in asked), default=0) > _window(self.model.config):
            return False
        if self._can_share is None:
            self._can_share = self._try_sharing()
        return bool(self._can_share)

    def _try_sharing(self) -> bool | None:
        """Compare shared with single rows on a few tokens; None: these weights do not tell."""
        if "position_ids" not in _parameters(self.model) or self.backend != "causal":
            return False
        if self.model.config._attn_implementation not in ("sdpa", "eager"):
            return False
        size = int(self.model.config.get_text_config().vocab_size)
        start, left, right = (
            [(step * number) % size for number in range(3, 3 + count)]
            for step, count in ((7, 6), (11, 4), (13, 4))
        )
        asked = [
            Asked((*start, *branch[:-1]), tuple(branch))
            for branch in ([*left, *right], left, right, [*right, *left])
        ]
        leaked = Asked((*start, *left[:-1], *right[:-1]), tuple(right[1:]))
        near = Asked((*start, *right[:-1]), tuple(right[1:]))
        try:
            single = self.answers(self._make_plan([*asked, leaked, near], share=False))
            shared = self.answers(self._make_plan(asked, share=True))
        except Exception as error:
            logger.info("requests with a common beginning are computed one by one: %s", error)
            return False
        allowed = _TOLERANCE.get(str(self.model.dtype).removeprefix("torch."), _ROUGH)
        values = [value for value, _ in single]
        if not all(abs(value) < float("inf") for value in values):
            return None
        gap = max(abs(a - b) / max(1.0, abs(b)) for (a, _), b in zip(shared, values, strict=False))
        if gap > allowed:
            logger.info(
                "requests with a common beginning are computed one by one: results would differ by %.2g", gap
            )
            return False
        told = abs(values[-1] - values[-2]) / max(1.0, abs(values[-1]))
        return True if told > 10 * allowed else None


@cache
def lm_class() -> Any:
    """Return the class of LM that the engine hands to lm-eval."""
    from lm_eval.models.huggingface import HFLM

    return type("SharedPrefixHFLM", (SharesPrefixes, HFLM), {})


def _parameters(network: Any) -> frozenset[str]:
    return frozenset(inspect.signature(type(network).forward).parameters)


def _window(config: Any) -> float:
    """Return the length up to which every layer sees everything before."""
    text = config.get_text_config()
    sizes = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=float("inf"))


@contextlib.contextmanager
def _only_at(head: Any, batch: Batch) -> Iterator[list[bool]]:
    """Let the head see the places of a batch only, as one row; the model scales and caps what it gives.

    The list that it yields is empty as long as the head has not been called that way.
    """
    chosen: list[bool] = []
    if head is None:
        yield chosen
        return
    row, column = batch.places

    def choose(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        if hidden.shape[:-1] != batch.tokens.shape:
            return inputs
        chosen.append(True)
        return (hidden[row.to(hidden.device), column.to(hidden.device)].unsqueeze(0), *rest)

    handle = head.register_forward_pre_hook(choose)
    try:
        yield chosen
    finally:
        handle.remove()

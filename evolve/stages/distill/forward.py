"""A transformers network's signals for a batch of packed documents, with a gradient or without.

Each document is a sequence of its own in the forward pass, whatever the architecture thinks of packed rows,
masks and positions: nothing can leak between them. The full logits never exist where the head is a plain
matrix: its input is kept, and the loss multiplies a few rows at a time.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evolve.stages.distill.signals import Signals
from evolve.tensors.logits import Head, Logits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from evolve.stages.distill.teachers.base import Batch

logger = logging.getLogger(__name__)

_PROBE = 8
_WASTE = 1.25
"""Documents go through together as long as padding adds at most a quarter."""
_TOGETHER = 16384
"""Most tokens of one forward pass where no gradient is wanted."""


@dataclass(frozen=True)
class HeadRule:
    """How a network makes logits of the input of its output matrix.

    Attributes:
        scale: See :class:`~evolve.tensors.logits.Head`.
        softcap: The same.
    """

    scale: float = 1.0
    softcap: float | None = None

    def head(self, network: Any, hidden: Tensor) -> Head:
        """Return the scores of what goes into the network's output matrix, (batch, length, width)."""
        matrix = network.get_output_embeddings()
        return Head(hidden, matrix.weight, matrix.bias, self.scale, self.softcap)


def head_rule(network: Any) -> HeadRule | None:
    """Return how a network makes its logits; None: not by a plain matrix, so that logits must be kept.

    The config's keys are a guess. It is tried out on a few tokens and taken only where it gives the logits
    that the network itself gives.
    """
    import torch

    matrix = network.get_output_embeddings()
    # A wrapped matrix (an adapter on the head) has more to it than its weight.
    if type(matrix) is not torch.nn.Linear:
        return None
    config = network.config.get_text_config()
    guess = HeadRule(_scale(config), getattr(config, "final_logit_softcapping", None))
    size = min(int(config.vocab_size), matrix.weight.shape[0])
    tokens = torch.arange(1, 1 + _PROBE, device=matrix.weight.device).remainder(size)[None]
    with torch.no_grad(), _evaluating(network), _inputs(matrix, shorten=False) as seen:
        real = network(input_ids=tokens, **_more(network)).logits.float()
    if len(seen) != 1 or seen[0].shape[:2] != tokens.shape:
        return None
    rows = torch.arange(_PROBE, device=tokens.device)
    head = guess.head(network, seen[0])
    with torch.no_grad():
        found = head.finish(head.raw(rows, head.vocabulary))
    near = float((found - real[0]).abs().max() / real.abs().max().clamp(min=1e-6))
    allowed = 1e-4 if matrix.weight.dtype == torch.float32 else 0.03
    if not near < allowed:
        logger.info(
            "the head of %s is no plain matrix (%.2g apart): logits are kept", config.model_type, near
        )
        return None
    return guess


def forward(
    network: Any,
    batch: Batch,
    *,
    rule: HeadRule | None,
    hidden: bool = False,
    attentions: bool = False,
    together: int | None = None,
) -> Signals:
    """Return a network's signals for a batch; under ``torch.no_grad`` without a gradient.

    Args:
        network: A causal language model of transformers; training or evaluating, as the caller has it.
        batch: On any device; the signals are on the network's.
        rule: Of :func:`head_rule`. None: ``scores`` are full logits.
        hidden: Whether all hidden states are wanted.
        attentions: Whether attention maps are wanted; the network must compute them (``eager``).
        together: Most tokens of one pass; None: all of a batch with a gradient, else 16,384.
    """
    import torch

    device = network.get_input_embeddings().weight.device
    tokens = batch.tokens.to(device)
    spans = sorted(batch.spans(), key=lambda span: (span[2] - span[1], span))
    if together is None and not torch.is_grad_enabled():
        together = _TOGETHER
    parts = [
        _pass(network, tokens, group, rule, hidden=hidden, attentions=attentions)
        for group in _groups(spans, together)
    ]
    if not parts:
        raise ValueError("a batch without a token")
    shape = batch.shape
    scores = _placed([part.scores for part in parts], shape)
    return Signals(
        scores=Logits(scores) if rule is None else rule.head(network, scores),
        hidden=[_placed(list(layer), shape) for layer in zip(*(part.hidden for part in parts), strict=True)],
        attentions=[
            _placed_maps(list(layer), shape)
            for layer in zip(*(part.attentions for part in parts), strict=True)
        ],
    )


@dataclass(frozen=True)
class _Part:
    """One pass: for each kind of tensor its pieces by document, with the document's span."""

    scores: list[tuple[tuple[int, int, int], Tensor]]
    hidden: list[list[tuple[tuple[int, int, int], Tensor]]]
    attentions: list[list[tuple[tuple[int, int, int], Tensor]]]


def _groups(
    spans: Sequence[tuple[int, int, int]], together: int | None
) -> Iterator[list[tuple[int, int, int]]]:
    """Yield documents of like length, shortest first."""
    group: list[tuple[int, int, int]] = []
    read = 0
    for span in spans:
        length = span[2] - span[1]
        area = length * (len(group) + 1)
        if group and (area > _WASTE * (read + length) or (together is not None and area > together)):
            yield group
            group, read = [], 0
        group.append(span)
        read += length
    if group:
        yield group


def _pass(
    network: Any,
    tokens: Tensor,
    spans: Sequence[tuple[int, int, int]],
    rule: HeadRule | None,
    *,
    hidden: bool,
    attentions: bool,
) -> _Part:
    width = max(end - begin for _, begin, end in spans)
    inputs = tokens.new_zeros((len(spans), width))
    mask = tokens.new_zeros((len(spans), width))
    for place, (row, begin, end) in enumerate(spans):
        inputs[place, : end - begin] = tokens[row, begin:end]
        mask[place, : end - begin] = 1
    more = {**_more(network), "output_hidden_states": hidden, "output_attentions": attentions}
    # Without padding there is nothing to mask, and kernels are faster.
    if any(end - begin < width for _, begin, end in spans):
        more["attention_mask"] = mask
    if rule is None:
        output = network(input_ids=inputs, **more)
        scores = output.logits
    else:
        with _inputs(network.get_output_embeddings()) as seen:
            output = network(input_ids=inputs, **more)
        scores = seen[0]

    def pieces(values: Tensor) -> list[tuple[tuple[int, int, int], Tensor]]:
        return [(span, values[place, : span[2] - span[1]]) for place, span in enumerate(spans)]

    maps = []
    for layer in output.attentions or () if attentions else ():
        if layer is None:
            raise ValueError("the network gives no attention maps: open it with eager attention")
        sizes = [span[2] - span[1] for span in spans]
        maps.append([(span, layer[i, :, : sizes[i], : sizes[i]]) for i, span in enumerate(spans)])
    return _Part(pieces(scores), [pieces(layer) for layer in output.hidden_states] if hidden else [], maps)


def _placed(parts: Sequence[list[tuple[tuple[int, int, int], Tensor]]], shape: tuple[int, int]) -> Tensor:
    """Return (batch, length, ...) with each document at its span, zeros elsewhere."""
    import torch

    pieces = sorted((piece for part in parts for piece in part), key=lambda piece: piece[0])
    first = pieces[0][1]
    rows: list[list[Tensor]] = [[] for _ in range(shape[0])]
    ends = [0] * shape[0]
    for (row, begin, end), values in pieces:
        assert begin == ends[row]
        rows[row].append(values)
        ends[row] = end
    filled = [
        torch.cat([*row, first.new_zeros((shape[1] - end, *first.shape[1:]))])
        for row, end in zip(rows, ends, strict=True)
    ]
    return torch.stack(filled)


def _placed_maps(
    parts: Sequence[list[tuple[tuple[int, int, int], Tensor]]], shape: tuple[int, int]
) -> Tensor:
    """Return (batch, heads, length, length), zero between documents."""
    pieces = [piece for part in parts for piece in part]
    first = pieces[0][1]
    whole = first.new_zeros((shape[0], first.shape[0], shape[1], shape[1]))
    for (row, begin, end), values in pieces:
        whole[row, :, begin:end, begin:end] = values
    return whole


@contextlib.contextmanager
def _inputs(matrix: Any, *, shorten: bool = True) -> Iterator[list[Tensor]]:
    """Yield a list that gets what goes into the output matrix, which multiplies one place of it alone."""
    seen: list[Tensor] = []

    def keep(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        seen.append(hidden)
        return (hidden[:, :1] if shorten else hidden, *rest)

    handle = matrix.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextlib.contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _more(network: Any) -> dict[str, Any]:
    known = inspect.signature(type(network).forward).parameters
    # An adapter around a network hands on whatever it is given.
    passed = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    return {"use_cache": False} if "use_cache" in known or passed else {}


def _scale(config: Any) -> float:
    """Return what the logits are multiplied with: Cohere's scale, Falcon-H1's, one over Granite's."""
    for name in ("logit_scale", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value:
            return float(value)
    divisor = getattr(config, "logits_scaling", None)
    return 1.0 / float(divisor) if isinstance(divisor, int | float) and divisor else 1.0

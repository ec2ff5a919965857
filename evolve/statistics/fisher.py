"""The diagonal of the Fisher information: how much each parameter matters for what a model says."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from evolve.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

Labels: TypeAlias = Literal["sampled", "data"]


def diagonal_fisher(
    network: Any,
    sequences: Iterable[Tensor],
    *,
    labels: Labels = "sampled",
    seed: int = 0,
    into: Mapping[str, Tensor] | None = None,
) -> Mapping[str, Tensor]:
    """Return the diagonal Fisher information of a causal language model, per predicted token.

    For each sequence the gradient of the summed log-likelihood of its next tokens is squared; the squares
    are added up and divided by the number of predicted tokens. With labels that are sampled from the model's
    own prediction at each place, the terms between two tokens have the mean zero: the result is an unbiased
    estimate of the mean over tokens of E[(d log p / d theta)^2], the true Fisher information. With the labels
    of the text it is the empirical Fisher information of sequences, in which those terms stay.

    One sequence and one gradient are held at a time: a gradient is squared, added and dropped as soon as it
    is there. A parameter that is used twice (a tied head) counts once, with the sum of its gradients.

    Args:
        network: A transformers causal language model. It is put into evaluation mode for the time; gradients
            that it holds are dropped. Parameters that require no gradient are left out.
        sequences: Token ids, each one-dimensional int64, at least two.
        labels: ``sampled`` or ``data``.
        seed: Decides the sampled labels, together with a sequence's place.
        into: Parameter name to float32 zeros on the CPU that the sums go to, such as a memory map; absent:
            new ones.

    Returns:
        Parameter name to float32 of its shape: ``into``, where it is given.

    Raises:
        CandidateError: The model predicts NaN or infinity, or there are no sequences.
    """
    import torch

    parameters = {name: one for name, one in network.named_parameters() if one.requires_grad}
    if into is None:
        into = {name: torch.zeros(one.shape, dtype=torch.float32) for name, one in parameters.items()}
    count = 0
    with _evaluating(network), torch.enable_grad(), _squares(parameters, into):
        for index, tokens in enumerate(sequences):
            ids = tokens.to(network.device)
            logits = network(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
            targets = ids[1:] if labels == "data" else _sample(logits.detach(), seed, index)
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            if not bool(torch.isfinite(loss)):
                raise CandidateError("non_finite", f"the model predicts NaN or infinity in sequence {index}")
            torch.autograd.backward(loss)
            count += len(targets)
    if not count:
        raise CandidateError("build", "the text has no two tokens: there is nothing to predict")
    for total in into.values():
        total.div_(count)
    return into


@contextlib.contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    training = network.training
    network.eval()
    network.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        network.train(training)
        network.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _squares(parameters: Mapping[str, Any], into: Mapping[str, Tensor]) -> Iterator[None]:
    """Add the square of each gradient to its sum as soon as it is whole, and drop the gradient."""

    def taker(name: str) -> Any:
        def take(parameter: Any) -> None:
            gradient = parameter.grad.detach().float().cpu()
            into[name].addcmul_(gradient, gradient)
            parameter.grad = None

        return take

    hooks = [one.register_post_accumulate_grad_hook(taker(name)) for name, one in parameters.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sample(logits: Tensor, seed: int, index: int) -> Tensor:
    """Draw a token at each place from the model's prediction."""
    import torch

    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    chances = logits.softmax(dim=-1).cpu()
    if not bool(torch.isfinite(chances).all()):
        raise CandidateError("non_finite", f"the model predicts NaN or infinity in sequence {index}")
    return torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)

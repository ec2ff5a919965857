"""Inner products of the inputs of linear layers, ``X.T @ X``: what RegMean needs to know of a model."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

MAX_BYTES = 2 << 30
"""Most bytes of inner products that are held at a time, where the caller says nothing."""

_PROBE_TOKENS = 8
_ROWS = 256
"""Rows of a product that are made at a time, in float32 and then in float64."""


class LinearLayer(NamedTuple):
    """A layer that multiplies its input by a matrix.

    Attributes:
        module: The layer.
        inputs: Number of inputs.
        input_axis: The axis of the weight that belongs to the inputs: 1 in Linear, 0 in GPT-2's Conv1D.
    """

    module: Any
    inputs: int
    input_axis: int


def linear_layers(network: Any) -> dict[str, LinearLayer]:
    """Return name to layer of every linear layer of a transformers model, in the order of the model."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found = {}
    for name, module in network.named_modules():
        if type(module) is nn.Linear:
            found[name] = LinearLayer(module, module.in_features, 1)
        elif type(module) is Conv1D:
            found[name] = LinearLayer(module, module.weight.shape[0], 0)
    return found


def sources(network: Any, layers: Mapping[str, LinearLayer], tokens: Tensor) -> dict[str, str]:
    """Return for each layer the first layer that gets the same inputs, itself for most, in the order of use.

    Query, key and value layers get one input, and so do the gate and the first layer of an MLP: their inner
    products are computed once. Layers that are not used are left out.

    Args:
        network: The model.
        layers: Name to layer.
        tokens: Token ids, one-dimensional int64; a few are enough.
    """
    given: dict[str, list[tuple[int, int]]] = {}
    # Held until the end, so that no input gets the place of one that is gone.
    alive: list[Tensor] = []

    def note(name: str, inputs: Tensor) -> None:
        given.setdefault(name, []).append((id(inputs), inputs._version))
        alive.append(inputs)

    with _hooks({name: layer.module for name, layer in layers.items()}, note):
        _forward(network, tokens[:_PROBE_TOKENS])
    return {name: next(first for first in given if given[first] == given[name]) for name in given}


def input_grams(
    network: Any,
    layers: Mapping[str, LinearLayer],
    sequences: Callable[[], Iterable[Tensor]],
    *,
    max_bytes: int = MAX_BYTES,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer's name and ``X.T @ X`` of all its inputs, divided by the number of tokens of the text.

    Products are float32, their sums float64. The layers are taken in groups whose sums, and the rows of a
    product beside them, stay within ``max_bytes``; each group takes one pass over the text. The groups do
    not change the sums.

    Args:
        network: A transformers model in evaluation mode.
        layers: Name to layer, in the order of use.
        sequences: Returns the token ids anew, each one-dimensional int64.
        max_bytes: Most bytes that are held at a time.

    Raises:
        CandidateError: One layer alone needs more than ``max_bytes``, or a sum is not finite.
    """
    import torch

    for group in _groups(layers, max_bytes):
        sums = {
            name: torch.zeros((layers[name].inputs,) * 2, dtype=torch.float64, device=network.device)
            for name in group
        }
        count = _accumulate(network, layers, sums, sequences)
        if not count:
            raise CandidateError("build", "the text has no tokens: there is nothing to gather")
        while sums:
            name = next(iter(sums))
            total = sums.pop(name)
            if not math.isfinite(float(total.sum())):  # isfinite would take as much memory again
                raise CandidateError("non_finite", f"the inputs of {name} are NaN or infinite")
            yield name, total.div_(count)
            del total


def _accumulate(
    network: Any,
    layers: Mapping[str, LinearLayer],
    sums: Mapping[str, Tensor],
    sequences: Callable[[], Iterable[Tensor]],
) -> int:
    """Add the products of one pass over the text to ``sums``, and return the number of tokens."""

    def add(name: str, inputs: Tensor) -> None:
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        for start in range(0, rows.shape[1], _ROWS):
            part = slice(start, start + _ROWS)
            sums[name][part].add_(rows[:, part].T @ rows)

    count = 0
    with _hooks({name: layers[name].module for name in sums}, add):
        for tokens in sequences():
            _forward(network, tokens)
            count += len(tokens)
    return count


def _forward(network: Any, tokens: Tensor) -> None:
    import torch

    with torch.no_grad():
        network(input_ids=tokens[None].to(network.device), use_cache=False)


@contextlib.contextmanager
def _hooks(modules: Mapping[str, Any], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Any:
        return lambda module, arguments: see(name, arguments[0])

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _groups(layers: Mapping[str, LinearLayer], max_bytes: int) -> Iterator[Sequence[str]]:
    group: list[str] = []
    held = widest = 0
    for name, layer in layers.items():
        size, product = 8 * layer.inputs**2, 12 * layer.inputs * min(layer.inputs, _ROWS)
        if size + product > max_bytes:
            raise CandidateError(
                "build",
                f"the inner products of {name} need {(size + product) / 1e9:.2f} GB, allowed are "
                f"{max_bytes / 1e9:.2f} GB: allow more",
            )
        if group and held + size + max(widest, product) > max_bytes:
            yield group
            group, held, widest = [], 0, 0
        group.append(name)
        held, widest = held + size, max(widest, product)
    if group:
        yield group

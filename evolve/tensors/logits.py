"""Logits that are there, and logits that are made a few rows at a time.

A model's logits are the largest tensor of its training step: 4,096 tokens over 152,000 entries are 2.5 GB in
float32, and every step of a loss makes one more. So a loss asks for rows. ``Logits`` has them; ``Head`` has
the last hidden states and the matrix, and multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evolve.tensors.divergence import wide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Rows of a 16-bit matrix that are widened at a time.
_BLOCK = 4096


@dataclass(frozen=True)
class Logits:
    """Logits as the model gave them.

    Attributes:
        values: (batch, length, V), any floating type.
    """

    values: Tensor

    @property
    def vocabulary(self) -> int:
        """Number of columns, padding included."""
        return int(self.values.shape[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and length."""
        return int(self.values.shape[0]), int(self.values.shape[1])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that a gradient may flow into."""
        return (self.values,)

    def raw(self, rows: Tensor, vocabulary: int) -> Tensor:
        """Return some rows and the first columns: wide, of own storage, without a gradient."""
        return wide(self.values.detach().flatten(0, 1)[rows, :vocabulary])

    def finish(self, raw: Tensor) -> Tensor:
        """Return the logits: they are complete."""
        return raw

    def gradients(self) -> list[Tensor | None]:
        """Return zeros to add gradients to, one for each of ``tensors`` that needs one."""
        # float16 loses what a small share of a large sum is; bfloat16 has the range of float32.
        kept = torch.float32 if self.values.dtype == torch.float16 else self.values.dtype
        return [_zeros(self.values, kept) if self.values.requires_grad else None]

    def add(self, gradients: list[Tensor | None], rows: Tensor, raw: Tensor) -> None:
        """Add what the gradient of some raw rows means for the tensors."""
        [values] = gradients
        if values is not None:
            values.view(-1, self.vocabulary)[rows, : raw.shape[-1]] = raw.to(values.dtype)


@dataclass(frozen=True)
class Head:
    """The last hidden states and the output matrix; products are in float32.

    Attributes:
        hidden: (batch, length, width), after the last norm.
        weight: (V, width).
        bias: (V,), or None.
        scale: The logits are multiplied with it (Cohere's ``logit_scale``, one over Granite's
            ``logits_scaling``).
        softcap: Then each is ``softcap * tanh(logit / softcap)`` (Gemma's ``final_logit_softcapping``).
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        """Number of columns, padding included."""
        return int(self.weight.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and length."""
        return int(self.hidden.shape[0]), int(self.hidden.shape[1])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that a gradient may flow into."""
        return (self.hidden, self.weight) if self.bias is None else (self.hidden, self.weight, self.bias)

    def raw(self, rows: Tensor, vocabulary: int) -> Tensor:
        """Return the products of some rows with the first entries; see :meth:`Logits.raw`."""
        hidden = wide(self.hidden.detach().flatten(0, 1)[rows])
        out = hidden.new_empty((len(rows), vocabulary))
        for part in self._blocks(vocabulary):
            torch.mm(hidden, self._part(part, hidden.dtype).T, out=out[:, part])
        return out if self.bias is None else out.add_(self.bias.detach()[:vocabulary])

    def finish(self, raw: Tensor) -> Tensor:
        """Return the logits: scaled and capped, if they are to be."""
        logits = raw if self.scale == 1.0 else raw * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def gradients(self) -> list[Tensor | None]:
        """Return zeros to add gradients to, one for each of ``tensors`` that needs one."""
        return [
            _zeros(tensor, wide(tensor[:0]).dtype) if tensor.requires_grad else None
            for tensor in self.tensors
        ]

    def add(self, gradients: list[Tensor | None], rows: Tensor, raw: Tensor) -> None:
        """Add what the gradient of some raw rows means for the tensors."""
        hidden, weight, *bias = gradients
        vocabulary = raw.shape[-1]
        if hidden is not None:
            found = raw.new_zeros((len(rows), self.hidden.shape[-1]))
            for part in self._blocks(vocabulary):
                found.addmm_(raw[:, part], self._part(part, raw.dtype))
            hidden.view(-1, self.hidden.shape[-1])[rows] = found.to(hidden.dtype)
        if weight is not None:
            inputs = self.hidden.detach().flatten(0, 1)[rows].to(raw.dtype)
            weight[:vocabulary].addmm_(raw.T, inputs)
        if bias and bias[0] is not None:
            bias[0][:vocabulary] += raw.sum(0)

    def _part(self, part: slice, dtype: torch.dtype) -> Tensor:
        return self.weight.detach()[part].to(dtype)

    def _blocks(self, vocabulary: int) -> Iterator[slice]:
        """Yield one stretch for a matrix that is wide already, short ones for another."""
        step = vocabulary if self.weight.dtype == wide(self.hidden[:0]).dtype else _BLOCK
        for start in range(0, vocabulary, step):
            yield slice(start, min(start + step, vocabulary))


def _zeros(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)

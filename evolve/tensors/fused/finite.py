"""Is there a NaN or an infinity in a tensor?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Return whether a tensor of any type, on any device, has finite values only."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.device.type == "cpu" and tensor.dtype in _WORDS and tensor.is_contiguous():
        from evolve.tensors.fused.exponents import no_full_exponent

        word, mask = _WORDS[tensor.dtype]
        return bool(no_full_exponent(tensor.detach().view(word).view(-1).numpy(), mask))
    if tensor.dtype.itemsize == 1:  # float8 has no arithmetic
        tensor = tensor.float()
    return bool(torch.isfinite(tensor).all())


# The bits of the exponent, all of which are set in a NaN or an infinity.
_WORDS = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F800000),
}

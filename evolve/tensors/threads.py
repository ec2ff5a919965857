"""Linear algebra whose bits do not depend on the number of threads."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run the products and decompositions inside on one thread of their own.

    The libraries below torch split a product or a factorisation by the number of threads, and add in another
    order then. The setting is that of the calling thread, so several tensors may be worked on side by side.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Memory that is used again, and never while somebody holds it."""

from __future__ import annotations

import gc

import torch

from evolve.tensors.fused import Buffers


def test_memory_comes_back_when_the_tensor_dies() -> None:
    buffers = Buffers()
    first = buffers.empty((10, 20), torch.bfloat16)
    place = first.data_ptr()
    assert (first.shape, first.dtype, buffers.nbytes) == ((10, 20), torch.bfloat16, 0)
    del first
    assert buffers.nbytes == 400
    second = buffers.empty((100,), torch.float32)
    assert second.data_ptr() == place
    assert buffers.nbytes == 0


def test_a_view_keeps_the_memory() -> None:
    buffers = Buffers()
    whole = buffers.empty((4, 25), torch.float32)
    whole.fill_(7)
    view = whole[1:3].T
    array = whole.numpy()
    del whole
    gc.collect()
    others = [buffers.empty((100,), torch.float32).fill_(0) for _ in range(5)]
    assert (view == 7).all() and (array == 7).all() and len(others) == 5
    del view
    assert (array == 7).all()


def test_no_more_than_the_limit_is_kept() -> None:
    buffers = Buffers(1000)
    held = [buffers.empty((100,), torch.float32) for _ in range(5)]
    del held
    assert buffers.nbytes == 800


def test_memory_may_come_back_during_a_collection() -> None:
    """A tensor in a cycle dies inside the collector, perhaps while the lock is held."""
    buffers = Buffers()
    gc.set_threshold(1)
    try:
        for _ in range(300):
            cycle: list[object] = [buffers.empty((50,), torch.float32)]
            cycle.append(cycle)
            del cycle
    finally:
        gc.set_threshold(700, 10, 10)
    gc.collect()
    assert buffers.nbytes > 0


def test_empty_and_scalar() -> None:
    buffers = Buffers()
    assert buffers.empty((0, 3), torch.float32).shape == (0, 3)
    assert buffers.empty((), torch.float16).shape == ()

"""The parts of a training in several processes, against what one process does with all rows."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st

from evolve.training import ranks

if TYPE_CHECKING:
    from pathlib import Path


def test_alone_nothing_is_shared() -> None:
    network = torch.nn.Linear(2, 1)
    ranks.mean_gradients(network.parameters())
    assert (ranks.count(), ranks.rank(), ranks.agreed(True), ranks.gathered("a")) == (1, 0, True, ["a"])
    assert ranks.share([[1, 2], [3]]) == [[1, 2], [3]]
    assert network.weight.grad is None


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    world=st.integers(1, 5),
)
def test_every_row_is_somebodys_once(sizes: list[int], world: int) -> None:
    rows = iter(range(100))
    batches = [[next(rows) for _ in range(size)] for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "count", lambda: world)
        shares = []
        for rank in range(world):
            patch.setattr(ranks, "rank", lambda rank=rank: rank)
            shares.append(ranks.share(batches))
    assert sorted(row for one in shares for batch in one for row in batch) == list(range(sum(sizes)))
    largest = max(sizes)
    for one in shares:
        assert len(one) == len(batches), "Trainer counts batches"
        assert all(len(batch) <= max(1, largest) for batch in one)
        assert world == 1 or not any(one) or one[-1], "who has rows ends with some"
    counts = [sum(map(len, one)) for one in shares]
    assert max(counts) - min(counts) <= 1


def _in_a_group(rank: int, file: str, out: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=3, timeout=timedelta(seconds=60)
    )
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({name: torch.nn.Linear(3, 2) for name in ("all", "one", "none", "rests")})
    network["rests"].requires_grad_(False)
    rows = torch.arange(12.0).reshape(4, 3)
    mine = [row for batch in ranks.share([[0, 1], [2, 3]]) for row in batch]
    loss = sum((network["all"](rows[row]).sum() ** 2 for row in mine), torch.zeros(())) * 3
    if rank == 2:
        loss = loss + network["one"](rows[0]).sum() * 3
    loss.backward()
    before = ranks._BUCKET
    ranks._BUCKET = 4  # several buckets, one number larger than one of them
    ranks.mean_gradients(network.parameters())
    ranks._BUCKET = before
    said: dict[str, Any] = {"agreed": ranks.agreed(rank == 0), "gathered": ranks.gathered(rank)}
    with ranks.first():
        seen = f"{out}.first"
        said["first"] = torch.load(seen, weights_only=True) if rank else None
        if not rank:
            torch.save(["was here"], seen)
    said["grads"] = {name: parameter.grad for name, parameter in network.named_parameters()}
    torch.save(said, f"{out}.{rank}")
    ranks.wait()
    dist.destroy_process_group()


def test_gradients_are_those_of_all_rows(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_in_a_group, (str(tmp_path / "meet"), str(tmp_path / "out")), nprocs=3)
    said = [torch.load(tmp_path / f"out.{rank}", weights_only=True) for rank in range(3)]
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({name: torch.nn.Linear(3, 2) for name in ("all", "one", "none", "rests")})
    rows = torch.arange(12.0).reshape(4, 3)
    loss = sum((network["all"](row).sum() ** 2 for row in rows), torch.zeros(()))
    (loss + network["one"](rows[0]).sum()).backward()
    for rank, one in enumerate(said):
        assert one["agreed"], "the first one's"
        assert one["gathered"] == [0, 1, 2]
        assert one["first"] == (["was here"] if rank else None)
        for name, parameter in network.named_parameters():
            if name.startswith(("none", "rests")):
                assert one["grads"][name] is None
            else:
                torch.testing.assert_close(one["grads"][name], parameter.grad)

"""A stage that trains nothing: one input, which may be the output before, and every kind of value."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from evolve.config.values import Block, Parameter, SearchInt, SearchNumber, StageBlock

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

from evolve.registry import STAGES


class Loss(Block):
    function: str
    weight: SearchNumber = 1.0


class StubBlock(StageBlock):
    model: str | None = None
    epochs: SearchInt = 3
    rate: SearchNumber = 0.1
    losses: list[Loss] = Field(default_factory=list)
    curve: Parameter = 0.0


class StubStage:
    block: ClassVar[type[StageBlock]] = StubBlock

    @staticmethod
    def inputs(block: StageBlock) -> tuple[str, ...]:
        assert isinstance(block, StubBlock)
        return () if block.model is None else (block.model,)


def add_stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let configs have `stub:` stages."""
    table = {name: STAGES._table[name] for name in STAGES.names()}
    with monkeypatch.context() as patch:
        patch.setitem(STAGES.__dict__, "_table", {**table, "stub": f"{__name__}:StubStage"})
        yield

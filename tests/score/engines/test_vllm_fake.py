"""What the vLLM engine does around vLLM, told apart by a fake of it: no vLLM is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from evolve.errors import CandidateError
from evolve.score.engines import vllm as module
from evolve.score.engines.vllm import VllmEngine, _Identity
from tests.score.engines.oracle import config, make

if TYPE_CHECKING:
    from pathlib import Path

ASLEEP = {"enable_sleep_mode": True}


class FakeVllm:
    """Stands in for lm-eval's VLLM, for its LLM, and for the engine's core; writes down what is called."""

    def __init__(self, **_: Any) -> None:
        self.model = self.llm_engine = self.engine_core = self
        self.calls: list[str] = []
        self.broken = ""
        self.rows = [True]

    def sleep(self, level: int) -> None:
        self._called(f"sleep {level}")

    def wake_up(self) -> None:
        self._called("wake_up")

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def collective_rpc(self, what: Any, **_: Any) -> list[bool]:
        self._called(getattr(what, "__name__", what))
        return self.rows

    def reset_prefix_cache(self) -> bool:
        return True

    def has_unfinished_requests(self) -> bool:
        return False

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name.startswith(self.broken or "nothing"):
            raise RuntimeError(f"{name} broke")


def asleep(monkeypatch: pytest.MonkeyPatch, device: str = "cuda", **more: Any) -> tuple[VllmEngine, FakeVllm]:
    """Return an engine on some device that holds a fake."""
    monkeypatch.setattr(module, "vllm_device", lambda: device)
    monkeypatch.setattr(module, "release", lambda: None)
    engine = VllmEngine(config(engine_args=more), 1)
    fake = FakeVllm()
    engine._running, engine._loaded = fake, True
    engine._identity = _Identity("llama", "side", "float32")
    return engine, fake


def test_on_a_gpu_it_sleeps_without_its_weights_and_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, fake = asleep(monkeypatch, **ASLEEP)
    engine.sleep()
    engine.sleep()
    assert fake.calls == ["sleep 2"], "level 2 keeps no weights; the second call does nothing"
    with pytest.raises(CandidateError, match="holds no model"):
        _ = engine.lm
    engine.wake()
    engine.wake()
    assert fake.calls == ["sleep 2", "wake_up"] and engine._running is fake


def test_what_does_not_fall_asleep_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, fake = asleep(monkeypatch, **ASLEEP)
    fake.broken = "sleep"
    engine.sleep()
    assert fake.calls == ["sleep 2", "shutdown"] and engine._running is None
    engine.wake()
    assert "wake_up" not in fake.calls


def test_what_does_not_wake_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, fake = asleep(monkeypatch, **ASLEEP)
    fake.broken = "wake_up"
    engine.sleep()
    engine.wake()
    assert fake.calls == ["sleep 2", "wake_up", "shutdown"] and engine._running is None


@pytest.mark.parametrize(
    ("device", "more", "short", "expected"),
    [
        ("cuda", {}, False, ["shutdown"]),
        ("cuda", ASLEEP, True, ["shutdown"]),
        ("cpu", ASLEEP, False, []),
        ("cpu", {}, True, ["shutdown"]),
    ],
)
def test_where_it_cannot_sleep(
    monkeypatch: pytest.MonkeyPatch, device: str, more: dict[str, Any], short: bool, expected: list[str]
) -> None:
    engine, fake = asleep(monkeypatch, device, **more)
    engine.sleep(short=short)
    assert fake.calls == expected


def test_one_that_starts_again_for_each_model_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, fake = asleep(monkeypatch, **ASLEEP)
    engine._identity = None
    engine.sleep()
    assert fake.calls == ["shutdown"]


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [([True], {}, 0), ([False], {}, 1), ([True], {"tensor_parallel_size": 2}, 1)],
    ids=["first runner", "second runner", "several workers"],
)
def test_whole_prompts_are_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    rows: list[bool],
    more: dict[str, Any],
    said: int,
) -> None:
    from evolve.score.engines import vllm_lm

    def start(**given: Any) -> FakeVllm:
        fake = FakeVllm(**given)
        fake.rows = rows
        return fake

    engine, _ = asleep(monkeypatch, **more)
    monkeypatch.setattr(vllm_lm, "lm_class", lambda: start)
    module._say_whole_prompts.cache_clear()
    model = make(tmp_path, "llama", tied=True, seed=0)
    (tmp_path / "starts").mkdir()
    for name in ("one", "two"):
        engine._start(tmp_path / "starts" / name, model, "float32", {})
    warnings = [record for record in caplog.records if "whole prompts" in record.message]
    assert len(warnings) == said
    module._say_whole_prompts.cache_clear()

"""The trainer: one denominator a step, rows in their order, kills that leave no trace, rest and rates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evolve.errors import CandidateError
from evolve.training.adapters import with_adapter
from evolve.training.arguments import PeftConfig, TrainingArgs
from evolve.training.control import control_of
from evolve.training.phases import Phase
from evolve.training.rows import IGNORED, Row
from evolve.training.trainer import Control, Settings, train
from tests.tiny import make_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def make_network(seed: int = 0, layers: int = 1, *, tied: bool = True) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(make_config("llama", layers=layers, vocab=32, tied=tied))


def make_rows(count: int, seed: int = 0, longest: int = 12) -> list[Row]:
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        tokens = draw.integers(3, 32, draw.integers(3, longest)).astype(np.int32)
        labels = np.where(draw.random(len(tokens)) < 0.3, IGNORED, tokens).astype(np.int32)
        labels[0], labels[1] = IGNORED, tokens[1]
        rows.append(Row(tokens, labels, (len(tokens),)))
    return rows


class CrossEntropy:
    """Plain cross-entropy, a row at a time: slow, and nothing to get wrong."""

    def __init__(self, *, spoil: int = -1, pause: float = 0.0) -> None:
        self.seen: list[tuple[int, int]] = []
        self._spoil, self._pause = spoil, pause

    def prepare(self, network: Any, rows: Sequence[Row], *, step: int) -> Sequence[Row]:
        self.seen += [(step, int(row.tokens.sum())) for row in rows]
        time.sleep(self._pause)
        return rows

    def loss(
        self, network: Any, rows: Sequence[Row], *, num_items: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        total = torch.zeros(())
        for row in rows:
            logits = network(input_ids=torch.as_tensor(row.tokens[None].astype(np.int64))).logits[0, :-1]
            labels = torch.as_tensor(row.labels[1:].astype(np.int64))
            total = total + torch.nn.functional.cross_entropy(
                logits, labels, ignore_index=IGNORED, reduction="sum"
            )
        if self.seen and self.seen[-1][0] == self._spoil:
            total = total * float("nan")
        return total / num_items, {"rows": len(rows)}


def run(
    folder: Path, rows: Sequence[Row], *, objective: Any = None, network: Any = None, **options: Any
) -> Any:
    network = make_network() if network is None else network
    more = {key: options.pop(key) for key in ("control", "save_seconds", "seed") if key in options}
    arguments = TrainingArgs(**{"learning_rate": 1e-3, "per_device_train_batch_size": 4, **options})
    settings = Settings(arguments, more.pop("seed", 0), folder, **more)
    history = train(network, rows, objective or CrossEntropy(), settings)
    return network, history


def state(network: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def test_a_step_is_that_of_plain_torch(tmp_path: Path) -> None:
    rows = make_rows(4)
    network, history = run(tmp_path, rows, warmup_steps=0, lr_scheduler_type="constant", max_grad_norm=0)
    own = make_network()
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-3, weight_decay=0.0)
    items = sum(int((row.labels[1:] != IGNORED).sum()) for row in rows)
    objective = CrossEntropy()
    loss, _ = objective.loss(own, rows, num_items=items)
    loss.backward()
    optimizer.step()
    for name, value in state(own).items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    assert history.steps == 1
    assert history.log[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert history.log[0]["rows"] == 4


def test_how_a_step_is_divided_does_not_matter(tmp_path: Path) -> None:
    rows = make_rows(8)
    whole, first = run(tmp_path / "a", rows, per_device_train_batch_size=8)
    parts, second = run(tmp_path / "b", rows, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for name, value in state(whole).items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert first.log[0]["loss"] == pytest.approx(second.log[0]["loss"], rel=1e-5)
    assert second.log[0]["rows"] == 8


@pytest.mark.parametrize("adapter", [False, True])
def test_activations_that_are_computed_again_change_nothing(tmp_path: Path, adapter: bool) -> None:
    rows = make_rows(12)
    made = []
    for again in (False, True):
        network = make_network(layers=2)
        seen: list[bool] = []
        # A layer is entered once a pass, and once more where it is computed again.
        network.model.layers[0].mlp.register_forward_pre_hook(lambda *_, to=seen: to.append(True))
        if adapter:
            network = with_adapter(network, PeftConfig(r=4), seed=0)
        begun = state(network)
        run(tmp_path / str(again), rows, network=network, gradient_checkpointing=again)
        assert len(seen) == (24 if again else 12)
        assert any(not torch.equal(value, begun[name]) for name, value in state(network).items())
        made.append(state(network))
    for name, value in made[0].items():
        torch.testing.assert_close(made[1][name], value, rtol=0, atol=0, msg=name)


def test_rows_are_seen_in_their_order_and_once(tmp_path: Path) -> None:
    rows = make_rows(11)
    objective = CrossEntropy()
    _, history = run(
        tmp_path, rows, objective=objective, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    assert [total for _, total in objective.seen] == [int(row.tokens.sum()) for row in rows]
    assert [step for step, _ in objective.seen] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert history.steps == 3
    assert history.tokens == sum(map(len, rows))


def test_one_gpu_of_several_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evolve.training import loop

    class Seeing(loop.TrainingArguments):
        def __post_init__(self) -> None:
            super().__post_init__()
            self._n_gpu = 4

    monkeypatch.setattr(loop, "TrainingArguments", Seeing)
    network = make_network()
    arguments = TrainingArgs(per_device_train_batch_size=2)
    settings = Settings(arguments, 0, tmp_path)
    trainer = loop.make_trainer(network, make_rows(4), CrossEntropy(), settings, spent=0.0)
    assert trainer.args.train_batch_size == 2
    assert trainer._wrap_model(network) is network


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="step 2; a lower learning rate") as error:
        run(tmp_path, make_rows(12), objective=CrossEntropy(spoil=1))
    assert error.value.kind == "non_finite"


def test_a_step_without_anything_to_train(tmp_path: Path) -> None:
    control = Control(lambda progress, name: float(progress < 0.5))
    with pytest.raises(CandidateError, match="nothing is trained in step 2 of 2"):
        run(tmp_path, make_rows(8), control=control)


def test_rows_that_rest_do_not_count_in_the_length_of_the_gradient(tmp_path: Path) -> None:
    """A gradient is cut to a length by what moves alone."""

    def only_rows(progress: float, name: str) -> float:
        return float(name == "model.embed_tokens.weight")

    rows = make_rows(4)
    plain = {"warmup_steps": 0, "lr_scheduler_type": "constant", "optim": "sgd", "learning_rate": 1.0}
    control = Control(only_rows, lambda progress, name: range(20, 28))
    before = state(make_network())["model.embed_tokens.weight"]
    cut, _ = run(tmp_path, rows, control=control, max_grad_norm=1e-3, **plain)
    moved = cut.state_dict()["model.embed_tokens.weight"] - before
    assert float(moved.double().norm()) == pytest.approx(1e-3, rel=1e-3)


def test_nothing_to_train_with_or_on(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="no training data"):
        run(tmp_path, [])
    frozen = make_network().requires_grad_(False)
    with pytest.raises(CandidateError, match="every parameter is frozen"):
        run(tmp_path, make_rows(4), network=frozen)


def test_parameters_rest_and_learn_at_their_own_rates(tmp_path: Path) -> None:
    def rate(progress: float, name: str) -> float:
        if "embed" in name:
            return 1.0
        return 0.0 if progress < 0.5 else 0.25

    def rows_of(progress: float, name: str) -> range | None:
        return range(20, 28) if "embed" in name and progress < 0.5 else None

    control = Control(rate, rows_of)
    before = state(make_network())
    rows = make_rows(8)
    constant = {"warmup_steps": 0, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    half, _ = run(tmp_path / "a", rows[:4], control=control, weight_decay=0.1, **constant)
    moved = {name for name, value in state(half).items() if not torch.equal(value, before[name])}
    assert moved == {"model.embed_tokens.weight", "lm_head.weight"}
    table = half.state_dict()["model.embed_tokens.weight"] != before["model.embed_tokens.weight"]
    assert table.any(1).nonzero().flatten().tolist() == list(range(20, 28))
    whole, history = run(tmp_path / "b", rows, control=control, **constant)
    after = state(whole)
    # One step of Adam from zero moves by the rate, whatever the gradient.
    step = (
        (after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]).abs().max()
    )
    assert float(step) == pytest.approx(0.25e-3, rel=1e-3)
    assert {line["learning_rate"] for line in history.log} == {1e-3}


_CHILD = """
import json
import sys
from pathlib import Path
from tests.training.test_trainer import CrossEntropy, staged, state
from safetensors.torch import save_file
import torch
torch.set_num_threads(1)
folder = Path(sys.argv[1])
network, history = staged(folder / "work", CrossEntropy(pause=0.05), json.loads(sys.argv[2]))
save_file(state(network) | {"log": torch.tensor([line["loss"] for line in history.log])}, folder / "out.part")
(folder / "out.part").rename(folder / "out")
"""


EVERYTHING = {
    "lr_scheduler_type": "infinite",
    "lr_scheduler_kwargs": {"num_cooldown_steps": 0.3, "min_lr_ratio": 0.1},
    "warmup_steps": 3,
    "layerwise_lr_decay": 0.7,
    "weight_decay": 0.1,
}
"""Of the schedule and the rates; what rests when stands in ``staged``."""


def staged(folder: Path, objective: CrossEntropy, options: dict[str, Any]) -> Any:
    """Train 20 steps with a checkpoint after each; with options: new rows, all of them, then the body."""
    network = make_network(layers=3)
    more: dict[str, Any] = {}
    if options:
        phases = (Phase(0.4, "new_embeddings"), Phase(0.6, "embeddings"), Phase(1.0))
        more["control"] = control_of(network, TrainingArgs(**options), phases, range(20, 28))
    return run(
        folder,
        make_rows(40),
        objective=objective,
        network=network,
        save_seconds=0.0,
        per_device_train_batch_size=2,
        **more,
        **options,
    )


def test_stopped_in_every_phase_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, history = staged(tmp_path / "whole", CrossEntropy(), EVERYTHING)
    for stop in (5, 10, 16):
        with pytest.raises(CandidateError, match=f"step {stop + 1};"):
            staged(tmp_path / "stopped", CrossEntropy(spoil=stop), EVERYTHING)
        assert (tmp_path / "stopped" / f"checkpoint-{stop}" / "complete").exists()
    parts, rest = staged(tmp_path / "stopped", CrossEntropy(), EVERYTHING)
    assert [line["step"] for line in rest.log] == [line["step"] for line in history.log]
    for name, value in state(whole).items():
        assert torch.equal(parts.state_dict()[name], value), name


def _child(folder: Path, options: dict[str, Any]) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(folder), json.dumps(options)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def newest(folder: Path) -> str:
    """Look without touching: ``last_whole`` deletes what is being written."""
    return max((path.parent.name for path in folder.glob("checkpoint-*/complete")), default="")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_killed_at_any_instant_it_ends_with_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    from safetensors.torch import load_file

    whole = _child(tmp_path / "whole", options)
    assert whole.wait(120) == 0, whole.stderr.read().decode() if whole.stderr else ""
    killed = tmp_path / "killed"
    kills = 0
    draw = np.random.default_rng(3)
    for _ in range(3):
        begun = newest(killed / "work")
        child = _child(killed, options)
        # Kills come after progress, at instants that no step decides.
        while child.poll() is None:
            if newest(killed / "work") != begun:
                break
            time.sleep(0.01)
        time.sleep(float(draw.random()) * 0.3)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
    last = _child(killed, options)
    assert last.wait(120) == 0, last.stderr.read().decode() if last.stderr else ""
    assert kills
    one, other = load_file(tmp_path / "whole" / "out"), load_file(killed / "out")
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_broken_checkpoint_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "model.safetensors").write_bytes(b"half")
    network, _ = run(tmp_path, make_rows(4))
    plain, _ = run(tmp_path / "other", make_rows(4))
    assert not (tmp_path / "checkpoint-3").exists()
    assert torch.equal(network.state_dict()["lm_head.weight"], plain.state_dict()["lm_head.weight"])


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_hostile_pickle_in_a_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CandidateError, match="step 3;"):
        run(tmp_path / "work", make_rows(40), objective=CrossEntropy(spoil=2), save_seconds=0.0)
    checkpoint = tmp_path / "work" / "checkpoint-2"
    assert (checkpoint / name).exists() and (checkpoint / "complete").exists()
    mark = tmp_path / "it ran"
    torch.save({"state": Hostile(mark)}, checkpoint / name)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        run(tmp_path / "work", make_rows(40), save_seconds=0.0)
    assert not mark.exists()
    torch.load(checkpoint / name, weights_only=False)
    assert mark.exists(), "it does run where somebody trusts it"

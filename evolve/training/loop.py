"""transformers' Trainer, told to do what :mod:`evolve.training.trainer` promises."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from evolve.errors import CandidateError
from evolve.training import ranks
from evolve.training.arguments import DECAY
from evolve.training.schedules import infinite, steps_of_share
from evolve.training.trainer import Control, Settings, count_items, mark_whole, steps_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from evolve.training.arguments import TrainingArgs
    from evolve.training.rows import Row
    from evolve.training.trainer import Objective

logger = logging.getLogger(__name__)

_LINES = 50
"""About so many lines a run has in its log."""
_TELL_SECONDS = 10.0
_INFINITE = {
    "num_cooldown_steps": "cooldown",
    "num_decay_steps": "decay",
    "constant_lr_ratio": "constant",
    "min_lr_ratio": "least",
}
"""Keys of the config to arguments of the schedule."""


def make_trainer(
    network: Any, rows: Sequence[Row], objective: Objective, settings: Settings, *, spent: float
) -> Trainer:
    """Return a Trainer that is ready to go.

    Args:
        network: What is trained.
        rows: In their order.
        objective: Gives the loss.
        settings: See there.
        spent: Seconds of earlier starts.
    """
    steps = steps_of(len(rows), settings.arguments)
    clock = _Clock(settings, steps, spent)
    trainer = _Trainer(
        model=network,
        args=_arguments(settings, steps),
        train_dataset=_Rows(rows),
        data_collator=list,
        callbacks=[clock, _Resting(network, settings)],
    )
    trainer.objective = objective
    trainer.name = settings.name
    trainer.arguments = settings.arguments
    trainer.each_alone = settings.control != Control()
    # The progress is ours, and the rest of the callbacks print.
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback", "NotebookProgressCallback"):
            trainer.remove_callback(callback)
    return trainer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars: progress is a line in our log."""
    from transformers.utils import logging as theirs

    shown = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()


class _Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


class _Trainer(Trainer):
    objective: Objective
    name: str
    each_alone: bool
    arguments: TrainingArgs

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # The loss is divided by the tokens of the whole step already.
        self.model_accepts_loss_kwargs = True
        self._numbers: dict[str, dict[int, float]] = {}
        if ranks.count() > 1:
            # No DistributedDataParallel around it: ranks.py says why.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def create_optimizer(self, model: Any = None) -> Any:
        optimizer = super().create_optimizer(model)
        if self.each_alone:
            # A group has one learning rate.
            optimizer.param_groups[:] = [
                {**group, "params": [parameter]}
                for group in optimizer.param_groups
                for parameter in group["params"]
            ]
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.arguments.lr_scheduler_type != "infinite":
            return super().create_scheduler(num_training_steps, optimizer)
        given = self.arguments.lr_scheduler_kwargs.model_dump(exclude_none=True)
        schedule = infinite(
            num_training_steps,
            warmup=self.args.get_warmup_steps(num_training_steps),
            **{_INFINITE.get(key, key): value for key, value in given.items()},
        )
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, schedule)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def get_train_dataloader(self) -> Any:
        if ranks.count() == 1:
            return super().get_train_dataloader()
        # Every process reads all rows and takes its share of each step.
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            sampler=self._get_train_sampler(),
            collate_fn=self.data_collator,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        batches: list[Sequence[Row]] = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        step = int(self.state.global_step)
        batches = [
            self.objective.prepare(self.model, batch, step=step) if batch else batch
            for batch in ranks.share(batches)
        ]
        items = torch.tensor(sum(count_items(batch) for batch in batches), device=device)
        if ranks.count() > 1:
            items = self.accelerator.gather(items).sum()
        return [{"rows": batch} for batch in batches], items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = torch.zeros((), device=self.args.device)
        if inputs["rows"]:
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            ranks.mean_gradients(model.parameters())
        return loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        items = max(1, int(num_items_in_batch))
        loss, numbers = self.objective.loss(model, inputs["rows"], num_items=items)
        if not math.isfinite(float(loss.detach())):
            raise CandidateError(
                "non_finite",
                f"{self.name}: the loss is {float(loss.detach())} at step {self.state.global_step + 1}; "
                "a lower learning rate or a longer warm-up may help",
            )
        step = int(self.state.global_step)
        for key, value in numbers.items():
            of_steps = self._numbers.setdefault(key, {})
            of_steps[step] = of_steps.get(step, 0.0) + value
        # Gradients of several processes are averaged, and the items are those of all.
        scaled: Tensor = loss * ranks.count()
        return (scaled, None) if return_outputs else scaled

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            # A part of a step has its share of the step's sum, so parts add up, and steps that have a number
            # are averaged.
            numbers = _together(ranks.gathered(self._numbers))
            logs |= {key: sum(steps.values()) / len(steps) for key, steps in numbers.items()}
            self._numbers.clear()
        super().log(logs, start_time)


def _together(parts: Sequence[dict[str, dict[int, float]]]) -> dict[str, dict[int, float]]:
    """Return the sums over the processes, by key and step."""
    found: dict[str, dict[int, float]] = {}
    for part in parts:
        for key, steps in part.items():
            of_steps = found.setdefault(key, {})
            for step, value in steps.items():
                of_steps[step] = of_steps.get(step, 0.0) + value
    return found


class _Clock(TrainerCallback):
    """Checkpoints by the clock, whole ones marked; a line of progress now and then."""

    def __init__(self, settings: Settings, steps: int, spent: float) -> None:
        self._settings = settings
        self._steps = steps
        self._spent = spent
        self._began = self._saved = self._told = time.monotonic()
        self._first: int | None = None
        self._loss = math.nan

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._first is None:
            self._first = int(state.global_step)
            self._began = self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        now = time.monotonic()
        done = int(state.global_step)
        due = now - self._saved >= self._settings.save_seconds and done < self._steps
        if ranks.agreed(due):
            control.should_save = True
            self._saved = now
        if ranks.rank() == 0 and (now - self._told >= _TELL_SECONDS or done == self._steps):
            self._told = now
            each = (now - self._began) / max(1, done - (self._first or 0))
            left = each * (self._steps - done)
            logger.info(
                "%s: step %d of %d, loss %.4g, %.2g s a step, %d s left",
                self._settings.name,
                done,
                self._steps,
                self._loss,
                each,
                round(left),
            )
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._loss = float(logs["loss"])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        ranks.wait()  # each process has a part in it
        if ranks.rank() == 0:
            mark_whole(checkpoint, self._spent + time.monotonic() - self._began)
        ranks.wait()


class _Resting(TrainerCallback):
    """Parameters that rest, wholly or in some rows, and factors of learning rates."""

    def __init__(self, network: Any, settings: Settings) -> None:
        self._control = settings.control
        self._trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._rows: dict[str, range] = {}
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}
        self._scaled: list[tuple[dict[str, Any], float]] = []
        if self._control != Control():
            for name, parameter in self._trained.items():
                # In the backward pass, so that rows that rest have no part in the length that is clipped.
                parameter.register_hook(partial(self._masked, name))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        progress = state.global_step / max(1, state.max_steps)
        for name, parameter in self._trained.items():
            parameter.requires_grad_(self._control.rate(progress, name) > 0)
            if (rows := self._control.rows(progress, name)) is not None:
                self._rows[name] = rows
            else:
                self._rows.pop(name, None)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        for name, rows in self._rows.items():
            if self._trained[name].grad is not None:
                # Decay and momentum would move them without a gradient.
                before = self._trained[name].detach()
                self._kept[name] = before[: rows.start].clone(), before[rows.stop :].clone()
        self._rates(more["optimizer"], state.global_step / max(1, state.max_steps))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        with torch.no_grad():
            for name, (before, behind) in self._kept.items():
                self._trained[name][: len(before)] = before
                self._trained[name][len(self._trained[name]) - len(behind) :] = behind
        self._kept.clear()
        for group, rate in self._scaled:
            group["lr"] = rate
        self._scaled.clear()

    def _masked(self, name: str, gradient: Tensor) -> Tensor | None:
        rows = self._rows.get(name)
        if rows is None:
            return None
        masked = torch.zeros_like(gradient)
        masked[rows.start : rows.stop] = gradient[rows.start : rows.stop]
        return masked

    def _rates(self, optimizer: Any, progress: float) -> None:
        if self._control == Control():
            return
        names = {id(parameter): name for name, parameter in self._trained.items()}
        for group in optimizer.param_groups:
            factor = self._control.rate(progress, names[id(group["params"][0])])
            if group["params"][0].grad is not None and factor != 1.0:
                self._scaled.append((group, group["lr"]))
                group["lr"] = group["lr"] * factor


def _arguments(settings: Settings, steps: int) -> TrainingArguments:
    ours = {"num_train_epochs", "layerwise_lr_decay", "gradual_unfreezing", "lr_scheduler_kwargs"}
    given = settings.arguments.model_dump(exclude=ours)
    warmup = given.pop("warmup_steps")
    options = settings.arguments.lr_scheduler_kwargs.model_dump(exclude_none=True)
    schedule = given.pop("lr_scheduler_type")
    if schedule == "warmup_stable_decay":
        decay = steps_of_share(options.pop("num_decay_steps", DECAY), steps)
        left = steps - steps_of_share(warmup, steps)
        options["num_decay_steps"] = max(1, min(decay, left))
    found = TrainingArguments(
        output_dir=str(settings.folder),
        max_steps=steps,
        warmup_steps=warmup if warmup < 1 else int(warmup),
        # The name of one that transformers has: _Trainer makes ours.
        lr_scheduler_type="constant" if schedule == "infinite" else schedule,
        lr_scheduler_kwargs={} if schedule == "infinite" else options,
        seed=settings.seed % 2**32,
        data_seed=settings.seed % 2**32,
        logging_steps=max(1, steps // _LINES),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=10**9,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ignore_data_skip=False,
        average_tokens_across_devices=False,
        include_num_input_tokens_seen="no",
        **given,
    )
    # With several GPUs in sight transformers would wrap the network in DataParallel, which splits no rows of
    # ours, and would multiply the batch.
    found._n_gpu = min(found.n_gpu, 1)
    return found

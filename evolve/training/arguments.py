"""``training_args`` and ``peft_config`` of a stage: keys of transformers and peft, any number a range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from evolve.config.values import Block, SearchInt, SearchNumber, SearchSwitch
from evolve.training.schedules import schedule_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
]


class TrainingArgs(Block):
    """Keys of transformers' ``TrainingArguments``, with the same meaning. What is absent has our default."""

    learning_rate: SearchNumber = 5e-5
    """The largest learning rate of the schedule."""
    lr_scheduler_type: Schedule = "cosine"
    """The schedule; a run that is shorter has the whole of it."""
    lr_scheduler_kwargs: dict[str, float | int | str] = Field(default_factory=dict)
    """Of the schedule, such as ``min_lr_rate``. ``warmup_stable_decay`` decays over the last tenth."""
    warmup_steps: SearchNumber = 0.03
    """Steps until the largest rate is reached; below 1 a share of all steps."""
    num_train_epochs: SearchInt = 1
    """How often the data is gone over, each time in another order."""
    per_device_train_batch_size: SearchInt = 8
    """Rows of one forward and backward pass."""
    gradient_accumulation_steps: SearchInt = 1
    """Passes of one step. The loss of a step does not depend on how it is divided."""
    optim: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"] = "adamw_torch"
    """The optimizer. Its state starts from zero."""
    weight_decay: SearchNumber = 0.0
    """Decoupled weight decay of matrices; none of biases and norms."""
    adam_beta1: SearchNumber = 0.9
    """Of AdamW."""
    adam_beta2: SearchNumber = 0.999
    """Of AdamW."""
    adam_epsilon: SearchNumber = 1e-8
    """Of AdamW."""
    max_grad_norm: SearchNumber = 1.0
    """Longer gradients are shortened to this; 0: never."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""

    def problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield ``(path, message)`` for each number outside of what has a meaning, ranges by their ends."""
        for key, low, high in _BOUNDS:
            for value in ends(getattr(self, key)):
                if value < low or (high is not None and value > high):
                    most = "" if high is None else f" and at most {high:g}"
                    yield (key,), f"{key} must be at least {low:g}{most}, got {value:g}"
                    break
        for key in ("adam_beta1", "adam_beta2"):
            if any(not 0 <= value < 1 for value in ends(getattr(self, key))):
                yield (key,), f"{key} must be at least 0 and below 1"
        for key, message in schedule_problems(self.lr_scheduler_type, self.lr_scheduler_kwargs):
            yield (("lr_scheduler_kwargs", key) if key else ("lr_scheduler_type",)), message


_BOUNDS: tuple[tuple[str, float, float | None], ...] = (
    ("learning_rate", 0.0, None),
    ("warmup_steps", 0.0, None),
    ("num_train_epochs", 1, None),
    ("per_device_train_batch_size", 1, None),
    ("gradient_accumulation_steps", 1, None),
    ("weight_decay", 0.0, None),
    ("adam_epsilon", 0.0, None),
    ("max_grad_norm", 0.0, None),
)


class PeftConfig(Block):
    """A low-rank adapter, merged into the weights after training. Keys of peft's ``LoraConfig``."""

    r: SearchInt = 16
    """Rank."""
    lora_alpha_ratio: SearchNumber = 2.0
    """``lora_alpha`` as a multiple of ``r``, so that a search over the rank does not change the scale."""
    lora_dropout: SearchNumber = 0.0
    """Dropout before the adapter."""
    target_modules: str | list[str] = "all-linear"
    """``all-linear``, or names of modules. The head and the embeddings are never in ``all-linear``."""
    modules_to_save: list[str] | None = None
    """Modules that are trained whole, such as ``embed_tokens``."""
    use_dora: SearchSwitch = False
    """Weight-decomposed adapters (DoRA, arXiv:2402.09353)."""
    use_rslora: SearchSwitch = False
    """Scale by the root of the rank (arXiv:2312.03732)."""

    def problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield ``(path, message)`` for each number that has no meaning."""
        for value in ends(self.r):
            if value < 1:
                yield ("r",), f"r must be at least 1, got {value:g}"
        for value in ends(self.lora_dropout):
            if not 0 <= value < 1:
                yield ("lora_dropout",), f"lora_dropout must be at least 0 and below 1, got {value:g}"


def ends(value: Any) -> list[float]:
    """Return the numbers that stand for a number or a range: both ends, or all choices."""
    if isinstance(value, bool | str):
        return []
    if isinstance(value, int | float):
        return [value]
    if hasattr(value, "choices"):
        return [choice for choice in value.choices if isinstance(choice, int | float)]
    return [value.low, value.high]

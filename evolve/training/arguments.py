"""``training_args`` and ``peft_config`` of a stage: keys of transformers and peft, any number a range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from evolve.config.values import Block, SearchInt, SearchNumber, SearchSwitch

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
    "infinite",
]
Shape = Literal["linear", "cosine", "1-sqrt"]


class SchedulerKwargs(Block):
    """Of the schedule; each key belongs to some schedules. Numbers of steps may be shares below 1 of all."""

    num_cycles: SearchNumber | None = None
    """Waves of the cosine schedules: half a one where it is absent, one of ``cosine_with_restarts``."""
    min_lr: SearchNumber | None = None
    """Rate at the end of ``cosine_with_min_lr``; or ``min_lr_rate``."""
    min_lr_rate: SearchNumber | None = None
    """The same as a share of the largest rate."""
    lr_end: SearchNumber | None = None
    """Rate at the end of ``polynomial``."""
    power: SearchNumber | None = None
    """Of ``polynomial``."""
    timescale: SearchInt | None = None
    """Of ``inverse_sqrt``, in steps; absent: the warm-up."""
    num_cooldown_steps: SearchNumber | None = None
    """Steps of ``infinite`` from the largest rate down to the constant one; absent: 0.6 of all."""
    constant_lr_ratio: SearchNumber | None = None
    """Constant rate of ``infinite`` as a share of the largest; absent: 0.5."""
    num_decay_steps: SearchNumber | None = None
    """Steps at the end in which ``warmup_stable_decay`` and ``infinite`` decay; absent: a tenth of all."""
    min_lr_ratio: SearchNumber | None = None
    """Rate at the end of these two, as a share of the largest; absent: 0."""
    warmup_type: Shape | None = None
    """Way up of ``warmup_stable_decay``; absent: linear."""
    cooldown_type: Shape | None = None
    """Way down to the constant rate of ``infinite``; absent: cosine."""
    decay_type: Shape | None = None
    """Way down at the end of ``warmup_stable_decay`` and ``infinite``; absent: cosine."""


class UnfreezingBlock(Block):
    """Gradual unfreezing: the top layers are trained first, then more and more below them.

    Howard and Ruder 2018, Universal language model fine-tuning, arXiv:1801.06146.
    """

    groups: SearchInt = 4
    """Groups of layers, from the top: head, last norm and the first group are trained from the start, the
    embeddings join with the last. 1: all from the start."""
    until: SearchNumber = 0.5
    """When the last group joins, as a share of the steps; the others join evenly before."""


class TrainingArgs(Block):
    """Keys of transformers' ``TrainingArguments``, with the same meaning. What is absent has our default."""

    learning_rate: SearchNumber = 5e-5
    """The largest learning rate of the schedule."""
    lr_scheduler_type: Schedule = "cosine"
    """The schedule; a run that is shorter has the whole of it."""
    lr_scheduler_kwargs: SchedulerKwargs = SchedulerKwargs()
    """Keys of the schedule."""
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
    layerwise_lr_decay: SearchNumber = 1.0
    """Factor of the learning rate from each layer to the one below it: head and last norm have the whole
    rate, the embeddings the smallest. 1: all have the same."""
    gradual_unfreezing: UnfreezingBlock | None = None
    """Train the top layers first; absent: all from the start."""

    def problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield ``(path, message)`` for each number outside of what has a meaning, ranges by their ends."""
        yield from _out_of_bounds(self, (), _BOUNDS)
        yield from _out_of_bounds(self.lr_scheduler_kwargs, ("lr_scheduler_kwargs",), _KWARGS_BOUNDS)
        if self.gradual_unfreezing is not None:
            yield from _out_of_bounds(self.gradual_unfreezing, ("gradual_unfreezing",), _UNFREEZING_BOUNDS)
        if any(value <= 0 for value in ends(self.layerwise_lr_decay)):
            yield ("layerwise_lr_decay",), "layerwise_lr_decay must be above 0, or the lower layers rest"
        for key in ("adam_beta1", "adam_beta2"):
            if any(not 0 <= value < 1 for value in ends(getattr(self, key))):
                yield (key,), f"{key} must be at least 0 and below 1"
        yield from self._schedule_problems()

    def _schedule_problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        own = _KWARGS.get(self.lr_scheduler_type, ())
        given = self.lr_scheduler_kwargs
        for key in type(given).model_fields:
            if getattr(given, key) is not None and key not in own:
                has = f"it has {', '.join(own)}" if own else "it has no keys"
                message = f"{key!r} is no key of the schedule {self.lr_scheduler_type}: {has}"
                yield ("lr_scheduler_kwargs", key), message
        if self.lr_scheduler_type == "cosine_with_min_lr" and (given.min_lr is None) == (
            given.min_lr_rate is None
        ):
            yield ("lr_scheduler_kwargs",), "cosine_with_min_lr needs one of min_lr and min_lr_rate"
        if self.lr_scheduler_type == "polynomial" and max(ends(_or(given.lr_end, 1e-7))) >= min(
            ends(self.learning_rate)
        ):
            yield ("lr_scheduler_kwargs",), "polynomial ends at lr_end, which must be below learning_rate"
        if self.lr_scheduler_type in ("warmup_stable_decay", "infinite"):
            parts = [self.warmup_steps, _or(given.num_decay_steps, DECAY)]
            if self.lr_scheduler_type == "infinite":
                parts.append(_or(given.num_cooldown_steps, COOLDOWN))
            shares = [max(ends(part)) for part in parts]
            if sum(share for share in shares if share < 1) > 1 + 1e-9:
                yield ("lr_scheduler_kwargs",), "the parts of the schedule are more than all steps together"

    @classmethod
    def effective(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Return filled-in arguments without an unfreezing that freezes nothing."""
        block = plain.get("gradual_unfreezing")
        if block is not None and (block.get("groups", 4) == 1 or block.get("until", 0.5) == 0):
            return {key: value for key, value in plain.items() if key != "gradual_unfreezing"}
        return plain


COOLDOWN = 0.6
"""Share of the steps in which ``infinite`` cools down, where nothing else is said."""
DECAY = 0.1
"""Share of the steps of the decay at the end."""

_KWARGS: dict[str, tuple[str, ...]] = {
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": ("num_decay_steps", "min_lr_ratio", "warmup_type", "decay_type", "num_cycles"),
    "infinite": (
        "num_cooldown_steps",
        "constant_lr_ratio",
        "num_decay_steps",
        "min_lr_ratio",
        "cooldown_type",
        "decay_type",
    ),
}

_Bounds: TypeAlias = tuple[tuple[str, float, float | None], ...]
_KWARGS_BOUNDS: _Bounds = (
    ("num_cycles", 0.0, None),
    ("min_lr", 0.0, None),
    ("min_lr_rate", 0.0, 1.0),
    ("lr_end", 0.0, None),
    ("power", 0.0, None),
    ("timescale", 1, None),
    ("num_cooldown_steps", 0.0, None),
    ("constant_lr_ratio", 0.0, 1.0),
    ("num_decay_steps", 0.0, None),
    ("min_lr_ratio", 0.0, 1.0),
)
_UNFREEZING_BOUNDS: _Bounds = (("groups", 1, None), ("until", 0.0, 1.0))
_BOUNDS: _Bounds = (
    ("learning_rate", 0.0, None),
    ("warmup_steps", 0.0, None),
    ("num_train_epochs", 1, None),
    ("per_device_train_batch_size", 1, None),
    ("gradient_accumulation_steps", 1, None),
    ("weight_decay", 0.0, None),
    ("adam_epsilon", 0.0, None),
    ("max_grad_norm", 0.0, None),
    ("layerwise_lr_decay", 0.0, 1.0),
)


def _out_of_bounds(
    block: Block, path: tuple[str, ...], bounds: _Bounds
) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, low, high in bounds:
        for value in ends(getattr(block, key)):
            if value < low or (high is not None and value > high):
                most = "" if high is None else f" and at most {high:g}"
                yield (*path, key), f"{key} must be at least {low:g}{most}, got {value:g}"
                break


def _or(value: Any, default: float) -> Any:
    return default if value is None else value


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
    if value is None or isinstance(value, bool | str):
        return []
    if isinstance(value, int | float):
        return [value]
    if hasattr(value, "choices"):
        return [choice for choice in value.choices if isinstance(choice, int | float)]
    return list(value.ends)

"""Which keys the learning-rate schedules of transformers take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SHAPES = ("linear", "cosine", "1-sqrt")
KEYS: Mapping[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "polynomial": ("lr_end", "power"),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
}
"""Schedule to the keys of ``lr_scheduler_kwargs`` that it takes, beside those that every run fills in."""


def schedule_problems(name: str, options: Mapping[str, float | int | str]) -> Iterator[tuple[str, str]]:
    """Yield ``(key or "", message with the mend)`` for what a schedule cannot be made with."""
    known = KEYS[name]
    for key, value in options.items():
        if key not in known:
            yield key, f"{key} is no key of {name}: {', '.join(known) or 'it has none'}"
        elif key in ("warmup_type", "decay_type"):
            if value not in _SHAPES:
                yield key, f"{key} must be one of {', '.join(_SHAPES)}, got {value!r}"
        elif isinstance(value, str):
            yield key, f"{key} must be a number, got {value!r}"
    if name == "cosine_with_min_lr" and len({"min_lr", "min_lr_rate"} & options.keys()) != 1:
        yield "", "cosine_with_min_lr needs one of min_lr and min_lr_rate, such as {min_lr_rate: 0.1}"

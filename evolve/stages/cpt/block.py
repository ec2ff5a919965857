"""The keys of a stage of continual pre-training."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, create_model

from evolve.config.values import (
    Block,
    Choices,
    DataFile,
    Range,
    SearchInt,
    SearchNumber,
    SearchSwitch,
    StageBlock,
)
from evolve.registry import REGULARIZERS
from evolve.training.arguments import PeftConfig, TrainingArgs

Path: TypeAlias = tuple[str | int, ...]


class DatasetBlock(DataFile):
    """The corpus: a file or a folder of ``.jsonl``, ``.parquet`` and text files."""

    max_bytes: SearchInt | None = None
    """Most bytes of it that are seen in an epoch, replay among them; absent: all."""
    max_length: int = Field(default=512, ge=2)
    """Most tokens of a row."""
    packing: bool = True
    """Whether a row holds several documents, which do not see each other."""
    deduplicate: bool = False
    """Whether a document whose text was there before is left out."""


class ReplayBlock(DataFile):
    """Text of an older training, mixed with the corpus. The bytes of both together stay the same."""

    path: str = ""
    """The text; without it ``self_generated`` is given."""
    self_generated: SearchInt | None = None
    """So many texts that the start model writes itself, in place of a file."""
    share: SearchNumber = 0.05
    """Of the bytes that are seen, from 0 to 0.9."""


class CurriculumBlock(Block):
    """The order of the documents, from easy to hard."""

    order: Literal["length", "base_loss", "quality"]
    """``length``: bytes; ``base_loss``: the start model's loss a token; ``quality``: a field of the lines."""
    field: str = "quality"
    """The field that ``quality`` means; the lowest comes first."""
    reverse: SearchSwitch = False
    """From hard to easy."""
    pacing: SearchNumber | None = None
    """The share of the easiest documents that may come at the start; it grows to all of them. 1: no
    curriculum; absent: strictly in order."""


class EndsBlock(Block):
    """The embeddings, and the layers at both ends."""

    top_layers: SearchInt = 2
    """So many layers at the end."""
    bottom_layers: SearchInt = 2
    """So many at the beginning."""


def _kind_of_train(value: Any) -> str | None:
    if isinstance(value, str):
        return "word"
    if isinstance(value, list):
        return "names"
    return "ends" if isinstance(value, dict | EndsBlock) else None


Train: TypeAlias = Annotated[
    Annotated[Literal["all", "embeddings", "new_embeddings"], Tag("word")]
    | Annotated[list[str], Tag("names")]
    | Annotated[EndsBlock, Tag("ends")],
    Discriminator(
        _kind_of_train,
        "wrong_shape",
        "expected all, embeddings, new_embeddings, a list of names, or "
        "{top_layers: NUMBER, bottom_layers: NUMBER}",
    ),
]


class PhaseBlock(Block):
    """A part of the training."""

    until: SearchNumber
    """Where it ends, as a share of the steps; the last one's is 1."""
    train: Train = "all"
    """``all``, ``embeddings``, the ``new_embeddings`` of a stage ``vocab`` before, patterns of names, or the
    embeddings with the layers at both ends: ``{top_layers: 2, bottom_layers: 2}``."""
    learning_rate_scale: dict[str, SearchNumber] = Field(default_factory=dict)
    """Pattern of parameter names to a factor of the learning rate."""
    replay_share_scale: SearchNumber = 1.0
    """Factor of the share of replay."""


class WiseFtBlock(Block):
    """Interpolation back to the start, after the training and without a new one."""

    alpha: SearchNumber = 1.0
    """0: the start weights; 1: the trained ones."""


RegularizersBlock: type[Block] = create_model(
    "RegularizersBlock",
    __base__=Block,
    __doc__="What holds the model near its start; each with a weight, 0 where it is not used.",
    **{name: (REGULARIZERS.load(name).block | None, None) for name in REGULARIZERS.names()},  # type: ignore[call-overload]
)


class CptBlock(StageBlock):
    """A stage of continual pre-training."""

    model: str | None = None
    """The start: a model or the output of a stage; absent: the output of the stage before."""
    dataset: DatasetBlock
    """The corpus."""
    replay: ReplayBlock | None = None
    """What is seen again."""
    curriculum: CurriculumBlock | None = None
    """The order of the documents; absent: shuffled."""
    phases: list[PhaseBlock] = Field(default_factory=list)
    """Progressive training; absent: everything from start to end."""
    regularizers: RegularizersBlock | None = None
    """What holds the model near its start."""
    wise_ft: WiseFtBlock = WiseFtBlock()
    """Interpolation back to the start."""
    peft_config: PeftConfig | None = None
    """A low-rank adapter; absent: full training."""
    training_args: TrainingArgs = TrainingArgs()
    """As transformers' ``TrainingArguments``."""

    def problems(self) -> list[tuple[Path, str]]:
        """Return what is wrong with replay, phases and regularisers."""
        found = [*_replay_problems(self.replay), *_phase_problems(self.phases)]
        if self.curriculum is not None:
            found += _between(self.curriculum.pacing, ("curriculum", "pacing"), 0.0, 1.0, above=True)
        found += _between(self.wise_ft.alpha, ("wise_ft", "alpha"), 0.0, 1.0)
        found += _between(self.dataset.max_bytes, ("dataset", "max_bytes"), 1, None)
        for name in REGULARIZERS.names():
            block = getattr(self.regularizers, name, None)
            if block is not None:
                found += _between(block.weight, ("regularizers", name, "weight"), 0.0, None)
                samples = getattr(block, "samples", None)
                found += _between(samples, ("regularizers", name, "samples"), 1, None)
                temperature = getattr(block, "temperature", None)
                found += _between(temperature, ("regularizers", name, "temperature"), 0.0, None, above=True)
                if self.peft_config is not None and REGULARIZERS.load(name).weights_only:
                    message = f"{name} holds weights, and an adapter has others: remove it, or peft_config"
                    found.append((("regularizers", name), message))
        found += [(("training_args", *path), message) for path, message in self.training_args.problems()]
        if self.peft_config is not None:
            found += [(("peft_config", *path), message) for path, message in self.peft_config.problems()]
        return found

    @classmethod
    def effective(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Return a filled-in block without what changes nothing: weights of 0, no share, pacing 1."""
        found = dict(plain)
        replay = found.get("replay")
        if replay is not None and not replay.get("share", ReplayBlock.model_fields["share"].default):
            del found["replay"]
        if (found.get("curriculum") or {}).get("pacing") == 1:
            del found["curriculum"]
        if "regularizers" in found:
            on = {name: block for name, block in found["regularizers"].items() if block.get("weight")}
            found["regularizers"] = on
            if not on:
                del found["regularizers"]
        if (found.get("wise_ft") or {}).get("alpha", 1) == 1:
            found.pop("wise_ft", None)
        if "phases" in found:
            found["phases"] = _real_phases(found["phases"])
        if "training_args" in found:
            found["training_args"] = TrainingArgs.effective(found["training_args"])
        return found

    def needs(self) -> list[tuple[Path, str, str]]:
        """Say that new rows come from a stage ``vocab``."""
        return [
            (
                ("phases", number, "train"),
                "vocab",
                "new_embeddings are the rows that a stage vocab has added, and the start comes from none: "
                "put one before (a merge in between hides them), or train embeddings",
            )
            for number, phase in enumerate(self.phases)
            if phase.train == "new_embeddings"
        ]

    @classmethod
    def without(cls, plain: dict[str, Any], kinds: frozenset[str]) -> dict[str, Any]:
        """Drop phases that train new rows where the stage that would add them is off."""
        if "vocab" not in kinds or "phases" not in plain:
            return plain
        return {
            **plain,
            "phases": [phase for phase in plain["phases"] if phase.get("train") != "new_embeddings"],
        }


def _real_phases(phases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop the phases that end where they begin."""
    found: list[dict[str, Any]] = []
    begin = 0.0
    for phase in phases:
        if phase["until"] > begin:
            found.append(phase)
            begin = phase["until"]
    return found


def _replay_problems(replay: ReplayBlock | None) -> list[tuple[Path, str]]:
    if replay is None:
        return []
    found: list[tuple[Path, str]] = []
    if bool(replay.path) == (replay.self_generated is not None):
        message = "replay needs one of `path: FILE` and `self_generated: NUMBER`"
        found.append((("replay",), message))
    found += _between(replay.self_generated, ("replay", "self_generated"), 1, None)
    return found + _between(replay.share, ("replay", "share"), 0.0, 0.9)


def _phase_problems(phases: list[PhaseBlock]) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    last = 0.0
    for number, phase in enumerate(phases):
        path: Path = ("phases", number, "until")
        low, high = bounds(phase.until)
        if low < 0 or high > 1:
            found.append(
                (path, f"until is a share of the steps, from 0 to 1, got {high if high > 1 else low:g}")
            )
        elif low < last:
            found.append((path, f"until must not be below that of the phase before, {last:g}"))
        last = max(last, high)
        found += _between(phase.replay_share_scale, ("phases", number, "replay_share_scale"), 0.0, None)
        for pattern, factor in phase.learning_rate_scale.items():
            found += _between(factor, ("phases", number, "learning_rate_scale", pattern), 0.0, None)
        if isinstance(phase.train, EndsBlock):
            for key in ("top_layers", "bottom_layers"):
                found += _between(getattr(phase.train, key), ("phases", number, "train", key), 0, None)
        if phase.train == []:
            found.append((("phases", number, "train"), "train names nothing: list patterns, or remove it"))
    path = ("phases", len(phases) - 1, "until")
    if phases and bounds(phases[-1].until) != (1.0, 1.0) and path not in dict(found):
        found.append((path, "the last phase goes to the end: set until to 1"))
    return found


def bounds(value: SearchNumber | SearchInt) -> tuple[float, float]:
    """Return the smallest and the largest number that a value of a block can be."""
    if isinstance(value, Range):
        return value.ends
    if isinstance(value, Choices):
        numbers = [float(one) for one in value.choices if not isinstance(one, str)]
        return min(numbers), max(numbers)
    return float(value), float(value)


def _between(
    value: SearchNumber | SearchInt | None, path: Path, low: float, high: float | None, *, above: bool = False
) -> list[tuple[Path, str]]:
    if value is None:
        return []
    least, most = bounds(value)
    if (least <= low if above else least < low) or (high is not None and most > high):
        what = f"above {low:g}" if above else f"{low:g} or more"
        if high is not None:
            what = f"from {low:g} to {high:g}" if not above else f"above {low:g} and at most {high:g}"
        return [(path, f"{path[-1]} must be {what}")]
    return []

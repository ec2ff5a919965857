"""The keys of a vocabulary stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from evolve.config.values import (
    Block,
    Choices,
    DataFile,
    IntRange,
    Range,
    SearchInt,
    SearchNumber,
    StageBlock,
)
from evolve.registry import INITIALISERS, SELECTORS, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.registry import Registry

MOST_TOKENS = 1 << 15
"""Most tokens that a stage adds."""


def _known(registry: Registry[Any]) -> AfterValidator:
    def check(value: str | Choices) -> str | Choices:
        for name in names(value):
            if name not in registry:
                raise ValueError(f"unknown {registry.kind} {name!r}{did_you_mean(name, registry.names())}")
        return value

    return AfterValidator(check)


def names(value: str | Choices) -> tuple[str, ...]:
    """Return the names that a name or a choice between names may be."""
    return tuple(map(str, value.choices)) if isinstance(value, Choices) else (value,)


def _kind_of_name(value: Any) -> str | None:
    if isinstance(value, str):
        return "name"
    choices = isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value)
    return "choices" if choices else None


def _as_file(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


NamedFile: TypeAlias = Annotated[DataFile, BeforeValidator(_as_file, json_schema_input_type=str | DataFile)]
"""A file, which may be written as its path alone."""
SearchName: TypeAlias = Annotated[
    Annotated[str, Tag("name")] | Annotated[Choices, Tag("choices")],
    Discriminator(_kind_of_name, "wrong_shape", "expected a name, or {choices: [...]}"),
]
"""A name, or a choice between names."""
InitialiserName: TypeAlias = Annotated[SearchName, _known(INITIALISERS)]


class SelectionBlock(Block):
    """How tokens are chosen from the dataset."""

    method: Annotated[SearchName, _known(SELECTORS)] = "pair_merges"
    """``pair_merges``: tokens of a BPE of the dataset that are exactly two tokens of the base.
    ``continued_bpe``: the training of the base's BPE goes on. ``savings``: words, by the tokens they save."""
    min_frequency: SearchInt = 20
    """Least occurrences of a new token in the dataset."""
    contrast: NamedFile | None = None
    """A general text. With it only what is commoner in the dataset counts, times the log of how much."""


class InitBlock(Block):
    """Where the rows of new tokens come from."""

    input: InitialiserName = "subtoken_mean"
    """Of the embedding; where the head is tied to it, of both."""
    output: InitialiserName = "length_weighted_mean"
    """Of a head of its own, and of its bias."""
    norm: SearchNumber | None = None
    """Length of new rows of the embedding, as a multiple of the mean length of old ones; absent: as it comes
    out."""
    output_norm: SearchNumber | None = None
    """The same of a head of its own."""


class VocabBlock(StageBlock):
    """Adds tokens of a domain to the tokenizer, and rows for them to embedding and head."""

    model: str | None = None
    """The model to extend; absent: the output of the stage before."""
    dataset: NamedFile | None = None
    """Text of the domain. A ``.jsonl`` file has a document a line, with the key ``text``; in any other file
    empty lines stand between documents."""
    terms: NamedFile | None = None
    """Words that become tokens, one a line. They go before those that are chosen from the dataset."""
    num_new_tokens: SearchInt
    """How many tokens are added, all told. The first 128 are the first 128 of the 256."""
    selection: SelectionBlock = SelectionBlock()
    """How tokens are chosen from the dataset."""
    init: InitBlock = InitBlock()
    """Where their rows come from."""
    pad_to_multiple_of: int = Field(default=64, ge=1, le=1 << 20)
    """Where rows are added, their number is rounded up to a multiple of this."""

    @property
    def reshapes(self) -> bool:
        """Whether the number of tokens, or whether there are any, is searched."""
        return not isinstance(self.enabled, bool) or not isinstance(self.num_new_tokens, int)

    def problems(self) -> list[tuple[tuple[str | int, ...], str]]:
        """Return what the types cannot say."""
        found: list[tuple[tuple[str | int, ...], str]] = []
        if self.dataset is None and self.terms is None:
            found.append(((), "give `dataset: {path: FILE}`, a text to choose tokens from, or `terms: FILE`"))
        if self.dataset is None and self.selection != SelectionBlock():
            found.append((("selection",), "'selection' chooses from a dataset: add one, or remove this key"))
        least, most = bounds(self.num_new_tokens)
        if least < 1 or most > MOST_TOKENS:
            message = f"must be from 1 to {MOST_TOKENS}; to add none set enabled: false, or let the search"
            found.append((("num_new_tokens",), message))
        if bounds(self.selection.min_frequency)[0] < 1:
            found.append((("selection", "min_frequency"), "must be at least 1"))
        for key in ("norm", "output_norm"):
            value = getattr(self.init, key)
            if value is not None and bounds(value)[0] <= 0:
                found.append((("init", key), "must be above 0"))
        for key in ("input", "output"):
            for name in names(getattr(self.init, key)):
                if self.dataset is None and INITIALISERS.load(name).contexts:
                    found.append((("init", key), f"{name} looks at the contexts in a dataset: add one"))
        return found

    @classmethod
    def effective(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Return a filled-in block without its seed where nothing is drawn, and without an idle selection."""
        plain = {key: value for key, value in plain.items() if key != "selection" or "dataset" in plain}
        drawn = cls.draws(plain)
        return plain if drawn else {key: value for key, value in plain.items() if key != "seed"}

    @classmethod
    def draws(cls, plain: Mapping[str, Any]) -> bool:
        """Return whether new rows are drawn at random."""
        init = InitBlock.model_validate(plain.get("init", {}))
        return any(INITIALISERS.load(name).random for name in (*names(init.input), *names(init.output)))


def bounds(value: SearchInt | SearchNumber) -> tuple[float, float]:
    """Return the least and the largest value that a number or range may have."""
    if isinstance(value, Choices):
        numbers = [float(choice) for choice in value.choices]
        return min(numbers), max(numbers)
    if isinstance(value, IntRange):
        return value.values[0], value.values[-1]
    if isinstance(value, Range):
        return value.ends
    return value, value

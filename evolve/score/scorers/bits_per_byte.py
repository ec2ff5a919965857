"""Bits per byte of a text: how well the model predicts it, whatever its tokenizer.

The log-likelihood of each chunk after the model's first token, in bits, over its bytes in UTF-8. Special
tokens that a tokenizer would put in front are not counted, so models with different vocabularies compare.
Chunks of the search and of the holdout are disjoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from evolve.errors import CandidateError
from evolve.score.items import distinct, ranked
from evolve.score.scorers.base import ScorerBlock, ScorerProblem
from evolve.types import TaskScore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.score.engines.base import Engine
    from evolve.score.items import Item
    from evolve.types import JsonValue, Split

METRIC = "bits_per_byte"


class BitsPerByteBlock(ScorerBlock):
    """Bits per byte of a text file, better when lower."""

    path: str = Field(min_length=1)
    """A text file, or a ``.jsonl`` file with one document a line; relative to the working directory."""
    key: str = "text"
    """Where a line of a ``.jsonl`` file has its text."""
    items: int | None = Field(default=None, ge=1)
    """Chunks for the search, drawn by score.seed; absent: all that the holdout leaves."""
    chunk_bytes: int = Field(default=2000, ge=16)
    """Length at which the next line begins a new chunk."""

    @property
    def metric_name(self) -> str:
        """Name of the metric."""
        return METRIC

    def located(self) -> BitsPerByteBlock:
        """Return the block with an absolute path."""
        return self.model_copy(update={"path": str(Path(self.path).expanduser().absolute())})


class BitsPerByte:
    """See the text of the module."""

    block: ClassVar[type[ScorerBlock]] = BitsPerByteBlock

    def __init__(self, block: BitsPerByteBlock, config: ScoreConfig) -> None:
        chunks = [chunk for text in _documents(block) for chunk in chunked(text, block.chunk_bytes)]
        items, _ = distinct(chunks)
        order = ranked(items, config.seed)
        # A short text keeps at least half for the search.
        held = min(config.holdout.items, len(order) // 2)
        wanted = block.items or max(1, len(order) - held)
        if len(order) < wanted + held or not order:
            raise ScorerProblem(
                "items" if block.items else "path",
                f"{block.path} has {len(order)} distinct chunks of about {block.chunk_bytes} bytes, "
                f"{held} of them are the holdout: lower items or chunk_bytes, or give more text",
            )
        self._sets: dict[Split, list[Item]] = {
            "holdout": sorted(order[:held], key=lambda item: item.key),
            "search": sorted(order[held : held + wanted], key=lambda item: item.key),
        }

    @property
    def sizes(self) -> Mapping[Split, int]:
        """Number of chunks of each split."""
        return {split: len(items) for split, items in self._sets.items()}

    @property
    def texts(self) -> Mapping[Split, Sequence[Item]]:
        """What is asked about in each split."""
        return self._sets

    def identity(self) -> JsonValue:
        """Return the keys of the chunks, which are hashes of their content."""
        return {split: [item.key for item in items] for split, items in self._sets.items()}

    def score(self, engine: Engine, split: Split) -> TaskScore:
        """Return bits per byte over all chunks of a split; items are chunks."""
        from lm_eval.api.metrics import bits_per_byte

        from evolve.score.metrics import item_values, standard_error

        items = self._sets[split]
        if not items:
            raise CandidateError("score", f"{METRIC}: this split has no chunks")
        sums = engine.lm.text_likelihoods([item.doc for item in items])
        pairs = [(value, len(item.doc.encode())) for value, item in zip(sums, items, strict=True)]
        values = item_values(METRIC, METRIC, pairs, bits_per_byte)
        return TaskScore(
            metric=METRIC,
            value=sum(values) / len(values),
            stderr=standard_error(values),
            higher_is_better=False,
            items={item.key: value for item, value in zip(items, values, strict=True)},
        )


def _documents(block: BitsPerByteBlock) -> list[str]:
    try:
        text = Path(block.path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScorerProblem("path", f"{block.path} cannot be read as UTF-8 text: {error}") from error
    if not block.path.endswith(".jsonl"):
        return [text]
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)[block.key]
        except (ValueError, KeyError, TypeError) as error:
            message = f"{block.path}, line {number}: no JSON object with a key {block.key!r}"
            raise ScorerProblem("path", message) from error
        if not isinstance(document, str):
            raise ScorerProblem("key", f"{block.path}, line {number}: {block.key!r} holds no text")
        found.append(document)
    return found


def chunked(text: str, size: int) -> list[str]:
    """Cut a text at ends of lines into chunks of about ``size`` bytes, a longer line between characters.

    The chunks together are the text, but for chunks of white space alone.
    """
    chunks: list[str] = []
    chunk = ""
    for line in text.splitlines(keepends=True):
        if chunk and len((chunk + line).encode()) > size:
            chunks.append(chunk)
            chunk = ""
        chunk += line
        while len(chunk) > size:
            chunks.append(chunk[:size])
            chunk = chunk[size:]
    return [one for one in [*chunks, chunk] if one.strip()]

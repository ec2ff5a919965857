"""The true KL to a teacher, or how often the most likely token is the teacher's, over held-out text.

At temperature 1 and over the whole vocabulary, so numbers of different losses and temperatures compare. The
teacher reads each text once; what it says is kept as its last hidden states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from evolve.errors import CandidateError
from evolve.score.scorers.base import ScorerBlock
from evolve.score.scorers.bits_per_byte import chunked
from evolve.score.scorers.texts import (
    located,
    network_of,
    open_other,
    ratio,
    read_texts,
    require_same_tokens,
    split_texts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.score.engines.base import Engine
    from evolve.score.items import Item
    from evolve.stages.distill.signals import Signals
    from evolve.stages.distill.teachers.base import Batch
    from evolve.types import JsonValue, Split, TaskScore

_TOGETHER = 16


class KlToTeacherBlock(ScorerBlock):
    """The distance to a teacher; ``kl`` in nats a token, better when lower."""

    models: ClassVar[tuple[str, ...]] = ("model",)
    model: str = Field(min_length=1)
    """The teacher: a name of ``models``, a folder, or a hub id."""
    path: str = Field(min_length=1)
    """A text file, or a ``.jsonl`` file with one document a line; relative to the working directory."""
    key: str = "text"
    """Where a line of a ``.jsonl`` file has its text."""
    items: int | None = Field(default=None, ge=1)
    """Chunks for the search, drawn by score.seed; absent: all that the holdout leaves."""
    chunk_bytes: int = Field(default=2000, ge=16)
    """Length at which the next line begins a new chunk."""
    max_length: int = Field(default=512, ge=2)
    """Tokens of a chunk that are read."""
    metric: Literal["kl", "top1_agreement"] = "kl"
    """``kl``, or the share of tokens at which both have the same most likely one."""

    @property
    def metric_name(self) -> str:
        """Name of the metric."""
        return self.metric

    def located(self) -> KlToTeacherBlock:
        """Return the block with absolute paths."""
        return self.model_copy(update={"path": located(self.path), "model": located(self.model)})


class KlToTeacher:
    """See the text of the module."""

    block: ClassVar[type[ScorerBlock]] = KlToTeacherBlock

    def __init__(self, block: KlToTeacherBlock, config: ScoreConfig) -> None:
        self._block = block
        texts = [
            chunk for text in read_texts(block.path, block.key) for chunk in chunked(text, block.chunk_bytes)
        ]
        self._sets = split_texts(
            texts, block.items, config.holdout.items, config.seed, field="path", path=block.path
        )
        self._model, self._tokenizer, self._content = open_other(block.model, "model")
        self._said: dict[Split, list[tuple[list[Item], Batch, Signals]]] = {}

    @property
    def sizes(self) -> Mapping[Split, int]:
        """Number of chunks of each split."""
        return {split: len(items) for split, items in self._sets.items()}

    @property
    def texts(self) -> Mapping[Split, Sequence[Item]]:
        """What is asked about in each split."""
        return self._sets

    def identity(self) -> JsonValue:
        """Return the teacher's content and the chunks' keys."""
        block = self._block
        keys: JsonValue = {split: [item.key for item in items] for split, items in self._sets.items()}
        return [self._content, block.metric, block.max_length, keys]

    def score(self, engine: Engine, split: Split) -> TaskScore:
        """Return the metric over all tokens of a split; items are chunks."""
        import torch

        from evolve.stages.distill.forward import forward, head_rule
        from evolve.stages.distill.measure import kl_to

        block = self._block
        require_same_tokens(engine, self._tokenizer, "kl_to_teacher")
        if not self._sets[split]:
            raise CandidateError("score", f"{block.metric}: this split has no chunks")
        said = self._teacher(split)
        keys: list[str] = []
        pairs: list[tuple[float, float]] = []
        with network_of(engine) as network, torch.no_grad():
            rule = head_rule(network)
            for items, batch, teacher in said:
                student = forward(network, batch, rule=rule)
                labels = _labels(batch)
                found = kl_to(teacher, _on_cpu(student), labels, vocabulary=self._tokenizer.size)
                values = found.kl if block.metric == "kl" else found.agrees.float()
                of_item = found.rows // batch.shape[1]
                sums = torch.zeros(len(items), dtype=torch.float64).index_add_(0, of_item, values.double())
                counts = torch.bincount(of_item, minlength=len(items))
                keys += [item.key for item in items]
                pairs += list(zip(sums.tolist(), counts.tolist(), strict=True))
        return ratio(block.metric, keys, pairs, higher_is_better=block.metric != "kl")

    def _teacher(self, split: Split) -> list[tuple[list[Item], Batch, Signals]]:
        """Return what the teacher says of a split, from the first call on out of memory."""
        if split not in self._said:
            import torch

            from evolve.stages.distill.forward import forward, head_rule
            from evolve.stages.distill.teachers.hf import open_frozen

            device = "cuda" if torch.cuda.is_available() else "cpu"
            network = open_frozen(self._model, device)
            rule = head_rule(network)
            found = []
            with torch.no_grad():
                for items, batch in self._batches(split):
                    found.append((items, batch, _on_cpu(forward(network, batch, rule=rule))))
            self._said[split] = found
        return self._said[split]

    def _batches(self, split: Split) -> list[tuple[list[Item], Batch]]:
        import torch

        from evolve.stages.distill.teachers.base import Batch

        items = self._sets[split]
        ids = [one[: self._block.max_length] for one in self._tokenizer.encode([item.doc for item in items])]
        # Of like length, so that little is padding.
        order = [place for place in sorted(range(len(items)), key=lambda i: (len(ids[i]), i)) if ids[place]]
        found = []
        for begin in range(0, len(order), _TOGETHER):
            some = order[begin : begin + _TOGETHER]
            width = max(len(ids[place]) for place in some)
            tokens = torch.tensor([ids[place] + [0] * (width - len(ids[place])) for place in some])
            batch = Batch(tokens, tuple((len(ids[place]),) for place in some))
            found.append(([items[place] for place in some], batch))
        return found


def _labels(batch: Batch) -> Any:
    labels = batch.tokens.clone()
    for row, lengths in enumerate(batch.lengths):
        labels[row, sum(lengths) :] = -100
    return labels


def _on_cpu(signals: Signals) -> Signals:
    """Return scores off the device, so that two models need not be there together."""
    from evolve.stages.distill.signals import Signals
    from evolve.tensors.logits import Head, Logits

    scores = signals.scores
    if isinstance(scores, Head):
        bias = None if scores.bias is None else scores.bias.cpu()
        return Signals(Head(scores.hidden.cpu(), scores.weight.cpu(), bias, scores.scale, scores.softcap))
    assert isinstance(scores, Logits)
    return Signals(Logits(scores.values.cpu()))

"""How good the model is as a draft for a target in speculative decoding, computed along the target's texts.

The target writes a continuation of every prompt once in a study, and they are kept. Given what came out, each
token was drafted with a known probability, so the number of passes of the target follows exactly, without
running the two together (:func:`evolve.tensors.speculative.along`). Measure as you serve: with
``draft_sample_method: greedy``, vLLM's default, the draft proposes its most likely token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from evolve.errors import CandidateError
from evolve.score.scorers.base import ScorerBlock
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

    from torch import Tensor

    from evolve.config.schema import ScoreConfig
    from evolve.score.engines.base import Engine
    from evolve.score.items import Item
    from evolve.stages.distill.drafts import Written
    from evolve.types import JsonValue, Split, TaskScore


class SpeculativeBlock(ScorerBlock):
    """A draft's worth for a target, better when higher."""

    models: ClassVar[tuple[str, ...]] = ("target",)
    target: str = Field(min_length=1)
    """The model that is sped up: a name of ``models``, a folder, or a hub id."""
    prompts: str = Field(min_length=1)
    """A ``.jsonl`` file with a prompt a line; relative to the working directory."""
    key: str = "text"
    """Where a line has its prompt."""
    items: int | None = Field(default=None, ge=1)
    """Prompts for the search, drawn by score.seed; absent: all that the holdout leaves."""
    num_speculative_tokens: int = Field(default=4, ge=1, le=64)
    """Tokens that are drafted in a cycle."""
    draft_sample_method: Literal["greedy", "probabilistic"] = "greedy"
    """``greedy``: the draft proposes its most likely token; ``probabilistic``: it samples."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the decoding; 0: the target's most likely token."""
    max_prompt_length: int = Field(default=128, ge=1)
    """Tokens of a prompt, the first ones."""
    max_new_tokens: int = Field(default=64, ge=2)
    """Most tokens of a continuation."""
    cost_ratio: float | None = Field(default=None, gt=0)
    """Time of a draft's pass over that of the target's; absent: the ratio of their parameters."""
    metric: Literal["acceptance_rate", "mean_accepted_length", "speed_up_predicted"] = "mean_accepted_length"
    """Drafted tokens that were accepted; tokens of a cycle, with the target's own; how much faster it is."""

    @property
    def metric_name(self) -> str:
        """Name of the metric."""
        return self.metric

    def located(self) -> SpeculativeBlock:
        """Return the block with absolute paths."""
        return self.model_copy(update={"prompts": located(self.prompts), "target": located(self.target)})


class Speculative:
    """See the text of the module."""

    block: ClassVar[type[ScorerBlock]] = SpeculativeBlock

    def __init__(self, block: SpeculativeBlock, config: ScoreConfig) -> None:
        self._block = block
        self._seed = config.seed
        self._sets = split_texts(
            read_texts(block.prompts, block.key, field="prompts"),
            block.items,
            config.holdout.items,
            config.seed,
            field="prompts",
            path=block.prompts,
        )
        self._target, self._tokenizer, self._content = open_other(block.target, "target")
        self._written: dict[Split, list[Written]] = {}

    @property
    def sizes(self) -> Mapping[Split, int]:
        """Number of prompts of each split."""
        return {split: len(items) for split, items in self._sets.items()}

    @property
    def texts(self) -> Mapping[Split, Sequence[Item]]:
        """What is asked about in each split."""
        return self._sets

    def identity(self) -> JsonValue:
        """Return the target's content, the settings and the prompts' keys."""
        skipped = {"name", "weight", "role", "target", "prompts", "key", "items"}
        settings = self._block.model_dump(mode="json", exclude=skipped)
        keys: JsonValue = {split: [item.key for item in items] for split, items in self._sets.items()}
        return [self._content, self._seed, settings, keys]

    def score(self, engine: Engine, split: Split) -> TaskScore:
        """Return the metric over all continuations of a split; items are prompts."""
        from evolve.tensors.speculative import along

        block, k = self._block, self._block.num_speculative_tokens
        require_same_tokens(engine, self._tokenizer, "speculative")
        if not self._sets[split]:
            raise CandidateError("score", f"{block.metric}: this split has no prompts")
        written = self._continuations(split)
        keys = [item.key for item in self._sets[split]]
        found = [along(shares.tolist(), k) for shares in self._shares(engine, written)]
        if block.metric == "acceptance_rate":
            pairs = [(one.accepted, k * one.cycles) for one in found]
            return ratio(block.metric, keys, pairs, higher_is_better=True)
        # Tokens of a cycle over the time of a cycle, in passes of the target.
        time = 1.0 if block.metric == "mean_accepted_length" else 1.0 + k * self._cost(engine)
        pairs = [(one.tokens, time * one.cycles) for one in found]
        return ratio(block.metric, keys, pairs, higher_is_better=True)

    def _cost(self, engine: Engine) -> float:
        if self._block.cost_ratio is not None:
            return self._block.cost_ratio
        sizes = [sum(spec.numel for spec in one.specs.values()) for one in (engine.model, self._target)]
        return sizes[0] / sizes[1]

    def _continuations(self, split: Split) -> list[Written]:
        if split not in self._written:
            from evolve.stages.distill.drafts import target_texts
            from evolve.stages.distill.generation import Generation

            block = self._block
            prompts = [
                (ids or [0])[: block.max_prompt_length]
                for ids in self._tokenizer.encode([item.doc for item in self._sets[split]])
            ]
            settings = Generation(temperature=block.temperature, max_new_tokens=block.max_new_tokens)
            self._written[split] = target_texts(
                self._target,
                self._content,
                prompts,
                settings,
                seed=self._seed,
                vocabulary=self._tokenizer.size,
            )
        return self._written[split]

    def _shares(self, engine: Engine, written: list[Written]) -> list[Tensor]:
        """Return for each text how surely each token after the first was drafted."""
        import torch

        from evolve.stages.distill.drafts import said_of
        from evolve.tensors.speculative import accepted_share

        block = self._block
        one_hot = block.temperature == 0 or block.draft_sample_method == "greedy"
        with network_of(engine) as network, torch.no_grad():
            said = said_of(network, written, block.temperature or 1.0, self._tokenizer.size)
        found = []
        for text, (log_q, best) in zip(written, said, strict=True):
            tokens = torch.tensor(text.completion, dtype=torch.int64)
            share = (best == tokens).float() if one_hot else accepted_share(torch.tensor(text.log_p), log_q)
            # The prompt's own pass gives the first token; nothing is drafted for it.
            found.append(share[1:])
        return found

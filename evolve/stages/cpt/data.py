"""The rows of a stage of continual pre-training, made of its block and the start model."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from evolve.errors import CandidateError, UserError
from evolve.stages.cpt.block import bounds
from evolve.training.corpus_rows import Layout, Replay, make_rows
from evolve.training.documents import Documents, choose
from evolve.training.order import curriculum
from evolve.training.phases import Ends, Phase
from evolve.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from evolve.stages.cpt.block import CptBlock, CurriculumBlock, EndsBlock, ReplayBlock
    from evolve.training.documents import Chosen
    from evolve.training.phases import Train
    from evolve.training.regularizers.base import Anchor
    from evolve.training.rows import Rows
    from evolve.weights.tokenizer import Tokenizer


def rows_of(block: CptBlock, anchor: Anchor, *, epochs: int = 1) -> Rows:
    """Return what is trained on, in order.

    Args:
        block: No ranges in it, data files pinned.
        anchor: The start model, which may be asked for losses or text.
        epochs: How often the corpus is seen.

    Raises:
        CandidateError: A text cannot be read, or the start model cannot do what it is asked for.
    """
    data = block.dataset
    most = None if data.max_bytes is None else int(_number(data.max_bytes))
    tokenizer = load_tokenizer(anchor.model.files, anchor.model.config)
    try:
        documents = Documents(data.path, content=data.content)
        chosen = choose(documents, seed=anchor.seed, max_bytes=most, dedup=data.deduplicate)
        order = _order(block.curriculum, chosen, anchor, tokenizer) if block.curriculum else None
        layout = Layout(data.max_length, data.packing, epochs, anchor.seed, order)
        replay = _replay(block.replay, phases_of(block), anchor, tokenizer) if block.replay else None
        return make_rows(chosen, tokenizer.documents, layout, replay)
    except UserError as error:
        raise CandidateError("build", str(error)) from error


def phases_of(block: CptBlock) -> tuple[Phase, ...]:
    """Return the phases of a block with every value fixed."""
    return tuple(
        Phase(
            _number(phase.until),
            _train(phase.train),
            {pattern: _number(factor) for pattern, factor in phase.learning_rate_scale.items()},
            _number(phase.replay_share_scale),
        )
        for phase in block.phases
    )


def _train(train: str | list[str] | EndsBlock) -> Train:
    if isinstance(train, list):
        return tuple(train)
    if isinstance(train, str):
        return cast("Train", train)
    return Ends(int(_number(train.top_layers)), int(_number(train.bottom_layers)))


def _number(value: object) -> float:
    return float(cast("float", value))


def _replay(
    block: ReplayBlock, phases: tuple[Phase, ...], anchor: Anchor, tokenizer: Tokenizer
) -> Replay | None:
    from evolve.training.rehearsal import self_generated

    share = bounds(block.share)[0]
    if not share:
        return None
    if block.self_generated is None:
        documents = Documents(block.path, content=block.content)
    else:
        documents = Documents(
            self_generated(
                anchor.network,
                tokenizer,
                int(_number(block.self_generated)),
                max_length=anchor.max_length,
                seed=anchor.seed,
                key={"model": anchor.model.content},
            )
        )
    return Replay(documents, share, [(phase.until, phase.replay) for phase in phases])


def _order(
    block: CurriculumBlock, chosen: Chosen, anchor: Anchor, tokenizer: Tokenizer
) -> Callable[[Chosen, int], Chosen]:
    """Return the order of an epoch. Difficulties belong to documents, whatever of them an epoch sees."""
    from evolve.training.base_loss import base_losses

    if block.order == "length":
        values = chosen.sizes.astype(np.float64)
    elif block.order == "quality":
        numbers = map(int, chosen.numbers)
        values = np.fromiter(chosen.documents.numbers_at(block.field, numbers), np.float64)
    else:
        values = base_losses(
            anchor.network,
            chosen,
            tokenizer.documents,
            max_length=anchor.max_length,
            key={"model": anchor.model.content},
        )
    difficulty = dict(zip(chosen.numbers.tolist(), values.tolist(), strict=True))
    pacing = None if block.pacing is None else _number(block.pacing)

    def order(epoch: Chosen, seed: int) -> Chosen:
        known = [difficulty[number] for number in epoch.numbers.tolist()]
        return epoch.ordered(curriculum(known, pacing=pacing, reverse=block.reverse is True, seed=seed))

    return order

"""Whole words, by how many tokens each saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from evolve.stages.vocab.counts import Ranking

if TYPE_CHECKING:
    from evolve.stages.vocab.draft import Draft


class Savings:
    """Again and again make the word one token that saves most: its frequency times (its tokens - 1).

    A word of k tokens needs k - 1 new ones, of which all but the last are parts of it; in each step the pair
    that is commonest in the text is joined, so that the parts serve other words too. After each the tokens of
    all words are counted again.
    """

    name: ClassVar[str] = "savings"
    paper: ClassVar[str] = "arXiv 2503.19693"

    @staticmethod
    def select(draft: Draft, most: int) -> None:
        """See :class:`~evolve.stages.vocab.selectors.base.Selector`."""
        words = draft.words

        def score(index: int) -> float:
            return draft.worth(words.weight(index)) * (len(words.word(index)) - 1)

        ranking: Ranking[int] = Ranking(score)
        ranking.update(range(len(words)))
        while len(draft.merges) < most and (index := ranking.best()) is not None:
            ranking.update(draft.chain(index)[0] - {index})
        del draft.merges[most:]

"""The training of the tokenizer goes on, on the domain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from evolve.stages.vocab.counts import Ranking

if TYPE_CHECKING:
    from evolve.stages.vocab.counts import Pair
    from evolve.stages.vocab.draft import Draft


class ContinuedBpe:
    """Again and again join the pair of tokens that is worth most in the text.

    Without a contrast text this is the training of a BPE (Sennrich et al. 2016, arXiv 1508.07909) that starts
    from the base's tokens. It compresses best; tokens that are only steps to longer ones are among them.
    """

    name: ClassVar[str] = "continued_bpe"
    paper: ClassVar[str] = "arXiv 2512.03989"

    @staticmethod
    def select(draft: Draft, most: int) -> None:
        """See :class:`~evolve.stages.vocab.selectors.base.Selector`."""

        def score(pair: Pair) -> float:
            return draft.worth(draft.words.count(pair))

        ranking: Ranking[Pair] = Ranking(score)
        ranking.update(draft.words.pairs())
        while len(draft.merges) < most and (pair := ranking.best()) is not None:
            if draft.allowed(pair):
                ranking.update(draft.join(pair)[1])

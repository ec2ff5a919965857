"""Tokens of a BPE of the domain that are exactly two tokens of the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from evolve.stages.vocab.counts import Count, Counts, Ranking

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from evolve.stages.vocab.counts import Pair
    from evolve.stages.vocab.draft import Draft


class PairMerges:
    """Train a BPE on the text from its characters; join pairs that make one of its tokens, the best first.

    A token of that BPE which the base cuts into exactly two is added with the merge of the two; one that is
    cut into more waits until new tokens have made it two. A pair is worth its frequency in the text as it is
    cut now, which is the number of tokens that it saves. So every new token is a unit of the domain, and no
    text gets longer by any of them.
    """

    name: ClassVar[str] = "pair_merges"
    paper: ClassVar[str] = "arXiv 2509.26124"

    @staticmethod
    def select(draft: Draft, most: int) -> None:
        """See :class:`~evolve.stages.vocab.selectors.base.Selector`."""
        units = Counts(_cut(draft))
        ready: set[Pair] = set()

        def score(pair: Pair) -> float:
            return draft.worth(draft.words.count(pair)) if pair in ready else 0.0

        def look(indices: Iterable[int]) -> set[Pair]:
            """Return the pairs that are one of the domain's tokens now."""
            words = (units.word(index) for index in indices)
            return {(word[0], word[1]) for word in words if len(word) == 2}

        def follow(pair: Pair, number: int) -> None:
            ready.update(look(units.join(pair, number)[0]))

        ready |= look(range(len(units)))
        draft.follow(follow)
        ranking: Ranking[Pair] = Ranking(score)
        ranking.update(ready)
        while len(draft.merges) < most and (pair := ranking.best()) is not None:
            if draft.allowed(pair):
                before = len(ready)
                touched = draft.join(pair)[1]
                ranking.update(ready if len(ready) > before else touched & ready)


def _cut(draft: Draft) -> Iterator[tuple[list[int], Count]]:
    """Yield the domain's tokens as the base cuts them, if they are new and can be joined."""
    for token in dict.fromkeys(_domain_tokens(draft)):
        if not draft.known(token):
            pieces = draft.bpe.pieces(token)
            if len(pieces) > 1 and draft.bpe.blocked.isdisjoint(pieces):
                yield pieces, Count(1, 0)


def _domain_tokens(draft: Draft) -> Iterator[str]:
    """Yield the tokens of a BPE that is trained on the words' characters, down to the least frequency."""
    words = draft.words
    space = draft.bpe.space
    barred = draft.bpe.blocked
    spelled = [
        ("".join(map(draft.token, words.word(index))), words.weight(index))
        for index in range(len(words))
        if barred.isdisjoint(words.word(index))
    ]
    symbols = dict.fromkeys(sorted({letter for word, _ in spelled for letter in word}))
    tokens = list(symbols)
    numbers = {letter: number for number, letter in enumerate(tokens)}
    letters = Counts(([numbers[letter] for letter in word], count) for word, count in spelled)

    def score(pair: Pair) -> float:
        count = letters.count(pair).domain
        return float(count) if count >= draft.floor else 0.0

    ranking: Ranking[Pair] = Ranking(score)
    ranking.update(letters.pairs())
    while (pair := ranking.best()) is not None:
        token = tokens[pair[0]] + tokens[pair[1]]
        if space in token.lstrip(space):
            continue
        yield token
        tokens.append(token)
        ranking.update(letters.join(pair, len(tokens) - 1)[1])

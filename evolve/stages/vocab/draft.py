"""New tokens in the making: each joins two tokens that there are, old ones or new ones."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from evolve.stages.vocab.counts import Count, Counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from evolve.stages.vocab.counts import Keyness, Pair
    from evolve.weights.bpe import Bpe


class Merge(NamedTuple):
    """A new token.

    Attributes:
        left: The first token that it joins, as it is in the vocabulary.
        right: The second one.
        domain: How often they are joined in the domain text, all merges before it done: the tokens that it
            saves there.
        general: The same of the general text.
    """

    left: str
    right: str
    domain: int
    general: int

    @property
    def token(self) -> str:
        """The new token."""
        return self.left + self.right


class Draft:
    """A vocabulary that grows, with the text cut by it.

    Attributes:
        bpe: The tokenizer that is extended.
        words: The words of the text.
        keyness: What an occurrence is worth.
        floor: Least occurrences in the domain text of what a selector takes.
        merges: What was added, in order.
    """

    def __init__(
        self, bpe: Bpe, words: Iterable[tuple[Sequence[int], Count]], keyness: Keyness, *, floor: int = 1
    ) -> None:
        self.bpe = bpe
        self.words = Counts(words)
        self.keyness = keyness
        self.floor = floor
        self.merges: list[Merge] = []
        self._tokens = list(bpe.tokens)
        self._known = set(bpe.tokens)
        self._joins: list[Pair] = []
        self._listeners: list[Callable[[Pair, int], None]] = []

    def token(self, number: int) -> str:
        """Return the token of an id, old or new."""
        return self._tokens[number]

    def known(self, token: str) -> bool:
        """Whether there is such a token."""
        return token in self._known

    def worth(self, count: Count) -> float:
        """Return what something is worth to a selector: at most 0 where it is too rare."""
        return self.keyness(count) if count.domain >= self.floor else 0.0

    def allowed(self, pair: Pair) -> bool:
        """Whether a pair may become a token: no special one, no space behind a letter, and a new one."""
        left, right = pair
        if left in self.bpe.blocked or right in self.bpe.blocked:
            return False
        token = self._tokens[left] + self._tokens[right]
        space = self.bpe.space
        return token not in self._known and space not in token.lstrip(space)

    def join(self, pair: Pair) -> tuple[list[int], set[Pair]]:
        """Add the token that a pair makes, everywhere.

        Returns:
            The words that changed, and the pairs whose counts may have changed.
        """
        left, right = self._tokens[pair[0]], self._tokens[pair[1]]
        count = self.words.count(pair)
        number = len(self._tokens)
        self.merges.append(Merge(left, right, count.domain, count.general))
        self._tokens.append(left + right)
        self._known.add(left + right)
        self._joins.append(pair)
        changed = self.words.join(pair, number)
        for listener in self._listeners:
            listener(pair, number)
        return changed

    def follow(self, listener: Callable[[Pair, int], None]) -> None:
        """Call ``listener`` with the pair and the new id after each join, and now with those so far."""
        for number, pair in enumerate(self._joins, len(self.bpe.tokens)):
            listener(pair, number)
        self._listeners.append(listener)

    def chain(self, index: int) -> tuple[set[int], set[Pair], bool]:
        """Make a word one token: again and again join the pair in it that is commonest in the domain text.

        Of equal ones the first.

        Returns:
            The words that changed, the pairs whose counts may have changed, and whether it became one token.
        """
        words: set[int] = set()
        pairs: set[Pair] = set()
        while len(word := self.words.word(index)) > 1:
            inside = [pair for pair in pairwise(word) if self.allowed(pair)]
            if not inside:
                return words, pairs, False
            best = max(inside, key=lambda pair: self.words.count(pair).domain)
            changed, touched = self.join(best)
            words.update(changed)
            pairs |= touched
        return words, pairs, True

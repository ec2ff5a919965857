"""Texts are turned into tokens, and requests into plans, once per tokenizer, not once per candidate."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    # Any class of lm-eval with a tokenizer.
    from lm_eval.api.model import TemplateLM as Base
else:
    Base = object


_PLANS = 8
_TOKENIZERS = 8


class Memo:
    """What one tokenizer made of texts, by text and options, and the plans made of its tokens.

    Attributes:
        key: The tokenizer's :func:`~evolve.score.engines.fit.side_key`; empty where nobody said.
        plans: How lately asked requests are computed, the last one asked at the end.
    """

    def __init__(self, key: str = "") -> None:
        self.key = key
        self.plans: OrderedDict[Hashable, Any] = OrderedDict()
        self._found: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what was made under ``key``, and make it the first time."""
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]

    def plan(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the plan under ``key``, which holds all that decides it; the last few are kept."""
        if key not in self.plans:
            self.plans[key] = make()
        self.plans.move_to_end(key)
        while len(self.plans) > _PLANS:
            self.plans.popitem(last=False)
        return self.plans[key]


class Memos:
    """The memos of the tokenizers that an engine had lately: each candidate may bring one of its own."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, Memo] = OrderedDict()

    def of(self, key: str) -> Memo:
        """Return the memo of the tokenizer with this key."""
        memo = self._found.setdefault(key, Memo(key))
        self._found.move_to_end(key)
        while len(self._found) > _TOKENIZERS:
            self._found.popitem(last=False)
        return memo


def rolling_windows(lm: Any, texts: Iterable[list[int]], longest: int) -> list[float]:
    """Return the log-likelihood of tokens as lm-eval cuts them, the windows of all texts in one list."""
    from lm_eval import utils

    windows: list[Any] = []
    counts = []
    for tokens in texts:
        cut = utils.get_rolling_token_windows(
            token_list=tokens,
            prefix_token=lm.prefix_token_id,
            max_seq_len=longest,
            context_len=1,
        )
        found = [(None, *utils.make_disjoint_window(window)) for window in cut]
        windows += found
        counts.append(len(found))
    answers = iter(lm._loglikelihood_tokens(windows))
    return [sum(next(answers)[0] for _ in range(count)) for count in counts]


class RemembersTokens(Base):
    """In front of an lm-eval model: ``tok_encode`` and the split of context and continuation look up first.

    The engine may set ``memo`` to one that outlives the model, as long as the tokenizer stays the same.
    """

    memo: Memo
    rehearses = False
    """Whether requests are only made ready: texts become tokens and plans, and every answer is 0 or empty."""

    @property
    def tokenizer_key(self) -> str:
        """What stays the same as long as texts give the same tokens, and chats the same texts; or empty."""
        return self._memo().key

    def tok_encode(self, string: Any, *args: Any, **more: Any) -> Any:
        """Return the tokens of one text, or of a list of them."""
        texts = string if isinstance(string, str) else tuple(string)
        key = ("text", self._special(), texts, args, tuple(sorted(more.items())))
        return self._memo().get(key, lambda: super(RemembersTokens, self).tok_encode(string, *args, **more))

    def _encode_pair(self, context: str, continuation: str) -> Any:
        key = ("pair", self._special(), context, continuation)
        return self._memo().get(key, lambda: super(RemembersTokens, self)._encode_pair(context, continuation))

    def text_likelihoods(self, texts: Sequence[str]) -> list[float]:
        """Return the natural log-likelihood of each whole text after the model's first token.

        Special tokens that the tokenizer would put in front are no part of a text.
        """
        tokens = [self.tok_encode(text, add_special_tokens=False) for text in texts]
        # vLLM needs room for one token more than transformers, which then cuts in the same places.
        return self._windows(tokens, self.max_length - 2)

    def _windows(self, tokens: Iterable[list[int]], longest: int) -> list[float]:
        return rolling_windows(self, tokens, longest)

    def _special(self) -> Hashable:
        """Whether a first token is added depends on the model, too."""
        return getattr(self, "add_bos_token", None)

    def _memo(self) -> Memo:
        if "memo" not in vars(self):
            self.memo = Memo()
        return self.memo

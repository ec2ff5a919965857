"""A BPE tokenizer as its tokens and merges: what may be joined, and how joins are added to its files.

A new merge ranks below all others. So a text is cut as before, and after that the new merges join what is
left, in their order: a text whose old tokens hold no pair that a new merge joins keeps its ids.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError, some
from evolve.weights.tokenizer import definition
from evolve.weights.union import Plan, Union, completed, kind_of, pair_of, require_distinct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.weights.files import Files
    from evolve.weights.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACES = {"bytes": "Ġ", "words": "▁", "plain": " "}
_MEND = "save it as a fast tokenizer with save_pretrained first, or use another model"


@dataclass(frozen=True)
class Bpe:
    """A BPE tokenizer.

    Attributes:
        kind: ``bytes``: characters of a token stand for bytes, as in GPT-2. ``words``: ▁ stands for a space,
            as in Llama 2. ``plain``: characters are characters.
        tokens: Token of every id; "" where an id has none.
        blocked: Ids that no merge may join: added and special tokens, the unknown token, bytes of characters
            that the vocabulary lacks, ids without a token.
        backend: The ``tokenizers.Tokenizer``.
    """

    kind: str
    tokens: tuple[str, ...]
    blocked: frozenset[int]
    backend: Any

    @property
    def space(self) -> str:
        """The character that stands for a space."""
        return _SPACES[self.kind]

    def length(self, token: str) -> int:
        """Return the bytes of text that a token stands for."""
        return len(token) if self.kind == "bytes" else len(token.replace(self.space, " ").encode())

    def pieces(self, token: str) -> list[int]:
        """Return the ids that the merges give for a word, given as it is in a vocabulary."""
        return [piece.id for piece in self.backend.model.tokenize(token)]


def bpe_of(tokenizer: Tokenizer) -> Bpe:
    """Return a loaded tokenizer as a BPE.

    Raises:
        ModelError: It is of another kind, which has no merges to add to.
    """
    data = json.loads(tokenizer.backend.to_str())
    kind = kind_of(data)
    if kind is None:
        model = data["model"]
        name = str(model.get("type") or "another kind")
        if name == "BPE":
            name = "BPE that marks where words go on or end"
        raise ModelError(
            f"its tokenizer is {_article(name)}: only the merges of a byte-level or ▁ BPE can be added to, "
            "and added tokens would cut words in two; use a model with such a tokenizer (Llama, Qwen, "
            "Mistral, GPT-2 and SmolLM have one), or train this one without new tokens"
        )
    tokens = [""] * tokenizer.size
    for token, number in tokenizer.ids.items():
        tokens[number] = token
    unknown = data["model"].get("unk_token")
    barred = {*tokenizer.added, unknown}
    blocked = {
        number
        for number, token in enumerate(tokens)
        if not token or token in barred or (kind != "bytes" and _BYTE.fullmatch(token))
    }
    return Bpe(kind, tuple(tokens), frozenset(blocked), tokenizer.backend)


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiouAEIOU' and name != 'Unigram' else 'a'} {name}"


def extended(
    files: Files, tokenizer: Tokenizer, config: Mapping[str, Any], merges: Sequence[tuple[str, str]]
) -> Union:
    """Add merges, and the token that each makes, to a tokenizer; ids go on behind the last one.

    Args:
        files: The side files of the tokenizer.
        tokenizer: The same, loaded.
        config: The config.json beside them.
        merges: In their order. Both sides are tokens, old ones or made by an earlier merge, and what they
            make is new.

    Raises:
        ModelError: A merge joins no tokens, or what comes out does not load or does not make the tokens.
    """
    if not merges:
        return Union(files, tokenizer)
    require_distinct(tokenizer)
    plan = Plan(dict(tokenizer.ids), {}, {})
    for number, (left, right) in enumerate(merges, tokenizer.size):
        token = left + right
        if left not in plan.ids or right not in plan.ids or token in plan.ids:
            raise ModelError(f"{left!r} and {right!r} are no two tokens that make a new one")
        plan.ids[token] = plan.ordinary[token] = number
    data = definition(files, tokenizer)
    model = data["model"]
    listed = model.get("merges") or []
    # Files before tokenizers 0.20 hold merges as texts; older readers know no others.
    as_text = bool(listed) and isinstance(listed[0], str)
    model["merges"] = [
        *(listed if as_text else (list(pair_of(merge)) for merge in listed)),
        *(f"{left} {right}" if as_text else [left, right] for left, right in merges),
    ]
    model["vocab"].update(plan.ordinary)
    made = completed(files, config, data, plan, _MEND)
    if unmade := unreached(made.tokenizer, list(plan.ordinary)):
        raise ModelError(
            f"the merges of the extended tokenizer do not make {some(map(repr, unmade))}; {_MEND}"
        )
    return made


def unreached(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[str]:
    """Return those of ``tokens`` that the merges of a BPE tokenizer do not make out of their characters.

    ``ignore_merges``, with which a whole word that is a token needs no merges, does not count: inside a
    longer word it has no effect.
    """
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(tokenizer.backend.to_str())
    backend.model.ignore_merges = False
    return [token for token in tokens if [piece.value for piece in backend.model.tokenize(token)] != [token]]

"""The bytes of text that each token of a tokenizer stands for, and where tokens end in a text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from evolve.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.weights.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class NotItself(ValueError):
    """A text does not come back from its tokens, so nothing can be said about where they end in it."""


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of every token.

    Attributes:
        table: Id to bytes.
        prepends: Whether the tokenizer puts a space in front of a text that its tokens then hold.
    """

    table: Mapping[int, bytes]
    prepends: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenBytes:
        """Read the tokens of a byte-level BPE, or of one with ▁ for spaces.

        Raises:
            ModelError: The tokenizer writes its tokens in another way.
        """
        data = json.loads(tokenizer.backend.to_str())
        around = json.dumps([data.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")])
        spelled = _of_bytes if '"ByteLevel"' in around else _of_words if "\\u2581" in around else None
        model = data["model"]
        if spelled is None or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise ModelError(
                f"a tokenizer of kind {model.get('type')} does not say which bytes its tokens stand for: "
                "byte-level ones (GPT-2, Llama 3, Qwen) and ones with ▁ (Llama 2, Gemma) do"
            )
        added = tokenizer.added
        table = {
            number: token.encode() if token in added else spelled(token)
            for token, number in tokenizer.ids.items()
        }
        return cls(table, spelled is _of_words and '"prepend_scheme": "never"' not in around)

    def text(self, tokens: Sequence[int]) -> bytes:
        """Return what tokens stand for, without the space that the tokenizer put in front.

        Raises:
            NotItself: An id is no token.
        """
        try:
            whole = b"".join(self.table[token] for token in tokens)
        except KeyError as error:
            raise NotItself(f"{error.args[0]} is the id of no token") from error
        return whole[1:] if self.prepends and whole.startswith(b" ") else whole

    def ends(self, tokens: Sequence[int], text: bytes) -> list[int]:
        """Return for each token how many bytes of the text end with it.

        Raises:
            NotItself: The tokens stand for something else than the text.
        """
        whole = b"".join(self.table.get(token, b"\0") for token in tokens)
        # A space that the tokenizer put in front is none of the text.
        extra = int(self.prepends and whole != text and whole[:1] == b" ")
        if whole[extra:] != text:
            raise NotItself(
                "the tokens of a text do not stand for it: the tokenizer normalises it, or cuts it"
            )
        found, end = [], -extra
        for token in tokens:
            end += len(self.table[token])
            found.append(max(end, 0))
        return found


@cache
def _alphabet() -> dict[str, int]:
    """Return the characters that stand for bytes in byte-level tokenizers (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _of_bytes(token: str) -> bytes:
    table = _alphabet()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


def _of_words(token: str) -> bytes:
    found = _BYTE.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else token.replace("▁", " ").encode()

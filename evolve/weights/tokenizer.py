"""A tokenizer as transformers loads it: its tokens, their ids, and how text becomes tokens."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError
from evolve.weights.files import contents, folder_of, parse_json, read_content, read_side_files
from evolve.weights.vocabulary import vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.weights.files import Files

DEFINITION = "tokenizer.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""Attributes of an added token, as tokenizer.json has them."""


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer.

    Attributes:
        ids: Every token to its id. Ids may have holes, and two tokens may share one.
        added: The tokens that are cut out of a text before anything else, to their flags.
        backend: The ``tokenizers.Tokenizer``.
        begin: The id that marks the beginning of a text, or None.
        end: The id that marks the end of a text, or None.
        loaded: What transformers made of the files; knows the chat template.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, bool]]
    backend: Any
    begin: int | None = None
    end: int | None = None
    loaded: Any = field(default=None, compare=False, repr=False)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without the tokens that frame a prompt."""
        return [found.ids for found in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text as a document: framed as the tokenizer frames it, and ended."""
        found: list[list[int]] = [one.ids for one in self.backend.encode_batch(list(texts))]
        marks = [] if self.end is None else [self.end]
        return [ids if ids[-1:] == marks else [*ids, *marks] for ids in found]

    @property
    def size(self) -> int:
        """The largest id plus one: the rows that an embedding must have."""
        return 1 + max(self.ids.values(), default=-1)


def load_tokenizer(files: Files, config: Mapping[str, Any]) -> Tokenizer:
    """Load the tokenizer of a model, exactly as an engine will.

    What counts is what transformers makes of the files. It hands out ids of its own to added tokens that are
    not in the vocabulary of tokenizer.json, whatever ids they have there, and adds special tokens that only
    tokenizer_config.json names.

    Args:
        files: The model's side files.
        config: The content of its config.json.

    Raises:
        ModelError: There is no tokenizer, or transformers cannot load it.
    """
    from transformers import AutoTokenizer

    where = folder_of(files)
    if vocabulary(files) is None:
        raise ModelError(f"{where} has no tokenizer: copy its tokenizer.json and tokenizer_config.json there")
    with tempfile.TemporaryDirectory(prefix="evolve-tokenizer-") as home:
        for name, content in read_side_files(files).items():
            path = Path(home) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (Path(home) / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        try:
            loaded = AutoTokenizer.from_pretrained(home, local_files_only=True)
            backend = loaded.backend_tokenizer
        # Its classes raise whatever their libraries do, down to panics of the Rust code.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"transformers cannot load the tokenizer in {where} ({type(error).__name__}: {reason}): save "
                "it as a fast tokenizer (tokenizer.json) first"
            ) from error
    added = {
        token.content: {flag: bool(getattr(token, flag)) for flag in FLAGS}
        for _, token in sorted(backend.get_added_tokens_decoder().items())
    }
    ids = dict(backend.get_vocab(with_added_tokens=True))
    return Tokenizer(ids, added, backend, loaded.bos_token_id, loaded.eos_token_id, loaded)


def definition(files: Files, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of tokenizer.json: the model's own, or what was loaded where that has other ids.

    Raises:
        ModelError: The file is damaged.
    """
    from tokenizers import Tokenizer as Backend

    content = contents(files).get(DEFINITION)
    if content is not None:
        raw = read_content(content)
        data = parse_json(raw, DEFINITION if isinstance(content, bytes) else content)
        if Backend.from_str(raw.decode("utf-8")).get_vocab(with_added_tokens=True) == tokenizer.ids:
            return data
    return parse_json(tokenizer.backend.to_str().encode(), DEFINITION)

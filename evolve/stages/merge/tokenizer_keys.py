"""The keys of a merge that say which tokenizer the result gets: ``tokenizer`` and ``tokenizer_source``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from evolve.config.values import Block
from evolve.registry import did_you_mean
from evolve.weights.chat_template import AUTO, NAMED, is_jinja

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evolve.stages.merge.values import Path

UNION = "union"
BASE = "base"


class ModelToken(Block):
    """The embedding of one token of one model."""

    kind: Literal["model_token"]
    """``model_token``."""
    model: str
    """Name of one of the merged models."""
    token: str | None = None
    """The token, as it stands in the vocabulary of that model."""
    token_id: int | None = Field(default=None, ge=0)
    """Or its row in the embedding of that model."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.token is None) == (self.token_id is None):
            raise ValueError("give either token or token_id")
        return self


class ZeroEmbedding(Block):
    """Zeros."""

    kind: Literal["zero"]
    """``zero``."""


def _kind_of_source(value: Any) -> str | None:
    if isinstance(value, str):
        return "model"
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if kind in {"model_token", "zero"} else None


EmbeddingSource: TypeAlias = Annotated[
    Annotated[str, Tag("model")]
    | Annotated[ModelToken, Tag("model_token")]
    | Annotated[ZeroEmbedding, Tag("zero")],
    Discriminator(
        _kind_of_source,
        "wrong_shape",
        "expected the name of a model, {kind: model_token, model: NAME, token: TOKEN}, or {kind: zero}",
    ),
]


class TokenEmbedding(Block):
    """Where the embedding of one token comes from."""

    source: EmbeddingSource
    """A model that has the token, ``{kind: model_token, ...}`` for another token, or ``{kind: zero}``."""
    force: bool = False
    """Whether models that have the token get this embedding too, not only those that lack it."""


def _listed(value: Any) -> Any:
    return {} if value is None else value


_Tokens: TypeAlias = Annotated[dict[str, TokenEmbedding], BeforeValidator(_listed)]


class TokenizerBlock(Block):
    """The vocabulary of the result."""

    source: str = UNION
    """``union``: that of the base, or the first model, and all others' tokens; ``base``; or a model."""
    tokens: _Tokens = Field(default_factory=dict)
    """Tokens whose embedding does not come from where it would by default. New ones are added."""
    pad_to_multiple_of: int | None = Field(default=None, ge=1, le=1 << 20)
    """The number of rows is rounded up to a multiple of this."""


def donor_of(source: str, *, reference: str, base: str | None, names: Iterable[str]) -> str | None:
    """Return the model whose tokenizer the result has or extends, or None where ``source`` names none.

    Args:
        source: ``union``, ``base`` or a name.
        reference: The base, or without one the first model.
        base: The base, if there is one.
        names: The merged models.
    """
    if source == UNION:
        return reference
    if source == BASE and base is not None:
        return base
    return source if source in names else None


def tokenizer_problems(
    tokenizer: TokenizerBlock | None, tokenizer_source: str | None, *, base: str | None, names: Sequence[str]
) -> list[tuple[Path, str]]:
    """Return which of the keys exclude each other, or name no merged model."""
    if tokenizer is not None and tokenizer_source is not None:
        return [
            (("tokenizer_source",), "tokenizer and 'tokenizer_source' exclude each other: remove this one")
        ]
    found: list[tuple[Path, str]] = []
    if tokenizer is not None:
        found += _source(("tokenizer", "source"), tokenizer.source, base, names)
    elif tokenizer_source is not None:
        found += _source(("tokenizer_source",), tokenizer_source, base, names)
    for token, entry in tokenizer.tokens.items() if tokenizer is not None else ():
        path: Path = ("tokenizer", "tokens", token, "source")
        if not token:
            found.append((path[:-1], "a token must not be empty"))
        name = entry.source if isinstance(entry.source, str) else getattr(entry.source, "model", None)
        if name is not None and name not in names:
            inside = path if isinstance(entry.source, str) else (*path, "model")
            found.append((inside, f"{name!r} is not one of the merged models{did_you_mean(name, names)}"))
    return found


def _source(path: Path, source: str, base: str | None, names: Sequence[str]) -> list[tuple[Path, str]]:
    if donor_of(source, reference="", base=base, names=names) is not None:
        return []
    if source == BASE:
        return [(path, "base needs a base_model; or write the name of a model")]
    hint = did_you_mean(source, [*names, UNION, *([BASE] if base else [])])
    return [(path, f"{source!r} is not one of the merged models{hint}")]


def template_problems(chat_template: str | None) -> list[tuple[Path, str]]:
    """Return what is wrong with a chat template that is neither a known name nor meant to be Jinja."""
    known = (AUTO, *NAMED)
    if chat_template is None or chat_template in known or is_jinja(chat_template):
        return []
    message = f"{chat_template!r} is no chat template{did_you_mean(chat_template, known)}"
    return [(("chat_template",), f"{message}; a template of your own is Jinja and has {{{{ }}}} in it")]

"""Gives the models of a merge one vocabulary, before anything else looks at them.

The merge itself knows nothing of vocabularies: it gets models whose embeddings and heads have the rows of the
result, in its order. Tokenizers are read once; rows are taken whenever a tensor is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import ModelError
from evolve.registry import MERGE_METHODS
from evolve.stages.merge.alignment import Alignment, Choice, align
from evolve.stages.merge.tables import AlignedFisher, Tables, aligned_type
from evolve.stages.merge.tokenizer_keys import UNION, ModelToken, TokenizerBlock
from evolve.weights import chat_template as chat
from evolve.weights.files import contents, with_changes
from evolve.weights.model import Model, TensorSpec
from evolve.weights.special_ids import moved_ids, with_generation_ids, within

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from evolve.stages.memo import Memo
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.statistics import Gathered
    from evolve.weights.files import Files
    from evolve.weights.tokenizer import Tokenizer

# An id this far beyond all rows is a mistake in a file, and would make a table of its size.
_FARTHEST = 1 << 16


class VocabularyError(ModelError):
    """The vocabularies cannot be made one.

    Attributes:
        problems: ``(path inside the block, message with the mend)``.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{path}: {message}" for path, message in problems))


def aligned(block: MergeBlock, models: Mapping[str, Model], memo: Memo | None = None) -> dict[str, Model]:
    """Return the models with the vocabulary, the tokenizer and the chat template of the result.

    Without ``tokenizer`` and ``tokenizer_source`` vocabularies stay as they are.

    Args:
        block: The merge.
        models: Its inputs by name, in the order of the config.
        memo: With it the same models give the same objects as the last time, and their tables are kept as far
            as there is room.

    Returns:
        The same names. With a tokenizer key all models have the same ``files``; without one only the model
        that gives the tokenizer has other files than before.

    Raises:
        VocabularyError: The vocabularies or the template cannot be used.
    """
    donor = block.donor
    if donor is None or donor not in models:
        raise VocabularyError([("tokenizer_source", f"{donor!r} is not one of the merged models")])
    if block.vocabulary is None and block.chat_template is None:
        return dict(models)
    question = _question(block, models, donor)
    if memo is None:
        return _aligned(block, models, question, None)
    key = ("aligned", question, block.chat_template)
    return memo.latest(key, tuple(models.values()), lambda: _aligned(block, models, question, memo))


def _aligned(
    block: MergeBlock, models: Mapping[str, Model], question: _Question, memo: Memo | None
) -> dict[str, Model]:
    result = dict(models)
    if question.keys is not None:
        try:
            common = _common(question)
        except ModelError as error:
            listed = error.problems if isinstance(error, VocabularyError) else (("", str(error)),)
            key = "tokenizer" if block.tokenizer is not None else "tokenizer_source"
            raise VocabularyError([(path or key, message) for path, message in listed]) from error
        tables = Tables(
            models, common.alignment, common.types, memo, (question.keys, question.donor, str(question.base))
        )
        result = {name: tables.model(name, common.configs[name], common.files) for name in models}
    if block.chat_template is not None:
        try:
            files = _with_template(block, models, result[question.donor].files)
        except ModelError as error:
            raise VocabularyError([("chat_template", str(error))]) from error
        for name, model in result.items():
            if question.keys is not None or name == question.donor:
                result[name] = replace(model, files=files)
    return result


def aligned_statistics(
    block: MergeBlock, models: Mapping[str, Model], gathered: Mapping[str, Gathered]
) -> Mapping[str, Gathered]:
    """Return what was gathered of the models as they are, for the models that :func:`aligned` gives.

    Inner products of inputs have no rows for tokens and stay; the Fisher information of a table has.
    """
    donor = block.donor
    if (
        block.vocabulary is None
        or donor is None
        or MERGE_METHODS.load(block.merge_method).statistics != "fisher"
    ):
        return gathered
    common = _common(_question(block, models, donor))
    return {
        name: AlignedFisher(found, common.alignment.own[name], common.types[name].keys())
        for name, found in gathered.items()
    }


def _with_template(block: MergeBlock, models: Mapping[str, Model], files: Files) -> Files:
    wanted = block.chat_template or ""
    if wanted == chat.AUTO:
        listed = [(name, chat.templates(model.files)) for name, model in models.items()]
        chosen = chat.plurality(listed, block.base_model)
        return with_changes(files, chat.with_templates(files, chosen)) if chosen else files
    template = chat.named(wanted)
    for text in template.values():
        if flaw := chat.flaw(text):
            raise ModelError(f"the template is no Jinja that transformers reads: {flaw}")
    return with_changes(files, chat.with_templates(files, template))


class _Header(NamedTuple):
    """What of a model decides the common vocabulary. Hashable; holds no weights."""

    name: str
    config: str
    specs: tuple[tuple[str, TensorSpec], ...]
    exact: bool
    files: Files
    stamp: tuple[Any, ...]


@dataclass(frozen=True)
class _Question:
    """Everything that the common vocabulary depends on."""

    headers: tuple[_Header, ...]
    keys: str | None
    donor: str
    base: str | None


@dataclass(frozen=True)
class _Common:
    """The common vocabulary of some models.

    Attributes:
        alignment: Where rows come from.
        files: The side files of the result.
        configs: For each model its config in the ids of the result.
        types: For each model its tensors with one row for each token, and the types of the aligned ones.
    """

    alignment: Alignment
    files: Files
    configs: Mapping[str, Mapping[str, Any]]
    types: Mapping[str, Mapping[str, str]]


def _question(block: MergeBlock, models: Mapping[str, Model], donor: str) -> _Question:
    headers = tuple(
        _Header(
            name,
            json.dumps(dict(model.config), sort_keys=True, default=str),
            tuple(model.specs.items()),
            model.exact is not None,
            model.files,
            _stamp(model.files),
        )
        for name, model in models.items()
    )
    keys = block.vocabulary
    return _Question(headers, None if keys is None else keys.model_dump_json(), donor, block.base_model)


def _stamp(files: Files) -> tuple[Any, ...]:
    """Return what changes when a file is replaced; of files in memory the contents are compared."""
    found = []
    for name, content in contents(files).items():
        if not isinstance(content, bytes):
            stat = content.stat()
            found.append((name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(found)


# A search asks the same question for every candidate. The answer holds maps and files, no weights.
@lru_cache(maxsize=8)
def _common(question: _Question) -> _Common:
    keys = TokenizerBlock.model_validate_json(question.keys or "{}")
    headers = {
        header.name: Model(
            json.loads(header.config),
            dict(header.specs),
            _no_tensor,
            header.files,
            exact=_no_tensor if header.exact else None,
        )
        for header in question.headers
    }
    tokenizers, tables, rows = _vocabularies(headers)
    choices = _choices(keys, tokenizers, rows)
    files, result = _tokenizer(keys, question.donor, headers, tokenizers, rows)
    _require_near(result, rows)
    alignment = align(
        _by_preference(result),
        {name: tokenizer.ids for name, tokenizer in tokenizers.items()},
        rows,
        base=question.base,
        choices=choices,
        multiple=keys.pad_to_multiple_of or 1,
    )
    configs = _configs(headers, tokenizers, question.donor, result, alignment.size)
    types = {
        name: {table: aligned_type(name, table, headers, alignment) for table in found}
        for name, found in tables.items()
    }
    files = with_generation_ids(files, within(alignment.size))
    return _Common(alignment, files, configs, types)


def _no_tensor(name: str) -> Tensor:
    raise RuntimeError(f"the weights of {name} are not read here")


def _vocabularies(
    models: Mapping[str, Model],
) -> tuple[dict[str, Tokenizer], dict[str, tuple[str, ...]], dict[str, int]]:
    """Return each model's tokenizer, its tensors with one row for each token, and their number of rows."""
    from evolve.weights.tables import vocabulary_tables
    from evolve.weights.tokenizer import load_tokenizer

    tokenizers, tables, rows, problems = {}, {}, {}, []
    for name, model in models.items():
        try:
            tables[name] = vocabulary_tables(model)
            rows[name] = int(model.config["vocab_size"])
            tokenizers[name] = load_tokenizer(model.files, model.config)
        except ModelError as error:
            problems.append(("models", f"model {name!r}: {error}"))
    if problems:
        raise VocabularyError(problems)
    return tokenizers, tables, rows


def _choices(
    keys: TokenizerBlock, tokenizers: Mapping[str, Tokenizer], rows: Mapping[str, int]
) -> dict[str, Choice]:
    """Return the row that the config chooses for each of its tokens."""
    found: dict[str, Choice] = {}
    problems = []
    for token, entry in keys.tokens.items():
        model, row = None, -1
        if isinstance(entry.source, str):
            model, wanted = entry.source, token
            row = tokenizers[model].ids.get(token, -1)
        elif isinstance(entry.source, ModelToken):
            model, wanted = entry.source.model, entry.source.token or f"number {entry.source.token_id}"
            row = tokenizers[model].ids.get(wanted, -1)
            if entry.source.token_id is not None:
                row = entry.source.token_id
        else:
            wanted = ""
        if model is not None and not 0 <= row < rows[model]:
            where = "no such token" if row < 0 else f"{rows[model]} rows in its embedding and no row {row}"
            message = f"model {model!r} has {where} ({wanted!r}); name a model that has it, or {{kind: zero}}"
            problems.append((f"tokenizer.tokens.{token}.source", message))
        found[token] = Choice(model, row, entry.force)
    if problems:
        raise VocabularyError(problems)
    return found


def _tokenizer(
    keys: TokenizerBlock,
    donor: str,
    models: Mapping[str, Model],
    tokenizers: Mapping[str, Tokenizer],
    rows: Mapping[str, int],
) -> tuple[Files, Tokenizer]:
    """Return the side files and the tokenizer of the result."""
    from evolve.weights.union import Owner, union

    owners = []
    for name, tokenizer in tokenizers.items():
        if name == donor:
            continue
        held = sorted((number, token) for token, number in tokenizer.ids.items() if number < rows[name])
        tokens = [token for _, token in held if keys.source == UNION or token in keys.tokens]
        owners.append(Owner(name, models[name].files, tokenizer, tokens))
    made = union(models[donor].files, tokenizers[donor], models[donor].config, owners, keys.tokens)
    return made.files, made.tokenizer


def _require_near(tokenizer: Tokenizer, rows: Mapping[str, int]) -> None:
    if tokenizer.size > max(rows.values()) + len(tokenizer.ids) + _FARTHEST:
        token = max(tokenizer.ids, key=lambda found: tokenizer.ids[found])
        message = f"token {token!r} has the id {tokenizer.ids[token]}, far beyond all embeddings"
        raise ModelError(f"{message}: mend tokenizer.json")


def _by_preference(tokenizer: Tokenizer) -> Mapping[str, int]:
    """Return the ids; of tokens that share an id the one that is decoded last, for it counts first."""
    ids = tokenizer.ids
    if len(set(ids.values())) == len(ids):
        return ids
    decoded = {token for number in set(ids.values()) if (token := tokenizer.backend.id_to_token(number))}
    return dict(sorted(ids.items(), key=lambda entry: entry[0] in decoded))


def _configs(
    models: Mapping[str, Model],
    tokenizers: Mapping[str, Tokenizer],
    donor: str,
    result: Tokenizer,
    size: int,
) -> dict[str, dict[str, Any]]:
    """Return each model's config with the result's number of rows and its special ids.

    The ids of ``donor`` are those of the result. What the result has no token for becomes that of ``donor``.
    """
    own = moved_ids(models[donor].config, within(size), {})
    configs = {}
    for name, model in models.items():
        config = own
        if name != donor:
            config = moved_ids(model.config, _by_token(tokenizers[name], result), own)
        configs[name] = {**config, "vocab_size": size}
    return configs


def _by_token(old: Tokenizer, new: Tokenizer) -> Callable[[int], int | None]:
    return lambda number: new.ids.get(old.backend.id_to_token(number))

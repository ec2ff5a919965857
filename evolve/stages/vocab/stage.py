"""The vocabulary stage: a model gets tokens of a domain, and rows for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from evolve.errors import CandidateError, ModelError, UserError
from evolve.stages.vocab.block import VocabBlock, bounds, names
from evolve.stages.vocab.extension import (
    Settings,
    chosen_of,
    contexts,
    extension_of,
    loaded_size,
    settings,
    too_few,
)
from evolve.stages.vocab.rows import Rule, extended_model, header, tables_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.values import StageBlock
    from evolve.stages.memo import Memo
    from evolve.stages.vocab.initialisers.base import Mixture
    from evolve.weights.model import Model


class VocabStage:
    """Extends the vocabulary of one model."""

    block: ClassVar[type[StageBlock]] = VocabBlock

    @staticmethod
    def inputs(block: StageBlock) -> tuple[str, ...]:
        """Return the model that is extended."""
        model = cast("VocabBlock", block).model
        return () if model is None else (model,)

    @staticmethod
    def check(block: StageBlock, models: Mapping[str, Model]) -> list[tuple[str, str]]:
        """See that tokenizer and files can be used, and that the text gives enough tokens.

        The tokens are chosen here, once for all candidates; what was chosen is kept on the disk.
        """
        vocab = cast("VocabBlock", block)
        if found := _unreadable(vocab):
            return found
        model = _input(vocab, models)
        try:
            tables = tables_of(model)
            size = loaded_size(model)
        except UserError as error:
            return [("model", f"model {vocab.model!r} cannot be extended: {error}")]
        if size > tables.rows:
            message = f"its tokenizer has ids up to {size - 1}, its embedding only {tables.rows} rows"
            return [("model", f"model {vocab.model!r}: {message}: mend the tokenizer or add rows first")]
        try:
            for method in names(vocab.selection.method):
                wanted = settings(vocab, widest=True, method=method)
                chosen = chosen_of(model, wanted.request)
                if len(chosen.merges) < wanted.count:
                    return [("num_new_tokens", too_few(chosen, wanted))]
                extension_of(model, wanted)
        except ModelError as error:
            return [("model", f"model {vocab.model!r} cannot be extended: {error}")]
        except UserError as error:
            return [("dataset", str(error))]
        return []

    @staticmethod
    def outline(block: StageBlock, models: Mapping[str, Model]) -> Model:
        """Return config, specs and files of the result with the most new tokens."""
        vocab = cast("VocabBlock", block)
        model = _input(vocab, models)
        try:
            return header(
                model,
                tables_of(model),
                extension_of(model, settings(vocab, widest=True)),
                vocab.pad_to_multiple_of,
            )
        except UserError as error:
            raise CandidateError("build", str(error)) from error

    @staticmethod
    def prepare(block: StageBlock, models: Mapping[str, Model]) -> None:
        """Choose the tokens, so that no candidate has to. ``check`` has done it where that was called."""
        vocab = cast("VocabBlock", block)
        try:
            for method in names(vocab.selection.method):
                chosen_of(_input(vocab, models), settings(vocab, widest=True, method=method).request)
        except UserError as error:
            raise CandidateError("build", str(error)) from error

    @staticmethod
    def run(block: StageBlock, models: Mapping[str, Model], *, seed: int, memo: Memo | None = None) -> Model:
        """Return the extended model; the tables are made when they are read."""
        del memo  # what candidates share is kept with the tokenizer, not with weights
        vocab = cast("VocabBlock", block)
        model = _input(vocab, models)
        try:
            wanted = settings(vocab)
            extension = extension_of(model, wanted)
            tables = tables_of(model)
        except UserError as error:
            raise CandidateError("build", str(error)) from error
        if extension.first > tables.rows:
            raise CandidateError(
                "build", f"{vocab.model}: the tokenizer has more tokens than the embedding rows"
            )
        init = vocab.init

        def rules(is_embedding: bool) -> Rule:
            name = init.input if is_embedding else init.output
            norm = init.norm if is_embedding else init.output_norm
            return Rule(names(name)[0], None if norm is None else bounds(norm)[0])

        return extended_model(
            model,
            tables,
            extension,
            vocab.pad_to_multiple_of,
            rules,
            lambda: _contexts(model, wanted),
            seed if vocab.seed is None else vocab.seed,
        )


def _contexts(model: Model, wanted: Settings) -> tuple[Mixture, ...]:
    try:
        return contexts(model, wanted)
    except UserError as error:
        raise CandidateError("build", str(error)) from error


def _input(vocab: VocabBlock, models: Mapping[str, Model]) -> Model:
    return models[cast("str", vocab.model)]


def _unreadable(vocab: VocabBlock) -> list[tuple[str, str]]:
    """Return which files are no text, judged by their beginning."""
    from evolve.statistics.corpus import problem

    listed = {"dataset": vocab.dataset, "selection.contrast": vocab.selection.contrast, "terms": vocab.terms}
    found = []
    for path, file in listed.items():
        if file is not None and (message := problem(file.path)):
            found.append((path, message))
    return found

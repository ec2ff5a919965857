"""The statistics of a model on a text: found on the disk, or gathered with transformers and kept there."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError
from evolve.statistics.cache import Draft, Source, Statistics, default_folder, find_or_gather
from evolve.statistics.corpus import sequences
from evolve.statistics.fisher import diagonal_fisher
from evolve.statistics.gram import MAX_BYTES, input_grams, linear_layers, sources
from evolve.weights.files import folder_of
from evolve.weights.network import open_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from evolve.statistics.cache import Kind
    from evolve.statistics.corpus import Corpus
    from evolve.statistics.fisher import Labels
    from evolve.weights.model import Model

logger = logging.getLogger(__name__)

_LONGEST = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


def statistics_of(
    model: Model,
    kind: Kind,
    corpus: Corpus,
    *,
    labels: Labels = "sampled",
    folder: Path | None = None,
    max_bytes: int = MAX_BYTES,
) -> Statistics:
    """Return the statistics of a model on a text.

    Args:
        model: A parent: its ``content`` is known, and its tokenizer is in ``files``.
        kind: ``fisher``: the diagonal Fisher information of every parameter; ``gram``: the inner products of
            the inputs of every linear layer.
        corpus: The text.
        labels: For ``fisher``: whose labels.
        folder: Where statistics are kept; absent: in the user's cache folder.
        max_bytes: For ``gram``: most bytes of inner products that are held at a time.

    Raises:
        UserError: The text cannot be read, or the folder cannot be written.
        CandidateError: Nothing can be gathered of this model on this text.
    """
    if not model.content:
        raise ValueError("statistics are gathered of parents: the model has no content hash")
    key: dict[str, Any] = {"model": model.content, "corpus": corpus.key}
    if kind == "fisher":
        key["labels"] = labels
    work = _Fisher(model, corpus, labels) if kind == "fisher" else _Gram(model, corpus, max_bytes)
    try:
        return find_or_gather(folder or default_folder(), kind, key, work.draft, work.fill)
    finally:
        work.close()


class _Work:
    """A model in transformers that is read once it is needed."""

    def __init__(self, model: Model, corpus: Corpus) -> None:
        self._model = model
        self._corpus = corpus
        self._network: Any = None
        self._names: dict[str, str] = {}

    def _open(self) -> Any:
        if self._network is None:
            self._check_length()
            self._encode = _encoder(self._model)
            self._network, self._names = open_network(self._model, _device())
        return self._network

    def close(self) -> None:
        """Drop the network, and give a GPU's memory back: an engine that starts next looks for it."""
        opened, self._network = self._network is not None, None
        if opened and _device() == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _check_length(self) -> None:
        longest = next((self._model.config[key] for key in _LONGEST if key in self._model.config), None)
        if isinstance(longest, int) and self._corpus.sequence_length > longest:
            raise CandidateError(
                "build",
                f"statistics.sequence_length {self._corpus.sequence_length} is more than the model can read: "
                f"set it to {longest} or lower",
            )

    def _sequences(self) -> Iterator[Tensor]:
        rows = self._network.get_input_embeddings().weight.shape[0]
        for tokens in sequences(self._corpus, self._encode):
            if int(tokens.max()) >= rows:
                raise CandidateError(
                    "build",
                    f"the tokenizer gives token {int(tokens.max())}, the model has {rows}: "
                    "take both from one model",
                )
            yield tokens

    def _said(self, what: str) -> Callable[[], None]:
        began = time.monotonic()
        name = folder_of(self._model.files).name
        logger.info("gathering %s of %s on %s", what, name, self._corpus.path)
        return lambda: logger.info("%s of %s took %.0f s", what, name, time.monotonic() - began)


class _Fisher(_Work):
    def __init__(self, model: Model, corpus: Corpus, labels: Labels) -> None:
        super().__init__(model, corpus)
        self._labels = labels

    def draft(self) -> Draft:
        owned = dict(self._open().named_parameters())
        used = {name: own for name, own in self._names.items() if own in owned}
        shapes = {name: tuple(owned[own].shape) for name, own in used.items()}
        return Draft(shapes, {name: Source(name) for name in shapes})

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        done = self._said("the Fisher information")
        into = {own: tensors[name] for name, own in self._names.items() if name in tensors}
        diagonal_fisher(
            self._network, self._sequences(), labels=self._labels, seed=self._corpus.seed, into=into
        )
        done()


class _Gram(_Work):
    def __init__(self, model: Model, corpus: Corpus, max_bytes: int) -> None:
        super().__init__(model, corpus)
        self._max_bytes = max_bytes

    def draft(self) -> Draft:
        network = self._open()
        found = linear_layers(network)
        first = next(self._sequences(), None)
        if first is None:
            raise CandidateError("build", "the text has no two tokens: there is nothing to gather")
        leaders = sources(network, found, first)
        # The head of a tied model has no tensor of its own, and the embedding is no linear layer.
        tensors = {
            own.removesuffix(".weight"): name for name, own in self._names.items() if own.endswith(".weight")
        }
        listed = {
            tensors[layer]: Source(leader, found[layer].input_axis)
            for layer, leader in leaders.items()
            if layer in tensors
        }
        wanted = {source.stored for source in listed.values()}
        self._layers = {name: found[name] for name in leaders if name in wanted}
        return Draft({name: (layer.inputs,) * 2 for name, layer in self._layers.items()}, listed)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        done = self._said("the inner products")
        for name, gram in input_grams(
            self._network, self._layers, self._sequences, max_bytes=self._max_bytes
        ):
            tensors[name].copy_(gram)
        done()


def _encoder(model: Model) -> Callable[[str], list[int]]:
    """Return the function from a document to its tokens, ended by the model's own mark."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model.files, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CandidateError(
            "build",
            f"{model.files} has no tokenizer that can be loaded ({error}): copy its tokenizer files there",
        ) from error
    end = tokenizer.eos_token_id

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
        return ids if end is None or ids[-1:] == [end] else [*ids, end]

    return encode


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

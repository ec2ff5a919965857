"""Tensors with one row for each token, read with the rows of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.weights.model import Model, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import torch
    from torch import Tensor

    from evolve.stages.memo import Memo
    from evolve.stages.merge.alignment import Alignment
    from evolve.stages.merge.statistics import Gathered
    from evolve.tensors.embeddings import Rows
    from evolve.weights.files import Files


class Tables:
    """The tables of several models with the rows of one vocabulary. Any number of threads may read them."""

    def __init__(
        self,
        models: Mapping[str, Model],
        alignment: Alignment,
        types: Mapping[str, Mapping[str, str]],
        memo: Memo | None = None,
        key: tuple[str, ...] = (),
    ) -> None:
        """Read nothing yet.

        Args:
            models: Name to model as it is.
            alignment: Where rows come from.
            types: For each model its tables, and the types that they get.
            memo: Keeps aligned tables, as far as there is room.
            key: Tells these tables from those of the same models under another alignment.
        """
        self._models = models
        self._alignment = alignment
        self._types = types
        self._memo = memo
        self._key = key

    def model(self, name: str, config: Mapping[str, Any], files: Files) -> Model:
        """Return a model with aligned tables, and with another config and other side files."""
        model, types = self._models[name], self._types[name]
        size = self._alignment.size
        specs = {
            tensor: TensorSpec((size, *spec.shape[1:]), types[tensor]) if tensor in types else spec
            for tensor, spec in model.specs.items()
        }

        def read(others: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
            return lambda tensor: self._table(name, tensor) if tensor in types else others(tensor)

        exact = None if model.exact is None else read(model.exact)
        return Model(config, specs, read(model.tensor), files, exact=exact)

    def _table(self, name: str, table: str) -> Tensor:
        import torch

        own = self._models[name].unrounded(table)
        if self._alignment.whole(name, len(own)):
            dtype: torch.dtype = getattr(torch, self._types[name][table])
            return own.to(dtype)
        if self._memo is None:
            return self._read(name, table, own)
        models = tuple(self._models.values())
        return self._memo.get(
            ("table", *self._key, name, table), models, lambda: self._read(name, table, own)
        )

    def _read(self, name: str, table: str, own: Tensor) -> Tensor:
        import torch

        from evolve.tensors.embeddings import mean_of_owners, mean_row, selected

        alignment = self._alignment
        dtype: torch.dtype = getattr(torch, self._types[name][table])
        result = selected(own, alignment.own[name], dtype)
        lacks = alignment.own[name][alignment.filled] < 0
        wanted = {model: rows[lacks] for model, rows in alignment.owners.items() if (rows[lacks] >= 0).any()}
        if wanted:
            given = [own if model == name else self._models[model].unrounded(table) for model in wanted]
            fill = mean_of_owners(given, list(wanted.values()))
            _put(result, alignment.filled[lacks], fill)
        if alignment.padding.size:
            _put(result, alignment.padding, mean_row(result, alignment.tokens))
        return result


def _put(table: Tensor, rows: Any, values: Tensor) -> None:
    import torch

    table[torch.from_numpy(rows).to(table.device)] = values.to(table.device, table.dtype)


def aligned_type(model: str, table: str, models: Mapping[str, Model], alignment: Alignment) -> str:
    """Return the type of an aligned table: the model's own if it holds all rows exactly, else a wider one."""
    from evolve.tensors.embeddings import holds_exactly

    own = _held(models[model], table)
    lacks = alignment.own[model][alignment.filled] < 0
    gives = {name: found[lacks] >= 0 for name, found in alignment.owners.items()}
    sources = {
        _held(models[name], table)
        for name, found in gives.items()
        if found.any() and table in models[name].specs
    }
    several = int(np.sum(list(gives.values()), axis=0).max(initial=0)) > 1
    averaged = several or alignment.padding.size > 0
    if not averaged and all(holds_exactly(source, own) for source in sources):
        return own
    return "float64" if "float64" in {own, *sources} else "float32"


def _held(model: Model, table: str) -> str:
    """Return a type that holds a table before it is rounded to its own."""
    own = model.specs[table].dtype
    return own if model.exact is None or own == "float64" else "float32"


class AlignedFisher:
    """The Fisher information of a model in the rows of the result. Of a token that it lacks it has none."""

    def __init__(self, gathered: Gathered, own: Rows, tables: Collection[str]) -> None:
        """Align what was gathered of a model as it is.

        Args:
            gathered: The diagonal Fisher information of the model.
            own: The model's row for each row of the result; -1: none.
            tables: Its tensors with one row for each token.
        """
        self._gathered = gathered
        self._own = own
        self._tables = tables
        self.mean = gathered.mean

    def get(self, name: str) -> tuple[Tensor, int] | None:
        """Return what is known of a tensor, and the axis of its inputs; None: nothing is."""
        from evolve.tensors.embeddings import selected

        found = self._gathered.get(name)
        if found is None or name not in self._tables:
            return found
        values, axis = found
        return selected(values, self._own, values.dtype), axis

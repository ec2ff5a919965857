"""Which tensors of a model have one row for each token: asked of transformers, never guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.errors import ModelError
from evolve.weights.skeleton import Skeleton

if TYPE_CHECKING:
    from evolve.weights.model import Model

_MORE = 64


def vocabulary_tables(model: Model) -> tuple[str, ...]:
    """Return the stored tensors that have one row for each token: embedding, untied head, the head's bias.

    They are those whose first dimension grows with ``vocab_size``. Reads no weights.

    Raises:
        ModelError: It cannot be told, or another dimension grows with it.
    """
    start = "which tensors have one row for each token cannot be told"
    size = model.config.get("vocab_size")
    other = [key for key in model.config if "vocab" in key and key != "vocab_size"]
    if not isinstance(size, int) or other:
        found = f"it has {', '.join(other)}" if other else "it states no vocab_size"
        raise ModelError(f"{start} from config.json: {found}")
    skeleton, larger = (Skeleton.of({**model.config, "vocab_size": rows}) for rows in (size, size + _MORE))
    if skeleton is None or larger is None:
        raise ModelError(f"{start}: transformers does not know {model.config.get('model_type')!r}")
    before, after = skeleton.memory, larger.memory
    stored = {name: original for original, (name, _) in skeleton.loaded(model.specs).items()}
    tables = []
    for name, shape in before.items():
        if after[name] == shape:
            continue
        if after[name] != (shape[0] + _MORE, *shape[1:]) or shape[0] != size:
            raise ModelError(f"{name} changes with vocab_size in another way than by one row for each token")
        if name not in stored or model.specs[stored[name]].shape != shape:
            raise ModelError(f"{name} is not stored with {size} rows: config.json and weights disagree")
        tables.append(stored[name])
    return tuple(tables)

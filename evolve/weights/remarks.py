"""What a person should know about a parent although it can be built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evolve.errors import some
from evolve.weights.adapter import Adapter, read_adapter
from evolve.weights.files import ADAPTER_CONFIG
from evolve.weights.location import PLUS, parts, places
from evolve.weights.vocabulary import vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.types import Parent
    from evolve.weights.model import Model


def remarks(parents: Mapping[str, Parent], models: Mapping[str, Model]) -> list[str]:
    """Return a sentence for each doubt about an adapter: other base or tokens, a head that parts, no use.

    Reads configs and tokenizer files only.
    """
    found = []
    for name, parent in parents.items():
        base, *adapters = parts(parent.path)
        if (Path(base) / ADAPTER_CONFIG).is_file() and base not in adapters:
            source, _ = places(parent)[0]
            found.append(
                f"models.{name}: {source} also holds an adapter ({ADAPTER_CONFIG}), which is not used: name "
                f"{source}{PLUS}{source} to merge it"
            )
        for place, (source, _) in zip(adapters, places(parent)[1:], strict=True):
            adapter = read_adapter(Path(place))
            told = [_other_base(adapter, parent, models[name]), _other_tokens(adapter, Path(base))]
            found += [f"models.{name}: {source}: {text}" for text in told if text]
        if adapters and _was_tied(Path(base)) and not models[name].tied:
            found.append(
                f"models.{name}: an adapter changes the embedding and the head in different ways, so they "
                "are no longer tied; it merges with untied models only"
            )
    return found


def _other_base(adapter: Adapter, parent: Parent, model: Model) -> str:
    theirs = adapter.base.rstrip("/")
    if not theirs:
        return ""
    source, _ = places(parent)[0]
    ours = {
        source.partition("@")[0].rstrip("/"),
        parts(parent.path)[0],
        str(model.config.get("_name_or_path", "")),
    }
    if {Path(theirs).name.lower(), theirs.lower()} & {
        spelling.lower() for known in ours if known for spelling in (known, Path(known).name)
    }:
        return ""
    return (
        f"the adapter was trained on {theirs}, and is put on {source}: if they are not the same model, name "
        f"{theirs}{PLUS}ADAPTER"
    )


def _other_tokens(adapter: Adapter, base: Path) -> str:
    known, theirs = vocabulary(base), vocabulary(adapter.folder)
    if not isinstance(known, dict) or not isinstance(theirs, dict):
        return ""
    more = sorted(theirs.keys() - known.keys(), key=lambda token: theirs[token])
    if not more:
        return ""
    listed = some(map(repr, more))
    return (
        f"the tokenizer beside the adapter has {listed}, which the base's lacks; the base's is used. Copy "
        "the adapter's tokenizer files into a copy of the base, if the model needs them"
    )


def _was_tied(base: Path) -> bool:
    from evolve.weights.reader import open_model

    return open_model(base).tied

"""How stages refer to models: by name, or as mergekit does by a path or a hub id."""

from __future__ import annotations

from pathlib import Path as File
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.config.messages import Complaint, describe
from evolve.registry import STAGES, did_you_mean
from evolve.weights.location import parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from evolve.config.values import StageBlock
    from evolve.config.yaml import Path

KEYS = ("model", "base_model", "tokenizer_source")
"""Keys of a stage's block that hold the name of a model, at any depth."""
RESERVED = {"average": "the plain average of the experts"}
"""Names that a baseline has."""


def references(block: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield ``(path, name)`` for each model that a stage's plain block names."""
    if isinstance(block, dict):
        if "base_url" in block:  # a server's model is none of ours
            return
        for key, value in block.items():
            if key == "tokenizer" and isinstance(value, dict):
                yield from _of_tokenizer(value, (*path, key))
            elif key in KEYS and isinstance(value, str):
                # mergekit's words for "that of the base model" and "all of them".
                if key != "tokenizer_source" or value not in {"base", "union"}:
                    yield (*path, key), value
            else:
                yield from references(value, (*path, key))
    elif isinstance(block, list):
        for index, value in enumerate(block):
            yield from references(value, (*path, index))


def _of_tokenizer(block: dict[str, Any], path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the models of a ``tokenizer`` block. Its ``tokens`` have texts for keys, whatever they say."""
    source = block.get("source")
    if isinstance(source, str) and source not in {"base", "union"}:
        yield (*path, "source"), source
    tokens = block.get("tokens")
    for token, entry in tokens.items() if isinstance(tokens, dict) else ():
        source = entry.get("source") if isinstance(entry, dict) else None
        if isinstance(source, str):
            yield (*path, "tokens", token, "source"), source
        elif isinstance(source, dict) and isinstance(source.get("model"), str):
            yield (*path, "tokens", token, "source", "model"), source["model"]


def spelled(block: Any, path: Path = ()) -> tuple[Any, list[Complaint]]:
    """Replace mergekit's mappings for a model by the text that means the same.

    ``{model: {path: x, revision: y}, lora: {path: z}}`` is ``x@y+z``.

    Returns:
        The block, and what is wrong with the mappings.
    """
    if isinstance(block, list):
        items = [spelled(item, (*path, index)) for index, item in enumerate(block)]
        return [item for item, _ in items], [one for _, found in items for one in found]
    if not isinstance(block, dict):
        return block, []
    copy: dict[Any, Any] = {}
    found: list[Complaint] = []
    for key, value in block.items():
        if key == "tokens" and isinstance(value, dict):
            # Its keys are texts, whatever they say.
            entries = {token: spelled(entry, (*path, key, token)) for token, entry in value.items()}
            copy[key] = {token: entry for token, (entry, _) in entries.items()}
            wrong = [one for _, more in entries.values() for one in more]
        elif key in KEYS and isinstance(value, dict):
            copy[key], wrong = _as_text(value, (*path, key))
        else:
            copy[key], wrong = spelled(value, (*path, key))
        found += wrong
    return copy, found


_PARTS = ("model", "lora", "override_architecture")


def _as_text(reference: dict[Any, Any], path: Path) -> tuple[Any, list[Complaint]]:
    if unknown := [key for key in reference if key not in _PARTS]:
        hint = did_you_mean(str(unknown[0]), _PARTS)
        message = f"unknown key in a model{hint}: write a text, or {{model: {{path: ..., revision: ...}}}}"
        return "", [Complaint((*path, unknown[0]), message, at_key=True)]
    if reference.get("override_architecture") is not None:
        message = (
            "override_architecture is not supported: set architectures in a copy of the model's config.json"
        )
        return "", [Complaint((*path, "override_architecture"), message, at_key=True)]
    if reference.get("model") is None:
        return "", [
            Complaint((*path, "model"), "missing: this key is needed (the path or hub id of the model)")
        ]
    model, wrong = _path_and_revision(reference["model"], (*path, "model"))
    if reference.get("lora") is None:
        return model, wrong
    lora, more = _path_and_revision(reference["lora"], (*path, "lora"))
    return f"{model}+{lora}", [*wrong, *more]


def _path_and_revision(value: Any, path: Path) -> tuple[str, list[Complaint]]:
    if isinstance(value, str):
        return value, []
    texts = value if isinstance(value, dict) else {}
    unknown = [key for key in texts if key not in ("path", "revision")]
    if (
        not isinstance(texts.get("path"), str)
        or unknown
        or not isinstance(texts.get("revision", ""), str | None)
    ):
        return "", [
            Complaint(path, f"expected a text or {{path: ..., revision: ...}}, got {describe(value)}")
        ]
    revision = texts.get("revision")
    return f"{texts['path']}@{revision}" if revision else texts["path"], []


def rename(block: Any, names: Mapping[str, str]) -> Any:
    """Return a copy of a stage's plain block in which models have other names."""
    copy: Any = block
    for path, name in references(block):
        if name in names:
            copy = _set(copy, path, names[name])
    return copy


def _set(data: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    copy: Any = dict(data) if isinstance(data, dict) else list(data)
    copy[path[0]] = _set(data[path[0]], path[1:], value)
    return copy


def adopt(models: dict[str, Any], block: Any, outputs: set[str]) -> tuple[dict[str, Any], Any]:
    """Give the paths and hub ids that a merge refers to a name of their own.

    A path or id that is the source of a named model gets that name. A hub id is its own name. A folder is
    called by its last part, since no path may enter a recipe: it would differ from machine to machine.

    Returns:
        All models, and the block with names in place of paths.
    """
    models = dict(models)
    names: dict[str, str] = {}
    for _, reference in references(block):
        if reference in models or reference in outputs or reference in names:
            continue
        known = [name for name, source in models.items() if source == reference]
        if known:
            names[reference] = known[0]
        elif _is_folder(reference) or "/" in reference:
            name = _short_name(reference, {*models, *outputs, *RESERVED})
            models[name] = reference
            names[reference] = name
    return models, rename(block, names)


def _is_folder(reference: str) -> bool:
    """Whether it is a folder or a file of this machine, adapters aside."""
    try:
        return File(parts(reference)[0]).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _short_name(reference: str, taken: set[str]) -> str:
    if not _is_folder(reference) and reference[0] not in "/.~":
        return reference
    paths = [File(part).parts for part in parts(reference)]
    for depth in range(1, max(map(len, paths)) + 1):
        name = "+".join("-".join(path[-depth:]).strip("/") for path in paths)
        if name and name not in taken:
            return name
    return next(name for count in range(2, len(taken) + 3) if (name := f"model{count}") not in taken)


class StageView(NamedTuple):
    """A stage of the pipeline, perhaps one whose block is wrong.

    Attributes:
        path: Where its block stands in the config.
        kind: Such as ``merge``.
        raw: The plain block.
        block: The checked block, or None where it is wrong.
    """

    path: Path
    kind: str
    raw: Mapping[str, Any]
    block: StageBlock | None

    @property
    def name(self) -> str | None:
        """The name of its output."""
        name = self.raw.get("name")
        return name if isinstance(name, str) and name else None

    @property
    def chained(self) -> bool:
        """Whether it reads the output of the stage before because it names no model."""
        fields = STAGES.load(self.kind).block.model_fields
        return "model" in fields and self.raw.get("model") is None

    def inputs(self) -> list[tuple[Path, str]]:
        """Return ``(path, name)`` of the models that it reads."""
        found = [((*self.path, *path), name) for path, name in references(self.raw)]
        if self.block is None:
            return found
        inputs = STAGES.load(self.kind).inputs(self.block)
        first = {name: path for path, name in reversed(found)}
        return [(first.get(name, self.path), name) for name in inputs]


def wiring(models: Mapping[str, Any], stages: list[StageView]) -> list[Complaint]:
    """Return what is wrong with the names of a pipeline."""
    found = _names(models, stages)
    later = {stage.name for stage in stages if stage.name}
    known = set(models)
    for position, stage in enumerate(stages):
        for path, name in stage.inputs():
            if name in known:
                continue
            if name == stage.name:
                message = f"the stage cannot read its own output {name!r}"
            elif name in later:
                message = f"the stage {name!r} comes later: move it before this one"
            else:
                hint = did_you_mean(name, known)
                message = f"{name!r} is no model, no stage before this one, no folder and no hub id{hint}"
            found.append(Complaint(path, message))
        if stage.chained and position == 0 and len(models) != 1:
            message = f"add `model: NAME`: the first stage has no stage before it{did_you_mean('', models)}"
            found.append(Complaint(stage.path, message, at_key=True))
        if stage.name:
            known.add(stage.name)
    return found + _unused(stages)


def _names(models: Mapping[str, Any], stages: list[StageView]) -> list[Complaint]:
    found = []
    for name in models:
        if name in RESERVED:
            message = f"the name {name!r} is taken by {RESERVED[name]}: choose another"
            found.append(Complaint(("models", name), message, at_key=True))
    taken = dict.fromkeys(models, "a model")
    for stage in stages:
        if stage.name is None:
            continue
        if stage.name in taken:
            message = f"the name {stage.name!r} is taken by {taken[stage.name]}: choose another"
            found.append(Complaint((*stage.path, "name"), message))
        taken.setdefault(stage.name, "an earlier stage")
    return found


def _unused(stages: list[StageView]) -> list[Complaint]:
    found = []
    for position, stage in enumerate(stages[:-1]):
        after = stages[position + 1 :]
        if after[0].chained or any(name == stage.name for later in after for _, name in later.inputs()):
            continue
        mend = f"refer to {stage.name!r} in a later stage" if stage.name else "give it a name and refer to it"
        message = f"nobody uses the output of this stage: {mend}, or remove it"
        found.append(Complaint(stage.path, message, at_key=True))
    return found

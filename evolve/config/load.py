"""Loading a config: every problem at once, each with its file, line and column."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from evolve.config.document import Document, parse
from evolve.config.documents import OWN
from evolve.config.messages import Complaint, complaints, describe
from evolve.config.plain import plain
from evolve.config.references import StageView, adopt, spelled, wiring
from evolve.config.schema import Config, safe_name
from evolve.config.scorers import named_models, scorer_complaints
from evolve.config.yaml import MOST_BYTES
from evolve.errors import ConfigError, Problem
from evolve.registry import STAGES, did_you_mean

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from evolve.config.values import StageBlock
    from evolve.config.yaml import Path

MOST_PROBLEMS = 200
"""Most problems that are shown."""


@dataclass(frozen=True)
class Loaded:
    """A config that is right in itself. Models, tasks and data are not looked at yet.

    Attributes:
        config: The whole config; ``pipeline`` is plain, with defaults filled in and ranges as they are.
        stages: The kind and the checked block of every stage.
        source: The file's name, for messages.
    """

    config: Config
    stages: tuple[tuple[str, StageBlock], ...]
    source: str
    document: Document = field(repr=False, compare=False)

    @property
    def stacked(self) -> bool:
        """Whether the search decides on the layers that a candidate has."""
        return any(kind == "merge" and block.reshapes for kind, block in self.stages)

    def where(self, path: str | Sequence[str | int]) -> str:
        """Return ``file:line:column`` of a path, dotted or as a sequence, such as ``models.base``."""
        return self.document.where(path)

    def problem(self, path: str | Sequence[str | int], message: str) -> Problem:
        """Return a problem at a path of the config, for a :class:`~evolve.errors.ConfigError`."""
        return Problem(self.where(path), self.document.shown(path), message)


def load(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Loaded:
    """Read a config, or a bare mergekit YAML, and check it.

    Args:
        path: The file.
        overrides: ``key.path=value`` texts that are laid over it.

    Raises:
        ConfigError: Everything that is wrong.
    """
    return load_text(read_text(path), str(path), overrides)


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a config's file.

    Raises:
        ConfigError: It cannot be read, is no UTF-8, or is too long for a config.
    """
    source = str(path)
    try:
        # One byte more than allowed shows that a file is too long, and never reads an endless one.
        with File(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError([Problem(source, "", "no such file")]) from error
    except IsADirectoryError as error:
        raise ConfigError([Problem(source, "", "is a folder: give the config file in it")]) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError([Problem(source, "", f"cannot be read: {reason}")]) from error
    if len(data) > MOST_BYTES:
        raise ConfigError([Problem(source, "", _too_long())])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = f"not UTF-8 text (byte 0x{data[error.start]:02x}): save the file as UTF-8"
        raise ConfigError([Problem(f"{source}:{line}:{column}", "", message)]) from error


def _too_long() -> str:
    return f"longer than {MOST_BYTES / 1e6:g} MB: no config is; is it a data file?"


def load_text(text: str, source: str, overrides: Iterable[str] = ()) -> Loaded:
    """Like :func:`load`, for the content of a file named ``source``."""
    if len(text) > MOST_BYTES:
        raise ConfigError([Problem(source, "", _too_long())])
    document, problems = parse(text, source, overrides)
    data, odd = _shape(document)
    views, bad_stages = _stages(data)
    bad_scorers, rest = scorer_complaints(data)
    found = [*odd, *complaints(Config, _for_schema(rest)), *bad_stages, *bad_scorers]
    if document.bare or document.several:
        found = [one for one in found if one.path != ("models",)]
    models = data.get("models")
    found += wiring(models if isinstance(models, dict) else {}, views)
    found += [*_model_of(data, "retention", "model"), *_model_of(data, "start")]
    found += _default_name(data, source)
    checked = [document.problem(path, message, key=at_key) for path, message, at_key in found]
    # A value that YAML itself could not read is null here; what the schema says of that is noise.
    unread = {(problem.where, problem.path) for problem in problems}
    problems += [problem for problem in checked if (problem.where, problem.path) not in unread]
    if problems:
        raise ConfigError(_in_order(problems))
    blocks = tuple((view.kind, view.block) for view in views if view.block is not None)
    pipeline = [{kind: plain(block)} for kind, block in blocks]
    config = Config.model_validate({**named_models(data), "pipeline": pipeline})
    return Loaded(config, blocks, source, document)


def _shape(document: Document) -> tuple[dict[str, Any], list[Complaint]]:
    """Return the plain config. A bare mergekit file becomes its only stage, and paths of models get names."""
    data: dict[str, Any] = document.root.plain()
    found = []
    if document.bare:
        own: dict[str, Any] = {key: data.pop(key) for key in OWN if key in data}
        data = {"models": {}, "pipeline": [{"merge": data}], **own}
    elif document.several:
        data = {"models": {}, **data}
    elif "merge_method" in data:
        message = "a merge belongs into the pipeline, as `- merge: {merge_method: ...}`"
        found.append(Complaint(("merge_method",), message, at_key=True))
        del data["merge_method"]
    models, pipeline = data.get("models", {}), data.get("pipeline")
    if isinstance(models, dict) and isinstance(pipeline, list):
        for position, item in enumerate(pipeline):
            if isinstance(item, dict) and isinstance(item.get("merge"), dict):
                item["merge"], wrong = spelled(item["merge"])
                found += [one._replace(path=("pipeline", position, "merge", *one.path)) for one in wrong]
        items = [item.get("merge") for item in pipeline if isinstance(item, dict)]
        merges = [merge for merge in items if isinstance(merge, dict)]
        outputs = {merge["name"] for merge in merges if isinstance(merge.get("name"), str)}
        outputs |= _other_outputs(pipeline)
        for item in pipeline:
            if isinstance(item, dict) and isinstance(item.get("merge"), dict):
                models, item["merge"] = adopt(models, item["merge"], outputs)
        if models:
            data["models"] = models
    return data, found


def _other_outputs(pipeline: list[Any]) -> set[str]:
    blocks = [block for item in pipeline if isinstance(item, dict) for block in item.values()]
    names = [block.get("name") for block in blocks if isinstance(block, dict)]
    return {name for name in names if isinstance(name, str)}


def _for_schema(data: dict[str, Any]) -> dict[str, Any]:
    """Return the config without what :func:`_stages` checks: an item's shape is reported once."""
    if isinstance(data.get("pipeline"), list) and data["pipeline"]:
        return {**data, "pipeline": [{}]}
    return data


def _stages(data: dict[str, Any]) -> tuple[list[StageView], list[Complaint]]:
    views: list[StageView] = []
    found: list[Complaint] = []
    pipeline = data.get("pipeline")
    for index, item in enumerate(pipeline if isinstance(pipeline, list) else []):
        path: Path = ("pipeline", index)
        known = ", ".join(STAGES.names())
        if not isinstance(item, dict) or len(item) != 1:
            message = f"expected one stage, such as `- merge: {{...}}` (known: {known}), got {describe(item)}"
            found.append(Complaint(path, message))
            continue
        kind, raw = next(iter(item.items()))
        path = (*path, kind)
        if kind not in STAGES:
            hint = did_you_mean(kind, STAGES.names())
            found.append(Complaint(path, f"unknown stage{hint}", at_key=True))
        elif not isinstance(raw, dict):
            found.append(Complaint(path, f"expected a mapping (key: value), got {describe(raw)}"))
        else:
            block, wrong = _block(kind, raw)
            found += [Complaint((*path, *inner), message, at_key) for inner, message, at_key in wrong]
            views.append(StageView(path, kind, raw, block))
    return views, found


def _block(kind: str, raw: dict[str, Any]) -> tuple[StageBlock | None, list[Complaint]]:
    schema = STAGES.load(kind).block
    wrong = complaints(schema, raw)
    if wrong:
        wrong = [_of_mergekit(one) if kind == "merge" else one for one in wrong]
        # Without its unknown keys the block may be whole, and then it can say more.
        known = {key: value for key, value in raw.items() if (key,) not in {one.path for one in wrong}}
        if len(known) == len(raw) or complaints(schema, known):
            return None, wrong
        return None, [*wrong, *_block_problems(schema.model_validate(known))]
    block = schema.model_validate(raw)
    return block, _block_problems(block)


def _block_problems(block: StageBlock) -> list[Complaint]:
    return [
        Complaint(path, message, at_key=bool(path) and repr(path[-1]) in message)
        for path, message in block.problems()
    ]


_IN_SLICES = frozenset({"layer_range", "sources"})


def _of_mergekit(one: Complaint) -> Complaint:
    key = one.path[-1] if one.path else ""
    if one.message.startswith("unknown key") and key in _IN_SLICES:
        return Complaint(
            one.path, f"{key} belongs into slices: [{{sources: [{{model, layer_range}}]}}]", True
        )
    return one


def _model_of(data: dict[str, Any], *keys: str) -> list[Complaint]:
    """Return what is wrong with the name of a model that stands in the block ``score``."""
    block: Any = data
    path = ("score", *keys)
    for key in path:
        block = block.get(key) if isinstance(block, dict) else None
    models = data.get("models")
    if not isinstance(block, str) or not isinstance(models, dict) or block in models:
        return []
    message = f"no model is named {block!r}{did_you_mean(block, [str(name) for name in models])}"
    return [Complaint(path, message)]


def _default_name(data: dict[str, Any], source: str) -> list[Complaint]:
    """Name the run after the file where the config has no name."""
    if data.get("name") is not None:
        return []
    try:
        data["name"] = safe_name(File(source).stem)
    except ValueError as error:
        return [Complaint((), f"{error}; this one comes from the file's name: add `name: ...` to the config")]
    return []


def _in_order(problems: list[Problem]) -> list[Problem]:
    """Sort by place, each problem once."""
    ordered = sorted(dict.fromkeys(problems), key=_place)
    if len(ordered) > MOST_PROBLEMS:
        more = len(ordered) - MOST_PROBLEMS
        ordered = [*ordered[:MOST_PROBLEMS], Problem("", "", f"and {more} more")]
    return ordered


def _place(problem: Problem) -> tuple[int, int]:
    if problem.where.startswith("override"):
        return (1 << 30, 0)
    *_, line, column = ["", "", *problem.where.split(":")]
    return (int(line), int(column)) if line.isdecimal() and column.isdecimal() else (0, 0)

"""What is wrong with a merge's block, as far as the block alone can tell. Reads no files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evolve.config.values import Choices, Range
from evolve.registry import MERGE_METHODS, did_you_mean
from evolve.stages.merge.parts import ONLY_MODULE
from evolve.stages.merge.slices import stack_problem
from evolve.stages.merge.statistics import statistics_problems
from evolve.stages.merge.tokenizer_keys import template_problems, tokenizer_problems
from evolve.stages.merge.values import Path, always, ranges, value_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evolve.config.values import Parameter, SearchNumber
    from evolve.stages.merge.base import MergeMethod, Param
    from evolve.stages.merge.block import MergeBlock
    from evolve.stages.merge.parts import Part, Scope

Found = list[tuple[Path, str]]


def block_problems(block: MergeBlock) -> Found:
    """Return what is wrong with the method, the structure, the models and their parameters."""
    if block.merge_method not in MERGE_METHODS:
        known = did_you_mean(block.merge_method, MERGE_METHODS.names())
        return [(("merge_method",), f"unknown merge method {block.merge_method!r}{known}")]
    method = MERGE_METHODS.load(block.merge_method)
    structure = _structure(block)
    if structure:
        return structure
    found = [*_base(block, method)]
    for part in block.parts:
        found += [*_models(part, method), *_lengths(block, part), *_scale(part)]
    found += tokenizer_problems(
        block.tokenizer, block.tokenizer_source, base=block.base_model, names=block.names
    )
    found += template_problems(block.chat_template)
    found += _parameters(block, method)
    found += _missing(block, method)
    found += _overridden(block, method)
    found += statistics_problems(method, block.statistics)
    return list(dict.fromkeys((block.listed(path), message) for path, message in found))


def _structure(block: MergeBlock) -> Found:
    """Check what the result is made of, without which nothing else can be said."""
    if block.stack is not None:
        if message := stack_problem(block.stack):
            return [(("stack",), message)]
        if block.merge_method != "passthrough":
            message = f"a stack has one model in each place: set passthrough, not {block.merge_method!r}"
            return [(("merge_method",), message)]
        if not block.slices:
            return [(("stack",), "no layer is left: set keep_first, or repeats higher")]
    if block.slices == []:
        return [(("slices",), "must not be empty: the model would have no layer")]
    return _modules(block)


def _modules(block: MergeBlock) -> Found:
    if block.modules is None:
        return []
    if not block.modules:
        return [(("modules",), f"must not be empty: write {ONLY_MODULE}: {{models: [...]}}")]
    others = [name for name in block.modules if name != ONLY_MODULE]
    if others:
        message = (
            f"models with several modules ({', '.join(others)}) cannot be merged module by module yet; a "
            f"model with one stack of layers has the module {ONLY_MODULE!r}, and whole models of any kind "
            "can be listed under models"
        )
        return [(("modules", others[0]), message)]
    module = block.modules[ONLY_MODULE]
    if (module.models is None) == (module.slices is None):
        return [(("modules", ONLY_MODULE), "exactly one of models and slices belongs here")]
    if module.slices == []:
        return [(("modules", ONLY_MODULE, "slices"), "must not be empty: the model would have no layer")]
    return []


def _base(block: MergeBlock, method: type[MergeMethod]) -> Found:
    if method.base == "required" and any(part.base is None for part in block.parts):
        return [(("merge_method",), f"{method.name} needs a base_model")]
    if method.base == "none" and block.base_model is not None and not block.sliced:
        names = [entry.model for part in block.parts for entry in part.entries]
        if block.base_model not in names:
            message = (
                f"{method.name} has no base; list {block.base_model!r} under models, or leave base_model out"
            )
            return [(("base_model",), message)]
    return []


def _models(part: Part, method: type[MergeMethod]) -> Found:
    found: Found = []
    names = [entry.model for entry in part.entries]
    for index, entry in enumerate(part.entries):
        if entry.model in names[:index] and entry.path is not None:
            mend = "" if part.layers is None else "; give the model a second name under the config's models"
            found.append(((*entry.path, "model"), f"{entry.model!r} is listed twice{mend}"))
    listed: Path = (*part.path, "models" if part.layers is None else "sources")
    if part.base is not None and part.base_entry is None:
        found.append(
            (
                listed,
                f"the base {part.base!r} is missing: add it, since its layer_range says which of its layers "
                "belong here",
            )
        )
    fewest, most = method.models
    count = len(part.others)
    if count < fewest or (most is not None and count > most):
        wanted = f"exactly {fewest}" if fewest == most else f"at least {fewest}"
        beside = "" if part.base is None else " beside the base"
        found.append((listed, f"{method.name} needs {wanted} model(s){beside}, got {count}"))
    return found


def _lengths(block: MergeBlock, part: Part) -> Found:
    if part.layers is None:
        return []
    pieces = (block.modules[ONLY_MODULE].slices if block.modules else block.slices) or []
    lengths = [end - first for first, end in (s.layer_range for s in pieces[int(part.path[-1])].sources)]
    return [
        (
            (*part.path, "sources", index, "layer_range"),
            f"{length} layers, and the first source has {lengths[0]}",
        )
        for index, length in enumerate(lengths)
        if length != lengths[0]
    ]


def _scale(part: Part) -> Found:
    if all(value > 0 for value in _numbers(part.scale)):
        return []
    return [((*part.path, "scale"), "must be greater than 0: the norms that follow divide by it")]


def _numbers(value: SearchNumber) -> list[float]:
    if isinstance(value, Range):
        return [value.ends[0]]
    return [float(item) for item in value.choices] if isinstance(value, Choices) else [value]


def _parameters(block: MergeBlock, method: type[MergeMethod]) -> Found:
    per_model = {param.name: param for param in method.per_model}
    shared = {param.name: param for param in method.shared}
    found: Found = []
    for scope in _scopes(block):
        for name, value in scope.parameters.items():
            found += _check_one(method, name, value, (*scope.path, name), {**per_model, **shared})
    for part in block.parts:
        for entry in part.entries:
            for name, value in entry.parameters.items():
                path = (*(entry.path or ()), "parameters", name)
                if name in shared:
                    found.append((path, f"{name} holds for the whole merge; {_move(part)}"))
                else:
                    base = entry.model == part.base
                    found += _check_one(method, name, value, path, per_model, base=base)
    return found


def _move(part: Part) -> str:
    place = "the slice's" if part.layers is not None else "the stage's"
    return f"move it to {place} own parameters"


def _scopes(block: MergeBlock) -> Iterator[Scope]:
    """Yield each mapping of parameters that holds for several models, once, the widest first."""
    scopes = {scope.path: scope for part in block.parts for scope in reversed(part.scopes)}
    yield from sorted(scopes.values(), key=lambda scope: len(scope.path))


def _missing(block: MergeBlock, method: type[MergeMethod]) -> Found:
    found: Found = []
    for part in block.parts:
        given = {name for scope in part.scopes for name in scope.parameters}
        for param in method.shared:
            if param.default is None and param.name not in given:
                found.append(
                    (_nearest(block, part), f"{method.name} needs the parameter {param.name}: {param.doc}")
                )
        for entry in part.others:
            for param in method.per_model:
                if param.default is None and param.name not in {*given, *entry.parameters}:
                    path = entry.path or ()
                    path = (*path, "parameters") if entry.parameters else path
                    found.append((path, f"{entry.model!r} has no {param.name}, and {method.name} needs one"))
    return found


def _nearest(block: MergeBlock, part: Part) -> Path:
    if part.layers is not None:
        return part.path
    return ("parameters",) if block.parameters else ("merge_method",)


def _overridden(block: MergeBlock, method: type[MergeMethod]) -> Found:
    """Find ranges that hold for several models while each of those has a value that goes before it."""
    found: Found = []
    for scope in _scopes(block):
        for param in (*method.per_model, *method.shared):
            common = scope.parameters.get(param.name)
            if common is None or not ranges(common):
                continue
            if all(covered for covered in _covered(block, scope, param, param in method.per_model)):
                what = "every model has" if param in method.per_model else "every slice has"
                message = f"this range has no effect: {what} a {param.name} of its own"
                found.append(((*scope.path, param.name), message))
    return found


def _covered(block: MergeBlock, scope: Scope, param: Param, per_model: bool) -> Iterator[bool]:
    """Yield for each model (or part) below a scope whether a nearer value always goes before the scope's."""
    for part in block.parts:
        paths = [own.path for own in part.scopes]
        if scope.path not in paths:
            continue
        nearer = [own.parameters for own in part.scopes[: paths.index(scope.path)]]
        for entry in part.others if per_model else (None,):
            own = [*nearer] if entry is None else [entry.parameters, *nearer]
            yield any(param.name in values and always(values[param.name]) for values in own)


def _check_one(
    method: type[MergeMethod],
    name: str,
    value: Parameter,
    path: Path,
    known: dict[str, Param],
    *,
    base: bool = False,
) -> Found:
    if name not in known and name not in method.ignored:
        hint = did_you_mean(name, [*known, *method.ignored])
        return [(path, f"{method.name} has no parameter {name!r}{hint}")]
    if name not in known or base:
        what = "the base's parameters have" if base else f"{name} has"
        return [
            (path, f"{what} no effect in {method.name}; a range here would be searched in vain")
        ] * ranges(value)
    return [((*path, *inside), message) for inside, message in value_problems(known[name], value)]

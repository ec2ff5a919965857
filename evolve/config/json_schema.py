"""The JSON Schema of a config, for editors and for ``evolve schema``."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from evolve.config.schema import Config
from evolve.registry import ENGINES, MERGE_METHODS, SAMPLERS, SCORERS, STAGES

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (Draft 2020-12) of a whole config, the blocks of all stages in it."""
    blocks = {kind: STAGES.load(kind).block for kind in STAGES.names()}
    scorers = {kind: SCORERS.load(kind).block for kind in SCORERS.names()}
    refs, shared = models_json_schema(
        [(Config, "validation"), *((block, "validation") for block in (*blocks.values(), *scorers.values()))]
    )
    definitions = shared["$defs"]
    config = definitions.pop(refs[(Config, "validation")]["$ref"].rsplit("/", 1)[-1])
    properties = config["properties"]
    properties["pipeline"]["items"] = {
        "oneOf": [_stage(kind, refs[(block, "validation")]) for kind, block in blocks.items()]
    }
    definitions["ScoreConfig"]["properties"]["scorers"]["items"] = {
        "oneOf": [_stage(kind, refs[(block, "validation")]) for kind, block in scorers.items()]
    }
    kinds = definitions["EngineConfig"]["properties"]["kind"]["enum"]
    engine = {key: value for key, value in properties["engine"].items() if key not in {"$ref", "allOf"}}
    properties["engine"] = {
        **engine,
        "anyOf": [{"enum": kinds}, {"$ref": "#/$defs/EngineConfig"}],
    }
    _suggest(definitions)
    schema = {"$schema": _DIALECT, "title": "evolve config", **config, "$defs": definitions}
    loosened: dict[str, Any] = _loosen(schema)
    return loosened


def _stage(kind: str, block: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "title": kind,
        "properties": {kind: block},
        "required": [kind],
        "additionalProperties": False,
    }


def _suggest(definitions: dict[str, Any]) -> None:
    """List the names that registries know. They are examples: a plug-in may add one."""
    names = {
        ("MergeBlock", "merge_method"): MERGE_METHODS.names(),
        ("SearchConfig", "sampler"): SAMPLERS.names(),
        ("ScoreConfig", "backend"): ("auto", *ENGINES.names()),
    }
    for (block, key), known in names.items():
        field = definitions.get(block, {}).get("properties", {}).get(key)
        if field is not None:
            field["enum"] = list(known)


def _loosen(schema: Any) -> Any:
    """Replace pydantic's ``oneOf`` of a union by ``anyOf``: a whole number is also a number."""
    if isinstance(schema, list):
        return [_loosen(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    loose = {key: _loosen(value) for key, value in schema.items()}
    options = loose.get("oneOf")
    if isinstance(options, list) and not all(
        "title" in option and "required" in option for option in options
    ):
        loose["anyOf"] = loose.pop("oneOf")
        loose.pop("discriminator", None)
    return loose

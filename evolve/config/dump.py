"""Writing configs: YAML that reads back as the same values, here and in other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import evolve
from evolve.config.plain import plain
from evolve.config.yaml import resolve

if TYPE_CHECKING:
    from evolve.config.load import Loaded


# Line breaks of YAML 1.1 beside "\n": PyYAML writes them as they are, and folds them when it reads.
_BREAKS = frozenset("\r\x85\u2028\u2029\ufeff")


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Never write anchors: the same value twice is written twice."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None
    if not _BREAKS.isdisjoint(text):
        style = '"'
    elif "\n" not in text and (not _is_text(text) or text == "<<"):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


def _is_text(text: str) -> bool:
    try:
        return isinstance(resolve(text), str)
    except ValueError:
        return False


_Dumper.add_representer(str, _text)


def to_yaml(data: Any) -> str:
    """Return plain data as YAML, keys in their order, innermost lists and mappings in one line."""
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )
    return text


def config_data(loaded: Loaded) -> dict[str, Any]:
    """Return the whole config as plain data, every default filled in, ranges as they are."""
    data: dict[str, Any] = plain(loaded.config)
    return data


def resolved_yaml(loaded: Loaded) -> str:
    """Return the config with every default filled in. It loads again to an equal config."""
    source = Path(loaded.source).name
    header = (
        f"# Written by evolve {evolve.__version__} from {source!r}: every default is filled in.\n"
        "# It is a config itself: evolve validate, run and build read it.\n"
    )
    return header + to_yaml(config_data(loaded))

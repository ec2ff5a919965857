"""Where a word stands in a text, found by searching: the oracle of every position."""

from __future__ import annotations

import pytest

from evolve.config.load import load_text
from evolve.errors import ConfigError, Problem


def at(text: str, word: str, *, offset: int = 0, source: str = "c.yaml") -> str:
    """Return ``source:line:column`` of the only place of ``word``, ``offset`` characters further on."""
    assert text.count(word) == 1, f"{word!r} stands {text.count(word)} times in the text"
    index = text.index(word) + offset
    line = text.count("\n", 0, index) + 1
    return f"{source}:{line}:{index - (text.rfind(chr(10), 0, index) + 1) + 1}"


def problems(text: str, *overrides: str, source: str = "c.yaml") -> list[Problem]:
    """Return what is wrong with a config."""
    with pytest.raises(ConfigError) as caught:
        load_text(text, source, overrides)
    return list(caught.value.problems)


def only_problem(text: str, *overrides: str) -> Problem:
    """Return the one thing that is wrong with a config."""
    found = problems(text, *overrides)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


MERGE = """\
name: demo
models: {base: models/base, math: models/math, prose: models/prose}
pipeline:
  - merge:
      merge_method: ties
      base_model: base
      models:
        - model: math
          parameters: {weight: 1.0, density: 0.5}
        - model: prose
          parameters: {weight: 0.5, density: 0.5}
"""
"""A small recipe that is right."""

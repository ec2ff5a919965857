"""A config of generation alone: ``teacher:`` and ``generate:``, every problem with its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.config.document import parse
from evolve.config.files import pinned_block
from evolve.config.load import read_text
from evolve.config.messages import Complaint, complaints
from evolve.config.plain import ranges
from evolve.config.values import Block
from evolve.errors import ConfigError
from evolve.generate.blocks import ApiTeacher, GenerateBlock
from evolve.generate.checks import check_pair

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class GenerateConfig(Block):
    """What ``evolve generate`` reads."""

    teacher: ApiTeacher
    """Who is asked."""
    generate: GenerateBlock
    """What is asked, and what of it stays."""


def load(path: Path, overrides: Iterable[str] = ()) -> GenerateConfig:
    """Read a config, without ranges, the content of its files filled in.

    Args:
        path: The file.
        overrides: ``key.path=value`` texts that are laid over it.

    Raises:
        ConfigError: Everything that is wrong.
    """
    document, problems = parse(read_text(path), str(path), overrides)
    plain = document.root.plain()
    found = complaints(GenerateConfig, plain) or _problems(GenerateConfig.model_validate(plain))
    problems += [document.problem(one.path, one.message, key=one.at_key) for one in found]
    if problems:
        raise ConfigError(problems)
    config = GenerateConfig.model_validate(plain)
    block, wrong = pinned_block(config.generate)
    if wrong:
        raise ConfigError([document.problem(("generate", *at), message) for at, message in wrong])
    return config.model_copy(update={"generate": block})


def _problems(config: GenerateConfig) -> list[Complaint]:
    found: list[tuple[tuple[Any, ...], str]] = []
    found += [(("teacher", *path), message) for path, message in config.teacher.problems()]
    found += [(("generate", *path), message) for path, message in config.generate.problems()]
    found += [
        (path, "a range has no place here: give a value, or search it in a pipeline")
        for path, _ in ranges(config)
    ]
    found += [] if found else check_pair(config.generate, config.teacher)
    return [Complaint(path, text, bool(path) and repr(path[-1]) in text) for path, text in found]

"""Sequence-level distillation: the teacher writes the completions, once for all students and candidates.

Kim and Rush 2016, arXiv:1606.07947. What is written is kept in the user's cache a few prompts at a time, so a
run that was killed asks for no text twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from typing import TYPE_CHECKING

from evolve.stages.distill.generation import Completion, prompt_key, prompt_seeds, row_of
from evolve.types import content_hash
from evolve.weights.files import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from evolve.stages.distill.generation import Generation
    from evolve.stages.distill.teachers.base import Teacher
    from evolve.training.rows import Row

logger = logging.getLogger(__name__)

_VERSION = 1
_TOGETHER = 64


def teacher_rows(
    open_teacher: Callable[[], Teacher],
    content: str,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    *,
    seed: int,
    source: str = "hf",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Return one row a prompt: the prompt, ignored, and what the teacher wrote, labelled.

    Args:
        open_teacher: Called where something is not kept yet; closed afterwards.
        content: ``sha256:...`` of the teacher, tokenizer included.
        prompts: Token ids, each at least one.
        settings: How to sample.
        seed: Another one gives other texts.
        source: The kind of teacher: two engines draw differently.
        progress: Told how many prompts are done, and the total.

    Raises:
        CandidateError: The teacher cannot write.
    """
    # A prompt that comes twice gets two texts, also where they are in different files.
    numbered = list(zip(map(prompt_key, prompts), prompt_seeds(prompts, seed), strict=True))
    teacher: Teacher | None = None
    rows: list[Row] = []
    try:
        for begin in range(0, len(prompts), _TOGETHER):
            some = prompts[begin : begin + _TOGETHER]
            marks = [f"{key.hex()}:{number}" for key, number in numbered[begin : begin + _TOGETHER]]
            path = _path(content, marks, settings, source)
            found = _read(path, len(some))
            if found is None:
                teacher = teacher or open_teacher()
                # The file's own seed, so that what is drawn does not depend on what was kept before it.
                own = int(hashlib.sha256(f"{seed}:{':'.join(marks)}".encode()).hexdigest()[:15], 16)
                found = teacher.complete(some, settings, seed=own)
                _write(path, found)
            rows += [row_of(prompt, one) for prompt, one in zip(some, found, strict=True)]
            progress(len(rows), len(prompts))
    finally:
        if teacher is not None:
            teacher.close()
    return rows


def _path(content: str, marks: Sequence[str], settings: Generation, source: str) -> Path:
    key = {
        "version": _VERSION,
        "teacher": content,
        "prompts": list(marks),
        "settings": settings.as_plain(),
        "source": source,
    }
    return cache_folder("completions") / f"{content_hash(key)}.json"


def _read(path: Path, count: int) -> list[Completion] | None:
    try:
        found = [
            Completion(tuple(tokens), bool(finished)) for tokens, finished in json.loads(path.read_bytes())
        ]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s is damaged and is written again: %s", path, error)
        return None
    return found if len(found) == count else None


def _write(path: Path, found: Sequence[Completion]) -> None:
    # A cache only saves time: a full disk must not stop a training.
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            text = json.dumps([[list(one.tokens), one.finished] for one in found])
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("what the teacher wrote is not kept: %s", error)

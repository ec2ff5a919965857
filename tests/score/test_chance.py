"""What guessing gives: from the number of choices of each item, nothing for free text, unknown elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from evolve.score.items import item_key
from evolve.score.scorer import Scorer
from tests.score.local_tasks import (
    CHOICE,
    GENERATE,
    ROLLING,
    Holder,
    KnownModel,
    config,
    generate_docs,
    rolling_docs,
    write_task,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_chance_of_every_kind_of_task(tmp_path: Path) -> None:
    docs = [
        {"question": f"q {i} of many", "choices": [f"{i} c{j}" for j in range(2 + i % 3)], "answer": 0}
        for i in range(30)
    ]
    write_task(tmp_path, "choice", docs, **CHOICE)
    write_task(tmp_path, "generate", generate_docs(12), **GENERATE)
    write_task(tmp_path, "rolling", rolling_docs(12), **ROLLING)
    scorer = Scorer(
        config(
            tmp_path,
            {"task": "choice", "metric": "acc", "items": 12},
            {"task": "generate", "metric": "exact_match,number"},
            {"task": "rolling", "metric": "bits_per_byte"},
        )
    )
    scores = scorer.score(Holder(KnownModel()), "search")
    of = {item_key(doc): 1 / len(doc["choices"]) for doc in docs}
    shares = [of[key] for key in scores["choice"].items]
    assert len(shares) == 12
    assert scores["choice"].chance == pytest.approx(sum(shares) / 12)
    assert scores["generate"].chance == 0.0
    assert scores["rolling"].chance is None

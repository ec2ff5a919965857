"""Scores a model folder: for ``evolve eval``, and for the check of an export in a process of its own.

``python -m evolve.score.evaluate --folder DIR --config score.json --out result.json`` reads a score block as
JSON and writes ``{"fingerprint": ..., "backend": ..., "splits": {split: outcome}}``.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from evolve.config.schema import ScoreConfig
from evolve.errors import EvolveError
from evolve.score.engines.choose import choose_backend
from evolve.score.objective import objective
from evolve.score.scorer import SPLITS, Scorer
from evolve.types import Scored, Split, TaskScore, outcome_to_json

if TYPE_CHECKING:
    from collections.abc import Sequence


def evaluate_folder(
    path: Path | str,
    config: ScoreConfig,
    *,
    splits: Sequence[Split] = ("search",),
    threads: int = 1,
    scorer: Scorer | None = None,
) -> dict[Split, dict[str, TaskScore]]:
    """Open a model folder, start an engine on it and score it.

    Args:
        path: The model's folder.
        config: Tasks and engine; ``backend: auto`` is resolved here.
        splits: What to score.
        threads: CPU threads of the engine.
        scorer: A prepared scorer of the same config, to load no task twice.

    Raises:
        UserError: The folder or a task cannot be used.
        CandidateError: The model gives no finite score.
    """
    from evolve.registry import ENGINES
    from evolve.weights.reader import open_model

    scorer = scorer or Scorer(config)
    scorer.prepare()
    model = open_model(path)
    factory = ENGINES.load(choose_backend(config))
    with closing(factory(config, model, threads)) as engine:
        return {split: scorer.score(engine, split) for split in splits}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's command line; the exit code is 2 for what the user can mend, 1 for a bad model."""
    parser = argparse.ArgumentParser(
        prog="python -m evolve.score.evaluate", description="Score a model folder."
    )
    parser.add_argument("--folder", required=True, type=Path, help="the model")
    parser.add_argument("--config", required=True, type=Path, help="a score block as JSON")
    parser.add_argument("--out", required=True, type=Path, help="where the result goes, as JSON")
    parser.add_argument(
        "--split", action="append", choices=SPLITS, help="default: both, where there is a holdout"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args(arguments)
    try:
        config = ScoreConfig.model_validate_json(options.config.read_bytes())
    except (OSError, ValueError) as error:
        parser.error(f"{options.config}: {error}")
    try:
        scorer = Scorer(config)
        splits: list[Split] = options.split or (list(SPLITS) if config.holdout.items else ["search"])
        found = evaluate_folder(options.folder, config, splits=splits, threads=options.threads, scorer=scorer)
        outcomes = {}
        for split, tasks in found.items():
            value, stderr = objective(tasks, config)
            outcomes[split] = outcome_to_json(Scored(value, stderr, tasks))
    except EvolveError as error:
        sys.stderr.write(f"{error}\n")
        return 1 if type(error).__name__ == "CandidateError" else 2
    result = {"fingerprint": scorer.fingerprint, "backend": choose_backend(config), "splits": outcomes}
    part = options.out.with_name(options.out.name + ".part")
    part.write_text(json.dumps(result))
    part.replace(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

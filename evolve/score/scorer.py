"""Scores the model that an engine holds: the same items and prompts at every call."""

from __future__ import annotations

import inspect
import logging
import math
import random
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from evolve.errors import CandidateError, TaskError
from evolve.score.groups import gathered
from evolve.score.items import item_key
from evolve.score.metrics import chance_of, item_values, standard_error
from evolve.score.requests import SplitTask, build_requests, parts_of, remember_texts
from evolve.score.scorers.base import HoldsTexts, make_scorers
from evolve.score.tasks import LoadedTask, load_tasks, sizes
from evolve.types import Items, Split, TaskScore, content_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from evolve.config.schema import ScoreConfig
    from evolve.score.engines.base import Engine
    from evolve.score.items import Item
    from evolve.score.scorers.base import ModelScorer

logger = logging.getLogger(__name__)

_TOKENIZERS = 8
"""Tokenizers whose prompts in a chat template are kept."""
SPLITS: tuple[Split, ...] = ("search", "holdout")
_PASSED = ("confirm_run_unsafe_code", "write_out")


class Scorer:
    """The tasks of one config, loaded once.

    A task's score is the lm-eval metric over the items of a split. Few-shot examples are never items that
    any task is scored on, and a prompt depends on its item, the seed and the task alone.
    """

    def __init__(self, config: ScoreConfig) -> None:
        self._config = config
        self._tasks: list[LoadedTask] = []
        self._plain: dict[tuple[str, Split], list[Any]] = {}
        self._templated: OrderedDict[Any, dict[tuple[str, Split], list[Any]]] = OrderedDict()
        self._fingerprint = ""
        self._scorers: dict[str, ModelScorer] = {}

    def prepare(self) -> None:
        """Load the tasks, draw the items and build the prompts. The second call does nothing.

        Raises:
            TaskError: Tasks that cannot be used, all of them.
        """
        if self._fingerprint:
            return
        tasks, problems = load_tasks(self._config) if self._config.tasks else ([], [])
        scorers, wrong = make_scorers(self._config)
        if problems := [*problems, *wrong]:
            lines = [f"score.{'.'.join(map(str, path))}: {message}" for path, message in problems]
            raise TaskError("\n".join(lines))
        for loaded in tasks:
            remember_texts(loaded.task, [item for split in SPLITS for item in loaded.sets[split]])
        self._plain = {
            (loaded.config.task, split): build_requests(loaded, loaded.sets[split], self._config, None)
            for loaded in tasks
            for split in SPLITS
        }
        self._tasks, self._scorers = tasks, scorers
        self._fingerprint = _fingerprint(self._config, tasks, self._plain, scorers)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides a score besides the model: items, prompts, metrics, arguments; no path."""
        self.prepare()
        return self._fingerprint

    @property
    def sizes(self) -> dict[str, dict[Split, int]]:
        """Task name to the number of items in each split."""
        self.prepare()
        return {
            **sizes(self._tasks),
            **{name: dict(scorer.sizes) for name, scorer in self._scorers.items()},
        }

    @property
    def duplicates(self) -> dict[str, int]:
        """Task name to the number of items left out because others say the same."""
        self.prepare()
        found: dict[str, int] = {}
        for loaded in self._tasks:
            found[loaded.entry] = found.get(loaded.entry, 0) + loaded.duplicates
        return found

    def requests(self, split: Split) -> list[tuple[str, str, tuple[Any, ...]]]:
        """Return ``(task, request type, arguments)`` of every request of a split, chat template left out."""
        self.prepare()
        return [
            (loaded.config.task, request.request_type, request.args)
            for loaded in self._tasks
            for request in self._plain[loaded.config.task, split]
        ]

    def score(self, engine: Engine, split: Split, items: Items = ()) -> dict[str, TaskScore]:
        """Score the model that ``engine`` holds on every task and by every other scorer.

        With ``items`` only those are scored, which are items of tasks.

        What the engine or lm-eval raises goes through as it is.

        Raises:
            CandidateError: An answer, a metric or an item's score is NaN or infinite, or missing.
            TaskError: The split has no items, or the engine cannot answer a kind of request.
        """
        self.prepare()
        if split == "holdout" and self._config.holdout.items == 0:
            raise TaskError("there is no holdout: score.holdout.items is 0")
        found = self._score_tasks(engine, split, items) if self._tasks else {}
        if items:
            return found
        for name, scorer in self._scorers.items():
            self._seed()
            found[name] = scorer.score(engine, split)
        return found

    def rehearse(self, engine: Engine, split: Split) -> None:
        """Make prompts, tokens and plans for the model that ``engine`` holds, with no pass of it.

        A first score then takes the time of any other. An engine that cannot do it alone is left as it is.
        """
        self.prepare()
        lm = engine.lm
        if not hasattr(lm, "rehearses"):
            return
        lm.rehearses = True
        try:
            if self._tasks:
                self._score_tasks(engine, split, ())
            for scorer in self._scorers.values():
                if isinstance(scorer, HoldsTexts):
                    lm.text_likelihoods([item.doc for item in scorer.texts[split]])
        except Exception:  # the answers mean nothing, and a metric may say so
            logger.info("a rehearsal ended early", exc_info=True)
        finally:
            lm.rehearses = False

    def _score_tasks(self, engine: Engine, split: Split, items: Items) -> dict[str, TaskScore]:
        from lm_eval.evaluator import evaluate

        views = self._views(engine.lm, split)
        asked: dict[str, Sequence[Item]] = {
            loaded.config.task: loaded.sets[split] for loaded in self._tasks if loaded.sets[split]
        }
        views = {name: views[name] for name in asked}
        if items:
            views, asked = parts_of(views, asked, self._of_tasks(items))
        self._seed()
        try:
            results = evaluate(
                engine.lm,
                {"tasks": views},
                bootstrap_iters=0,
                log_samples=True,
                # The prompts are built: chat template and system instruction are in them.
                **{key: value for key, value in self._config.eval_args.items() if key in _PASSED},
            )
        except NotImplementedError as error:
            kinds = sorted({kind for _, kind, _ in self.requests(split)})
            raise TaskError(f"this backend does not answer all of {', '.join(kinds)}") from error
        if results is None:
            raise CandidateError("score", "lm-eval gave no results: this process has a rank other than 0")
        scores = {
            loaded.config.task: _task_score(loaded, asked[loaded.config.task], results)
            for loaded in self._tasks
            if loaded.config.task in asked
        }
        return gathered(scores, {loaded.config.task: loaded.part for loaded in self._tasks})

    def _of_tasks(self, items: Items) -> Items:
        """Return items of groups as those of their tasks."""
        found: dict[str, list[str]] = {}
        for entry, keys in items:
            for key in keys:
                member, _, own = key.rpartition("/")
                name = f"{entry}/{member}" if member else entry
                found.setdefault(name, []).append(own)
        return tuple((name, tuple(keys)) for name, keys in found.items())

    def _views(self, lm: Any, split: Split) -> dict[str, SplitTask]:
        """Return lm-eval's view of each task, with prompts in the model's chat template where asked for."""
        requests = self._plain
        if self._config.apply_chat_template:
            requests = self._in_template(lm)
            for loaded in self._tasks:
                key = (loaded.config.task, split)
                if key not in requests:
                    requests[key] = build_requests(loaded, loaded.sets[split], self._config, lm)
        return {
            loaded.config.task: SplitTask(
                loaded.task, loaded.sets[split], requests[loaded.config.task, split]
            )
            for loaded in self._tasks
        }

    def _in_template(self, lm: Any) -> dict[tuple[str, Split], list[Any]]:
        """Return the prompts that were made for the tokenizer of a model, which may be none yet.

        Engines know a tokenizer by its files: each restart, as for another depth, makes a new object of it.
        """
        key = getattr(lm, "tokenizer_key", "") or getattr(lm, "tokenizer", None)
        if key is None:
            return {}
        found = self._templated.setdefault(key, {})
        self._templated.move_to_end(key)
        while len(self._templated) > _TOKENIZERS:
            self._templated.popitem(last=False)
        return found

    def _seed(self) -> None:
        """Seed what sampling engines draw from: a score must not depend on the candidate before."""
        import torch

        random.seed(self._config.seed)
        np.random.seed(self._config.seed % 2**32)
        torch.manual_seed(self._config.seed)


def _task_score(loaded: LoadedTask, items: Sequence[Any], results: Any) -> TaskScore:
    from lm_eval.api.metrics import mean

    name = loaded.config.task
    samples = [sample for sample in results["samples"][name] if sample["filter"] == loaded.filter]
    samples.sort(key=lambda sample: sample["doc_id"])
    keys = [item.key for item in items]
    if [item_key(sample["doc"]) for sample in samples] != keys:
        raise CandidateError("score", f"task {name!r}: lm-eval's answers are not those of the items asked")
    for sample in samples:
        if not _finite_answers(sample["resps"]):
            raise CandidateError("non_finite", f"task {name!r}: a log-likelihood is NaN or infinite")
    metric = loaded.metric
    scored = {key: sample[metric] for key, sample in zip(keys, samples, strict=True) if metric in sample}
    if not scored:
        known = sorted(set(samples[0]["metrics"]))
        raise CandidateError("score", f"task {name!r} gave no {metric!r}; it gave {', '.join(known)}")
    higher = loaded.task.higher_is_better().get(metric)
    if higher is None:
        raise CandidateError("score", f"task {name!r}: its higher_is_better for {metric!r} is missing")
    # Without an aggregation lm-eval takes the mean, and warns.
    values = item_values(name, metric, list(scored.values()), loaded.task.aggregation().get(metric, mean))
    value = float(results["results"][name][f"{metric},{loaded.filter}"])
    if not math.isfinite(value):
        raise CandidateError("non_finite", f"task {name!r}: {metric} is {value}")
    return TaskScore(
        metric=loaded.config.metric,
        value=value,
        stderr=standard_error(values),
        higher_is_better=bool(higher),
        items=dict(zip(scored, values, strict=True)),
        chance=chance_of(loaded.task, metric, [sample["doc"] for sample in samples]),
    )


def _finite_answers(answers: Any) -> bool:
    """Whether every number among the raw answers is finite: an argmax over NaN gives a plausible score."""
    if isinstance(answers, (float, np.floating)):
        return math.isfinite(answers)
    if isinstance(answers, (list, tuple)):
        return all(_finite_answers(part) for part in answers)
    return True


def _fingerprint(
    config: ScoreConfig,
    tasks: Sequence[LoadedTask],
    requests: dict[tuple[str, Split], list[Any]],
    scorers: Mapping[str, ModelScorer],
) -> str:
    from importlib.metadata import version

    described = [
        {
            "task": loaded.config.task,
            **({"by_size": loaded.part.by_size} if loaded.part else {}),
            "metric": loaded.metric,
            "filter": loaded.filter,
            "shots": loaded.shots,
            "pool": list(loaded.pool),
            "scoring": {key: _plain(loaded.task.get_config(key)) for key in _SCORING},
            "items": {split: [item.key for item in loaded.sets[split]] for split in SPLITS},
            "requests": {
                split: item_key([request.args for request in requests[loaded.config.task, split]])
                for split in SPLITS
            },
        }
        for loaded in tasks
    ]
    settings = config.model_dump(
        include={
            "dtype",
            "max_length",
            "apply_chat_template",
            "system_instruction",
            "seed",
            "engine_args",
            "eval_args",
        }
    )
    whole = {"lm_eval": version("lm-eval"), "settings": _plain(settings), "tasks": described}
    if scorers:
        kinds = {name: type(scorer).__name__ for name, scorer in scorers.items()}
        whole["scorers"] = [[name, kinds[name], scorer.identity()] for name, scorer in scorers.items()]
    return content_hash(whole)


_SCORING = ("output_type", "metric_list", "filter_list", "process_results", "repeats", "generation_kwargs")


def _plain(value: Any) -> Any:
    """Return JSON for ``value``: a function by its source, for its address changes with every process."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if callable(value):
        try:
            return inspect.getsource(value)
        except (TypeError, OSError):
            return getattr(value, "__qualname__", type(value).__name__)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def no_means(tasks: Iterable[LoadedTask], scorers: Iterable[str]) -> list[str]:
    """Return what cannot be scored in parts: metrics that are no means over items, and other scorers."""
    from lm_eval.api.metrics import mean

    tasks = list(tasks)
    sums = (
        f"{loaded.config.task} ({loaded.metric})"
        for loaded in tasks
        if loaded.task.aggregation().get(loaded.metric, mean) is not mean
    )
    alike = (
        f"{part.group} (its tasks count alike)"
        for loaded in tasks
        if (part := loaded.part) and not part.by_size
    )
    return list(dict.fromkeys([*sums, *alike, *scorers]))

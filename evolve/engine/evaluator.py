"""An evaluator: mapped parents and a hot engine; a job goes in, an outcome comes out.

The same class runs in this process and as a Ray actor. It never raises for a candidate's fault.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evolve.errors import CandidateError, UserError
from evolve.stages.memo import DEFAULT_BYTES, Memo, limit_of
from evolve.types import Failed, FailureKind, Job, Outcome, Recipe, Scored

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from evolve.engine.base import EvaluatorSpec
    from evolve.score.engines.base import Engine
    from evolve.score.scorer import Scorer
    from evolve.types import Training
    from evolve.weights.model import Model

logger = logging.getLogger(__name__)

_CLEARLY = 1.25
"""Training fails before it starts where it surely takes so many times what is free."""


class Evaluator:
    """Builds recipes into a running engine and scores them, one at a time."""

    def __init__(self, spec: EvaluatorSpec) -> None:
        self._spec = spec
        self._parents: dict[str, Model] = {}
        self._memo = Memo()
        self._scorer: Scorer | None = None
        self._engine: Engine | None = None
        self._held = ""
        self._training: list[Training] = []

    def start(self) -> float:
        """Map the parents, prepare the tasks and start the engine.

        Returns:
            Seconds that it took.

        Raises:
            UserError: A parent or a task cannot be used here, or differs from what the driver saw.
        """
        from evolve.score.scorer import Scorer
        from evolve.weights.reader import open_model

        began = time.perf_counter()
        if not self._parents:
            self._parents = _placed(
                {
                    name: replace(open_model(parent.path), content=parent.content)
                    for name, parent in self._spec.parents.items()
                },
                self._spec,
            )
            self._memo = Memo(_cache_bytes(self._spec, self._parents.values()))
        if self._scorer is None:
            scorer = Scorer(self._spec.score)
            scorer.prepare()
            if self._spec.fingerprint and scorer.fingerprint != self._spec.fingerprint:
                raise UserError(
                    "this node's tasks differ from the driver's: install the same data on every node"
                )
            self._scorer = scorer
        if self._engine is None:
            self._engine = self._open_engine()
        return time.perf_counter() - began

    def _open_engine(self) -> Engine:
        from evolve.registry import ENGINES

        factory = ENGINES.load(self._spec.score.backend)
        return factory(self._spec.score, self._parents[self._spec.first], self._spec.threads)

    def evaluate(self, job: Job) -> Outcome:
        """Build and score one job. Every error becomes a ``Failed`` outcome; Ctrl-C does not."""
        clock = _Clock()
        handler = _LogCapture()
        with handler.attached():
            outcome = self._attempt(job, clock)
        if isinstance(outcome, Scored):
            outcome = replace(outcome, training=tuple(self._training))
        return replace(outcome, seconds=clock.report(), log=handler.text() + outcome.log)

    def _attempt(self, job: Job, clock: _Clock) -> Outcome:
        from evolve.score.engines.fit import died

        phase: FailureKind = "engine"
        try:
            self.start()
            if not self._held or self._held != job.recipe.hash:
                self._held = ""
                phase = "build"
                model = self._build(job, clock)
                phase = "engine"
                self._load(model, clock)
                self._held = job.recipe.hash
            phase = "score"
            with clock.phase("score"):
                return self._score(job)
        except CandidateError as error:
            # A timeout rings anywhere, also in the middle of a swap; a second try gets a fresh engine.
            if error.kind == "timeout" or error.retryable:
                self.reset()
            return Failed(error.kind, str(error), error.retryable, log=traceback.format_exc())
        except Exception as error:
            kind: FailureKind = "oom" if _is_out_of_memory(error) else phase
            if phase != "build":  # nobody knows what state the engine is in
                self.reset()
            message = f"{type(error).__name__}: {error}".strip()
            return Failed(kind, message, died(error), log=traceback.format_exc())

    def _build(self, job: Job, clock: _Clock) -> Model:
        """Return the candidate; the time that the engine waits for its tensors counts as ``build``."""
        from evolve.stages.pipeline import build
        from evolve.stages.together import train_together
        from evolve.weights.prefetch import prefetched

        self._training = []
        with clock.phase("build"):
            with self._room_to_train(job.recipe):
                folder = Path(self._spec.folder)
                paths = {name: parent.path for name, parent in self._spec.parents.items()}
                train_together(job.recipe, paths, seed=self._spec.seed, folder=folder)
                model = build(
                    job.recipe,
                    self._parents,
                    seed=self._spec.seed,
                    folder=folder,
                    memo=self._memo,
                    told=self._training.append,
                )
            model = prefetched(model, self._spec.threads)

        return replace(model, tensor=_Timed(model, clock))

    @contextlib.contextmanager
    def _room_to_train(self, recipe: Recipe) -> Iterator[None]:
        """Let the engine sleep while a stage trains, also where that fails: it works with the next load."""
        from evolve.stages.pipeline import training_bytes

        needed = training_bytes(recipe, self._parents)
        if not needed:
            yield
            return
        engine = self._require_engine()
        engine.sleep(short=_is_short(needed))
        if _is_short(needed, anywhere=True):
            logger.warning("training takes about %.1f GB, and less is free", needed / 1e9)
        try:
            _require_room(training_bytes(recipe, self._parents, least=True))
            yield
        finally:
            _empty_cache()
            engine.wake()

    def _load(self, model: Model, clock: _Clock) -> None:
        """Give the engine a model; where it had to be built again, the time counts as ``restart``."""
        engine = self._require_engine()
        before = engine.starts
        with clock.phase("load"):
            engine.load(model)
        if engine.starts != before:
            clock.rename("load", "restart")

    def _score(self, job: Job) -> Scored:
        from evolve.score.objective import objective

        if self._scorer is None:
            raise RuntimeError("the evaluator was not started")
        tasks = self._scorer.score(self._require_engine(), job.split, job.items)
        if job.items:  # a part: its items go into a table, and the sum over tasks means nothing
            return Scored(0.0, math.nan, tasks)
        value, stderr = objective(tasks, self._spec.score)
        if not math.isfinite(value):
            raise CandidateError("non_finite", f"the objective is {value}")
        return Scored(value, stderr, tasks)

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the evaluator has no engine")
        return self._engine

    def reset(self) -> None:
        """Drop the engine; the next job starts a fresh one."""
        engine, self._engine = self._engine, None
        self._held = ""
        if engine is not None:
            with contextlib.suppress(Exception):
                engine.close()

    def close(self) -> None:
        """Give everything back."""
        self.reset()
        self._parents = {}
        self._memo.clear()


def _placed(parents: dict[str, Model], spec: EvaluatorSpec) -> dict[str, Model]:
    """Return the parents with their tensors on the GPU, if there is one, as far as the engine leaves room."""
    import torch

    if not torch.cuda.is_available():
        return parents
    from evolve.weights.resident import resident

    free, whole = torch.cuda.mem_get_info()
    if spec.score.backend == "vllm":
        from evolve.score.engines.vllm import memory_share

        free = min(free, int((1 - memory_share(spec.score)) * whole))
    return resident(parents, torch.device("cuda"), max(0, free // 2 - _cache_bytes(spec, ())))


def _cache_bytes(spec: EvaluatorSpec, parents: Iterable[Model]) -> int:
    """Return how much merging may keep between candidates."""
    import torch

    from evolve.validation import free_memory

    if spec.cache_bytes is not None:
        return spec.cache_bytes
    if torch.cuda.is_available():  # where the parents are, so is what is kept of them
        return DEFAULT_BYTES
    free = free_memory()
    share = min(1.0, spec.threads / (os.cpu_count() or 1))
    return limit_of(parents, None if free is None else int(free * share))


def _is_short(needed: int, *, anywhere: bool = False) -> bool:
    """Whether less than ``needed`` bytes of this machine's memory are free, or ``anywhere``: of the GPU's.

    Training on a GPU keeps the weights alone in the machine's memory.
    """
    import torch

    from evolve.stages.together import processes
    from evolve.validation import free_memory

    if torch.cuda.is_available():
        if anywhere:
            return bool(torch.cuda.mem_get_info()[0] < needed)
        needed //= 4
    needed *= processes()
    free = free_memory()
    return free is not None and free < needed


def _require_room(needed: int) -> None:
    """Raise where training surely takes much more than there is: else the system ends a process, any one.

    Args:
        needed: Bytes of one process that trains, activations left out.

    Raises:
        CandidateError: ``oom``.
    """
    import torch

    from evolve.stages.together import processes
    from evolve.validation import free_memory

    if torch.cuda.is_available():
        free, where = torch.cuda.mem_get_info()[0], "on the GPU"
    else:
        needed *= processes()
        found = free_memory(swap=True)
        if found is None:
            return
        free, where = found, "with swap"
    if needed > _CLEARLY * free:
        raise CandidateError(
            "oom",
            f"training takes at least {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free {where}: use "
            "peft_config, a smaller student or teacher, teacher.kind dataset, or a machine with more memory",
        )


def _empty_cache() -> None:
    """Give back to the GPU what training has left in torch's cache, so that the engine finds it free."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Clock:
    """Wall-clock seconds by phase. A phase that runs inside another one is not counted twice."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = self._began

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._switch()
        self._stack.append(name)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._stack:
            running = self._stack[-1]
            self._seconds[running] = self._seconds.get(running, 0.0) + now - self._since
        self._since = now

    def rename(self, name: str, new: str) -> None:
        """Count what was counted as one phase as another."""
        self._seconds[new] = self._seconds.get(new, 0.0) + self._seconds.pop(name, 0.0)

    def report(self) -> Mapping[str, float]:
        return {**self._seconds, "total": time.perf_counter() - self._began}


class _Timed:
    """The tensors of a model; the time that they take counts as ``build``."""

    def __init__(self, model: Model, clock: _Clock) -> None:
        self._model = model
        self._clock = clock

    def __call__(self, name: str) -> Tensor:
        with self._clock.phase("build"):
            return self._model.tensor(name)

    def fill(self, targets: Mapping[str, Tensor]) -> None:
        with self._clock.phase("build"):
            self._model.fill(targets)


class _LogCapture(logging.Handler):
    """Keeps the last log records of one candidate."""

    _LIMIT = 64_000

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._lines: list[str] = []
        self._size = 0

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        self._lines.append(line)
        self._size += len(line)
        while self._size > self._LIMIT and len(self._lines) > 1:
            self._size -= len(self._lines.pop(0))

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

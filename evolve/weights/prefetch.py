"""Computing a model's tensors with several threads, before they are asked for or all at once."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.weights.model import Model


def prefetched(model: Model, threads: int) -> Model:
    """Return the same model, whose next tensors are computed by threads while one is used.

    ``fill`` gives each thread a tensor at a time. Each time that one is asked for, those that follow it in
    ``specs`` are begun, one for each thread: so many results are held besides those that the reader keeps.
    Whoever reads in another order gets the same tensors, but later: most of what was begun is thrown away and
    computed again.

    Args:
        model: Its ``tensor`` must be safe to call from threads.
        threads: One leaves the model as it is.
    """
    return model if threads <= 1 else replace(model, tensor=_Prefetch(model, threads))


class _Prefetch:
    def __init__(self, model: Model, threads: int) -> None:
        self._model = model
        self._names = list(model.specs)
        self._place = {name: number for number, name in enumerate(self._names)}
        self._window = threads
        self._pool = ThreadPoolExecutor(threads, "evolve-tensor")
        self._begun: dict[str, Future[Tensor]] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Tensor:
        with self._lock:
            wanted = self._begun.pop(name, None)
            place = self._place.get(name, len(self._names))
            coming = self._names[place : place + 1 + self._window]
            for other in [other for other in self._begun if other not in coming]:
                self._begun.pop(other).cancel()
            if wanted is None and name in self._place:
                wanted = self._pool.submit(self._model.tensor, name)
            for other in coming[1:]:
                if other not in self._begun:
                    self._begun[other] = self._pool.submit(self._model.tensor, other)
        return self._model.tensor(name) if wanted is None else wanted.result()

    def fill(self, targets: Mapping[str, Tensor]) -> None:
        """Compute all, a tensor a thread at a time; the first error stops the others after theirs."""
        left = iter(targets.items())
        failed = threading.Event()

        def work() -> None:
            try:
                # One iterator for all threads: each entry goes to one of them.
                for name, target in left:
                    self._model.fill({name: target})
                    if failed.is_set():
                        return
            except BaseException:
                failed.set()
                raise

        threads = [self._pool.submit(work) for _ in range(self._window)]
        try:
            wait(threads)
        finally:
            # Also where a signal ends the wait: nobody writes to the targets any more when this returns.
            failed.set()
            wait(threads)
        for thread in threads:
            thread.result()

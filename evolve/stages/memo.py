"""What of a merge does not change between the candidates of a search, kept within a bound."""

from __future__ import annotations

import logging
import operator
import threading
import weakref
from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from evolve.tensors.fused import Buffers
    from evolve.weights.model import Model


class Sized(Protocol):
    """Something that knows its size."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        ...


logger = logging.getLogger(__name__)

T = TypeVar("T", bound=Sized)
U = TypeVar("U")

DEFAULT_BYTES = 1 << 30
_MOST_KEYS = 8


def limit_of(models: Iterable[Model], free: int | None) -> int:
    """Return how many bytes may be kept of some models where nobody has said it.

    The ranks of DELLA take two bytes a parameter, as the weights do, and no method keeps more.

    Args:
        models: The parents of a search.
        free: Bytes that are free for it; None: nobody knows.
    """
    from evolve.weights.header import nbytes

    weights = sum(nbytes(spec) for model in models for spec in model.specs.values())
    return max(DEFAULT_BYTES, min(weights, (free or 0) // 4))


class Memo:
    """Values computed from tensors of models, as long as those models live. Safe from any number of threads.

    A search goes over the same tensors in the same order again and again. Under such an order, throwing out
    the oldest would throw out what is needed next, so once the bound is reached nothing more is kept.
    """

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        """Keep at most ``limit`` bytes."""
        self._limit = limit
        self._found: dict[tuple[Any, ...], Any] = {}
        self._watched: dict[int, weakref.ref[Model]] = {}
        self._latest: dict[Hashable, tuple[tuple[Model, ...], Any]] = {}
        self._dead: deque[int] = deque()
        self._lock = threading.RLock()
        self._told = False
        self.nbytes = 0

    @cached_property
    def buffers(self) -> Buffers:
        """Memory for the tensors of the next candidates."""
        from evolve.tensors.fused import Buffers

        return Buffers()

    def get(self, key: tuple[str, ...], models: tuple[Model, ...], compute: Callable[[], T]) -> T:
        """Return the value for ``key`` and ``models``, computed now if it is not kept."""
        full = (*key, *map(id, models))
        with self._lock:
            self._bury()
            if full in self._found:
                found: T = self._found[full]
                return found
        value = compute()
        with self._lock:
            self._bury()
            if self.nbytes + value.nbytes > self._limit:
                self._tell()
            elif full not in self._found:
                for model in models:
                    self._watch(model)
                self._found[full] = value
                self.nbytes += value.nbytes
        return value

    def latest(self, key: Hashable, models: tuple[Model, ...], compute: Callable[[], U]) -> U:
        """Return the last answer for ``key`` if it was for the same models, else one that is computed now.

        For what holds on to the models, such as other views of them: one answer is kept for each of the last
        keys, and the models live as long as it does.
        """
        with self._lock:
            before, value = self._latest.get(key, ((), None))
            if len(before) == len(models) and all(map(operator.is_, before, models)):
                found: U = value
                return found
        answer = compute()
        with self._lock:
            self._latest.pop(key, None)
            self._latest[key] = (models, answer)
            while len(self._latest) > _MOST_KEYS:
                del self._latest[next(iter(self._latest))]
        return answer

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            logger.info(
                "what merging keeps between candidates has reached its bound of %.3g GiB, the rest is "
                "computed each time; engine.cache_gib raises it",
                self._limit / (1 << 30),
            )

    def _watch(self, model: Model) -> None:
        """Forget what belongs to a model when it dies: another could get its id."""
        number = id(model)
        if number not in self._watched:
            # Runs wherever the model dies, perhaps while the lock is held: so it only leaves a note.
            self._watched[number] = weakref.ref(model, lambda _: self._dead.append(number))

    def _bury(self) -> None:
        """Forget what belongs to models that have died, before their ids mean others."""
        while self._dead:
            number = self._dead.popleft()
            self._watched.pop(number, None)
            for key in [key for key in self._found if number in key]:
                self.nbytes -= self._found.pop(key).nbytes

    def clear(self) -> None:
        """Give everything back, also where what is kept refers to this object."""
        with self._lock:
            self._found.clear()
            self._latest.clear()
            self._watched.clear()
            self._dead.clear()
            self.nbytes = 0
            self.__dict__.pop("buffers", None)

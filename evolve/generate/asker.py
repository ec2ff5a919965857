"""Asks many requests at once, each until it has an answer that counts, and stops so that nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from evolve.errors import Interrupted, UserError
from evolve.generate.endpoint import GaveUp, Stopping
from evolve.generate.progress import Status
from evolve.generate.store import RENEW_EVERY, Busy, Exhausted, Known, Limit, Mine, OverBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evolve.generate.endpoint import Endpoint
    from evolve.generate.exchange import Answer, Request
    from evolve.generate.progress import Phase, Show
    from evolve.generate.store import Store

_LOOK_AGAIN = 0.2
"""Seconds until another look where others ask everything that is left."""


@dataclass(frozen=True)
class Rules:
    """How requests are asked.

    Attributes:
        concurrency: Requests at a time.
        attempts: Most answers to a request that are none.
        limit: What all answers in the store may cost.
    """

    concurrency: int = 8
    attempts: int = 3
    limit: Limit = field(default_factory=Limit)


class Asker:
    """Asks requests of any number of rounds; counts and costs go through all of them.

    Attributes:
        counts: How often what happened: ``asked`` (sent and answered), ``failed``, and each flaw.
        over_budget: Whether something was left out since the budget did not suffice.
        last_failure: How a request failed last, or empty.
    """

    def __init__(self, store: Store, rules: Rules, show: Show | None = None) -> None:
        self._store = store
        self._rules = rules
        self._show = show
        self._began = time.monotonic()
        self._written = 0
        self.counts: Counter[str] = Counter()
        self.over_budget = False
        self.last_failure = ""

    def ask(
        self,
        endpoint: Endpoint,
        requests: Sequence[Request],
        *,
        usable: Callable[[Answer], bool],
        phase: Phase = "asking",
    ) -> dict[str, Answer]:
        """Return key to answer of all requests that have one in the end.

        Ctrl-C waits for what has been asked and keeps it; a second one does not wait.

        Args:
            endpoint: The server.
            requests: In the order in which they are asked; the same one twice is asked once.
            usable: Whether an answer counts.
            phase: For the display.

        Raises:
            UserError: No further request can succeed. Every answer is kept.
            Interrupted: Ctrl-C. Every answer is kept.
        """
        distinct = list({request.key: request for request in requests}.values())
        round_ = _Round(self, endpoint, distinct, usable, phase)
        in_main = threading.current_thread() is threading.main_thread()
        free = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(round_.run(own_interrupt=free))
        # Within somebody's loop, as in a notebook: one of its own, in a thread.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, round_.run(own_interrupt=False)).result()

    def show(self, status: Status) -> None:
        """Show a status, with what everything has cost."""
        if self._show is None:
            return
        spent, limit = self._store.spent(), self._rules.limit
        self._show(
            replace(
                status,
                tokens=spent.tokens,
                usd=spent.usd,
                tokens_limit=limit.tokens,
                usd_limit=limit.usd,
                written=self._written,
                seconds=time.monotonic() - self._began,
            )
        )

    def _note(self, answer: Answer) -> None:
        self.counts["asked"] += 1
        self._written += answer.completion_tokens


class _Round:
    """One list of requests."""

    def __init__(
        self,
        asker: Asker,
        endpoint: Endpoint,
        requests: Sequence[Request],
        usable: Callable[[Answer], bool],
        phase: Phase,
    ) -> None:
        self._asker, self._endpoint, self._usable = asker, endpoint, usable
        self._store, self._rules = asker._store, asker._rules
        self._waiting = deque(requests)
        self._in_vain = 0
        self._found: dict[str, Answer] = {}
        self._status = Status(phase, total=len(requests))
        self._failures = 0
        self._fatal: BaseException | None = None
        self._interrupted = False

    async def run(self, *, own_interrupt: bool) -> dict[str, Answer]:
        """Ask everything.

        Args:
            own_interrupt: Whether Ctrl-C is ours to handle.
        """
        self._stop = asyncio.Event()
        workers: list[asyncio.Task[None]] = []
        with _on_interrupt(lambda: self._interrupt(workers)) if own_interrupt else contextlib.nullcontext():
            async with self._endpoint.opened(self._stop):
                beat = asyncio.create_task(self._renew())
                count = min(self._rules.concurrency, len(self._waiting))
                workers += [asyncio.create_task(self._work()) for _ in range(count)]
                try:
                    await asyncio.gather(*workers, return_exceptions=True)
                finally:
                    beat.cancel()
                    for worker in workers:
                        worker.cancel()
        if self._interrupted:
            raise Interrupted("Every answer is kept; the same command goes on.")
        if self._fatal is not None:
            raise self._fatal
        self._report()
        return self._found

    async def _work(self) -> None:
        try:
            while self._waiting and not self._stop.is_set():
                await self._next(self._waiting.popleft())
        except Stopping:
            pass
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fatal = self._fatal or error
            self._stop.set()

    async def _next(self, request: Request) -> None:
        """Settle a request, or put it back."""
        if self._asker.over_budget:
            self._settle(request, self._store.find(request.key, self._usable), known=True)
            await asyncio.sleep(0)
            return
        state = self._store.claim(
            request,
            usable=self._usable,
            attempts=self._rules.attempts,
            need=self._endpoint.need(request),
            limit=self._rules.limit,
        )
        if isinstance(state, Busy):
            self._waiting.append(request)
            self._in_vain += 1
            if self._in_vain >= len(self._waiting):
                self._in_vain = 0
                await asyncio.sleep(_LOOK_AGAIN)
            return
        self._in_vain = 0
        if isinstance(state, Mine):
            await self._send(request, state.attempt)
        elif isinstance(state, Known):
            self._settle(request, state.answer, known=True)
            # Thousands of answers that are there must not keep Ctrl-C and the display waiting.
            await asyncio.sleep(0)
        elif isinstance(state, Exhausted):
            self._asker.counts[state.last.flaw or "refused"] += 1
            self._settle(request, None)
        elif isinstance(state, OverBudget):
            self._asker.over_budget = True
            self._waiting.appendleft(request)

    async def _send(self, request: Request, attempt: int) -> None:
        try:
            answer = await self._endpoint.send(request, attempt)
        except GaveUp as error:
            self._store.release(request)
            self._gave_up(request, str(error))
            return
        except BaseException:
            self._store.release(request)
            raise
        price = self._endpoint.price(answer.prompt_tokens, answer.completion_tokens)
        self._store.record(request, answer, price)
        self._asker._note(answer)
        self._failures = 0
        if self._usable(answer):
            self._settle(request, answer)
            return
        self._status = replace(self._status, flawed=self._status.flawed + 1)
        # A greedy answer would be the same again.
        if request.sampling.temperature == 0:
            self._asker.counts[answer.flaw or "refused"] += 1
            self._settle(request, None)
        else:
            self._waiting.appendleft(request)

    def _gave_up(self, request: Request, words: str) -> None:
        self._asker.counts["failed"] += 1
        self._asker.last_failure = words
        self._failures += 1
        self._status = replace(self._status, failed=self._status.failed + 1)
        # One prompt may be more than the server can bear; as many as are asked at a time: it is away.
        if self._failures >= max(2, self._rules.concurrency):
            raise UserError(
                f"{words}. {self._failures} requests in a row were given up. Every answer so far is kept: "
                "run the same command again when the server is back"
            )
        self._settle(request, None)

    def _settle(self, request: Request, answer: Answer | None, *, known: bool = False) -> None:
        if answer is not None:
            self._found[request.key] = answer
        status = self._status
        hit = int(known and answer is not None)
        self._status = replace(status, done=status.done + 1, known=status.known + hit)
        self._report()

    def _report(self) -> None:
        self._asker.show(replace(self._status, stopping=self._stop.is_set()))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY)
            self._store.renew()

    def _interrupt(self, workers: Sequence[asyncio.Task[None]]) -> None:
        if self._interrupted:
            for worker in workers:
                worker.cancel()
        self._interrupted = True
        self._stop.set()
        self._report()


@contextlib.contextmanager
def _on_interrupt(call: Callable[[], None]) -> Iterator[None]:
    """Call ``call`` at Ctrl-C within the block."""
    loop = asyncio.get_running_loop()
    # asyncio.run has put a handler of its own there.
    before = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, call)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)

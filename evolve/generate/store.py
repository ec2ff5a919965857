"""Every answer on disk at once, in one SQLite file that any number of processes of a machine share.

A request is kept under the hash of all that decides its answer. Whoever wants an answer claims its request
first; another process waits meanwhile instead of asking the same. A claim is a lease that its owner renews,
and a dead owner's is free. What answers have cost so far is in the file too, so that a budget is one of all
processes. Answers that are none (refused, cut off) are kept as a record, and never returned.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import time
from typing import TYPE_CHECKING, NamedTuple

from evolve.errors import UserError
from evolve.generate.exchange import Answer
from evolve.generate.owners import dead, process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from evolve.generate.exchange import Request

_VERSION = 1
_LEASE = 120.0
"""Seconds after which a claim that nobody renews is free."""
RENEW_EVERY = 20.0
"""Seconds between two renewals."""
_BUSY_SECONDS = 60.0
_MINUTE = 60.0

_TABLES = """
CREATE TABLE IF NOT EXISTS requests (
  key TEXT PRIMARY KEY, model TEXT NOT NULL, request TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, at REAL NOT NULL, flaw TEXT, text TEXT NOT NULL, reasoning TEXT,
  finish_reason TEXT NOT NULL, refusal TEXT, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, usd REAL NOT NULL, model TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS answers_by_key ON answers (key);
CREATE TABLE IF NOT EXISTS claims (
  key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL, tokens INTEGER NOT NULL,
  usd REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
  one INTEGER PRIMARY KEY CHECK (one = 1), answers INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, usd REAL NOT NULL);
INSERT OR IGNORE INTO spent VALUES (1, 0, 0, 0, 0.0);
CREATE TABLE IF NOT EXISTS sent (id INTEGER PRIMARY KEY, at REAL NOT NULL, tokens INTEGER NOT NULL,
  host TEXT NOT NULL);
"""


class Spent(NamedTuple):
    """What all answers in a store have cost.

    Attributes:
        answers: How many, those that are none included.
        prompt_tokens: Tokens of their prompts.
        completion_tokens: Tokens that were written.
        usd: Money, by the prices at the time.
    """

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers."""
        return self.prompt_tokens + self.completion_tokens


class Limit(NamedTuple):
    """A budget: most tokens and most money, None: any."""

    tokens: int | None = None
    usd: float | None = None


class Need(NamedTuple):
    """The most that a request can cost."""

    tokens: int
    usd: float


class Known(NamedTuple):
    """The answer is there."""

    answer: Answer


class Mine(NamedTuple):
    """The request is the caller's to ask, after so many answers that were none."""

    attempt: int


class Busy(NamedTuple):
    """Another asks it, or the budget's rest is set aside for what is being asked."""


class Exhausted(NamedTuple):
    """It was asked often enough, and every answer was none."""

    last: Answer


class OverBudget(NamedTuple):
    """The budget does not suffice for it."""


class Store:
    """One file of answers. Use an object from one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            UserError: It cannot be opened, is no store, or one of a newer evolve.
        """
        self.path = path
        self._owner = f"{process()} {secrets.token_hex(4)}"
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._file.close()
                raise

    def _prepare(self) -> None:
        (version,) = self._file.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise UserError(
                f"{self.path} was written by a newer evolve: update evolve, or use another folder"
            )
        self._write_ahead()
        self._file.execute("PRAGMA synchronous = NORMAL")
        with self._writing():
            for statement in _TABLES.split(";\n"):
                self._file.execute(statement)
            self._file.execute(f"PRAGMA user_version = {_VERSION}")

    def _write_ahead(self) -> None:
        # SQLite does not wait for another process that opens the new file at the same moment.
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._file.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        """Give up the claims and close the file."""
        with contextlib.suppress(sqlite3.Error):
            self._file.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))
        self._file.close()

    def find(self, key: str, usable: Callable[[Answer], bool]) -> Answer | None:
        """Return the first usable answer to a request, or None."""
        with _explained(self.path):
            return next((answer for answer in self._answers(key) if usable(answer)), None)

    def asked(self, key: str) -> bool:
        """Whether a request has any answer, also one that is none."""
        with _explained(self.path):
            return self._file.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone() is not None

    def claim(
        self,
        request: Request,
        *,
        usable: Callable[[Answer], bool],
        attempts: int,
        need: Need,
        limit: Limit,
    ) -> Known | Mine | Busy | Exhausted | OverBudget:
        """Look for an answer, and claim the request where there is none.

        Args:
            request: What is wanted.
            usable: Whether an answer counts.
            attempts: Most answers that do not count before no more is asked.
            need: The most that the request can cost; set aside until it is answered.
            limit: What all answers may cost.
        """
        with _explained(self.path):
            # Most requests of a run that goes on are answered: they take no lock.
            if answers := self._answers(request.key):
                found = next((answer for answer in answers if usable(answer)), None)
                if found is not None:
                    return Known(found)
            with self._writing():
                return self._claim(request, usable, attempts, need, limit)

    def _claim(
        self,
        request: Request,
        usable: Callable[[Answer], bool],
        attempts: int,
        need: Need,
        limit: Limit,
    ) -> Known | Mine | Busy | Exhausted | OverBudget:
        answers = self._answers(request.key)
        found = next((answer for answer in answers if usable(answer)), None)
        if found is not None:
            return Known(found)
        if len(answers) >= attempts:
            return Exhausted(answers[-1])
        self._bury()
        if self._file.execute("SELECT 1 FROM claims WHERE key = ?", (request.key,)).fetchone():
            return Busy()
        aside = self._file.execute("SELECT TOTAL(tokens), TOTAL(usd) FROM claims").fetchone()
        spent = self.spent()
        if not _within(spent.tokens + need.tokens, limit.tokens) or not _within(
            spent.usd + need.usd, limit.usd
        ):
            return OverBudget()
        if not _within(spent.tokens + aside[0] + need.tokens, limit.tokens) or not _within(
            spent.usd + aside[1] + need.usd, limit.usd
        ):
            return Busy()
        self._file.execute(
            "INSERT OR IGNORE INTO requests VALUES (?, ?, ?)", (request.key, request.model, request.text)
        )
        self._file.execute(
            "INSERT INTO claims VALUES (?, ?, ?, ?, ?)",
            (request.key, self._owner, time.time() + _LEASE, need.tokens, need.usd),
        )
        return Mine(len(answers))

    def record(self, request: Request, answer: Answer, usd: float) -> None:
        """Keep an answer, whatever it is, and give the claim up. It is on the disk when this returns."""
        values = (
            request.key,
            time.time(),
            answer.flaw,
            answer.text,
            answer.reasoning,
            answer.finish_reason,
            answer.refusal,
            answer.prompt_tokens,
            answer.completion_tokens,
            usd,
            answer.model,
        )
        with _explained(self.path), self._on_the_disk(), self._writing():
            self._file.execute(f"INSERT INTO answers VALUES (NULL{', ?' * len(values)})", values)
            self._file.execute(
                "UPDATE spent SET answers = answers + 1, prompt_tokens = prompt_tokens + ?, "
                "completion_tokens = completion_tokens + ?, usd = usd + ?",
                (answer.prompt_tokens, answer.completion_tokens, usd),
            )
            self._release(request.key)

    def release(self, request: Request) -> None:
        """Give a claim up without an answer."""
        with _explained(self.path):
            self._release(request.key)

    def _release(self, key: str) -> None:
        self._file.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner))

    def renew(self) -> None:
        """Keep the claims for another while."""
        with _explained(self.path):
            self._file.execute(
                "UPDATE claims SET until = ? WHERE owner = ?", (time.time() + _LEASE, self._owner)
            )

    def spent(self) -> Spent:
        """Return what all answers have cost."""
        with _explained(self.path):
            row = self._file.execute(
                "SELECT answers, prompt_tokens, completion_tokens, usd FROM spent"
            ).fetchone()
        return Spent(*row)

    def admit(self, host: str, tokens: int, *, requests_limit: int | None, tokens_limit: int | None) -> float:
        """Note that a request is sent now, or return the seconds after which there is room for it.

        Args:
            host: Whose limits they are.
            tokens: What it will likely take. More than the limit is let through when nothing else was sent.
            requests_limit: Most requests in a minute.
            tokens_limit: Most tokens in a minute.

        Returns:
            0 where it may be sent.
        """
        if requests_limit is None and tokens_limit is None:
            return 0.0
        with _explained(self.path), self._writing():
            now = time.time()
            # Also what a clock that was set back has left in the future.
            self._file.execute("DELETE FROM sent WHERE at <= ? OR at > ?", (now - _MINUTE, now + 1))
            rows = self._file.execute(
                "SELECT at, tokens FROM sent WHERE host = ? ORDER BY at", (host,)
            ).fetchall()
            count, total = len(rows), sum(row[1] for row in rows)
            wait = 0.0
            for at, size in rows:
                if _within(count + 1, requests_limit) and _within(total + tokens, tokens_limit):
                    break
                count, total, wait = count - 1, total - size, max(at + _MINUTE - now, 0.01)
            if wait:
                return wait
            self._file.execute("INSERT INTO sent VALUES (NULL, ?, ?, ?)", (now, tokens, host))
            return 0.0

    def _answers(self, key: str) -> list[Answer]:
        rows = self._file.execute(
            "SELECT text, reasoning, finish_reason, refusal, prompt_tokens, completion_tokens, model "
            "FROM answers WHERE key = ? ORDER BY id",
            (key,),
        )
        return [Answer(*row) for row in rows]

    def _bury(self) -> None:
        """Free the claims of the dead."""
        now = time.time()
        owners = self._file.execute("SELECT owner, MAX(until) FROM claims GROUP BY owner").fetchall()
        for owner, until in owners:
            if owner != self._owner and (until < now or dead(owner)):
                self._file.execute("DELETE FROM claims WHERE owner = ?", (owner,))

    @contextlib.contextmanager
    def _on_the_disk(self) -> Iterator[None]:
        """Wait for the disk where the block commits: a power cut may cost claims, but no answer."""
        self._file.execute("PRAGMA synchronous = FULL")
        try:
            yield
        finally:
            self._file.execute("PRAGMA synchronous = NORMAL")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the write lock for the block: all of it is done, or nothing."""
        self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")


def _within(amount: float, limit: float | None) -> bool:
    return limit is None or amount <= limit


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            mend = "another process holds it; wait for it, or stop it"
        elif "full" in str(error):
            mend = "free some space and run the same command again: every answer is kept"
        else:
            mend = "mend that and run the same command again: every answer is kept"
        raise UserError(f"{path}: {error}: {mend}") from error
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is no store of answers, or damaged ({error}): move it away") from error
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror or error}") from error

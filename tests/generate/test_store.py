from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.conversations import Message
from evolve.errors import UserError
from evolve.generate import owners, store
from evolve.generate.exchange import Answer, Request, Sampling
from evolve.generate.store import Busy, Exhausted, Known, Limit, Mine, Need, OverBudget, Spent, Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def request(text: str = "q", **keys: Any) -> Request:
    return Request("expert", (Message("user", text),), Sampling(0.7, 1.0, 10), **keys)


def claim(file: Store, asked: Request, limit: Limit | None = None, attempts: int = 2) -> Any:
    return file.claim(
        asked,
        usable=lambda answer: answer.flaw is None,
        attempts=attempts,
        need=Need(10, 0.5),
        limit=limit or Limit(),
    )


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "a.sqlite")
    yield found
    found.close()


def test_a_claim_is_one_persons_until_it_is_given_up(file: Store) -> None:
    other = Store(file.path)
    assert claim(file, request()) == Mine(0)
    assert claim(other, request()) == Busy()
    file.release(request())
    assert claim(other, request()) == Mine(0)
    other.record(request(), Answer("yes", prompt_tokens=3, completion_tokens=4), 0.25)
    assert claim(file, request()) == Known(Answer("yes", prompt_tokens=3, completion_tokens=4))
    assert file.spent() == Spent(1, 3, 4, 0.25)
    other.close()


def test_a_lease_that_nobody_renews_is_free(file: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Store(file.path)
    monkeypatch.setattr(store, "_LEASE", 0.05)
    assert claim(file, request()) == Mine(0)
    file.renew()
    assert claim(other, request()) == Busy()
    time.sleep(0.1)
    assert claim(other, request()) == Mine(0)
    other.close()


def test_closing_gives_claims_up(file: Store) -> None:
    other = Store(file.path)
    assert claim(other, request()) == Mine(0)
    other.close()
    assert claim(file, request()) == Mine(0)


def test_a_dead_process_is_told_from_a_living_one() -> None:
    mine = owners.process()
    assert not owners.dead(f"{mine} abc")
    host, space, pid, started = mine.split(" ")
    assert owners.dead(f"{host} {space} {pid} {int(started) + 1} abc")
    assert owners.dead(f"{host} {space} 4194999 {started} abc")
    # Of another machine, or where nothing is known, nobody can tell.
    assert not owners.dead(f"elsewhere {space} 4194999 {started} abc")
    assert not owners.dead(f"{host} - 4194999 - abc")


def test_flawed_answers_use_up_attempts(file: Store) -> None:
    bad = Answer("half", finish_reason="length")
    for attempt in range(2):
        assert claim(file, request()) == Mine(attempt)
        file.record(request(), bad, 0.0)
    assert claim(file, request()) == Exhausted(bad)
    assert claim(file, request(), attempts=3) == Mine(2)
    assert file.find(request().key, lambda answer: answer.flaw is None) is None
    assert file.asked(request().key) and not file.asked("other")


def test_the_budget_counts_what_is_under_way(file: Store) -> None:
    limit = Limit(tokens=25)
    assert claim(file, request("a"), limit) == Mine(0)
    assert claim(file, request("b"), limit) == Mine(0)
    # Fits as soon as one of the others costs less than was set aside.
    assert claim(file, request("c"), limit) == Busy()
    file.record(request("a"), Answer("x", prompt_tokens=1, completion_tokens=1), 0.0)
    assert claim(file, request("c"), limit) == Mine(0)
    file.record(request("b"), Answer("x", prompt_tokens=5, completion_tokens=5), 0.0)
    file.record(request("c"), Answer("x", prompt_tokens=5, completion_tokens=5), 0.0)
    assert claim(file, request("d"), limit) == OverBudget()
    assert claim(file, request("a"), limit) == Known(Answer("x", prompt_tokens=1, completion_tokens=1))
    assert claim(file, request("d"), Limit(usd=0.4)) == OverBudget()
    assert claim(file, request("d"), Limit(usd=0.5)) == Mine(0)


def test_files_that_are_no_store(tmp_path: Path) -> None:
    wrong = tmp_path / "text"
    wrong.write_text("This is a text, and a long one, so that nobody takes it for an empty file." * 20)
    with pytest.raises(UserError, match="no store of answers"):
        Store(wrong)
    newer = tmp_path / "newer"
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match="newer evolve"):
        Store(newer)
    with pytest.raises(UserError, match="cannot be opened"):
        Store(wrong / "below")


def test_what_is_part_of_the_key() -> None:
    keys = {
        request().key,
        request("other").key,
        request(sample=1).key,
        request(endpoint="completions").key,
        request(extra={"top_k": 1}).key,
        Request("other", request().messages, request().sampling).key,
        Request("expert", request().messages, Sampling(0.8, 1.0, 10)).key,
        Request("expert", request().messages, Sampling(0.7, 1.0, 10, seed=1)).key,
        Request("expert", request().messages, Sampling(0.7, 1.0, 10, stop=("x",))).key,
    }
    assert len(keys) == 9
    assert request(place="a:1").key == request(place="b:2").key
    one = Request("expert", request().messages, Sampling(1, 1, 10))
    assert one.key == Request("expert", request().messages, Sampling(1.0, 1.0, 10)).key


@settings(max_examples=30)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 4), st.integers(20, 100))
def test_limits_of_a_minute_hold_in_every_minute(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int, tokens: int
) -> None:
    """A clock of our own: whoever is told to wait waits that long and tries once more."""
    now = 1000.0
    sent: list[tuple[float, int]] = []
    file = Store(tmp_path_factory.mktemp("limits") / "a.sqlite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.time, "time", lambda: now)
        for size in sizes:
            tries = 0
            while wait := file.admit("host", size, requests_limit=most, tokens_limit=tokens):
                now += wait
                tries += 1
                assert tries <= len(sizes)
            sent.append((now, size))
    file.close()
    for at, _ in sent:
        window = [size for when, size in sent if at - 59.99 < when <= at]
        assert len(window) <= most
        assert sum(window) <= tokens or len(window) == 1


def test_limits_of_other_hosts_are_their_own(file: Store) -> None:
    assert file.admit("a", 1, requests_limit=1, tokens_limit=None) == 0
    assert file.admit("a", 1, requests_limit=1, tokens_limit=None) > 50
    assert file.admit("b", 1, requests_limit=1, tokens_limit=None) == 0

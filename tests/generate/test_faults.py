"""What servers do, and what becomes of it."""

from __future__ import annotations

import sqlite3
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest

from evolve.errors import UserError
from evolve.generate.run import STORE
from tests.generate.kit import jsonl, questions, rows, run
from tests.generate.server import Fault, Server, answer_of, prompt_of, serving

if TYPE_CHECKING:
    from pathlib import Path

PASSING = {
    "500": Fault("status", 500),
    "502 with a page": Fault("status", 502, body="<html>"),
    "503": Fault("status", 503),
    "529": Fault("status", 529),
    "408": Fault("status", 408),
    "409": Fault("status", 409),
    "429": Fault("status", 429),
    "cut": Fault("cut"),
    "garbage": Fault("garbage"),
    "a page": Fault("html"),
    "no choices": Fault("empty"),
    "closed": Fault("close"),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again(name: str, tmp_path: Path) -> None:
    seen: set[str] = set()

    def first_time(body: dict[str, Any], number: int) -> Fault | None:
        new = prompt_of(body) not in seen
        seen.add(prompt_of(body))
        return PASSING[name] if new else None

    with serving(fault=first_time) as server:
        made = run(tmp_path, server.url)
    assert made.complete and made.rows == 5
    assert set(server.asked.values()) == {2}
    assert set(server.answered.values()) == {1}


def test_a_server_that_hangs_is_left(tmp_path: Path) -> None:
    with serving(fault=lambda body, number: Fault("hang") if number <= 2 else None) as server:
        made = run(tmp_path, server.url, {"timeout": 1.5})
    assert made.rows == 5
    assert len(server.bodies) == 7


def test_an_answer_that_drips_is_left_too(tmp_path: Path) -> None:
    """A server that sends a byte now and then never runs into the time between two reads."""
    with serving(fault=lambda body, number: Fault("drip", seconds=0.1) if number == 1 else None) as server:
        made = run(tmp_path, server.url, {"timeout": 1.5}, concurrency=1)
    assert made.rows == 5
    assert len(server.bodies) == 6


@pytest.mark.parametrize("style", ["seconds", "date"])
def test_retry_after_is_honoured_by_all(style: str, tmp_path: Path) -> None:
    def busy(body: dict[str, Any], number: int) -> Fault | None:
        wait = "0.7" if style == "seconds" else formatdate(time.time() + 2, usegmt=True)
        return Fault("status", 429, {"Retry-After": wait}) if number == 1 else None

    with serving(fault=busy, delay=0.2) as server:
        made = run(tmp_path, server.url, concurrency=2)
    assert made.rows == 5
    # The second was under way; the others wait with the first.
    assert server.at[2] - server.at[0] >= 0.65
    assert server.most_at_once <= 2


def test_a_wait_beyond_all_patience_is_not_begun(tmp_path: Path) -> None:
    fault = Fault("status", 429, {"Retry-After": "3600"}, body={"error": {"message": "quota of the day"}})
    with serving(fault=lambda body, number: fault) as server, pytest.raises(UserError) as error:
        run(tmp_path, server.url, concurrency=2)
    assert "quota of the day" in str(error.value) and "is kept" in str(error.value)
    assert len(server.bodies) <= 3


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "api_key_env"),
        (403, "may not use"),
        (404, "teacher.model"),
        (400, "questions.jsonl:"),
        (422, ""),
    ],
)
def test_what_no_second_try_mends_ends_the_run(status: int, words: str, tmp_path: Path) -> None:
    fault = Fault("status", status, body={"error": {"message": "because of this"}})
    with serving(fault=lambda *_: fault) as server, pytest.raises(UserError) as error:
        run(tmp_path, server.url, concurrency=1)
    assert f"{status}: because of this" in str(error.value)
    assert words in str(error.value)
    assert len(server.bodies) == 1


def test_a_fatal_answer_waits_for_the_others_and_keeps_them(tmp_path: Path) -> None:
    def forbidden(body: dict[str, Any], number: int) -> Fault | None:
        return Fault("status", 403) if prompt_of(body) == "q0?" else None

    with serving(fault=forbidden, delay=0.3) as server:
        with pytest.raises(UserError, match="403"):
            run(tmp_path, server.url, concurrency=5)
        assert sum(server.answered.values()) == 4
        server.fault = lambda body, number: None
        made = run(tmp_path, server.url)
    assert made.asked == 1 and made.rows == 5
    assert set(server.answered.values()) == {1}


def test_a_server_that_is_away_ends_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    prompts = str(questions(tmp_path, 12))
    with serving(fault=lambda body, number: Fault("close") if number > 3 else None) as server:
        with pytest.raises(UserError, match="when the server is back") as error:
            run(tmp_path, server.url, {"max_tries": 3}, prompts=prompts, concurrency=2)
        assert "cannot be reached" in str(error.value)
        server.fault = lambda body, number: None
        made = run(tmp_path, server.url, prompts=prompts)
    assert made.rows == 12 and made.asked == 9
    assert set(server.answered.values()) == {1}


def test_one_prompt_that_breaks_the_server_costs_that_row_only(tmp_path: Path) -> None:
    with serving(fault=lambda body, number: Fault("status") if prompt_of(body) == "q2?" else None) as server:
        made = run(tmp_path, server.url, {"max_tries": 2})
        assert not made.complete and made.rows == 4 and made.counts["failed"] == 1
        assert "1 requests failed" in made.warnings[0]
        assert server.asked["q2?"] == 2
        server.fault = lambda body, number: None
        assert run(tmp_path, server.url).complete


NONE = {
    "refused": {"message": {"content": None, "refusal": "No."}},
    "content_filter": {"message": {"content": "Half of"}, "finish_reason": "content_filter"},
    "truncated": {"message": {"content": "Half of"}, "finish_reason": "length"},
    "empty": {"message": {"content": "  "}},
    "aborted": {"message": {"content": "x"}, "finish_reason": "tool_calls"},
}


@pytest.mark.parametrize("flaw", NONE)
def test_what_is_no_answer_is_recorded_asked_again_and_never_returned(flaw: str, tmp_path: Path) -> None:
    seeds: list[int] = []

    def once(body: dict[str, Any]) -> Any:
        if prompt_of(body) != "q1?":
            return answer_of(body)
        seeds.append(body["seed"])
        return NONE[flaw] if len(seeds) == 1 else "At last."

    with serving(reply=once) as server:
        made = run(tmp_path, server.url)
        again = run(tmp_path, server.url)
    assert made.rows == 5 and made.content == again.content and again.asked == 0
    assert len(set(seeds)) == 2
    assert [row["messages"][1]["content"] for row in rows(made) if "q1?" in str(row)] == ["At last."]
    file = sqlite3.connect(tmp_path / "store" / STORE)
    assert file.execute("SELECT flaw, COUNT(*) FROM answers GROUP BY 1 ORDER BY 1").fetchall() == [
        (None, 5),
        (flaw, 1),
    ]
    assert made.spent.answers == 6


def test_attempts_are_bounded_over_all_runs(tmp_path: Path) -> None:
    with serving(reply=lambda body: NONE["truncated"]) as server:
        for _ in range(3):
            made = run(tmp_path, server.url, max_attempts=2)
        assert made.rows == 0 and made.counts["truncated"] == 5
        assert set(server.asked.values()) == {2}
        run(tmp_path, server.url, max_attempts=3)
        assert set(server.asked.values()) == {3}
        # A greedy answer would be cut off again.
        server.bodies.clear()
        run(tmp_path, server.url, max_attempts=3, temperature=0.0)
        assert set(server.asked.values()) == {1}


def test_a_refusal_in_words_is_no_answer_unless_it_may_be(tmp_path: Path) -> None:
    with serving(reply=lambda body: "I'm sorry, but I can't help with that.") as server:
        made = run(tmp_path, server.url, max_attempts=2)
        assert made.rows == 0 and made.counts["refused"] == 5
        kept = run(tmp_path, server.url, max_attempts=2, filters={"refusals": False})
        assert kept.rows == 5 and kept.asked == 0


def test_the_key_goes_to_the_server_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-very-secret-12345"
    monkeypatch.setenv("TEACHER_KEY", key)
    caplog.set_level("DEBUG", "evolve")
    bad = Fault("status", 401, body={"error": {"message": f"Incorrect API key provided: {key}"}})
    once = Fault("status", 500, body={"error": {"message": f"broken near {key}"}})
    keys = {"api_key_env": "TEACHER_KEY"}
    with serving(fault=lambda body, number: once if number == 1 else None) as server:
        made = run(tmp_path, server.url, keys)
        assert {header["authorization"] for header in server.headers} == {f"Bearer {key}"}
        server.fault = lambda body, number: bad
        with pytest.raises(UserError) as error:
            run(tmp_path, server.url, keys, n=2)
    assert made.rows == 5
    assert "[key]" in str(error.value) and key not in str(error.value)
    assert "broken near [key]" in caplog.text and key not in caplog.text
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or key.encode() not in file.read_bytes()


def test_a_key_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(UserError, match="no TEACHER_KEY"):
        run(tmp_path, "http://127.0.0.1:1/v1", {"api_key_env": "TEACHER_KEY"})


def test_what_is_sent(tmp_path: Path) -> None:
    prompts = jsonl(tmp_path / "p.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    keys = {"prompts": str(prompts), "system": "Be short.", "stop": ["\n\n"], "max_completion_tokens": 7}
    with serving() as server:
        run(tmp_path, server.url, {"extra_body": {"top_k": 5}}, **keys)
        run(tmp_path, server.url, {"max_tokens_key": "max_tokens", "send_seed": False}, **keys)
        run(tmp_path, server.url, {"endpoint": "completions"}, **keys)
    chat, old, plain = server.bodies
    assert chat["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
    ]
    assert (chat["model"], chat["temperature"], chat["top_p"], chat["stop"]) == ("expert", 0.7, 1.0, ["\n\n"])
    assert chat["max_completion_tokens"] == 7 and chat["top_k"] == 5 and "max_tokens" not in chat
    assert 0 <= chat["seed"] < 2**31
    assert old["max_tokens"] == 7 and "max_completion_tokens" not in old and "seed" not in old
    assert plain["prompt"] == "Be short.\n\nHi" and plain["max_tokens"] == 7


def test_limits_of_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evolve.generate import store

    monkeypatch.setattr(store, "_MINUTE", 0.8)
    with serving() as server:
        run(tmp_path, server.url, {"requests_per_minute": 2}, concurrency=5)
    at = sorted(server.at)
    assert all(at[n + 2] - at[n] >= 0.4 for n in range(3))


def test_reasoning_apart_and_within(tmp_path: Path) -> None:
    replies = {
        "q0?": {"message": {"content": "4", "reasoning_content": "2 + 2"}},
        "q1?": {"message": {"content": "4", "reasoning": "2 + 2"}},
        "q2?": "<think>\n2 + 2\n</think>\n4",
        "q3?": "2 + 2\n</think>\n\n4",
        "q4?": "2 + 2\n\n**Final answer:** 4",
    }
    with serving(reply=lambda body: replies[prompt_of(body).split("\n")[0]]) as server:
        made = run(tmp_path, server.url, style="reasoning")
    assert made.rows == 5
    turns = [row["messages"][1] for row in rows(made)]
    assert {turn["reasoning_content"] for turn in turns} == {"2 + 2"}
    assert {turn["content"].strip("* ") for turn in turns} == {"4"}
    assert all(row["messages"][0]["content"] in replies for row in rows(made))


def test_a_server_without_counts_is_counted(tmp_path: Path) -> None:
    with serving(usage=False) as server:
        made = run(tmp_path, server.url)
    assert made.spent.prompt_tokens == 5 and made.spent.completion_tokens > 5


def test_the_server_itself() -> None:
    assert answer_of({"prompt": "a", "seed": 1}) != answer_of({"prompt": "a", "seed": 2})
    assert Server().asked == {}

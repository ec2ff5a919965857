"""Killed at any instant, and two at a time: nothing that was answered is asked again."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evolve.generate.run import STORE
from tests.generate.kit import jsonl, run
from tests.generate.server import Fault, Server, answer_of, serving

COUNT = 40
AT_ONCE = 4


@pytest.fixture
def config(tmp_path: Path) -> Path:
    jsonl(tmp_path / "q.jsonl", [{"question": f"q{n}?"} for n in range(COUNT)])
    return tmp_path / "c.yaml"


def start(config: Path, url: str, out: str = "rows.jsonl", store: str = "store") -> subprocess.Popen[bytes]:
    folder = config.parent
    settings = {
        "teacher": {"base_url": url, "model": "expert"},
        "generate": {"prompts": str(folder / "q.jsonl"), "concurrency": AT_ONCE},
    }
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "evolve.cli", "generate", str(config), str(folder / out)]
    command += ["--store", str(folder / store), "--display", "plain"]
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def kept(folder: Path) -> set[str]:
    """Return the prompts that have an answer in the store."""
    if not (folder / "store" / STORE).exists():
        return set()
    file = sqlite3.connect(folder / "store" / STORE)
    try:
        found = file.execute("SELECT request FROM answers JOIN requests USING (key)").fetchall()
    except sqlite3.OperationalError:
        return set()
    finally:
        file.close()
    return {json.loads(row[0])["messages"][-1]["content"] for row in found}


def wait_for(server: Server, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.bodies) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_killed_at_random_instants(config: Path, tmp_path: Path) -> None:
    draws = random.Random(7)
    kills = 2
    with serving(delay=0.05) as server:
        before: Counter[str] = Counter()
        done: set[str] = set()
        for kill in range(kills):
            process = start(config, server.url)
            wait_for(server, sum(before.values()) + 6 + 4 * kill)
            time.sleep(draws.random() * 0.2)
            process.kill()
            process.communicate()
            # What the dead asked last is still on its way.
            time.sleep(0.1)
            assert all(server.asked[prompt] == before[prompt] for prompt in done)
            before, done = server.asked, kept(tmp_path)
        process = start(config, server.url)
        _, words = process.communicate(timeout=60)
        assert process.returncode == 0, words.decode()
        assert all(server.asked[prompt] == before[prompt] for prompt in done)
        assert 6 <= len(done) < COUNT
        # Only what was under way at a kill is asked once more.
        assert len(server.bodies) <= COUNT + kills * AT_ONCE
        asked = len(server.bodies)
        rows = (tmp_path / "rows.jsonl").read_bytes()
        again = start(config, server.url, "again.jsonl")
        again.communicate(timeout=60)
        assert len(server.bodies) == asked
    assert (tmp_path / "again.jsonl").read_bytes() == rows
    assert rows.count(b"\n") == COUNT
    file = sqlite3.connect(tmp_path / "store" / STORE)
    assert file.execute("SELECT COUNT(*), COUNT(DISTINCT key) FROM answers").fetchone() == (COUNT, COUNT)
    assert file.execute("SELECT COUNT(*) FROM claims").fetchone() == (0,)
    file.close()


def test_two_processes_ask_nothing_twice(config: Path, tmp_path: Path) -> None:
    def when_both_are_there(body: dict[str, Any]) -> str:
        # One alone never has more under way.
        wait_for(server, AT_ONCE + 1)
        return answer_of(body)

    with serving(reply=when_both_are_there) as server:
        both = [start(config, server.url, f"rows{n}.jsonl") for n in range(2)]
        for process in both:
            _, words = process.communicate(timeout=60)
            assert process.returncode == 0, words.decode()
        assert set(server.asked.values()) == {1} and len(server.bodies) == COUNT
        assert server.most_at_once > AT_ONCE
    first, second = ((tmp_path / f"rows{n}.jsonl").read_bytes() for n in range(2))
    assert first == second and first.count(b"\n") == COUNT


@pytest.mark.slow
def test_the_living_take_over_from_the_dead(config: Path, tmp_path: Path) -> None:
    with serving(fault=lambda body, number: Fault("hang") if number <= AT_ONCE else None) as server:
        first = start(config, server.url, "rows0.jsonl")
        wait_for(server, AT_ONCE)
        second = start(config, server.url, "rows1.jsonl")
        wait_for(server, COUNT)
        assert second.poll() is None
        # Dead, but not gone from the table of processes: its parent has not looked.
        first.kill()
        _, words = second.communicate(timeout=60)
        first.communicate()
        assert second.returncode == 0, words.decode()
    assert (tmp_path / "rows1.jsonl").read_bytes().count(b"\n") == COUNT
    assert len(server.bodies) == COUNT + AT_ONCE


def test_ctrl_c_waits_for_what_was_asked_and_keeps_it(config: Path, tmp_path: Path) -> None:
    with serving(delay=0.4) as server:
        process = start(config, server.url)
        wait_for(server, AT_ONCE)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=60)
        assert process.returncode == 130, words.decode()
        assert "Every answer is kept" in words.decode() and "stopping" in words.decode()
        assert AT_ONCE <= len(kept(tmp_path)) == len(server.bodies) < COUNT
        assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(config: Path, tmp_path: Path) -> None:
    with serving(fault=lambda body, number: Fault("hang")) as server:
        process = start(config, server.url)
        wait_for(server, AT_ONCE)
        for _ in range(2):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=30)
        assert process.returncode == 130, words.decode()


def test_within_a_running_loop(tmp_path: Path) -> None:
    import asyncio

    async def inside(url: str) -> Any:
        return run(tmp_path, url)

    with serving() as server:
        assert asyncio.run(inside(server.url)).rows == 5

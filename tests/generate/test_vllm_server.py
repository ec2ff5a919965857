"""A real server: ``vllm serve`` with a tiny model, killed and started again while it is asked."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evolve.generate.run import STORE
from tests.generate.kit import jsonl
from tests.tiny import make_model

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vllm"),
]

COUNT = 40
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] ~ ': ' ~ message['content'] ~ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@contextlib.contextmanager
def served(model: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    # What `vllm serve` runs; that command itself does not start where the package has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "tiny", "--max-model-len", "256"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "4"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text(errors="replace")[-3000:])


def answered(store: Path) -> int:
    if not store.exists():
        return 0
    file = sqlite3.connect(store)
    try:
        return int(file.execute("SELECT answers FROM spent").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        file.close()


def test_a_server_that_is_killed_and_started_again(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    jsonl(tmp_path / "q.jsonl", [{"question": f"the hen {n}?"} for n in range(COUNT)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A random model says nothing that ends by itself: what it writes ends at a letter.
    generate = {"prompts": str(tmp_path / "q.jsonl"), "temperature": 1.5, "stop": ["e", "a", "o", "t"]}
    generate |= {"max_completion_tokens": 120, "max_attempts": 20, "concurrency": 2, "n": 2}
    teacher = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "tiny", "max_tries": 1000}
    (tmp_path / "c.yaml").write_text(json.dumps({"teacher": teacher, "generate": generate}))
    command = [sys.executable, "-m", "evolve.cli", "-v", "generate", str(tmp_path / "c.yaml")]
    command += [str(tmp_path / "rows.jsonl"), "--store", str(tmp_path / "store")]
    store, log = tmp_path / "store" / STORE, tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with served(model, port, log) as first:
        wait_until_up(first, port, log)
        client = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        while answered(store) < 10:
            assert client.poll() is None, client.communicate()[1].decode()
            time.sleep(0.02)
    before = answered(store)
    assert client.poll() is None and before < 2 * COUNT
    with served(model, port, log) as second:
        wait_until_up(second, port, log)
        _, words = client.communicate(timeout=300)
        assert client.returncode == 0, words.decode()
        again = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=100)
    assert "cannot be reached" in words.decode()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    file = sqlite3.connect(store)
    good = file.execute("SELECT COUNT(*), COUNT(DISTINCT key) FROM answers WHERE flaw IS NULL").fetchone()
    file.close()
    assert good == (2 * COUNT, 2 * COUNT)
    assert COUNT < len(rows) <= 2 * COUNT
    assert all(row["metadata"]["tokens"] > 0 for row in rows)
    assert answered(store) > before and b"asking the teacher" in again.stderr

"""A teacher's server that fails in every way that servers do, and counts what it is asked.

It runs in a thread, on the loopback. An answer depends on the request's text and seed alone.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Fault:
    """One reply that is none, or a good one that comes late.

    kind: status, cut, hang, html, garbage, empty, close, slow.
    """

    kind: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    seconds: float = 0.0


def answer_of(body: dict[str, Any]) -> str:
    asked = prompt_of(body)
    digest = hashlib.sha256(f"{asked} {body.get('seed')}".encode()).hexdigest()
    return f"{asked} -> {digest[:6]}"


def prompt_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


@dataclass
class Server:
    """``reply`` gives a text, or a whole choice; ``fault`` gives what goes wrong instead, or None."""

    url: str = ""
    reply: Callable[[dict[str, Any]], Any] = answer_of
    fault: Callable[[dict[str, Any], int], Fault | None] = lambda body, number: None
    delay: float = 0.0
    usage: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def asked(self) -> Counter[str]:
        return Counter(prompt_of(body) for body in self.bodies)

    def enter(self, body: dict[str, Any], headers: dict[str, str]) -> int:
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.at.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return len(self.bodies)

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1


def tokens(text: str) -> int:
    return len(text.split())


def completion(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    reply = server.reply(body)
    choice = reply if isinstance(reply, dict) else {"message": {"role": "assistant", "content": reply}}
    choice = {"index": 0, "finish_reason": "stop", **choice}
    text = (choice.get("message") or {}).get("content") or ""
    if "prompt" in body:
        choice = {**choice, "text": text}
        choice.pop("message")
    data: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
    data["choices"] = [choice]
    if server.usage:
        prompt = sum(tokens(str(turn["content"])) for turn in body.get("messages", ()))
        data["usage"] = {
            "prompt_tokens": prompt or tokens(prompt_of(body)),
            "completion_tokens": tokens(text),
        }
        data["usage"]["total_tokens"] = sum(data["usage"].values())
    return data


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    teacher: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = self.teacher.enter(body, {key.lower(): value for key, value in self.headers.items()})
        try:
            fault = self.teacher.fault(body, number)
            if fault is None or fault.kind == "slow":
                self._good(body, fault.seconds if fault else 0.0)
            else:
                self._fail(fault, json.dumps(completion(self.teacher, body)).encode())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.teacher.leave()

    def _good(self, body: dict[str, Any], seconds: float) -> None:
        self.teacher.released.wait(self.teacher.delay + seconds)
        data = completion(self.teacher, body)
        with self.teacher._lock:
            self.teacher.answered[prompt_of(body)] += 1
        self._send(200, json.dumps(data).encode())

    def _fail(self, fault: Fault, good: bytes) -> None:
        half = good[: len(good) // 2]
        if fault.kind == "status":
            words = {"error": {"message": "it went wrong"}} if fault.body is None else fault.body
            self._send(fault.status, json.dumps(words).encode(), headers=fault.headers)
        elif fault.kind == "garbage":
            self._send(200, half)
        elif fault.kind == "html":
            self._send(200, b"<html>Bad gateway</html>", kind="text/html")
        elif fault.kind == "empty":
            self._send(200, json.dumps({"choices": []}).encode())
        elif fault.kind == "hang":
            self.teacher.released.wait(60)
            self.close_connection = True
        else:
            if fault.kind == "cut":
                self._send(200, half, length=len(good))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(
        self,
        status: int,
        data: bytes,
        *,
        kind: str = "application/json",
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


@contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    server = Server(**settings)
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Teacher", (Handler,), {"teacher": server}))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        http.shutdown()
        http.server_close()
        thread.join()

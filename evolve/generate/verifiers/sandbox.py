"""Judges in a child process, one case at a time, each with a limit of time.

The child gets no secrets: variables of the environment that look like one are taken out. It is no protection
against code that means harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evolve
from evolve.errors import UserError
from evolve.generate.verifiers.base import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evolve.generate.verifiers.base import Case

_START_SECONDS = 120.0
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


def judge_apart(job: Mapping[str, Any], cases: Sequence[Case], timeout: float) -> list[Verdict]:
    """Return a verdict for each case, judged by :mod:`evolve.generate.verifiers.worker`.

    Args:
        job: What judges: ``kind`` and its settings.
        cases: The answers.
        timeout: Seconds for one; then the child is killed, the case is wrong, and another child goes on.

    Raises:
        UserError: The child cannot begin.
    """
    verdicts: list[Verdict] = []
    child: _Child | None = None
    # The same answer is often given many times.
    known: dict[str, Verdict] = {}
    try:
        for case in cases:
            line = json.dumps([case.answer, case.reference, dict(case.row)])
            if line not in known:
                child = child or _Child({**job, "timeout": timeout})
                reply = child.ask(line, timeout)
                if reply is None:
                    child.kill()
                    child = None
                known[line] = _verdict(reply, timeout)
            verdicts.append(known[line])
    finally:
        if child is not None:
            child.kill()
    return verdicts


def _verdict(reply: Mapping[str, Any] | None, timeout: float) -> Verdict:
    if reply is None:
        return Verdict(False, f"took longer than {timeout:g} s, or ended its process")
    return Verdict(reply.get("right") is True, str(reply.get("error", "")))


class _Child:
    """A process that answers a line of JSON with another."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        environment = {key: value for key, value in os.environ.items() if not _SECRET.search(key)}
        # The package may be used from a checkout.
        paths = [str(Path(evolve.__file__).parents[1]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evolve.generate.verifiers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # Ctrl-C is for the parent, which ends the child.
            start_new_session=True,
        )
        self._rest = b""
        reply = self.ask(json.dumps(dict(job)), _START_SECONDS)
        if reply is None or "error" in reply:
            self.kill()
            why = reply["error"] if reply else "it ended, or did not begin in time"
            raise UserError(f"verify: {job['kind']} cannot begin: {why}")

    def ask(self, line: str, timeout: float) -> dict[str, Any] | None:
        """Return the reply, or None where there is none in time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        reply = self._line(time.monotonic() + timeout)
        return None if reply is None else json.loads(reply)

    def _line(self, deadline: float) -> bytes | None:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                return None
            data = os.read(descriptor, 1 << 16)
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()

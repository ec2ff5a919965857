"""The child of :mod:`~evolve.generate.verifiers.sandbox`: first a line on what judges, then cases."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from evolve.generate.split import final_answer

if TYPE_CHECKING:
    from collections.abc import Callable

Judge: TypeAlias = "Callable[[str, Any, dict[str, Any]], Any]"

_GRACE_SECONDS = 10.0


def main() -> None:
    """Answer line by line until the parent closes the pipe."""
    # What the judge prints must not come between the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(**values: Any) -> None:
        replies.write(json.dumps(values) + "\n")
        replies.flush()

    try:
        job = json.loads(sys.stdin.readline())
        judge = _judge(job)
    except BaseException as error:
        reply(error=_words(error))
        return
    reply(ready=True)
    for line in sys.stdin:
        answer, reference, row = json.loads(line)
        # The parent kills earlier, unless it is dead; the signal needs no help of Python, which may be stuck.
        signal.setitimer(signal.ITIMER_REAL, 2 * job["timeout"] + _GRACE_SECONDS)
        try:
            reply(right=bool(judge(answer, reference, row)))
        except Exception as error:
            reply(right=False, error=_words(error))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _judge(job: dict[str, Any]) -> Judge:
    if job["kind"] == "python":
        return _of_user(job["file"], job["function"])
    if job["kind"] == "regex":
        return _of_pattern(job["pattern"], job["ignore_case"])
    return _of_mathematics()


def _of_user(file: str, name: str) -> Judge:
    spec = importlib.util.spec_from_file_location("evolve_user_verifier", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ImportError(f"{file} has no function {name!r}: add it, or name another in verify.function")
    found: Judge = function
    return found


def _of_pattern(pattern: str, ignore_case: bool) -> Judge:
    expression = re.compile(pattern, re.IGNORECASE if ignore_case else 0)

    def judge(answer: str, reference: Any, row: dict[str, Any]) -> bool:
        found = expression.search(answer)
        if found is None or reference is None:
            return found is not None
        given = (found.group(1) if expression.groups else found.group()) or ""
        right = final_answer(str(reference))
        both = (given.split(), right.split())
        return both[0] == both[1] or (ignore_case and given.casefold().split() == right.casefold().split())

    return judge


def _of_mathematics() -> Judge:
    from math_verify import parse, verify

    def read(text: str) -> Any:
        # Its clocks are signals; this process has a parent that looks at the time.
        return parse(text, parsing_timeout=None)

    def judge(answer: str, reference: Any, row: dict[str, Any]) -> bool:
        gold = read(_marked(final_answer(str(reference))))
        given = read(answer)
        return bool(gold) and bool(given) and verify(gold, given, timeout_seconds=None)

    return judge


def _marked(text: str) -> str:
    """Return a bare expression as LaTeX, which the parser seeks between dollars."""
    return text if "$" in text or "\\(" in text or "\\[" in text else f"${text}$"


if __name__ == "__main__":
    main()

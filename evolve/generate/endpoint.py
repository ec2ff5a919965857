"""One OpenAI-compatible server: a request goes there until it is answered, given up, or pointless.

There is one layer of retries, this one; the client's own are off. What may pass (408, 409, 425, 429, 5xx,
timeouts, broken connections, replies that are cut or no JSON) is tried again, after the time that the server
asks for in ``Retry-After``. What no second try mends (a wrong key, an unknown model, a request that the
server refuses to read) ends the run at once, with the server's words.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from evolve.errors import MissingDependency, UserError
from evolve.generate.exchange import Garbled, read_answer
from evolve.generate.store import Need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from evolve.generate.blocks import ApiTeacher
    from evolve.generate.exchange import Answer, Request
    from evolve.generate.store import Store

logger = logging.getLogger(__name__)

_PASSING = frozenset({408, 409, 425, 429})
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_MOST_SHOWN = 500
_SHORTEST_KEY = 6
"""A shorter text is a stand-in, and may be part of any word."""

_MENDS = {
    400: "the server cannot use this request; mend the keys of generate and teacher, or the prompt",
    401: "the key is wrong or missing: set the variable that teacher.api_key_env names",
    402: "the account has no credit left",
    403: "the key may not use this model",
    404: "no such model or address: compare teacher.model and teacher.base_url with what the server offers",
    413: "the prompt is too long for the server",
    422: "the server cannot use this request; mend the keys of generate and teacher, or the prompt",
}


class GaveUp(Exception):
    """A request failed too often, or for too long. The message says how it failed last."""


class Stopping(Exception):
    """The run ends; whoever waits shall not go on."""


class Endpoint:
    """A server and a model of it."""

    def __init__(self, teacher: ApiTeacher, store: Store) -> None:
        """Read the key.

        Raises:
            UserError: The variable that holds the key is not set.
            MissingDependency: The client is not installed.
        """
        self.teacher = teacher
        self._store = store
        self._key = _key(teacher)
        self._client: Any = None
        self._stop = asyncio.Event()
        self._not_before = 0.0
        try:
            import openai
            import tenacity  # noqa: F401
        except ImportError as error:
            raise MissingDependency("a teacher behind an API", "evolve[api]") from error
        self._openai = openai

    @contextlib.asynccontextmanager
    async def opened(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Hold connections for the block; where ``stop`` is set, nobody waits for a next try."""
        self._stop = stop
        self._client = self._openai.AsyncOpenAI(
            base_url=self.teacher.base_url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=self.teacher.timeout,
        )
        try:
            async with self._client:
                yield
        finally:
            self._client = None

    def need(self, request: Request) -> Need:
        """Return the most that a request can cost."""
        prompt, answer = request.most_prompt_tokens, request.sampling.max_tokens
        return Need(prompt + answer, self.price(prompt, answer))

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what tokens cost, in USD."""
        teacher = self.teacher
        prompt = prompt_tokens * teacher.usd_per_million_input_tokens
        return (prompt + completion_tokens * teacher.usd_per_million_output_tokens) / 1e6

    async def send(self, request: Request, attempt: int) -> Answer:
        """Return the server's answer, whatever it is worth.

        Args:
            request: What is asked.
            attempt: How many answers to it were none.

        Raises:
            GaveUp: The server or the network failed too often.
            Stopping: The run ends while the request waits for its next try.
            UserError: No second try would help.
        """
        import tenacity

        tries = tenacity.AsyncRetrying(
            sleep=self._pause,
            stop=tenacity.stop_after_attempt(self.teacher.max_tries)
            | tenacity.stop_before_delay(self.teacher.max_wait),
            wait=_Wait(tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT)),
            retry=tenacity.retry_if_exception(self._passes),
            before_sleep=self._say,
            reraise=True,
        )
        try:
            answer: Answer = await tries(self._once, request, attempt)
            return answer
        except (Stopping, UserError):
            raise
        except Exception as error:
            if self._passes(error):
                raise GaveUp(self._words(error)) from error
            raise UserError(self._refused(error, request)) from error

    async def _once(self, request: Request, attempt: int) -> Answer:
        await self._room(request)
        create = self._client.chat.completions if request.endpoint == "chat" else self._client.completions
        async with asyncio.timeout(self.teacher.timeout):
            reply = await create.with_raw_response.create(**self._body(request, attempt))
        kind = str(reply.headers.get("content-type", ""))
        try:
            data = json.loads(reply.text)
        except ValueError as error:
            raise Garbled(f"the reply is no JSON (Content-Type: {kind or 'none'})") from error
        return read_answer(data, request)

    def _body(self, request: Request, attempt: int) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": request.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        key = self.teacher.max_tokens_key
        if request.endpoint == "chat":
            body["messages"] = [{"role": one.role, "content": one.content} for one in request.messages]
        else:
            body["prompt"], key = "\n\n".join(one.content for one in request.messages), "max_tokens"
        body[key] = sampling.max_tokens
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self.teacher.send_seed:
            body["seed"] = request.seed(attempt)
        if request.extra:
            body["extra_body"] = dict(request.extra)
        return body

    async def _room(self, request: Request) -> None:
        """Wait until the server's limits and its ``Retry-After`` let a request through."""
        teacher = self.teacher
        while True:
            wait = self._not_before - time.monotonic()
            if wait <= 0:
                wait = self._store.admit(
                    f"{teacher.base_url} {teacher.model}",
                    request.likely_tokens,
                    requests_limit=teacher.requests_per_minute,
                    tokens_limit=teacher.tokens_per_minute,
                )
            if wait <= 0:
                return
            await self._pause(wait)

    async def _pause(self, seconds: float) -> None:
        if self._stop.is_set():
            raise Stopping
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return
        raise Stopping

    def _passes(self, error: BaseException) -> bool:
        """Whether a second try may help."""
        if isinstance(error, self._openai.APIStatusError):
            return error.status_code in _PASSING or error.status_code >= 500
        return isinstance(error, Garbled | TimeoutError | self._openai.APIConnectionError)

    def _say(self, state: Any) -> None:
        error, wait = state.outcome.exception(), state.next_action.sleep
        if asked_to_wait(error) is not None:
            # One request is told, all of them are meant.
            self._not_before = max(self._not_before, time.monotonic() + wait)
        logger.info("%s; try %d in %.1f s", self._words(error), state.attempt_number + 1, wait)

    def _refused(self, error: Exception, request: Request) -> str:
        status = getattr(error, "status_code", None)
        mend = _MENDS.get(status or 0, "mend that and run the same command again")
        at = f" ({request.place})" if request.place and status in {400, 413, 422} else ""
        return f"{self._words(error)}{at}: {mend}. Every answer so far is kept"

    def _words(self, error: BaseException) -> str:
        """Return what went wrong, without the key, which servers like to quote."""
        if isinstance(error, self._openai.APIStatusError):
            what = f"answered {error.status_code}: {_said(error)}"
        elif isinstance(error, TimeoutError | self._openai.APITimeoutError):
            what = f"gave no answer within {self.teacher.timeout:g} s"
        elif isinstance(error, self._openai.APIConnectionError):
            what = f"cannot be reached ({error.__cause__ or error})"
        else:
            what = f"{error}" if isinstance(error, Garbled) else f"{type(error).__name__}: {error}"
        text = f"{self.teacher.base_url}: {what}"
        return text.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else text


class _Wait:
    """The time that the server asks for, else what ``otherwise`` says."""

    def __init__(self, otherwise: Any) -> None:
        self._otherwise = otherwise

    def __call__(self, state: Any) -> float:
        asked = asked_to_wait(state.outcome.exception())
        return float(self._otherwise(state)) if asked is None else asked


def asked_to_wait(error: BaseException | None) -> float | None:
    """Return the seconds in a reply's ``Retry-After``, which is a number or a date, or None."""
    response = getattr(error, "response", None)
    if response is None:
        return None
    text = str(response.headers.get("retry-after", "")).strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None


def _said(error: Any) -> str:
    body = error.body
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(key):
            body = body[key]
    text = body if isinstance(body, str) else json.dumps(body) if body else error.response.text
    return " ".join(str(text).split())[:_MOST_SHOWN] or "nothing more"


def _key(teacher: ApiTeacher) -> str:
    if teacher.api_key_env is None:
        return ""
    key = os.environ.get(teacher.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"the environment has no {teacher.api_key_env}, which teacher.api_key_env names: export it (any "
            "text for a server that asks for none), or remove api_key_env"
        )
    return key

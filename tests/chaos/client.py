"""One request over HTTP, as a tenant sends it, and what became of it, judged token by token."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import aiohttp

from tests.chaos.words import Verdict, judge, prompt_of

ANSWER_S = 90.0
"""The longest that one request may take; what has no end by then is lost."""
CONNECT_S = 3.0


class Mode(Enum):
    """How an answer is asked for."""

    STREAM = "stream"
    WHOLE = "whole"
    KEYED = "keyed"
    """Not streamed, with an Idempotency-Key, and asked again under it when the connection is lost."""


class Ending(Enum):
    """What became of one request."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """With a code, and nothing of an answer."""
    CUT = "cut"
    """A part of the answer, then an error event and no `[DONE]`."""
    CANCELLED = "cancelled"
    """The client hung up."""
    UNREACHED = "unreached"
    """No connection to the edge: nothing was sent."""
    CLOSED = "closed"
    """The connection ended without a word. Lost, unless the edge itself was killed."""
    LOST = "lost"
    """A missing or wrong token, an answer without an end, or no end in time."""
    DUPLICATED = "duplicated"
    """A token stands there twice."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One request to be sent."""

    tag: str
    edge: str
    url: str
    api_key: str = field(repr=False)
    tenant: str
    kind: str
    labels: str | None
    mode: Mode
    tokens: int
    cancel_after: int | None = None
    """Hang up after so many tokens; None reads to the end."""


@dataclass(slots=True)
class Told:
    """What became of it. Times are of the loop's clock, in seconds."""

    plan: Plan
    begun_s: float
    ending: Ending = Ending.CLOSED
    why: str = ""
    """A code of the catalogue, or what was wrong with the answer."""
    request: str = ""
    pool: str = ""
    segments: int = 1
    replayed: bool = False
    received: int = 0
    """Tokens that arrived."""
    ended_s: float = 0.0
    first_s: float | None = None
    stall_s: float = 0.0
    """The longest time between two tokens."""

    @property
    def first_ms(self) -> float | None:
        """The time to the first token."""
        return None if self.first_s is None else (self.first_s - self.begun_s) * 1000


async def ask(session: aiohttp.ClientSession, plan: Plan) -> Told:
    """Send one request and read its answer. Raises nothing for what a fault can do."""
    loop = asyncio.get_running_loop()
    told = Told(plan, loop.time())
    reader = _Reader(told)
    try:
        async with asyncio.timeout(ANSWER_S):
            await _exchange(session, plan, told, reader)
    except TimeoutError:
        told.ending, told.why = Ending.LOST, "no end in time"
    except aiohttp.ClientConnectorError:
        told.ending = Ending.UNREACHED
    except (aiohttp.ClientError, OSError):
        reader.broke_off()
    told.ended_s = loop.time()
    return told


def new_session() -> aiohttp.ClientSession:
    """Return a session in which each request has a connection of its own, so that no fault hits a bystander."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        read_bufsize=1 << 20,
    )


def body_of(plan: Plan) -> dict[str, Any]:
    """Return the body of a request."""
    body: dict[str, Any] = {
        "model": "words",
        "messages": [{"role": "user", "content": prompt_of(plan.tag, plan.kind)}],
        "max_tokens": plan.tokens,
    }
    if plan.mode is Mode.STREAM:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def headers_of(plan: Plan) -> dict[str, str]:
    """Return the headers of a request."""
    headers = {"authorization": f"Bearer {plan.api_key}", "x-request-id": plan.tag}
    if plan.labels is not None:
        headers["x-tidegate-labels"] = plan.labels
    if plan.mode is Mode.KEYED:
        headers["idempotency-key"] = plan.tag
    return headers


async def _exchange(session: aiohttp.ClientSession, plan: Plan, told: Told, reader: _Reader) -> None:
    url = f"{plan.url}/v1/chat/completions"
    async with session.post(url, json=body_of(plan), headers=headers_of(plan)) as response:
        told.request = response.headers.get("x-request-id", "")
        told.pool = response.headers.get("x-tidegate-pool", "")
        told.replayed = response.headers.get("idempotent-replayed") == "true"
        if response.status != 200:
            _refused(told, response.status, await response.read())
        elif plan.mode is not Mode.STREAM:
            reader.whole(await response.read())
        elif plan.cancel_after == 0:
            told.ending = Ending.CANCELLED
            response.close()
        else:
            async for line in response.content:
                reader.line(line)
                if plan.cancel_after is not None and told.received >= plan.cancel_after:
                    told.ending = Ending.CANCELLED
                    response.close()
                    return
            reader.over()


def _refused(told: Told, status: int, body: bytes) -> None:
    try:
        told.why = str(json.loads(body)["error"]["code"])
        told.ending = Ending.REFUSED
    except (ValueError, LookupError, TypeError):
        told.ending, told.why = Ending.LOST, f"HTTP {status} without a reason"


class _Reader:
    """Reads one answer, and judges it when it is over."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._texts: list[str] = []
        self._last_s = 0.0
        self._done = False
        self._error: str | None = None
        self._reason: str | None = None
        self._usage: int | None = None

    def line(self, line: bytes) -> None:
        """Take a line of a stream."""
        if not line.startswith(b"data: "):
            return
        data = line[6:].strip()
        if data == b"[DONE]":
            self._done = True
            return
        self._event(json.loads(data))

    def _event(self, value: dict[str, Any]) -> None:
        if "error" in value:
            self._error = str(value["error"].get("code"))
            return
        self._extras(value)
        for choice in value.get("choices", ()):
            text = choice["delta"].get("content") or ""
            self._reason = choice.get("finish_reason") or self._reason
            if text:
                self._took(text)

    def _took(self, text: str) -> None:
        told, now_s = self._told, self._loop.time()
        if told.first_s is None:
            told.first_s = now_s
        else:
            told.stall_s = max(told.stall_s, now_s - self._last_s)
        self._last_s = now_s
        self._texts.append(text)
        told.received = judge_count("".join(self._texts))

    def whole(self, body: bytes) -> None:
        """Take an answer that was not streamed."""
        value = json.loads(body)
        self._extras(value)
        self._texts = [value["choices"][0]["message"]["content"]]
        self._reason = value["choices"][0]["finish_reason"]
        self._told.received = judge_count(self._texts[0])
        self._told.first_s = self._loop.time()
        self._done = True
        self.over()

    def _extras(self, value: dict[str, Any]) -> None:
        if value.get("usage"):
            self._usage = int(value["usage"]["completion_tokens"])
        segments = (value.get("tidegate") or {}).get("segments")
        if segments:
            self._told.segments = len(segments)

    def over(self) -> None:
        """The answer ended as HTTP wants it: say how."""
        told = self._told
        if self._spoilt():
            return
        if self._error is not None:
            told.ending, told.why = Ending.CUT, self._error
            if self._done:
                told.ending, told.why = Ending.LOST, "[DONE] after an error"
        elif not self._done:
            told.ending, told.why = Ending.LOST, "an end without [DONE] or error"
        elif told.received != told.plan.tokens or self._reason != "length":
            told.ending, told.why = Ending.LOST, f"{told.received} of {told.plan.tokens} tokens, then [DONE]"
        elif self._usage != told.received:
            told.ending, told.why = Ending.LOST, f"usage says {self._usage}, {told.received} came"
        else:
            told.ending = Ending.ANSWERED

    def broke_off(self) -> None:
        """The connection broke."""
        told = self._told
        if self._spoilt():
            return
        if self._error is not None and not self._done:
            told.ending, told.why = Ending.CUT, self._error
        else:
            told.ending = Ending.CLOSED

    def _spoilt(self) -> bool:
        """Whether what came is not a prefix of the answer."""
        told, text = self._told, "".join(self._texts)
        read = judge(prompt_of(told.plan.tag, told.plan.kind), text)
        if read.verdict is Verdict.PREFIX:
            return False
        told.ending = Ending.DUPLICATED if read.verdict is Verdict.REPEATED else Ending.LOST
        told.why = "tokens are not those of the answer"
        return True


def judge_count(text: str) -> int:
    """Return how many tokens a text has."""
    return len(text.split())

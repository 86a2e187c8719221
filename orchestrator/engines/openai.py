"""A strict client for servers that speak the OpenAI API: vLLM, SGLang, llama.cpp.

A conversation goes to chat completions, a raw prompt to completions.

Lives here: the HTTP exchange, its bounds in time and size, and the closing of connections. What the bytes mean is
decided in `chunks` and `replies`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from orchestrator.engines.chunks import AnswerReader, UsageExpectation
from orchestrator.engines.generation import (
    EngineEvent,
    Failed,
    Finished,
    Generation,
    Refused,
    Resume,
    Role,
    Said,
    Sampling,
)
from orchestrator.engines.http import Fault, HttpClient, HttpError, Reply
from orchestrator.engines.replies import outcome_of_reply

_BASE_URL = re.compile(
    r"https?://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(?P<path>/[A-Za-z0-9._~/-]*)?"
)
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
_REPLY_BYTES_MAX = 1_048_576
_ERROR_BYTES_MAX = 65_536
# Engines differ in the seeds they take; every one takes 63 bits, and the same seed still gives the same draws.
_SEED_MASK = 2**63 - 1
CONNECTIONS_LEAST = 256
_TOO_LATE = Failed("engine_failed", "the engine fell silent or took too long in the middle of its answer")


@dataclass(frozen=True, slots=True)
class OpenAIEngineSettings:
    """How to reach one engine. It comes from configuration, never from a request. Raises ValueError for bad values."""

    base_url: str
    """The server without `/v1`, http or https, with a path only where a proxy needs one."""
    served_model: str
    """The name under which the engine serves the model."""
    api_key: str | None = field(default=None, repr=False)
    """Secret. Sent as a bearer token."""
    connect_timeout_ms: int = 2_000
    """The longest that name resolution, TCP and TLS may take together."""
    first_byte_timeout_ms: int = 60_000
    """The longest from the start of a call, connecting included, to the first byte of the answer: the prefill."""
    stall_timeout_ms: int = 15_000
    """The longest silence between two reads of an answer."""
    total_timeout_ms: int = 600_000
    """The longest that one call may take, the time its consumer takes between events included."""
    line_bytes_max: int = 262_144
    """The longest line of a stream."""
    connections_max: int = CONNECTIONS_LEAST
    """Calls in flight; one more is refused `engine_busy` at once, since nothing waits here."""
    usage: UsageExpectation = UsageExpectation.REQUIRED
    """What is asked of the engine's token counts."""

    def __post_init__(self) -> None:
        matched = _BASE_URL.fullmatch(self.base_url)
        if matched is None:
            raise ValueError("base_url must be http(s)://host[:port][/path], without user, query or fragment")
        labels = matched["host"].removesuffix(".").split(".")
        if not matched["host"].startswith("[") and not all(0 < len(label) < 64 for label in labels):
            raise ValueError("base_url has a host name that cannot be resolved")
        segments = (matched["path"] or "").split("/")
        if ".." in segments or "." in segments:
            raise ValueError("base_url must not have dot segments")
        if [segment for segment in segments if segment][-1:] == ["v1"]:
            raise ValueError("base_url must name the server without /v1")
        urlsplit(self.base_url).port  # noqa: B018 - raises ValueError for a port that is none
        if not self.served_model:
            raise ValueError("served_model must not be empty")
        if self.api_key is not None and _VISIBLE_ASCII.fullmatch(self.api_key) is None:
            raise ValueError("api_key must be visible ASCII characters")
        for name in (
            "connect_timeout_ms",
            "first_byte_timeout_ms",
            "stall_timeout_ms",
            "total_timeout_ms",
            "line_bytes_max",
            "connections_max",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")


def connections_for(calls: int) -> int:
    """Return the connections that `calls` at once need: one that is being cut holds its own for a while."""
    return max(CONNECTIONS_LEAST, 2 * calls)


class OpenAIEngine:
    """One engine behind one URL. Use it in one event loop, and close it there."""

    def __init__(self, settings: OpenAIEngineSettings) -> None:
        self.settings = settings
        """The settings that this engine was made with."""
        self.in_flight = 0
        """Answers that are under way."""
        self.stream_head: dict[bytes, tuple[bytes, ...]] | None = None
        """The headers of the last stream that could be read: an engine says the same each time."""
        self._client: HttpClient | None = None
        self._headers = _headers_of(settings)
        self._chat = self._head("POST", CHAT_PATH)
        self._completions = self._head("POST", COMPLETIONS_PATH)
        self._closed = False

    async def close(self) -> None:
        """Closes every connection. Answers still running end with `Failed`; later calls fail as unreachable."""
        self._closed = True
        if self._client is not None:
            self._client.close()
            # The loop closes the sockets in its next turn.
            await asyncio.sleep(0)

    async def generate(self, generation: Generation, total_ms: int | None = None) -> AsyncGenerator[EngineEvent, None]:
        """Streams one generation: the events of an `Answer`, one by one. Raises nothing.

        Wrap the generator in `contextlib.aclosing`: closing or cancelling it closes the connection at once, and by that
        the engine frees its slot. Left to the garbage collector, the slot stays taken until then.
        """
        answer = Answer(self, generation, total_ms)
        try:
            while not answer.ended:
                for event in await answer.more():
                    yield event
        finally:
            answer.close()

    async def fetch(self, path: str, *, deadline_ms: int) -> bytes | Failed:
        """Gets one small document of the engine, such as its model list, within `deadline_ms`. Raises nothing.

        `path` is a constant of ours that begins with a slash. Calls beside running answers have a connection of their
        own, so a full engine can still be probed.
        """
        deadline_at = asyncio.get_running_loop().time() + deadline_ms / 1000
        try:
            reply = await self.client().ask(self._head("GET", path) + b"\r\n", deadline_at)
        except HttpError as error:
            return _NO_REPLY[error.fault]
        body: bytes | Failed = b""
        try:
            body = await _body_of_reply(reply, deadline_at)
        finally:
            if isinstance(body, Failed) or not body:
                reply.cut()
            else:
                reply.leave()
        return body

    def _head(self, method: str, path: str) -> bytes:
        """Returns the head of every request for a path, but for the length of its body and its end."""
        before = urlsplit(self.settings.base_url).path.rstrip("/")
        return f"{method} {before}{path} HTTP/1.1\r\n".encode("ascii") + self._headers

    def request_of(self, generation: Generation) -> bytes | Refused:
        """Returns the request for a generation, or why such an engine cannot be asked for it."""
        refusal = None if generation.said is None else _refusal_of_said(generation.said, generation.sampling)
        if refusal is not None:
            return refusal
        raw_prompt = generation.raw_prompt
        body = _body_of(generation, raw_prompt, self.settings.served_model)
        if body is None:
            return Refused("bad_generation", "a message or a stop string is not valid Unicode", "messages")
        head = self._chat if raw_prompt is None else self._completions
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)

    def client(self) -> HttpClient:
        """Returns the client of this engine, made in the loop that asks first. Raises HttpError once it is closed."""
        if self._closed:
            raise HttpError(Fault.UNREACHABLE)
        if self._client is None:
            self._client = _client_of(self.settings)
        return self._client


class Answer:
    """One generation under way: `Delta`s, then exactly one of `Finished`, `Refused` or `Failed`.

    There is no `Started`: such an engine tells the prompt count only at the end, in `Finished`.
    """

    __slots__ = (
        "_begun",
        "_end_at",
        "_engine",
        "_first_at",
        "_generation",
        "_loop",
        "_reader",
        "_reply",
        "_stall_s",
        "_whole",
        "ended",
    )

    def __init__(self, engine: OpenAIEngine, generation: Generation, total_ms: int | None) -> None:
        settings = engine.settings
        self.ended = False
        """Whether the last event was returned."""
        self._engine = engine
        self._generation = generation
        self._loop = asyncio.get_running_loop()
        self._reader = AnswerReader(line_bytes_max=settings.line_bytes_max, usage=settings.usage)
        self._reply: Reply | None = None
        self._begun = self._whole = False
        began_at, allowed_ms = self._loop.time(), settings.total_timeout_ms
        self._end_at = began_at + min(allowed_ms, total_ms or allowed_ms) / 1000
        self._first_at = began_at + settings.first_byte_timeout_ms / 1000
        """When the first byte is late; 0 once it is here."""
        self._stall_s = settings.stall_timeout_ms / 1000

    async def more(self) -> list[EngineEvent]:
        """Returns what came next: no event at times, and the last one where `ended` is set. Raises nothing."""
        reply = self._reply
        if reply is None:
            opened = await self._begin()
            if not isinstance(opened, Reply):
                self.ended = True
                return [opened]
            reply = opened
        now_s = self._loop.time()
        late_at = self._first_at or now_s + self._stall_s
        if late_at > self._end_at:
            late_at = self._end_at
        try:
            # Where bytes are ready nobody waits, so the time is looked at here as well.
            if now_s >= late_at:
                raise HttpError(Fault.LATE)
            while not reply.body and not reply.ended:
                await reply.wait(late_at)
        except HttpError as error:
            self.ended = True
            return [_CUT.get(error.fault, _BROKE)]
        self._first_at = 0.0
        events = self._reader.feed(reply.take())
        if self._reader.ended:
            self.ended = True
            self._whole = isinstance(events[-1], Finished)
        return events

    def close(self) -> None:
        """Lets the connection rest after a whole answer, and closes it at once after any other: that frees the slot."""
        self.ended = True
        if self._begun:
            self._begun = False
            self._engine.in_flight -= 1
        reply, self._reply = self._reply, None
        if reply is not None and self._whole:
            reply.leave()
        elif reply is not None:
            reply.cut()

    async def _begin(self) -> Reply | Refused | Failed:
        """Asks for it, and returns the reply where a stream follows."""
        engine = self._engine
        if engine.in_flight >= engine.settings.connections_max:
            return Refused("engine_busy", "every connection to this engine is in use")
        request = engine.request_of(self._generation)
        if isinstance(request, Refused):
            return request
        self._begun = True
        engine.in_flight += 1
        deadline_at = min(self._first_at, self._end_at)
        try:
            reply = self._reply = await engine.client().ask(request, deadline_at)
        except HttpError as error:
            return _NO_REPLY[error.fault]
        if reply.status == 200 and reply.headers == engine.stream_head:
            return reply
        outcome = await _outcome_of_head(reply, deadline_at)
        if outcome is not None:
            return outcome
        engine.stream_head = dict(reply.headers)
        return reply


_NO_REPLY = {
    Fault.UNREACHABLE: Failed("engine_unreachable", "no connection to the engine could be made"),
    Fault.LATE: Failed("engine_failed", "the engine did not begin its reply in time"),
    Fault.MALFORMED: Failed("engine_protocol", "the engine's reply is not valid HTTP"),
    Fault.CLOSED: Failed("engine_failed", "the engine closed the connection before it replied"),
}
_CUT = {
    Fault.LATE: _TOO_LATE,
    Fault.MALFORMED: Failed("engine_protocol", "the engine's answer is not valid HTTP"),
}
_BROKE = Failed("engine_failed", "the connection to the engine broke in the middle of its answer")


def _client_of(settings: OpenAIEngineSettings) -> HttpClient:
    url = urlsplit(settings.base_url)
    tls = url.scheme == "https"
    port = url.port or (443 if tls else 80)
    return HttpClient(url.hostname or "", port, tls, settings.connect_timeout_ms, settings.connections_max)


def _headers_of(settings: OpenAIEngineSettings) -> bytes:
    """Returns the headers that every request has."""
    lines = [
        f"host: {urlsplit(settings.base_url).netloc}",
        "accept: text/event-stream, application/json",
        "accept-encoding: identity",
        "content-type: application/json",
        "user-agent: tidegate",
    ]
    if settings.api_key is not None:
        lines.append(f"authorization: Bearer {settings.api_key}")
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")


def _refusal_of_said(said: Said, sampling: Sampling) -> Refused | None:
    """Return why such an engine cannot go on with an answer, or None."""
    most = sampling.max_tokens
    if said.by is not Resume.TEXT:
        return Refused("identity_mismatch", "such an engine goes on by text alone")
    if most is not None and said.tokens >= most:
        # One token must be asked for at least, and it would be one too many.
        return Refused("identity_mismatch", "the answer is as long as it may be, and its end cannot be asked for")
    return None


def _body_of(generation: Generation, raw_prompt: str | None, served_model: str) -> bytes | None:
    """Returns the request body, or None when a text is not valid Unicode. Only these fields are ever sent."""
    sampling, first_token = generation.sampling, generation.first_token()
    fields: dict[str, object] = {
        "model": served_model,
        **_asked_of(generation, raw_prompt),
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed & _SEED_MASK
    if sampling.stop:
        fields["stop"] = sampling.stop
    if sampling.max_tokens is not None:
        fields["max_tokens"] = sampling.max_tokens - first_token
    # No part of OpenAI's API: sent only where they are asked for, which is only where the pool declares them.
    if sampling.ignore_eos:
        fields["ignore_eos"] = True
    if sampling.min_tokens > first_token:
        fields["min_tokens"] = sampling.min_tokens - first_token
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:
        # The exception quotes the text, so it must go no further.
        return None


def _asked_of(generation: Generation, raw_prompt: str | None) -> dict[str, object]:
    """Returns what is to be continued: a conversation, or a raw prompt, and what was said already."""
    said = "" if generation.said is None else generation.said.text
    if raw_prompt is not None:
        return {"prompt": raw_prompt + said}
    # A role is encoded as its value.
    messages = [{"role": message.role, "content": message.text} for message in generation.messages]
    if not said:
        return {"messages": messages}
    # As vLLM and SGLang take it: the last message is the beginning of the answer.
    begun = {"role": Role.ASSISTANT, "content": said}
    return {"messages": [*messages, begun], "continue_final_message": True, "add_generation_prompt": False}


async def _outcome_of_head(reply: Reply, deadline_at: float) -> Refused | Failed | None:
    """Returns None when a stream follows that can be read."""
    if reply.status != 200:
        error_body: bytes | Failed = b""
        if reply.status == 400 and _is_plain(reply):
            error_body = await _read_all(reply, deadline_at, _ERROR_BYTES_MAX)
        # A refusal stays a refusal when its reasons cannot be read.
        return outcome_of_reply(reply.status, b"" if isinstance(error_body, Failed) else error_body)
    if not _is_plain(reply):
        return Failed("engine_protocol", "the engine compressed its answer unasked")
    if not _is_stream(reply.headers.get(b"content-type", ())):
        return Failed("engine_protocol", "the engine did not stream its answer")
    return None


async def _body_of_reply(reply: Reply, deadline_at: float) -> bytes | Failed:
    """Returns the body of a small document."""
    if reply.status == 503:
        return Failed("engine_failed", "the engine takes no work now")
    if reply.status != 200:
        outcome = outcome_of_reply(reply.status, b"")
        return outcome if isinstance(outcome, Failed) else Failed("engine_protocol", outcome.detail)
    if not _is_plain(reply):
        return Failed("engine_protocol", "the engine compressed its reply unasked")
    return await _read_all(reply, deadline_at, _REPLY_BYTES_MAX)


def _is_stream(content_types: tuple[bytes, ...]) -> bool:
    """Whether these headers say that a stream of events follows."""
    return len(content_types) == 1 and _token(content_types[0].partition(b";")[0]) == "text/event-stream"


def _is_plain(reply: Reply) -> bool:
    encodings = reply.headers.get(b"content-encoding", ())
    return all(_token(encoding) in ("", "identity") for encoding in encodings)


def _token(value: bytes) -> str:
    return value.decode("latin-1").strip().lower()


async def _read_all(reply: Reply, deadline_at: float, bytes_max: int) -> bytes | Failed:
    body = bytearray()
    try:
        while data := await reply.read(deadline_at):
            body += data
            if len(body) > bytes_max:
                return Failed("engine_protocol", "the engine's reply is beyond the bound")
    except HttpError as error:
        return _CUT.get(error.fault, _BROKE)
    return bytes(body)

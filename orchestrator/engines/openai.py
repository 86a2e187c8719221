"""A strict client for servers that speak the OpenAI chat completions API: vLLM, SGLang, llama.cpp.

Lives here: the HTTP exchange, its bounds in time and size, and the closing of connections. What the bytes mean is
decided in `chunks` and `replies`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import aiohttp
import msgspec
from yarl import URL

from orchestrator.engines.chunks import AnswerReader, UsageExpectation
from orchestrator.engines.generation import EngineEvent, Failed, Generation, Refused, Resume
from orchestrator.engines.replies import outcome_of_reply

_BASE_URL = re.compile(
    r"https?://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(?P<path>/[A-Za-z0-9._~/-]*)?"
)
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
_REPLY_BYTES_MAX = 1_048_576
_ERROR_BYTES_MAX = 65_536
# Engines differ in the seeds they take; every one takes 63 bits, and the same seed still gives the same draws.
_SEED_MASK = 2**63 - 1
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
    connections_max: int = 256
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
        URL(self.base_url)
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


class OpenAIEngine:
    """One engine behind one URL. Use it in one event loop, and close it there.

    No connection is ever used twice: llama.cpp closes a connection after a stream without saying so, and the next POST
    on it would fail after it may have been taken.
    """

    def __init__(self, settings: OpenAIEngineSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._in_flight = 0
        self._closed = False

    @property
    def settings(self) -> OpenAIEngineSettings:
        """The settings that this engine was made with."""
        return self._settings

    async def close(self) -> None:
        """Closes every connection. Answers still running end with `Failed`; later calls fail as unreachable."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def generate(self, generation: Generation) -> AsyncGenerator[EngineEvent, None]:
        """Streams one generation: `Delta`s, then exactly one of `Finished`, `Refused` or `Failed`. Raises nothing.

        There is no `Started`: such an engine tells the prompt count only at the end, in `Finished`. Wrap the generator
        in `contextlib.aclosing`: closing or cancelling it closes the connection at once, and by that the engine frees
        its slot. Left to the garbage collector, the slot stays taken until then.
        """
        if self._in_flight >= self._settings.connections_max:
            yield Refused("engine_busy", "every connection to this engine is in use")
            return
        refusal = _refusal_of_said(generation)
        if refusal is not None:
            yield refusal
            return
        body = _body_of(generation, self._settings.served_model)
        if body is None:
            yield Refused("bad_generation", "a message or a stop string is not valid Unicode", "messages")
            return
        loop = asyncio.get_running_loop()
        end_at = loop.time() + self._settings.total_timeout_ms / 1000
        silent_until = loop.time() + self._settings.first_byte_timeout_ms / 1000
        response: aiohttp.ClientResponse | None = None
        self._in_flight += 1
        try:
            opened = await self._open_stream(body, min(silent_until, end_at))
            if isinstance(opened, Refused | Failed):
                yield opened
                return
            response = opened
            reader = AnswerReader(line_bytes_max=self._settings.line_bytes_max, usage=self._settings.usage)
            while not reader.ended:
                data = await _read(response, min(silent_until, end_at))
                if isinstance(data, Failed):
                    yield data
                    return
                for event in reader.feed(data):
                    yield event
                silent_until = loop.time() + self._settings.stall_timeout_ms / 1000
        finally:
            self._in_flight -= 1
            if response is not None:
                _cut(response)

    async def fetch(self, path: str, *, deadline_ms: int) -> bytes | Failed:
        """Gets one small document of the engine, such as its model list, within `deadline_ms`. Raises nothing.

        `path` is a constant of ours that begins with a slash. Calls beside running answers have a connection of their
        own, so a full engine can still be probed.
        """
        deadline_at = asyncio.get_running_loop().time() + deadline_ms / 1000
        response = await self._request("GET", path, None, deadline_at)
        if isinstance(response, Failed):
            return response
        try:
            if response.status == 503:
                return Failed("engine_failed", "the engine takes no work now")
            if response.status != 200:
                outcome = outcome_of_reply(response.status, b"")
                return outcome if isinstance(outcome, Failed) else Failed("engine_protocol", outcome.detail)
            if not _is_plain(response):
                return Failed("engine_protocol", "the engine compressed its reply unasked")
            return await _read_all(response, deadline_at, _REPLY_BYTES_MAX)
        finally:
            _cut(response)

    async def _open_stream(self, body: bytes, deadline_at: float) -> aiohttp.ClientResponse | Refused | Failed:
        response = await self._request("POST", "/v1/chat/completions", body, deadline_at)
        if isinstance(response, Failed):
            return response
        outcome: Refused | Failed | None = None
        try:
            outcome = await _outcome_of_head(response, deadline_at)
        except BaseException:
            _cut(response)
            raise
        if outcome is None:
            return response
        _cut(response)
        return outcome

    async def _request(
        self, method: str, path: str, body: bytes | None, deadline_at: float
    ) -> aiohttp.ClientResponse | Failed:
        """Sends one request and waits for the head of its reply. The caller closes the response."""
        if self._closed:
            return Failed("engine_unreachable", "this engine's client is closed")
        try:
            async with asyncio.timeout_at(deadline_at):
                return await self._opened_session().request(
                    method, URL(self._settings.base_url.rstrip("/") + path), data=body, allow_redirects=False
                )
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError):
            return Failed("engine_unreachable", "no connection to the engine could be made")
        except TimeoutError:
            return Failed("engine_failed", "the engine did not begin its reply in time")
        except aiohttp.ClientResponseError:
            return Failed("engine_protocol", "the engine's reply is not valid HTTP")
        except (aiohttp.ClientError, OSError):
            return Failed("engine_failed", "the engine closed the connection before it replied")

    def _opened_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {
                "Accept": "text/event-stream, application/json",
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "User-Agent": "tidegate",
            }
            if self._settings.api_key is not None:
                headers["Authorization"] = f"Bearer {self._settings.api_key}"
            connect_s = self._settings.connect_timeout_ms / 1000
            self._session = aiohttp.ClientSession(
                # The spare connections are for `fetch`.
                connector=aiohttp.TCPConnector(force_close=True, limit=self._settings.connections_max + 4),
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                # The bounds in time are ours: aiohttp knows no bound from the call to the first byte.
                timeout=aiohttp.ClientTimeout(total=None, connect=connect_s, sock_connect=connect_s, sock_read=None),
                trust_env=False,
                auto_decompress=False,
            )
        return self._session


def _refusal_of_said(generation: Generation) -> Refused | None:
    """Return why such an engine cannot go on with an answer, or None."""
    said, most = generation.said, generation.sampling.max_tokens
    if said is None:
        return None
    if said.by is not Resume.TEXT:
        return Refused("identity_mismatch", "such an engine goes on by text alone")
    if most is not None and said.tokens >= most:
        # One token must be asked for at least, and it would be one too many.
        return Refused("identity_mismatch", "the answer is as long as it may be, and its end cannot be asked for")
    return None


def _body_of(generation: Generation, served_model: str) -> bytes | None:
    """Returns the request body, or None when a text is not valid Unicode. Only these fields are ever sent."""
    sampling = generation.sampling
    said = generation.said
    texts = generation.texts()
    if said is not None and not said.text:
        texts = texts[:-1]
    fields: dict[str, object] = {
        "model": served_model,
        "messages": [{"role": role, "content": text} for role, text in texts],
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
        fields["max_tokens"] = sampling.max_tokens - generation.first_token()
    if said is not None and said.text:
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:
        # The exception quotes the text, so it must go no further.
        return None


async def _outcome_of_head(response: aiohttp.ClientResponse, deadline_at: float) -> Refused | Failed | None:
    """Returns None when a stream follows that can be read."""
    if response.status != 200:
        error_body: bytes | Failed = b""
        if response.status == 400 and _is_plain(response):
            error_body = await _read_all(response, deadline_at, _ERROR_BYTES_MAX)
        # A refusal stays a refusal when its reasons cannot be read.
        return outcome_of_reply(response.status, b"" if isinstance(error_body, Failed) else error_body)
    if not _is_plain(response):
        return Failed("engine_protocol", "the engine compressed its answer unasked")
    if response.content_type != "text/event-stream":
        return Failed("engine_protocol", "the engine did not stream its answer")
    return None


def _is_plain(response: aiohttp.ClientResponse) -> bool:
    return all(value.strip().lower() in ("", "identity") for value in response.headers.getall("Content-Encoding", ()))


async def _read(response: aiohttp.ClientResponse, deadline_at: float) -> bytes | Failed:
    """Returns what has arrived, at most some hundred KiB, and empty bytes at the end of the body."""
    if asyncio.get_running_loop().time() >= deadline_at:
        # A read that finds bytes ready never waits, so a timeout around it would never fire.
        return _TOO_LATE
    try:
        async with asyncio.timeout_at(deadline_at):
            return await response.content.readany()
    except TimeoutError:
        return _TOO_LATE
    except (aiohttp.ClientError, OSError):
        return Failed("engine_failed", "the connection to the engine broke in the middle of its answer")


async def _read_all(response: aiohttp.ClientResponse, deadline_at: float, bytes_max: int) -> bytes | Failed:
    body = bytearray()
    while data := await _read(response, deadline_at):
        if isinstance(data, Failed):
            return data
        body += data
        if len(body) > bytes_max:
            return Failed("engine_protocol", "the engine's reply is beyond the bound")
    return bytes(body)


def _cut(response: aiohttp.ClientResponse) -> None:
    """Closes the connection now, without waiting for what is still to be sent or for a TLS farewell."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()

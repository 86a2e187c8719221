"""A strict client for servers that speak the OpenAI API: vLLM, SGLang, llama.cpp.

A conversation goes to chat completions, a raw prompt to completions.

Lives here: the HTTP exchange, its bounds in time and size, and the closing of connections. What the bytes mean is
decided in `chunks` and `replies`, what is asked in `request`.
"""

from __future__ import annotations

import asyncio
import re
from abc import abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from orchestrator.engines.chunks import AnswerReader, UsageExpectation
from orchestrator.engines.generation import EngineEvent, Failed, Finished, Generation, Refused
from orchestrator.engines.http import Asking, Fault, HttpClient, Reply
from orchestrator.engines.prompt_bound import possible_tokens
from orchestrator.engines.replies import failure_of_head, is_plain, outcome_of_head, outcome_of_reply
from orchestrator.engines.request import body_of, refusal_of_said

_BASE_URL = re.compile(
    r"https?://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(?P<path>/[A-Za-z0-9._~/-]*)?"
)
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
_REPLY_BYTES_MAX = 1_048_576
_ERROR_BYTES_MAX = 65_536
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
        self.first_byte_s = settings.first_byte_timeout_ms / 1000
        self.stall_s = settings.stall_timeout_ms / 1000
        self.total_s = settings.total_timeout_ms / 1000
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
        answer = _Awaited(self, generation, total_ms)
        try:
            while True:
                for event in await answer.events():
                    yield event
                if answer.ended:
                    return
                answer.go_on()
        finally:
            answer.close()

    async def fetch(self, path: str, *, deadline_ms: int) -> bytes | Failed:
        """Gets one small document of the engine, such as its model list, within `deadline_ms`. Raises nothing.

        `path` is a constant of ours that begins with a slash. Calls beside running answers have a connection of their
        own, so a full engine can still be probed.
        """
        client = self._client_now()
        if client is None:
            return _NO_REPLY[Fault.UNREACHABLE]
        document = _Document(client.loop)
        client.ask(self._head("GET", path) + b"\r\n", document, client.loop.time() + deadline_ms / 1000)
        try:
            return await document.whole
        finally:
            document.cut()

    def _head(self, method: str, path: str) -> bytes:
        """Returns the head of every request for a path, but for the length of its body and its end."""
        before = urlsplit(self.settings.base_url).path.rstrip("/")
        return f"{method} {before}{path} HTTP/1.1\r\n".encode("ascii") + self._headers

    def ask(self, generation: Generation, answer: Answer, deadline_at: float) -> Refused | Failed | None:
        """Send the request for a generation, or return why that is not done."""
        if self.in_flight >= self.settings.connections_max:
            return Refused("engine_busy", "every connection to this engine is in use")
        if generation.said is not None:
            refusal = refusal_of_said(generation.said, generation.sampling)
            if refusal is not None:
                return refusal
        raw_prompt = generation.raw_prompt
        body = body_of(generation, raw_prompt, self.settings.served_model)
        if body is None:
            return Refused("bad_generation", "a message or a stop string is not valid Unicode", "messages")
        client = self._client or self._client_now()
        if client is None or self._closed:
            return _NO_REPLY[Fault.UNREACHABLE]
        head = self._chat if raw_prompt is None else self._completions
        answer.believe(possible_tokens(body, raw=raw_prompt is not None))
        client.ask(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body), answer, deadline_at)
        return None

    def _client_now(self) -> HttpClient | None:
        """Returns the client of this engine, made in the loop that asks first. None once it is closed."""
        if self._client is None and not self._closed:
            self._client = _client_of(self.settings)
        return None if self._closed else self._client


class Answer(Asking):
    """One generation under way: `Delta`s, then exactly one of `Finished`, `Refused` or `Failed`.

    It begins as it is made. There is no `Started`: such an engine tells the prompt count only in `Finished`.
    """

    def __init__(
        self, engine: OpenAIEngine, generation: Generation, total_ms: int | None, context_tokens: int | None = None
    ) -> None:
        """`context_tokens` is what the model's context holds, where that is known: it bounds what nothing else does."""
        settings = engine.settings
        loop = asyncio.get_running_loop()
        self.ended = False
        """Whether the last event was told, or nobody waits for it."""
        self._engine = engine
        most = generation.sampling.max_tokens
        if most is None:
            most = context_tokens
        elif generation.said is not None:
            most -= generation.said.tokens
        self._reader = AnswerReader(settings.line_bytes_max, settings.usage, most)
        self._streams = False
        """Whether the head was read, and says that a stream follows."""
        self._error: bytes | None = None
        """What came of the reasons of a refusal."""
        self._held = False
        self._fault: Fault | None = None
        """What broke the reply while it was held."""
        began_at = loop.time()
        end_at = began_at + engine.total_s
        if total_ms:
            within_at = began_at + total_ms / 1000
            end_at = within_at if within_at < end_at else end_at
        self._end_at = end_at
        first_at = began_at + engine.first_byte_s
        self._late_at = first_at if first_at < end_at else end_at
        """From when on nothing is read any more, though it is here."""
        self._loop, self._time = loop, loop.time
        problem = engine.ask(generation, self, self._late_at)
        self._in_flight = problem is None
        if problem is None:
            engine.in_flight += 1
        else:
            loop.call_soon(self._over, problem)

    @abstractmethod
    def told(self, events: list[EngineEvent]) -> None:
        """The engine said something: one event at least. Called by the loop; with the last event, `ended` is set."""

    def came(self) -> None:
        """See `Asking`."""
        reply = self.reply
        if reply is None or self._held or not (self._streams or self._judge(reply)):
            return
        ended = reply.ended
        if not ended and not reply.body:
            return
        now_s = self._time()
        # Where bytes are always ready no deadline is waited for, so the time is looked at here as well.
        if now_s >= self._late_at:
            self.broke(Fault.LATE)
            return
        self._late_at = end_at = self._end_at
        reader = self._reader
        events = reader.feed_parts(reply.take_parts())
        if ended and not reader.ended:
            events += reader.feed(b"")
        if reader.ended:
            # The slot is free before anybody hears of the end.
            self._end(whole=type(events[-1]) is Finished)
        elif self._fault is None:
            late_at = now_s + self._engine.stall_s
            reply.await_until(late_at if late_at < end_at else end_at)
        if events:
            self.told(events)

    def broke(self, fault: Fault) -> None:
        """See `Asking`."""
        if self._held:
            self._fault = fault
        elif self._error is not None:
            self._over(outcome_of_reply(400, b""))  # a refusal stays a refusal when its reasons cannot be read
        else:
            self._over(_CUT.get(fault, _BROKE) if self._streams else _NO_REPLY[fault])

    def hold(self) -> None:
        """Tell nothing until `go_on`. The engine is held back once enough waits here, and no silence is counted."""
        self._held = True
        if self.reply is not None and not self.ended and self._fault is None:
            self.reply.await_until(self._end_at)

    def go_on(self) -> None:
        """Tell what came meanwhile, perhaps at once, and what comes. After the end that is nothing."""
        if self.ended:
            return
        self._held = False
        self.came()
        if self._held or self.ended:
            return
        if self._fault is not None:
            self.broke(self._fault)
        elif self.reply is not None:
            self.reply.await_until(min(self._loop.time() + self._engine.stall_s, self._end_at))

    def believe(self, prompt_tokens_max: int) -> None:
        """Take no usage that tells more tokens of the prompt."""
        self._reader.prompt_tokens_max = prompt_tokens_max

    def close(self) -> None:
        """Tell nothing more. Before the end, this closes the connection at once: that frees the slot."""
        if not self.ended:
            self._end(whole=False)

    def _judge(self, reply: Reply) -> bool:
        """Whether the head is here, and a stream follows that can be read."""
        if not reply.headed:
            return False
        engine = self._engine
        if reply.status != 200 or reply.headers != engine.stream_head:
            if reply.status == 400 and is_plain(reply.headers):
                self._read_error(reply)
                return False
            outcome = outcome_of_head(reply.status, reply.headers)
            if outcome is not None:
                self._over(outcome)
                return False
            engine.stream_head = dict(reply.headers)
        self._streams = True
        return True

    def _read_error(self, reply: Reply) -> None:
        error = self._error = (self._error or b"") + reply.take()
        too_long = len(error) > _ERROR_BYTES_MAX
        if too_long or reply.ended:
            self._over(outcome_of_reply(400, b"" if too_long else error))

    def _over(self, event: Refused | Failed) -> None:
        if not self.ended:
            self._end(whole=False)
            self.told([event])

    def _end(self, whole: bool) -> None:
        """A connection rests after a whole answer, and is closed after any other."""
        self.ended = True
        if self._in_flight:
            self._in_flight = False
            self._engine.in_flight -= 1
        if whole and self.reply is not None:
            self.reply.leave()
        else:
            self.cut()


class _Awaited(Answer):
    """One whose events are waited for; what comes meanwhile is held."""

    def __init__(self, engine: OpenAIEngine, generation: Generation, total_ms: int | None) -> None:
        super().__init__(engine, generation, total_ms)
        self._events: asyncio.Future[list[EngineEvent]] = self._loop.create_future()

    async def events(self) -> list[EngineEvent]:
        """Wait for what comes next."""
        events = await self._events
        self._events = self._loop.create_future()
        return events

    def told(self, events: list[EngineEvent]) -> None:
        """See `Answer`."""
        self.hold()
        if not self._events.done():  # it is cancelled with whoever waits for it
            self._events.set_result(events)


class _Document(Asking):
    """One small document that is got whole."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.whole: asyncio.Future[bytes | Failed] = loop.create_future()
        self._body: bytearray | None = None
        """None until the head is here."""

    def came(self) -> None:
        """See `Asking`."""
        reply = self.reply
        if reply is None or not reply.headed:
            return
        failed = failure_of_head(reply.status, reply.headers)
        if failed is None:
            body = self._body = self._body or bytearray()
            body += reply.take()
            if len(body) > _REPLY_BYTES_MAX:
                failed = Failed("engine_protocol", "the engine's reply is beyond the bound")
            elif not reply.ended:
                return
            elif body:
                reply.leave()
                self.reply = None
        self._over(failed or bytes(self._body or b""))

    def broke(self, fault: Fault) -> None:
        """See `Asking`."""
        self._over(_NO_REPLY[fault] if self._body is None else _CUT.get(fault, _BROKE))

    def _over(self, whole: bytes | Failed) -> None:
        self.cut()
        if not self.whole.done():  # it is cancelled with whoever waits for it
            self.whole.set_result(whole)


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

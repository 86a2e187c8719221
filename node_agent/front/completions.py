"""POST /v1/chat/completions and /v1/completions: from the checked head to the end of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import lru_cache

from node_agent.border.decider import Asked
from node_agent.border.gate import Answer
from node_agent.border.resume import Stopped
from node_agent.front.endpoints import CHAT, COMPLETIONS
from node_agent.front.exchange import Exchange
from node_agent.front.framing import Pair
from node_agent.front.http import RESUME_HEADER, check_content, client_request, read_body
from node_agent.front.interest import Interest
from node_agent.front.keyed import Keyed
from node_agent.front.limits import Admission, Limits
from node_agent.front.shapes import REASONS, Answering, Chunks, Usage, ours_of, partial_usage, usage_of
from node_agent.front.sse import HEADERS
from node_agent.front.stream import EventStream
from node_agent.front.tenants import Caller
from node_agent.front.timeouts import allowed_time
from node_agent.front.visit import Visit
from node_agent.idempotency.desk import Claim
from orchestrator.bundles.assemble import Bundle
from orchestrator.files.chat import CARRIED, ChatLimits, ChatRequest, load_chat_request
from orchestrator.files.completion import load_completion_request
from orchestrator.files.label_header import HEADER as LABEL_HEADER
from orchestrator.files.label_header import LabelHeaderError, parse_label_header
from orchestrator.files.strict_json import RequestError
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import RequestId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Labels
from orchestrator.wire.catalogue import Problem, ProblemError
from orchestrator.wire.frames import Broken, Done, Tokens

Ask = Callable[[Asked], Awaitable[Answer]]
LABELS_MAX = 256
"""Headers of labels that are not read again. Each has 1,024 characters at most."""
SOILS_MAX = 256
"""Sets of jurisdictions whose text is remembered."""
DRAINING = "draining"
EDGE_STOPS = Stopped("cause", "This edge stops, and everything that it holds ends: ask again.")
_NOTHING_DECLARED = Labels()
LOADERS: dict[str, Callable[[bytes, ChatLimits], ChatRequest]] = {
    CHAT: load_chat_request,
    COMPLETIONS: load_completion_request,
}
"""What reads the body of each endpoint that generates."""


class Completions:
    """Serves chat completions, and can cut those that are running."""

    def __init__(self, ask: Ask, limits: Limits, admission: Admission, now_ms: Callable[[], int]) -> None:
        self._ask = ask
        self._limits = limits
        self._chat_limits = ChatLimits(limits.max_tokens_max)
        self._admission = admission
        self._now_ms = now_ms
        self._running: dict[RequestId, Interest] = {}

    def cut(self) -> None:
        """End every running answer with an error that says so."""
        for interest in tuple(self._running.values()):
            interest.interrupt(ProblemError(Problem(DRAINING, "This edge stopped before the answer was complete.")))

    async def serve(
        self, exchange: Exchange, visit: Visit, caller: Caller, bundle: Bundle, keyed: Keyed | None
    ) -> None:
        """Answer one request, `keyed` where it has a key. Raises ProblemError, and Gone when the client hung up."""
        head = exchange.head
        limits, tenant = self._limits, caller.tenant.id
        check_content(head, limits.body_bytes_max)
        total_ms, waits = allowed_time(head, caller.tenant, limits)
        # The place is taken before the body is read: bodies are memory too.
        try:
            self._admission.take(tenant)
        except ProblemError as refused:
            if not await self._admission.borrow(tenant, refused):
                raise
        answer: Answer | None = None
        interest = self._running[exchange.request_id] = Interest(exchange.client)
        try:
            with interest:
                body = exchange.client.here()
                if body is None:  # hardly ever: most come with their heads
                    body = await read_body(exchange.client, limits.body_bytes_max, limits.body_timeout_ms)
                interest.watch()
                request = self._checked(head.path, body, caller, bundle)
                claim: Claim | None = None
                if keyed is not None:
                    claim = await keyed.claimed(body)
                    if claim is None:
                        return
                once = head.once
                asked = Asked(
                    exchange.request_id,
                    client_request(head),
                    caller.tenant,
                    caller.key_id,
                    request.generation,
                    request.capabilities,
                    _declared(once[LABEL_HEADER]) if LABEL_HEADER in once else _NOTHING_DECLARED,
                    body,
                    visit.left_ms(total_ms),
                    waits,
                    claim,
                    RESUME_HEADER not in once,
                )
                answer = await self._ask(asked)
                if claim is not None:
                    # Nothing is kept that was not accounted for.
                    claim.settle = answer.frames.aclose
                visit.pool = answer.pool.id
                await self._told(exchange, visit, answer, request, interest)
        except ProblemError as error:
            if answer is None or error.problem.cut is not None:
                raise
            # Ended here, and not by its pool: also by what knows nothing of the answer, as `cut` does.
            delivered = None if exchange.status is None else visit.delivered
            raise _ended_here(error.problem, answer, delivered) from None
        finally:
            del self._running[exchange.request_id]
            try:
                if answer is not None:
                    # Outside of the interest, so that nothing cuts short what the gate has to record at the end.
                    await answer.frames.aclose()
            finally:
                try:
                    self._admission.free(tenant)
                finally:
                    if keyed is not None:
                        await keyed.end()

    def _checked(self, path: str, body: bytes, caller: Caller, bundle: Bundle) -> ChatRequest:
        """Return the request that the body holds. Raises ProblemError."""
        try:
            request = LOADERS[path](body, self._chat_limits)
        except RequestError as error:
            problem = Problem(error.code, f"{error.param or 'The body'}: {error.message}.", error.param)
        else:
            # One answer for a model that is not here and for one that is another tenant's.
            model = request.generation.model
            if model not in caller.tenant.models or model not in bundle.fleet.served:
                raise ProblemError(Problem("model_not_found", param="model"))
            if not request.carried:
                missing = ", ".join(sorted(capability.value for capability in request.capabilities - CARRIED))
                raise ProblemError(Problem("capability_not_offered", f"No pool offers what this needs: {missing}."))
            return request
        raise ProblemError(problem)

    def _told(
        self, exchange: Exchange, visit: Visit, answer: Answer, request: ChatRequest, interest: Interest
    ) -> Awaitable[None]:
        """Return what sends the answer as it was asked for."""
        raw, now_s = exchange.head.path == COMPLETIONS, self._now_ms() // 1000
        answering = Answering(exchange.request_id, request.generation.model, now_s, raw)
        if request.stream:
            chunks = Chunks(answering, request.include_usage, request.continuous_usage)
            return self._stream(exchange, visit, answer, chunks, interest)
        return self._whole(exchange, visit, answer, answering)

    async def _whole(self, exchange: Exchange, visit: Visit, answer: Answer, answering: Answering) -> None:
        """Gather the answer and send it at once. A cut answer is an error without a part of the text."""
        text, most = "", self._limits.answer_chars_max
        end: Done | Broken | None = None
        async for frame in answer.frames:
            if not isinstance(frame, Tokens):
                end = frame
                break
            visit.delivered += frame.count
            text += frame.text
            if len(text) > most:
                raise ProblemError(Problem("engine_protocol", "The answer is longer than any that is held here."))
        if not isinstance(end, Done) or end.reason not in REASONS:
            raise _cut(answer, end, None)
        body = answering.whole(text, end.reason, end.counts, visit.delivered, ours_of(answer.segments))
        await exchange.answer(200, body, headers=_origin(answer))
        visit.first_token()
        visit.complete()

    async def _stream(
        self, exchange: Exchange, visit: Visit, answer: Answer, chunks: Chunks, interest: Interest
    ) -> None:
        """Send the answer as it comes. The next frame is taken only when the connection has the last one."""
        events: EventStream | None = None
        loop = asyncio.get_running_loop()
        now_s = loop.time
        lead, silent = chunks.role(), True
        end: Done | Broken | None = None
        try:
            async for frame in answer.frames:
                if events is None:
                    # The first frame is here before the status: what is broken by now still gets one of its own.
                    if isinstance(frame, Broken):
                        raise _cut(answer, frame, visit.delivered)
                    exchange.start(200, (*HEADERS, *_origin(answer)))
                    events = EventStream(exchange, self._limits.keep_alive_ms, interest.interrupt, loop)
                if not isinstance(frame, Tokens):
                    end = frame
                    break
                delivered = visit.delivered + frame.count
                data = chunks.text(frame.text, delivered) if frame.text else b""
                if lead:
                    lead, data = b"", lead + data
                if data:
                    if not events.put(data):
                        await events.taken()
                    events.wrote_s = now_s()
                    if silent:
                        visit.first_token()
                        silent = False
                visit.delivered = delivered
        finally:
            if events is not None:
                await events.close()
        if not isinstance(end, Done) or end.reason not in REASONS:
            raise _cut(answer, end, visit.delivered)
        usage = usage_of(end.counts, visit.delivered)
        await exchange.end(lead + chunks.last(end.reason, usage, ours_of(answer.segments)))
        visit.complete()


def _cut(answer: Answer, end: Broken | Done | None, delivered: int | None) -> ProblemError:
    """Return what is raised for an answer that did not end well; without an end, nobody said why.

    `delivered` is how many tokens the tenant has by then; None where it gets all of them or none.
    """
    if end is None:
        return ProblemError(Problem("session_lost"))
    if isinstance(end, Done):
        return ProblemError(Problem("engine_protocol", "The answer ended without a reason that is known."))
    told = _told_of_cut(answer, None if delivered is None else partial_usage(end.counts, delivered))
    return ProblemError(Problem(end.code, end.detail, cut=told))


def _ended_here(problem: Problem, answer: Answer, delivered: int | None) -> ProblemError:
    """Return what is raised for an answer that this edge ended; `delivered` is as in `_cut`."""
    if answer.stopped is None and problem.code == DRAINING:
        answer.stopped = EDGE_STOPS
    usage = None if delivered is None else partial_usage(PoolCounts(), delivered)
    return ProblemError(replace(problem, cut=_told_of_cut(answer, usage)))


def _told_of_cut(answer: Answer, usage: Usage | None) -> dict[str, object]:
    """Return what is told of a cut answer beside what cut it: what the tenant has, and why it does not go on."""
    told: dict[str, object] = {} if usage is None else {"usage": usage}
    if answer.stopped is not None:
        told["resume"] = answer.stopped.to_json()
    return {**told, **ours_of(answer.segments)}


def _declared(text: str) -> Labels:
    """Return what the header of labels declares. Raises ProblemError."""
    try:
        return _labels(text)
    except LabelHeaderError as error:
        problem = Problem("invalid_label", f"{error}.", LABEL_HEADER)
    raise ProblemError(problem)


@lru_cache(maxsize=LABELS_MAX)
def _labels(text: str) -> Labels:
    # A tenant declares the same of most of its requests.
    return parse_label_header(text)


def _origin(answer: Answer) -> tuple[Pair, ...]:
    """Return the headers that say where an answer comes from."""
    return (
        ("x-tidegate-pool", answer.pool.id),
        ("x-tidegate-jurisdiction", _spelled(answer.pool.place.soil())),
        ("x-tidegate-decision", answer.decision),
        *answer.headers,
    )


@lru_cache(maxsize=SOILS_MAX)
def _spelled(soil: frozenset[Jurisdiction]) -> str:
    return ",".join(sorted(soil))

"""The OpenAI surface: which request goes where, and what every request has in common.

`/healthz` (or `/health`), `/readyz` and `/metrics` answer without a key, because probes and scrapers have none, and
`/openapi.json` because it is the same for everybody. The first say nothing of a tenant or a payload, but they name
pools, models and rules: where tenants reach this port from outside, the way there should pass on `/v1/` and the
document alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import unquote

import msgspec

from node_agent.front.completions import LOADERS, Ask, Completions
from node_agent.front.document import document_bytes
from node_agent.front.endpoints import DOCUMENT, HEALTH, METHODS, METRICS, MODELS, OPEN, PLAIN_HEALTH, allowed_methods
from node_agent.front.exchange import Exchange
from node_agent.front.framing import Head
from node_agent.front.http import Client, FramingError, check_encoding, check_our_headers
from node_agent.front.interest import Gone
from node_agent.front.keyed import Elsewhere, Keyed, key_of
from node_agent.front.limits import Admission, Limits, Places
from node_agent.front.readiness import unready_reason
from node_agent.front.shapes import model_list, model_object
from node_agent.front.tenants import Caller, Callers, entitled_models
from node_agent.front.visit import Counters, Visit
from node_agent.idempotency.desk import Desk
from node_agent.idempotency.rules import HEADER
from orchestrator.bundles.assemble import Bundle
from orchestrator.policy.ids import RANDOM_BYTES, EdgeId, ModelId, make_request_id
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.metrics import CONTENT_TYPE, Metrics, load_exposition
from orchestrator.telemetry.names import PLACES, REQUESTS_ACTIVE, UNEVEN_LIMITS, Event
from orchestrator.wire.catalogue import Problem, ProblemError

log = logger("node_agent.front")


class Front:
    """Serves tenants: bytes to a checked request, and the gate's answer back."""

    def __init__(
        self,
        *,
        edge: EdgeId,
        ask: Ask,
        bundle: Callable[[], Bundle | None],
        limits: Limits,
        now_ms: Callable[[], int],
        entropy: Callable[[int], bytes],
        metrics: Metrics,
        desk: Desk | None = None,
        elsewhere: Elsewhere | None = None,
        places: Places | None = None,
    ) -> None:
        """`ask` is the gate; `bundle` gives the one in use; `entropy` gives as many random bytes as it is told.

        `desk` takes requests with an `Idempotency-Key`; without one they are refused. `elsewhere` is where an edge of
        several processes has those served for whose keys another process answers, and `places` are those that such a
        process has of `limits`.
        """
        self._edge = edge
        self._callers = Callers(edge)
        self._bundle = bundle
        self._limits = limits
        self._now_ms = now_ms
        self._entropy = entropy
        self.metrics = metrics
        """What is counted of tenants and their connections."""
        self._counters = Counters(metrics)
        self._desk = desk
        self._elsewhere = elsewhere
        self._places = places
        self._admission = Admission(limits, places)
        self._completions = Completions(ask, limits, self._admission, now_ms)
        self._leaving = self._draining = False

    @property
    def write_timeout_ms(self) -> int:
        """The longest that a client may not take what was written for it."""
        return self._limits.write_timeout_ms

    def leave(self) -> None:
        """From now on be unready, and let each connection end with its answer. Whoever still comes is served."""
        self._leaving = True

    def drain(self) -> None:
        """From now on refuse new requests and be unready. Running answers go on."""
        self._leaving = self._draining = True

    def cut(self) -> None:
        """End every running answer with an error that says so."""
        self._completions.cut()
        if self._elsewhere is not None:
            self._elsewhere.cut()

    def handed_over(self, head: Head, client: Client) -> Coroutine[Any, Any, None]:
        """Serve a request that another process of this edge hands over: it is served here, whoever has its key."""
        return self(head, client, handed_over=True)

    async def __call__(self, head: Head, client: Client, *, handed_over: bool = False) -> None:
        """Serve one request."""
        elsewhere = None if handed_over else self._elsewhere
        now_ms = self._now_ms()
        request = make_request_id(now_ms, self._entropy(RANDOM_BYTES))
        exchange = Exchange(head, client, request, self._limits.write_timeout_ms)
        exchange.close = self._leaving
        if head.path in OPEN and head.method in METHODS[head.path]:
            await self._operate(exchange, now_ms, elsewhere)
            return
        visit = Visit(request, self._counters, time.monotonic)
        try:
            await self._way(exchange, visit, elsewhere)
        except ProblemError as error:
            visit.broken(error.problem)
            exchange.close = exchange.close or isinstance(error, FramingError)
            await exchange.break_off(error.problem)
        except Gone:
            pass
        except Exception as failure:  # noqa: BLE001 - outermost: whatever went wrong, the tenant gets a request id
            visit.failed()
            log.crash(Event.TASK_FAILED, failure, request_id=request)
            await exchange.break_off(Problem("internal_error"))
        finally:
            exchange.done()
            visit.end(exchange.status)

    async def _operate(self, exchange: Exchange, now_ms: int, elsewhere: Elsewhere | None) -> None:
        """Answer a probe or a scraper, and count one that does not read."""
        try:
            await self._tell(exchange, now_ms, elsewhere)
        except ProblemError as error:
            self._counters.refusals[error.problem.entry.code].value += 1
            await exchange.break_off(error.problem)
        except Exception as failure:  # noqa: BLE001 - outermost: as for tenants
            log.crash(Event.TASK_FAILED, failure, request_id=exchange.request_id)
            await exchange.break_off(Problem("internal_error"))
        finally:
            exchange.done()

    async def _tell(self, exchange: Exchange, now_ms: int, elsewhere: Elsewhere | None) -> None:
        """Say how this edge is, or what it takes. Raises ProblemError(slow_reader)."""
        head = exchange.head
        if head.path == METRICS:
            metrics = self.metrics
            metrics.gauge(REQUESTS_ACTIVE)[()].value = self._admission.running
            if self._places is not None:
                metrics.gauge(PLACES)[()].value = self._places.of_all()
                metrics.gauge(UNEVEN_LIMITS)[()].value = self._places.uneven()
            await asyncio.to_thread(load_exposition)
            own = metrics.render()
            await exchange.answer(200, own if elsewhere is None else await elsewhere.metrics(own), CONTENT_TYPE)
        elif head.path == DOCUMENT:
            await exchange.answer(200, document_bytes())
        elif head.path in (HEALTH, PLAIN_HEALTH):
            await exchange.answer(200, msgspec.json.encode({"alive": True}))
        else:
            reason = unready_reason(self._bundle(), self._edge, now_ms, draining=self._leaving)
            body: dict[str, object] = {"ready": True} if reason is None else {"ready": False, "reason": reason}
            await exchange.answer(200 if reason is None else 503, msgspec.json.encode(body))

    def _way(self, exchange: Exchange, visit: Visit, elsewhere: Elsewhere | None) -> Awaitable[None]:
        """Check the head in the order in which a check costs and tells least. Returns what then serves the request.

        Raises ProblemError.
        """
        head = exchange.head
        if head.fault is not None:
            raise FramingError(head.fault)
        allowed = allowed_methods(head.path)
        if allowed is None:
            raise ProblemError(Problem("unknown_endpoint"))
        if head.method not in allowed:
            exchange.add_header("allow", ", ".join(allowed))
            # What a client means by TRACE or CONNECT is not asked: nothing that follows is read.
            raise FramingError(Problem("method_not_allowed"))
        check_encoding(head)
        if self._draining:
            raise ProblemError(Problem("draining"))
        if head.query:
            raise ProblemError(Problem("invalid_value", "This endpoint takes no query.", "query"))
        bundle = self._bundle()
        caller = visit.caller = self._callers.caller(head, bundle)
        check_our_headers(head)
        if bundle is None:
            raise ProblemError(Problem("no_bundle"))
        if head.path not in LOADERS:
            return self._models(exchange, visit, caller, bundle)
        key = key_of(head)
        if key is not None:
            return self._keyed(exchange, visit, caller, bundle, elsewhere, key)
        return self._completions.serve(exchange, visit, caller, bundle, None)

    async def _keyed(
        self, exchange: Exchange, visit: Visit, caller: Caller, bundle: Bundle, elsewhere: Elsewhere | None, key: str
    ) -> None:
        """Serve a request with a key, or have it served by the process that answers for the key."""
        if elsewhere is not None and await elsewhere.served(exchange, visit, caller, key):
            return
        if self._desk is None:
            raise ProblemError(Problem("idempotency_unavailable", param=HEADER))
        keyed = Keyed(self._desk, exchange, visit, caller, key)
        await self._completions.serve(exchange, visit, caller, bundle, keyed)

    async def _models(self, exchange: Exchange, visit: Visit, caller: Caller, bundle: Bundle) -> None:
        entitled = entitled_models(caller, bundle)
        if exchange.head.path == MODELS:
            found = model_list(entitled)
        else:
            named = ModelId(unquote(exchange.head.path.removeprefix(MODELS + "/"), errors="replace"))
            if named not in entitled:
                raise ProblemError(Problem("model_not_found", param="model"))
            found = model_object(named)
        await exchange.answer(200, msgspec.json.encode(found))
        visit.complete()

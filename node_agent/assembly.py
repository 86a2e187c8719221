"""The composition root of an edge: settings in, a running agent out. Read it top to bottom."""

from __future__ import annotations

import asyncio
import resource
import secrets
import time
from functools import partial
from pathlib import Path

from node_agent.border.attempts import Hands
from node_agent.border.decider import Commitment
from node_agent.border.gate import Gate
from node_agent.border.holders import tenant_of
from node_agent.front.app import Front
from node_agent.front.descriptors import connections_within
from node_agent.front.limits import Limits
from node_agent.front.serve import CONNECTIONS_MAX, FrontServer
from node_agent.idempotency.desk import Desk
from node_agent.idempotency.sealing import Sealer
from node_agent.idempotency.store import Bounds, KeyStore
from node_agent.idempotency.turns import StoreThread
from node_agent.settings import EdgeSettings
from node_agent.uplink.engine_link import EngineLink
from node_agent.uplink.recorder import Recorder
from node_agent.uplink.report import edge_report
from node_agent.uplink.routes import Routes
from node_agent.watch.moving import settle_keys
from node_agent.watch.shares import leased_of
from node_agent.workers.local import LocalServer
from node_agent.workers.places import LeasedPlaces
from node_agent.workers.relay import Siblings
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.blobs import Report
from orchestrator.bundles.clock import HighestTime
from orchestrator.bundles.follow import BundleFollower, Following
from orchestrator.bundles.holdings import Holdings
from orchestrator.bundles.roots import Roots, SigningKey, pinned
from orchestrator.bundles.store import BundleStore
from orchestrator.config.entropy import Entropy
from orchestrator.config.program import run_until_signal
from orchestrator.config.secret import SettingsError, read_secret
from orchestrator.engines.identity import continuing
from orchestrator.engines.openai import OpenAIEngine, OpenAIEngineSettings, connections_for
from orchestrator.policy.ids import EdgeId, KeyId, SideId, digest_of
from orchestrator.policy.verdicts import HOUSE_RULES
from orchestrator.spool.left import close_what_was_left
from orchestrator.spool.store import Spool
from orchestrator.telemetry.logs import logger, report_faults
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.names import CODE, MANIFEST_NUMBER, MODEL, POOL, RULE, STREAMS_CONTINUED, Event
from orchestrator.watch.holding import Holding
from orchestrator.watch.line import own_end
from orchestrator.watch.parts import share
from orchestrator.watch.places import socket_of
from orchestrator.watch.shares import member_name
from orchestrator.watch.tether import die_with
from orchestrator.wire.catalogue import CATALOGUE
from orchestrator.wire.deadlines import Waits

SEGMENT_BYTES = 4 << 20
COMMITMENT_HEX_CHARS = 64
DAY_MS = 86_400_000
TENANT_SHARE = 4
"""One tenant may have one part in so many of the idempotency keys."""

log = logger("node_agent")


class Agent:
    """Every part of one edge, put together."""

    def __init__(self, settings: EdgeSettings) -> None:
        data_dir = Path(settings.data_dir)
        data_dir.mkdir(parents=True, exist_ok=True)
        roots = _roots(settings)
        clock = HighestTime(data_dir / "highest-time")
        side = SideId(settings.side)
        archive_ms = settings.keep_bundles_days * DAY_MS
        self._settings = settings
        self._instance = secrets.token_hex(8)
        self._draining = False
        self._spool = Spool(
            data_dir / "spool",
            capacity_bytes=settings.spool_bytes,
            segment_bytes=SEGMENT_BYTES,
            holder_of=tenant_of,
        )
        close_what_was_left(self._spool, "edge", settings.timeout_ms, clock.now_ms())
        self._metrics = Metrics()
        report_faults(self._metrics.log_fault)
        self._metrics.admit(CODE, CATALOGUE)
        self._metrics.admit(RULE, HOUSE_RULES)
        self._routes = Routes(EdgeId(settings.id), _engines(settings), clock.now_ms, self._went_on)
        holdings = Holdings(side, BundleStore(data_dir / "bundles", roots, archive_ms=archive_ms), roots)
        bundle, entropy = partial(holdings.bundle, side), Entropy()
        self._follower = BundleFollower(
            Following(settings.control, side, member_name(settings.id, _index(settings))),
            holdings,
            clock,
            self._report,
            self._follow,
        )
        commitment = _commitment(settings.commitment_key_file)
        sealer = Sealer(commitment.key, EdgeId(settings.id))
        self._desk = Desk(
            StoreThread(KeyStore(data_dir / "idempotency" / "keys.db", _bounds(settings))),
            sealer,
            clock.now_ms,
            self._metrics,
        )
        hands = Hands(
            bundle=bundle,
            routes=self._routes,
            spool=self._spool,
            metrics=self._metrics,
            signing_key=_signing_key(settings.signing_key_file),
            commitment=commitment,
            now_ms=clock.now_ms,
            now_ns=time.monotonic_ns,
            entropy=entropy.take,
            skew_ms=lambda: self._follower.skew_ms,
            note=None if settings.record_trace is None else Recorder(
                Path(settings.record_trace), settings.record_trace_bytes
            ).write,
            retained_bytes=settings.resume_bytes,
        )
        worker = settings.worker
        self._holding = None if worker is None else Holding(leased_of(settings), worker.index)
        self._front = Front(
            edge=EdgeId(settings.id),
            ask=Gate(settings.id, hands).ask,
            bundle=bundle,
            limits=_limits(settings),
            now_ms=clock.now_ms,
            entropy=entropy.take,
            metrics=self._metrics,
            desk=self._desk,
            elsewhere=_siblings(settings, sealer),
            places=None if self._holding is None else LeasedPlaces(self._holding),
        )
        self._servers = _servers(self._front, settings)

    def _went_on(self, streams: int) -> None:
        self._metrics.counter(STREAMS_CONTINUED)["reattached"].value += streams

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then drain: notice, no new work, answers to their end or the grace, leave."""
        self._routes.start()
        tasks = [asyncio.create_task(self._desk.run())]
        if self._holding is not None:
            tasks.append(asyncio.create_task(self._holding.run(own_end())))
        await self._follower.start()
        for server in self._servers:
            await server.start()
        log.info(Event.PROGRAM_READY, instance_id=self._instance)
        try:
            await stop.wait()
            self._draining = True
            self._front.leave()
            await asyncio.sleep(self._settings.drain_notice_ms / 1000)
            self._front.drain()
            grace_s = self._settings.drain_grace_ms / 1000
            await asyncio.gather(*(server.stop(grace_s) for server in self._servers))
        finally:
            await self._follower.stop()
            await self._routes.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._desk.close()
            await self._spool.close_async()

    def _follow(self, bundle: Bundle) -> None:
        """A new bundle holds: dial what it declares."""
        self._routes.follow(bundle.fleet)
        self._spool.expect(len(bundle.tenants))
        metrics = self._metrics
        metrics.admit(POOL, (pool.id for pool in bundle.fleet.pools))
        metrics.admit(MODEL, bundle.fleet.models())
        metrics.admit(RULE, (rule.id for admitted in bundle.law.packs for rule in admitted.pack.rules))
        metrics.gauge(MANIFEST_NUMBER)[bundle.side].value = bundle.number

    def _report(self) -> Report:
        listen = f"{self._settings.host}:{self._settings.port}"
        bundle = self._follower.current
        return edge_report(EdgeId(self._settings.id), self._instance, listen, self._draining, bundle, self._routes)


def run(settings: EdgeSettings, _config: Path) -> int:
    """Run an edge, or one process of it, until SIGTERM or SIGINT. SIGHUP re-reads nothing."""
    if settings.worker is None:
        settle_keys(settings)
    else:
        die_with(settings.worker.parent_pid)
    return run_until_signal(lambda stop: Agent(settings).run(stop))


def _index(settings: EdgeSettings) -> int:
    return 0 if settings.worker is None else settings.worker.index


def _siblings(settings: EdgeSettings, sealer: Sealer) -> Siblings | None:
    worker = settings.worker
    if worker is None:
        return None
    relays_max = share(settings.requests_max, settings.processes, worker.index)
    of = (settings.processes, Path(worker.run_dir))
    return Siblings(sealer, worker.index, *of, _limits(settings), relays_max)


def _servers(front: Front, settings: EdgeSettings) -> tuple[FrontServer, ...]:
    """Return where requests come from. What hands over to this process finds it only once tenants do."""
    worker = settings.worker
    most = _connections_max(settings)
    tenants = FrontServer(front, settings.host, settings.port, connections_max=most, shared=worker is not None)
    if worker is None:
        return (tenants,)
    return (tenants, LocalServer(front, socket_of(Path(worker.run_dir), worker.index)))


def _connections_max(settings: EdgeSettings) -> int:
    """Return how many connections of tenants this process holds, and say so where its descriptors make them fewer."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    ways = bool(settings.engines) + (0 if settings.worker is None else 2)
    most = connections_within(descriptors, settings.requests_max, ways, CONNECTIONS_MAX)
    if most < CONNECTIONS_MAX:
        detail = f"{descriptors} descriptors allow no more connections: raise the hard limit of files (ulimit -Hn)."
        log.warning(Event.CONNECTIONS_LIMITED, limit=most, count=descriptors, detail=detail)
    return most


def _roots(settings: EdgeSettings) -> Roots:
    try:
        return pinned(settings.roots)
    except ValueError as error:
        raise SettingsError("", "roots", str(error)) from None


def _engines(settings: EdgeSettings) -> dict[str, EngineLink]:
    found: dict[str, EngineLink] = {}
    for entry in settings.engines:
        key = None if entry.api_key_file is None else read_secret(Path(entry.api_key_file)).reveal()
        try:
            connections = connections_for(settings.requests_max)
            engine = OpenAIEngine(
                OpenAIEngineSettings(entry.base_url, entry.served_model, key, connections_max=connections)
            )
            declared = continuing(entry.resume, entry.identity)
        except ValueError as error:
            raise SettingsError("", f"engines.{entry.name}", str(error)) from None
        found[entry.name] = EngineLink(entry.name, engine, declared)
    return found


def _signing_key(file: str) -> SigningKey:
    try:
        return SigningKey.from_pem(read_secret(Path(file)).reveal())
    except ValueError as error:
        raise SettingsError(file, "", str(error)) from None


def _commitment(file: str) -> Commitment:
    text = read_secret(Path(file)).reveal()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(text) != COMMITMENT_HEX_CHARS or not key:
        raise SettingsError(file, "", "expected 64 hex digits")
    # The name tells two keys apart while one follows the other; it is a digest of a digest and says nothing of the key.
    return Commitment(KeyId(digest_of(digest_of(key).encode()).removeprefix("sha256:")[:16]), key)


def _bounds(settings: EdgeSettings) -> Bounds:
    entries, results_bytes = settings.idempotency_keys_max, settings.idempotency_results_bytes
    return Bounds(entries, max(1, entries // TENANT_SHARE), results_bytes, results_bytes // TENANT_SHARE)


def _limits(settings: EdgeSettings) -> Limits:
    return Limits(
        body_bytes_max=settings.body_bytes_max,
        body_timeout_ms=settings.body_timeout_ms,
        max_tokens_max=settings.max_tokens_max,
        requests_max=settings.requests_max,
        tenant_requests_max=settings.tenant_requests_max,
        budget_ms=settings.timeout_ms,
        waits=Waits(settings.first_token_timeout_ms, settings.between_tokens_timeout_ms),
    )

"""The composition root of a scheduler: settings in, a running intake out, the Ray driver beside it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from functools import partial
from pathlib import Path

from orchestrator.bundles.blobs import PoolReport, ReplicaReport, Report, SessionReport
from orchestrator.bundles.clock import HighestTime
from orchestrator.bundles.follow import BundleFollower, Following
from orchestrator.bundles.holdings import Holdings
from orchestrator.bundles.roots import Roots, pinned
from orchestrator.bundles.store import BundleStore
from orchestrator.config.entropy import Entropy
from orchestrator.config.program import run_until_signal
from orchestrator.config.secret import SettingsError, read_secret
from orchestrator.engines.identity import continuing
from orchestrator.engines.openai import OpenAIEngine, OpenAIEngineSettings, connections_for
from orchestrator.policy.ids import ModelId, PoolId, ReplicaId, SchedulerId, SideId
from orchestrator.spool.left import close_what_was_left
from orchestrator.spool.store import Spool
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.watch.holding import Holding
from orchestrator.watch.line import own_end
from orchestrator.watch.places import socket_of
from orchestrator.watch.shares import member_name
from orchestrator.watch.sign import shown
from orchestrator.watch.tether import die_with
from orchestrator.wire.attachments import Limits
from orchestrator.wire.channels import bind, make_server
from orchestrator.wire.frames import Process
from protos.tidegate.v1.replica_pb2_grpc import add_ReplicaPortServicer_to_server
from protos.tidegate.v1.session_pb2_grpc import add_IntakeServicer_to_server
from scheduler.intake.dispatch import Dispatcher
from scheduler.intake.engine_replica import EngineReplica
from scheduler.intake.keeping import flow_in
from scheduler.intake.leaving import drain
from scheduler.intake.ports import Hands
from scheduler.intake.replicas import ReplicaService
from scheduler.intake.sessions import IntakeService
from scheduler.intake.shape import SALT_BYTES, site_salt
from scheduler.intake.site import Site
from scheduler.settings import SchedulerSettings
from scheduler.shares import leased_of, slots_of

SEGMENT_BYTES = 4 << 20
ATTEMPT_MS_MAX = 3_600_000
"""Edges give no attempt longer than their `timeout_ms`, which is ten minutes where it is not set."""
TICK_S = 0.25
DRIVER_BACKOFF_S = 2.0
DRIVER_STOP_S = 3.0
SOCKET_CLOSE_S = 1.0

log = logger("scheduler")


class Scheduler:
    """Every part of one site's intake, put together."""

    def __init__(self, settings: SchedulerSettings, config: Path) -> None:
        data_dir = Path(settings.data_dir)
        data_dir.mkdir(parents=True, exist_ok=True)
        roots = _roots(settings)
        clock = HighestTime(data_dir / "highest-time")
        side, scheduler = SideId(settings.side), SchedulerId(settings.id)
        self._settings = settings
        self._config = config
        self._instance = secrets.token_hex(8)
        self._spool = Spool(
            data_dir / "spool", capacity_bytes=settings.spool_bytes, segment_bytes=SEGMENT_BYTES, holder_of=flow_in
        )
        close_what_was_left(self._spool, "pool", ATTEMPT_MS_MAX, clock.now_ms())
        self._follower = BundleFollower(
            Following(settings.control, side, member_name(settings.id, _index(settings)), roots.sides - {side}),
            Holdings(side, BundleStore(data_dir / "bundles", roots), roots),
            clock,
            self._report,
        )
        dispatchers = {
            PoolId(pool.id): Dispatcher(PoolId(pool.id), pool.waiting_max, settings.replica_dead_ms)
            for pool in settings.pools
        }
        hands = Hands(self._follower, self._spool, clock.now_ms, now_us, Entropy().take, _salt(settings))
        self._site = Site(scheduler, side, dispatchers, hands)
        limits = Limits(reattach_ms=settings.reattach_ms, detached_bytes=settings.detached_bytes)
        process = Process(_index(settings), settings.processes)
        self._intake = IntakeService(self._site, scheduler, self._instance, now_us, clock.now_ms, limits, process)
        self._edge_server = make_server(shared=settings.worker is not None)
        add_IntakeServicer_to_server(self._intake, self._edge_server)
        self._replica_server = make_server()
        token = read_secret(Path(settings.replica_token_file)).reveal()
        replicas = ReplicaService(self._site, scheduler, token, now_us)
        add_ReplicaPortServicer_to_server(replicas, self._replica_server)
        self._engines = _engines(settings, self._site, self._follower)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, then drain: no new work; what runs ends within the grace, and the rest is given back."""
        bind(self._edge_server, self._settings.listen)
        await self._follower.start()
        if self._settings.worker is None:
            # A replica would give all of its slots to the one process that it reached.
            bind(self._replica_server, self._settings.replica_listen)
            await self._replica_server.start()
        await self._edge_server.start()
        tasks = [asyncio.create_task(self._tick())]
        tasks += [asyncio.create_task(engine.run()) for engine in self._engines]
        if self._settings.ray is not None:
            tasks.append(asyncio.create_task(keep_driver(self._config)))
        if self._settings.worker is not None:
            holding = Holding(leased_of(self._settings), self._settings.worker.index)
            tasks.append(asyncio.create_task(holding.run(own_end())))
        try:
            async with shown(_sign(self._settings)):
                log.info(Event.PROGRAM_READY, instance_id=self._instance)
                await stop.wait()
                await drain(self._site, self._intake, self._settings.drain_grace_ms)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._intake.close()
            await self._edge_server.stop(SOCKET_CLOSE_S)
            await self._replica_server.stop(SOCKET_CLOSE_S)
            for engine in self._engines:
                await engine.close()
            await self._site.close()
            await self._follower.stop()
            await self._spool.close_async()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._site.tick()

    def _report(self) -> Report:
        pools, replicas = [], []
        at_us = now_us()
        for pool, dispatcher in self._site.dispatchers.items():
            state = dispatcher.state()
            up = "up" if state.replicas else "down"
            pools.append(PoolReport(pool, up, state.replicas, state.slots, state.running, state.waiting))
            known = set()
            for replica, condition in dispatcher.replicas(at_us):
                known.add(replica.id)
                restarts = dispatcher.restarts(replica.id)
                age_ms = (at_us - replica.heard_us) // 1000
                replicas.append(
                    ReplicaReport(
                        replica.id, pool, condition.value, replica.model, restarts, len(replica.work), age_ms
                    )
                )
            for gone in sorted(set(dispatcher.starts) - known):
                replicas.append(ReplicaReport(gone, pool, "down", "", dispatcher.restarts(gone)))
        sessions = tuple(
            SessionReport(
                session=port.machine.session or "",
                peer=port.machine.edge or "",
                state=port.machine.state.value,
                epoch=port.machine.epoch,
                streams=port.machine.streams(),
                skew_ms=port.machine.skew_ms or 0,
            )
            for port in self._intake.ports
        )
        return Report(
            role="scheduler",
            instance=self._instance,
            listen=self._settings.listen,
            draining=self._site.draining,
            pools=tuple(pools),
            replicas=tuple(replicas),
            sessions=sessions,
            alarms=tuple(self._site.alarms),
        )


def run(settings: SchedulerSettings, config: Path) -> int:
    """Run a scheduler, or one process of it, until SIGTERM or SIGINT. SIGHUP re-reads nothing."""
    if settings.worker is not None:
        die_with(settings.worker.parent_pid)
    return run_until_signal(lambda stop: Scheduler(settings, config).run(stop))


def now_us() -> int:
    """Return monotonic microseconds."""
    return time.monotonic_ns() // 1000


async def keep_driver(config: Path) -> None:
    """Keep the Ray driver running as a process of its own. Its end is no end of ours: live replicas are served on."""
    while True:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "scheduler.pools", "--config", str(config), stdin=asyncio.subprocess.PIPE
        )
        try:
            status = await process.wait()
            log.warning(Event.PROCESS_EXITED, exit_status=status, detail="the Ray driver")
        finally:
            if process.returncode is None and process.stdin is not None:
                # The end of its input tells it to leave; Ray prints a stack trace at SIGTERM.
                process.stdin.close()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DRIVER_STOP_S):
                        await process.wait()
            if process.returncode is None:
                process.kill()
        await asyncio.sleep(DRIVER_BACKOFF_S)


def _index(settings: SchedulerSettings) -> int:
    return 0 if settings.worker is None else settings.worker.index


def _sign(settings: SchedulerSettings) -> Path | None:
    worker = settings.worker
    return None if worker is None else socket_of(Path(worker.run_dir), worker.index)


def _roots(settings: SchedulerSettings) -> Roots:
    try:
        return pinned(settings.roots)
    except ValueError as error:
        raise SettingsError("", "roots", str(error)) from None


def _salt(settings: SchedulerSettings) -> bytes:
    if settings.prefix_salt_file is None:
        return secrets.token_bytes(SALT_BYTES)
    return site_salt(read_secret(Path(settings.prefix_salt_file)).reveal())


def _context_tokens(follower: BundleFollower, pool: PoolId, model: ModelId) -> int | None:
    """Return what the newest bundle declares of the context of a model at a pool of ours; None where it does not."""
    bundle = follower.current
    declared = None if bundle is None else bundle.fleet.pool(pool)
    served = None if declared is None else declared.served(model)
    return None if served is None else served.context_tokens


def _engines(settings: SchedulerSettings, site: Site, follower: BundleFollower) -> list[EngineReplica]:
    found: list[EngineReplica] = []
    for pool in settings.pools:
        for entry, slots in zip(pool.engines, slots_of(pool, settings.processes, _index(settings)), strict=True):
            if not slots and entry.slots:
                continue  # other processes have all of them
            key = None if entry.api_key_file is None else read_secret(Path(entry.api_key_file)).reveal()
            try:
                connections = connections_for(slots)
                engine = OpenAIEngine(
                    OpenAIEngineSettings(entry.base_url, entry.served_model, key, connections_max=connections)
                )
                declared = continuing(entry.resume, entry.identity)
            except ValueError as error:
                raise SettingsError("", f"pools.{pool.id}.engines.{entry.name}", str(error)) from None
            model, replica = ModelId(entry.model), ReplicaId(entry.name)
            context = partial(_context_tokens, follower, PoolId(pool.id), model)
            elsewhere = entry.slots - slots
            found.append(
                EngineReplica(
                    site, PoolId(pool.id), replica, model, slots, engine, now_us, declared, elsewhere, context
                )
            )
    return found

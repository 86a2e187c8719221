"""The composition root of the control plane: from settings to a program that serves until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from orchestrator.bundles.clock import HighestTime
from orchestrator.bundles.holdings import Holdings
from orchestrator.bundles.refusals import BundleRefused
from orchestrator.bundles.store import BundleStore
from orchestrator.bundles.streams import in_thread
from orchestrator.config.secret import SettingsError
from orchestrator.control.api import ControlService
from orchestrator.control.attendance import MEMBERS_PREFIX, Attendance, Roll
from orchestrator.control.entries import RegistryError
from orchestrator.control.exchange import Exchange
from orchestrator.control.registry import Registry
from orchestrator.control.settings import ControlSettings, Identity, identify
from orchestrator.control.truth import Truth
from orchestrator.control.watch import Watch
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.wire.channels import bind, make_server
from protos.tidegate.v1.control_pb2_grpc import add_ControlServicer_to_server

log = logger("orchestrator.control")

MAINTAIN_S = 1.0
MAINTAIN_FLOOR_S = 0.2
"""However much happens, the manifest is not issued again more often."""
ROLL_S = 2.0
DRAIN_S = 3.0


def run(settings: ControlSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SettingsError when it cannot start like this, OSError when it cannot."""
    asyncio.run(_until_told(settings))


async def _until_told(settings: ControlSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    await serve(settings, stop)


async def serve(settings: ControlSettings, stop: asyncio.Event, on_ready: Callable[[int], None] | None = None) -> None:
    """Serve until `stop` is set, then drain. `on_ready` is told the port. Raises SettingsError and OSError."""
    identity = identify(settings)
    truth, registry = await _open(settings, identity)
    exchange = Exchange(truth, settings.peer)
    attendance = Attendance()
    heads, members = registry.watch_prefix("manifest/"), registry.watch_prefix(MEMBERS_PREFIX)
    service = ControlService(truth, exchange, attendance, identity.token, heads, members)
    server = make_server()
    add_ControlServicer_to_server(service, server)
    roll = Roll(registry, attendance)
    poke = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []
    try:
        port = bind(server, settings.listen)
        await server.start()
        tasks = [
            asyncio.create_task(_watch_heads(heads, poke), name="watch the registry"),
            asyncio.create_task(_watch_standing(truth, poke), name="watch what counts"),
            asyncio.create_task(_maintain(truth, poke), name="maintain the manifest"),
            asyncio.create_task(_call_the_roll(roll), name="write who attends"),
        ]
        if settings.peer is not None:
            tasks.append(asyncio.create_task(exchange.dial(), name="dial the other side"))
        log.info(Event.PROGRAM_READY, side=identity.side, port=port)
        if on_ready is not None:
            on_ready(port)
        await _first_end(tasks, stop)
    finally:
        service.drain()
        await server.stop(DRAIN_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await roll.close()
        await registry.close()
        await truth.save_time()


async def _open(settings: ControlSettings, identity: Identity) -> tuple[Truth, Registry]:
    def open_disk() -> tuple[Holdings, HighestTime]:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        store = BundleStore(settings.data_dir / "bundles", identity.roots)
        return Holdings(identity.side, store, identity.roots), HighestTime(settings.data_dir / "highest-time")

    holdings, clock = await in_thread(open_disk)
    try:
        registry = Registry.open(identity.registry)
    except ValueError as refusal:
        raise SettingsError("settings", "etcd", str(refusal)) from None
    truth = Truth(identity, holdings, registry, clock)
    await truth.load()
    return truth, registry


async def _first_end(tasks: list[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Return when `stop` is set; raise what ended a task before that."""
    told = asyncio.create_task(stop.wait(), name="wait for the end")
    try:
        done, _ = await asyncio.wait((told, *tasks), return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
        await asyncio.gather(told, return_exceptions=True)
    for task in done:
        if task is not told:
            task.result()


async def _watch_heads(heads: Watch, poke: asyncio.Event) -> None:
    async for _ in heads:
        poke.set()


async def _watch_standing(truth: Truth, poke: asyncio.Event) -> None:
    while True:
        await truth.news()
        poke.set()


async def _maintain(truth: Truth, poke: asyncio.Event) -> None:
    while True:
        poke.clear()
        try:
            await truth.maintain()
            truth.note_upkeep("")
        except (RegistryError, BundleRefused) as failure:
            truth.note_upkeep(str(failure))
        except OSError as failure:
            truth.note_upkeep(f"the disk fails: {failure.strerror}")
        await truth.save_time()
        await asyncio.sleep(MAINTAIN_FLOOR_S)
        try:
            async with asyncio.timeout(MAINTAIN_S):
                await poke.wait()
        except TimeoutError:
            continue


async def _call_the_roll(roll: Roll) -> None:
    failed = False
    while True:
        try:
            await roll.write()
            failed = False
        except RegistryError as failure:
            if not failed:
                log.warning(Event.REGISTRY_LOST, detail=str(failure))
            failed = True
        await asyncio.sleep(ROLL_S)

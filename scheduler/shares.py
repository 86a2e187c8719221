"""What each process of an intake is told: an even share of every limit and of each engine, and a folder. Pure."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from orchestrator.config.secret import SettingsError
from orchestrator.watch.leases import Leased
from orchestrator.watch.parts import share
from orchestrator.watch.places import folder_of, run_folder
from orchestrator.watch.shares import WorkerSettings, check_shared
from scheduler.settings import PoolSettings, SchedulerSettings

PORT_MAX = 65_535


def check(settings: SchedulerSettings, file: str) -> None:
    """Refuse settings of `file` that cannot be shared. Raises SettingsError, which names the field.

    What a process was given is a share already, and is not shared again.
    """
    processes = settings.processes
    if processes == 1 or settings.worker is not None:
        return
    port = address_of(settings.listen)[1]
    if not 1 <= port <= PORT_MAX:
        raise SettingsError(file, "listen", "expected `host:port` with a port of its own where `processes` is above 1")
    if settings.ray is not None:
        raise SettingsError(file, "ray", _UNSHARED)
    for pool in settings.pools:
        if pool.replicas is not None:
            raise SettingsError(file, f"pools.{pool.id}.replicas", _UNSHARED)
        for engine in pool.engines:
            if engine.slots < 0:
                raise SettingsError(file, f"pools.{pool.id}.engines.{engine.name}.slots", "expected at least 0")
        if pool.engines and sum(engine.slots for engine in pool.engines) < processes:
            sentence = f"expected at least {processes} slots of all engines together: one for each process"
            raise SettingsError(file, f"pools.{pool.id}.engines", sentence)
        if pool.waiting_max < processes:
            sentence = f"expected at least {processes}: one for each process"
            raise SettingsError(file, f"pools.{pool.id}.waiting_max", sentence)
    check_shared(file, processes, settings.id, settings.data_dir, settings.spool_bytes)


_UNSHARED = (
    "expected none where `processes` is above 1: a replica of ours dials one process, which would have all of its"
    " slots. Engines by URL can be shared"
)


def settings_of(settings: SchedulerSettings, index: int, parent_pid: int) -> SchedulerSettings:
    """Return the settings of one process: its shares, its folder, and which one it is.

    The slots of engines are left whole: a process works with its share of them, and must know those of the others.
    """
    data_dir = Path(settings.data_dir)

    def part(whole: int) -> int:
        return share(whole, settings.processes, index)

    return replace(
        settings,
        data_dir=str(folder_of(data_dir, index)),
        pools=tuple(replace(pool, waiting_max=part(pool.waiting_max)) for pool in settings.pools),
        spool_bytes=part(settings.spool_bytes),
        detached_bytes=part(settings.detached_bytes),
        worker=WorkerSettings(index, parent_pid, str(run_folder(data_dir))),
    )


def leased_of(settings: SchedulerSettings) -> Leased:
    """Return the limits that the processes lease shares of: none. Their lines to the watch say that they live."""
    return Leased({}, settings.processes)


def slots_of(pool: PoolSettings, processes: int, index: int) -> tuple[int, ...]:
    """Return how many slots of each engine of `pool` process `index` has, in their order; some may be 0.

    The shares of an engine add up to its slots. What an engine has beyond an even share begins where that of the engine
    before ended, so that no process has two slots of the pool more than another.
    """
    if processes == 1:
        return tuple(engine.slots for engine in pool.engines)
    found, before = [], 0
    for engine in pool.engines:
        found.append(share(engine.slots, processes, (index - before) % processes))
        before += engine.slots
    return tuple(found)


def address_of(listen: str) -> tuple[str, int]:
    """Return host and port of ``host:port``; the port is 0 where there is none."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() and port.isascii() and len(port) <= 5 else 0

"""What each process of an edge is told: an even share of every limit, and a folder of its own. Pure.

The shares are fixed. Together they are the whole, so no lock and no message between processes is needed for an edge to
keep within it; what one process leaves idle, another cannot use.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from node_agent.settings import EdgeSettings, WorkerSettings
from node_agent.watch.places import SOCKET_PATH_BYTES_MAX, folder_of, run_folder, socket_of
from orchestrator.config.secret import SettingsError
from orchestrator.policy.ids import is_name

SPOOL_BYTES_MIN = 16 << 20
"""The least that a spool works with: four segments."""

_COUNTED = ("requests_max", "tenant_requests_max", "idempotency_keys_max")
"""Limits of which a process without any could do nothing."""


def share(whole: int, processes: int, index: int) -> int:
    """Return the part of `whole` that process `index` of `processes` has. No two differ by more than one.

    The parts add up to the whole. Raises ValueError for a process that there is not, and for less than nothing.
    """
    if whole < 0 or not 0 <= index < processes:
        raise ValueError("expected a whole of at least 0, and an index below the number of processes")
    part, left = divmod(whole, processes)
    return part + (index < left)


def check(settings: EdgeSettings, file: str) -> None:
    """Refuse settings of `file` that cannot be shared. Raises SettingsError, which names the field.

    What a process was given is a share already, and is not shared again.
    """
    processes = settings.processes
    if processes == 1 or settings.worker is not None:
        return
    if settings.port == 0:
        raise SettingsError(file, "port", "expected a port of its own, not 0, where `processes` is above 1")
    for field in _COUNTED:
        if getattr(settings, field) < processes:
            raise SettingsError(file, field, f"expected at least {processes}: one for each process")
    if settings.spool_bytes < processes * SPOOL_BYTES_MIN:
        least = processes * SPOOL_BYTES_MIN
        raise SettingsError(file, "spool_bytes", f"expected at least {least}: {SPOOL_BYTES_MIN} for each process")
    last = socket_of(run_folder(Path(settings.data_dir)), processes - 1)
    if len(str(last).encode()) > SOCKET_PATH_BYTES_MAX:
        sentence = f"expected a shorter path: with {last.relative_to(settings.data_dir)} it is a socket's name"
        raise SettingsError(file, "data_dir", f"{sentence}, which has at most {SOCKET_PATH_BYTES_MAX} bytes")
    if not is_name(member_name(settings.id, processes - 1)):
        raise SettingsError(file, "id", "expected a shorter id: with several processes, `.w<index>` is put after it")


def settings_of(settings: EdgeSettings, index: int, parent_pid: int) -> EdgeSettings:
    """Return the settings of one process of an edge: its shares, its folder, and which one it is."""
    data_dir = Path(settings.data_dir)

    def part(whole: int) -> int:
        return share(whole, settings.processes, index)

    trace = settings.record_trace
    return msgspec.structs.replace(
        settings,
        data_dir=str(folder_of(data_dir, index)),
        requests_max=part(settings.requests_max),
        tenant_requests_max=part(settings.tenant_requests_max),
        resume_bytes=part(settings.resume_bytes),
        spool_bytes=part(settings.spool_bytes),
        record_trace=trace if trace is None or index == 0 else f"{trace}.w{index}",
        record_trace_bytes=part(settings.record_trace_bytes),
        idempotency_keys_max=part(settings.idempotency_keys_max),
        idempotency_results_bytes=part(settings.idempotency_results_bytes),
        worker=WorkerSettings(index, parent_pid, str(run_folder(data_dir))),
    )


def member_name(edge: str, index: int) -> str:
    """Return under which name a process reports to control.

    Control keeps one report for each name: under one name the processes would overwrite each other's sessions and
    alarms every second. The first has the edge's own, so that the edge is seen wherever its id is looked for.
    """
    return edge if index == 0 else f"{edge}.w{index}"

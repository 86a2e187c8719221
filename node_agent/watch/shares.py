"""What each process of an edge is told: an even share of every fixed limit, and a folder of its own. Pure.

The limits of requests in flight are left whole: what a process may use of them it leases.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from node_agent.settings import EdgeSettings
from orchestrator.config.secret import SettingsError
from orchestrator.watch.leases import Leased
from orchestrator.watch.parts import share
from orchestrator.watch.places import folder_of, run_folder
from orchestrator.watch.shares import WorkerSettings, check_shared

_COUNTED = ("requests_max", "tenant_requests_max", "idempotency_keys_max")
"""Limits of which a process without any could do nothing."""

ALL_REQUESTS = "requests"
"""Name of the limit of all requests in flight."""
TENANT_REQUESTS = "tenant"
"""Kind of the limits of the requests in flight of one tenant; a limit's name is this, a slash and the tenant's id."""


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
    check_shared(file, processes, settings.id, settings.data_dir, settings.spool_bytes)


def settings_of(settings: EdgeSettings, index: int, parent_pid: int) -> EdgeSettings:
    """Return the settings of one process of an edge: its shares, its folder, and which one it is."""
    data_dir = Path(settings.data_dir)

    def part(whole: int) -> int:
        return share(whole, settings.processes, index)

    trace = settings.record_trace
    return msgspec.structs.replace(
        settings,
        data_dir=str(folder_of(data_dir, index)),
        resume_bytes=part(settings.resume_bytes),
        spool_bytes=part(settings.spool_bytes),
        record_trace=trace if trace is None or index == 0 else f"{trace}.w{index}",
        record_trace_bytes=part(settings.record_trace_bytes),
        idempotency_keys_max=part(settings.idempotency_keys_max),
        idempotency_results_bytes=part(settings.idempotency_results_bytes),
        worker=WorkerSettings(index, parent_pid, str(run_folder(data_dir))),
    )


def leased_of(settings: EdgeSettings) -> Leased:
    """Return the limits of an edge that its processes lease shares of."""
    wholes = {ALL_REQUESTS: settings.requests_max, TENANT_REQUESTS: settings.tenant_requests_max}
    return Leased(wholes, settings.processes)

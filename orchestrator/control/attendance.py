"""Who attends this control, for people to see. Nothing is decided by it: members live and serve without control.

Each member that attends has a key in etcd under a lease of this control, so that another control of the side can name
it. A lost lease takes the keys with it, and they are written again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.control.entries import ABSENT, Guard, Put, RegistryKey
from orchestrator.control.lease import Lease
from orchestrator.control.registry import Registry
from orchestrator.control.watch import Watch
from protos.tidegate.v1 import control_pb2 as pb

MEMBERS_PREFIX = "members/"
MEMBERS_MAX = 20_000
GONE_KEPT_S = 300.0
LEASE_S = 15
WRITES_PER_PASS = 64


@dataclass(slots=True)
class _Present:
    report: pb.MemberReport
    heard_at_s: float
    streams: int = 1


class Attendance:
    """The newest report of each member, by its id; kept for some minutes after it has gone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._members: dict[str, _Present] = {}

    def arrive(self, report: pb.MemberReport) -> bool:
        """Take the first report on a stream; return False when there is no room for another member."""
        found = self._members.get(report.member)
        if found is None:
            self._forget()
            if len(self._members) >= MEMBERS_MAX:
                return False
            self._members[report.member] = _Present(report, self._clock())
            return True
        found.report, found.heard_at_s = report, self._clock()
        found.streams += 1
        return True

    def hear(self, report: pb.MemberReport) -> None:
        """Take a further report."""
        found = self._members.get(report.member)
        if found is not None:
            found.report, found.heard_at_s = report, self._clock()

    def leave(self, member: str) -> None:
        """Note that a stream has ended."""
        found = self._members.get(member)
        if found is not None:
            found.streams -= 1

    def attending(self) -> dict[str, pb.MemberReport]:
        """Return the newest report of each member that has a stream."""
        return {member: found.report for member, found in self._members.items() if found.streams > 0}

    def status(self) -> list[pb.MemberStatus]:
        """Return every member that is known here with the age of its report, by id."""
        self._forget()
        now_s = self._clock()
        return [
            pb.MemberStatus(report=found.report, age_ms=int((now_s - found.heard_at_s) * 1000))
            for _, found in sorted(self._members.items())
        ]

    def _forget(self) -> None:
        until_s = self._clock() - GONE_KEPT_S
        for member in [m for m, found in self._members.items() if found.streams <= 0 and found.heard_at_s < until_s]:
            del self._members[member]


class Roll:
    """Writes who attends into etcd. One call at a time."""

    def __init__(self, registry: Registry, attendance: Attendance) -> None:
        self._registry = registry
        self._attendance = attendance
        self._lease: Lease | None = None
        self._written: dict[str, bytes] = {}

    async def write(self) -> None:
        """Bring etcd's keys and those who attend together, some at a time. Raises RegistryError."""
        lease = self._lease
        if lease is None or not lease.held(time.monotonic()):
            if lease is not None:
                await lease.close()
            self._lease = None
            self._written.clear()
            lease = self._lease = await self._registry.grant(LEASE_S)
        wanted = {member: _line(report) for member, report in self._attendance.attending().items()}
        stale = [member for member in self._written if member not in wanted]
        fresh = [member for member, line in wanted.items() if self._written.get(member) != line]
        for member in stale[:WRITES_PER_PASS]:
            await self._delete(member)
        for member in fresh[:WRITES_PER_PASS]:
            await self._put(member, wanted[member], lease)

    async def close(self) -> None:
        """Give the lease up, and with it every key. Raises nothing."""
        if self._lease is not None:
            await self._lease.close()
            self._lease = None

    async def _put(self, member: str, line: bytes, lease: Lease) -> None:
        key = RegistryKey(MEMBERS_PREFIX + member)
        found = await self._registry.get(key)
        guard = Guard(key, ABSENT if found is None else found.mod_revision)
        await self._registry.commit((Put(key, line, lease.id),), guards=(guard,))
        self._written[member] = line

    async def _delete(self, member: str) -> None:
        key = RegistryKey(MEMBERS_PREFIX + member)
        found = await self._registry.get(key)
        # Another control of the side may have written it since: then the member attends there.
        if found is not None and found.value == self._written[member]:
            await self._registry.delete(key, found.mod_revision)
        self._written.pop(member, None)


def elsewhere(watch: Watch, known: set[str]) -> list[pb.MemberStatus]:
    """Return the members that attend another control of this side, as etcd names them; their age is -1: not known."""
    found: list[pb.MemberStatus] = []
    for key, entry in sorted(watch.state.items()):
        member = key.removeprefix(MEMBERS_PREFIX)
        if member in known:
            continue
        try:
            line = json.loads(entry.value)
            report = pb.MemberReport(member=member, role=str(line["role"]), instance=str(line["instance"]))
        except (ValueError, KeyError, TypeError):
            continue
        found.append(pb.MemberStatus(report=report, age_ms=-1))
    return found


def _line(report: pb.MemberReport) -> bytes:
    line = {"v": 1, "role": report.role, "instance": report.instance}
    return json.dumps(line, sort_keys=True, separators=(",", ":")).encode()

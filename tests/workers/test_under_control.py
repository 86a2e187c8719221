"""Two processes of one edge, with a real control plane and a real scheduler: each is a member and has a session."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.path.ask import Ask, body_of, checked
from benchmarks.stand import EDGE, LOOPBACK, SITE, TWO_HOP, Scale, Stand
from orchestrator.cli.evidence import records
from orchestrator.cli.status import fetch_status
from orchestrator.config.secret import read_secret
from protos.tidegate.v1 import control_pb2 as pb

TIMEOUT_S = 60
NAMES = [EDGE, f"{EDGE}.w1"]
REQUESTS = 24


async def members_of(stand: Stand) -> dict[str, pb.MemberReport]:
    """What control was told by each process of the edge."""
    (status,) = await fetch_status([(stand._control, read_secret(stand._file("operator.token")))])
    assert status.reply is not None
    return {one.report.member: one.report for one in status.reply.members if one.report.role == "edge"}


async def until(stand: Stand, holds: Callable[[dict[str, pb.MemberReport]], bool]) -> dict[str, pb.MemberReport]:
    end_at = time.monotonic() + TIMEOUT_S
    while not holds(members := await members_of(stand)):
        assert time.monotonic() < end_at, members
        await asyncio.sleep(0.2)
    return members


def both_see_the_site(members: dict[str, pb.MemberReport]) -> bool:
    pools = [{pool.pool: pool.state for pool in members[name].pools} for name in NAMES if name in members]
    return len(pools) == 2 and all(found and set(found.values()) == {"up"} for found in pools)


@pytest.mark.e2e
@pytest.mark.timeout(240)
async def test_each_process_is_a_member_with_sessions_of_its_own() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        stand = Stand(folder, None, Scale(edge={"processes": 2}))
        try:
            await stand.start()
            members = await until(stand, both_see_the_site)
            assert sorted(members) == NAMES
            assert len({report.instance for report in members.values()}) == 2
            assert all(not list(report.alarms) for report in members.values())
            sessions = [report.sessions[0] for report in members.values()]
            assert {(one.peer, one.state) for one in sessions} == {(SITE, "live")}
            assert len({one.session for one in sessions}) == 2
            headers = {"authorization": f"Bearer {stand.api_key}", "content-type": "application/json"}
            body = body_of(stand.engines[0].model(TWO_HOP), stream=False, tokens=4)
            ask = Ask(LOOPBACK, stand.edge_port, headers, body)
            # A connection for each, which the system spreads over the processes.
            await asyncio.gather(*(checked(ask, 4) for _ in range(REQUESTS)))
        finally:
            await stand.stop()
        spools = [stand.data("edge") / "spool", stand.data("edge") / "worker-1" / "spool"]
        sent = [Counter(one["pool"] for one in records(spool, "decision")) for spool in spools]
        assert all(sent)
        assert sum(sent[0].values()) + sum(sent[1].values()) == REQUESTS
        assert sum(1 for _ in records(stand.data("scheduler") / "spool", "decision")) == REQUESTS

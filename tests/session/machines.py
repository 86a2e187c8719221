"""Machines at the points from which tests of single rules begin."""

from __future__ import annotations

from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import AttemptId, EdgeId, SchedulerId, SessionId
from orchestrator.wire import session_edge as e
from orchestrator.wire import session_intake as i
from orchestrator.wire.frames import (
    SESSION_VERSION,
    Broken,
    EdgeFrame,
    Hello,
    IntakeFrame,
    Welcome,
)
from tests.session.world import WALL_MS, load, made_id

EPOCH = 3
ATTEMPT = AttemptId(made_id("att", 1))
NOTHING = PoolCounts()


def greeting(epoch: int = EPOCH) -> Hello:
    versions = (SESSION_VERSION, SESSION_VERSION)
    return Hello(*versions, EdgeId("edge-a"), SessionId(made_id("ses", 1)), epoch, WALL_MS, 64)


def welcome(version: int = SESSION_VERSION, streams_max: int = 64) -> Welcome:
    return Welcome(version, SchedulerId("site"), "one", WALL_MS + 500, streams_max, (load(7),))


def edge(streams_max: int = 64) -> e.EdgeSession:
    """A live session, seen from the edge."""
    machine = e.EdgeSession(EdgeId("edge-a"), SessionId(made_id("ses", 1)), EPOCH - 1)
    machine.connected(0, WALL_MS)
    take(machine, welcome(streams_max=streams_max), 100_000)
    return machine


def take(machine: e.EdgeSession, frame: IntakeFrame, now_us: int = 200_000) -> list[e.Instruction]:
    return machine.received(EPOCH, [frame], now_us, WALL_MS)


def intake(streams_max: int = 64) -> i.IntakeSession:
    """A live session, seen from the intake."""
    machine = i.IntakeSession(SchedulerId("site"), "one", streams_max)
    machine.connected(0)
    machine.greeted(EPOCH, greeting(), 0, WALL_MS, ())
    return machine


def hand(machine: i.IntakeSession, frame: EdgeFrame, now_us: int = 0) -> list[i.Instruction]:
    return machine.received(EPOCH, [frame], now_us)


def broken(instructions: list[e.Instruction]) -> Broken:
    (frame,) = (one.frame for one in instructions if isinstance(one, e.Deliver))
    assert isinstance(frame, Broken)
    return frame


def sent(instructions: list[i.Instruction]) -> list[IntakeFrame]:
    return [one.frame for one in instructions if isinstance(one, i.Send)]


def ticked(machine: e.EdgeSession, from_us: int, until_us: int) -> list[e.Instruction]:
    """Let time pass with a tick as often as it should be."""
    return [told for now_us in range(from_us, until_us + 1, e.TICK_MS * 1_000) for told in machine.tick(now_us)]

"""What an edge says over a transport: who does not keep to the order, or reads nothing, is cut off, and only that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import grpc
import pytest
import pytest_asyncio

from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import SchedulerId, SessionId
from orchestrator.wire.channels import open_channel
from orchestrator.wire.convert_session import edge_batch_out, intake_frame_in
from orchestrator.wire.frames import (
    CREDIT_BYTES_MIN,
    SESSION_VERSION,
    Beat,
    Broken,
    Hello,
    IntakeFrame,
    Load,
    Open,
    Refused,
    Tokens,
)
from orchestrator.wire.session_intake import IntakeSession
from protos.tidegate.v1 import session_pb2
from protos.tidegate.v1.session_pb2_grpc import IntakeStub
from scheduler.intake import sessions
from scheduler.intake.sessions import Line, Port
from scheduler.intake.site import Site
from tests.intake.site_stand import EDGE, Stand, now_ms, now_us, standing
from tests.session.world import load, made_id, open_frame
from tests.values import replace

SOON_S = 5.0


@pytest_asyncio.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    async with standing(tmp_path) as made:
        yield made


async def test_whoever_does_not_greet_first_is_cut_off(stand: Stand) -> None:
    async with open_channel(stand.link.target) as channel:
        call = IntakeStub(channel).Session(timeout=SOON_S)
        await call.write(edge_batch_out(1, [Beat(1)]))
        with suppress(grpc.aio.AioRpcError):
            assert await call.read() is grpc.aio.EOF
        call.cancel()


async def test_an_edge_that_reads_nothing_is_cut_off(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OUTBOX_FRAMES_MAX", 10)
    port = Port(stand.site, IntakeSession(stand.site.scheduler, "instance"), now_us, lambda port: None)
    hello = Hello(SESSION_VERSION, SESSION_VERSION, EDGE, SessionId(made_id("ses", 1)), 1, now_ms(), 8)
    port.carry(Line(), hello)
    port.act(port.machine.greeted(1, hello, now_us(), now_ms(), ()))
    # Nobody takes the frames of this port away; the greeting's answer is the first.
    for number in range(10):
        assert not port.over
        port.act(port.machine.load(load(number)))
    assert port.over


async def test_nothing_is_begun_for_a_session_that_ends_by_the_message_that_asks_for_it(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "OUTBOX_FRAMES_MAX", 1)
    port = Port(stand.site, IntakeSession(stand.site.scheduler, "instance"), now_us, lambda port: None)
    hello = Hello(SESSION_VERSION, SESSION_VERSION, EDGE, SessionId(made_id("ses", 1)), 1, now_ms(), 8)
    port.carry(Line(), hello)
    port.act(port.machine.greeted(1, hello, now_us(), now_ms(), ()))
    # The first is refused at once, and nobody takes that away: the second has no session any more.
    stand.site.draining = True
    asked = [open_frame(number, number, CREDIT_BYTES_MIN) for number in (1, 2)]
    port.act(port.machine.received(1, asked, now_us()))
    assert port.over
    assert stand.site.busy() == 0


async def test_an_attempt_that_cannot_be_read_is_refused_in_its_turn_and_what_comes_beside_it_is_not(
    stand: Stand,
) -> None:
    hello = Hello(SESSION_VERSION, SESSION_VERSION, EDGE, SessionId(made_id("ses", 1)), 1, now_ms(), 8)
    told = edge_batch_out(1, [hello, *(open_frame(number, number, CREDIT_BYTES_MIN) for number in (1, 2, 3))])
    told.frames[2].open.decision = "none"
    refused: dict[int, Refused] = {}
    async with open_channel(stand.link.target) as channel, asyncio.timeout(SOON_S):
        call = IntakeStub(channel).Session()
        await call.write(told)
        while len(refused) < 3:
            batch = await call.read()
            assert isinstance(batch, session_pb2.IntakeBatch)
            for frame in map(intake_frame_in, batch.frames):
                if isinstance(frame, Refused):
                    refused[frame.stream] = frame
        call.cancel()
    unread = [number for number, frame in refused.items() if "cannot read" in frame.detail]
    assert unread == [2]
    assert "open.decision" in refused[2].detail


@pytest.mark.parametrize("second", [1, 2], ids=["its epoch", "a later epoch"])
async def test_a_transport_that_greets_twice_ends_its_session_after_what_it_said_before(
    stand: Stand, second: int
) -> None:
    hello = Hello(SESSION_VERSION, SESSION_VERSION, EDGE, SessionId(made_id("ses", 1)), 1, now_ms(), 8)
    heard: list[IntakeFrame] = []
    async with open_channel(stand.link.target) as channel, asyncio.timeout(SOON_S):
        call = IntakeStub(channel).Session()
        await call.write(edge_batch_out(1, [hello, Beat(1)]))
        await call.write(edge_batch_out(second, [Beat(2), replace(hello, epoch=second), Beat(3)]))
        with suppress(grpc.aio.AioRpcError):
            while isinstance(batch := await call.read(), session_pb2.IntakeBatch):
                heard += map(intake_frame_in, batch.frames)
        call.cancel()
    answered = [frame.answers for frame in heard if isinstance(frame, Beat)]
    assert answered == ([1, 2] if second == 1 else [1])
    async with asyncio.timeout(SOON_S):
        while any(port.machine.session == hello.session for port in stand.intake.ports):  # noqa: ASYNC110 - it is asked
            await asyncio.sleep(0.01)


class Hasty:
    """A site that says something in the midst of what it is told."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.faulty: set[int] = set()

    def start(self, _port: Port, _edge: object, opened: Open, _now_us: int) -> None:
        if opened.stream in self.faulty:
            raise ZeroDivisionError
        self.begun.append(opened.stream)

    def stop(self, port: Port, stream: int) -> None:
        if stream == 1:
            port.broken(2, "engine_failed", "gone", PoolCounts())
            port.tell(load(1).pool)

    def hold(self, _port: Port, _stream: int, *, held: bool) -> None:
        pass

    def load(self, _pool: object, _port: Port) -> Load:
        return load(1)


def attached(site: Hasty) -> Port:
    """A session with two streams whose edge reads little of the first."""
    port = Port(cast(Site, site), IntakeSession(SchedulerId("site"), "one"), now_us, lambda port: None)
    hello = Hello(SESSION_VERSION, SESSION_VERSION, EDGE, SessionId(made_id("ses", 1)), 1, now_ms(), 8)
    port.carry(Line(), hello)
    port.act(port.machine.greeted(1, hello, now_us(), now_ms(), ()))
    asked = [open_frame(1, 1, CREDIT_BYTES_MIN), open_frame(2, 2, 65_536)]
    port.act(port.machine.received(1, asked, now_us()))
    assert port.line is not None
    port.line.outbox.take()
    return port


async def test_what_is_said_in_the_midst_of_something_comes_after_it_and_leaves_with_it() -> None:
    port = attached(Hasty())
    assert port.line is not None
    port.tokens(1, "x" * 200_000, (), 1, True)
    port.gather()
    port.line.outbox.take()
    port.tokens(2, "hello", (), 1, True)
    port.tokens(1, "x" * 200_000, (), 1, True)  # more than its edge said it would read: it is stopped
    port.gather()
    told = [(type(frame), getattr(frame, "stream", None)) for frame in port.line.outbox.take()]
    assert told == [(Broken, 1), (Tokens, 2), (Broken, 2), (Load, None)]
    port.gather()
    assert not port.line.outbox.frames


async def test_a_fault_of_one_attempt_keeps_no_other_from_its_end() -> None:
    site = Hasty()
    site.faulty = {1}
    port = Port(cast(Site, site), IntakeSession(SchedulerId("site"), "one"), now_us, lambda port: None)
    hello = Hello(SESSION_VERSION, SESSION_VERSION, EDGE, SessionId(made_id("ses", 1)), 1, now_ms(), 8)
    port.carry(Line(), hello)
    port.act(port.machine.greeted(1, hello, now_us(), now_ms(), ()))
    asked = [open_frame(number, number, CREDIT_BYTES_MIN) for number in (1, 2)]
    with pytest.raises(ZeroDivisionError):
        port.act(port.machine.received(1, asked, now_us()))
    port.act(port.machine.tick(now_us()))
    assert site.begun == [2]

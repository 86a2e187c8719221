"""What an edge says over a transport: who does not keep to the order, or reads nothing, is cut off, and only that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from orchestrator.policy.ids import SessionId
from orchestrator.wire.channels import open_channel
from orchestrator.wire.convert_session import edge_batch_out, intake_frame_in
from orchestrator.wire.frames import CREDIT_BYTES_MIN, SESSION_VERSION, Beat, Hello, IntakeFrame, Refused
from orchestrator.wire.session_intake import IntakeSession
from protos.tidegate.v1 import session_pb2
from protos.tidegate.v1.session_pb2_grpc import IntakeStub
from scheduler.intake import sessions
from scheduler.intake.sessions import Line, Port
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

"""What an edge's link hands to a tenant of what an intake says in one message, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import grpc
import pytest

from node_agent.uplink.sending import Sendable, Tally
from node_agent.uplink.session_link import SessionLink
from node_agent.uplink.stream import CREDIT_BYTES, FRAMES_MAX
from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import AttemptId, EdgeId, PoolId, ReplicaId, SchedulerId
from orchestrator.wire.channels import bind, make_server
from orchestrator.wire.convert_session import edge_frame_in, intake_batch_out
from orchestrator.wire.frames import (
    SESSION_VERSION,
    Accepted,
    Beat,
    Broken,
    Credit,
    Done,
    EdgeFrame,
    Hello,
    IntakeFrame,
    Open,
    Settle,
    StreamFrame,
    Tokens,
    Welcome,
    held_bytes,
)
from protos.tidegate.v1 import session_pb2 as pb
from protos.tidegate.v1.session_pb2_grpc import IntakeServicer, add_IntakeServicer_to_server
from tests.sending import sent
from tests.session.world import POOL, WALL_MS, load, open_frame
from tests.values import replace

SOON_S = 10.0
Script = Callable[[AttemptId], list[IntakeFrame]]


class ScriptedIntake(IntakeServicer):
    """An intake that answers an attempt with what its script says, in one message, and the first credit likewise."""

    def __init__(self, script: Script, credited: Script) -> None:
        self.heard: list[EdgeFrame] = []
        self.garbled = False
        self._script = script
        self._credited = credited
        self._attempt = AttemptId("")

    async def Session(
        self,
        request_iterator: AsyncIterator[pb.EdgeBatch],
        context: grpc.aio.ServicerContext[pb.EdgeBatch, pb.IntakeBatch],
    ) -> AsyncIterator[pb.IntakeBatch]:
        async for batch in request_iterator:
            for message in batch.frames:
                frame = edge_frame_in(message)
                self.heard.append(frame)
                said = self._answer(frame)
                if said:
                    told = intake_batch_out(batch.epoch, said)
                    if isinstance(frame, Open) and self.garbled:
                        told.frames.append(pb.IntakeFrame())  # a frame of no kind
                    yield told

    def _answer(self, frame: EdgeFrame) -> list[IntakeFrame]:
        if isinstance(frame, Hello):
            return [Welcome(SESSION_VERSION, SchedulerId("site"), "one", WALL_MS, 8, (load(1),))]
        if isinstance(frame, Open):
            self._attempt = frame.attempt
            return self._script(frame.attempt)
        if isinstance(frame, Credit) and sum(isinstance(one, Credit) for one in self.heard) == 1:
            return self._credited(self._attempt)
        if isinstance(frame, Beat):
            settled = sum(isinstance(one, Settle) for one in self.heard)
            return [Beat(0, frame.number, settled)]
        return []


@asynccontextmanager
async def linked(script: Script, credited: Script) -> AsyncIterator[tuple[SessionLink, ScriptedIntake]]:
    """A link with a live session to an intake that keeps to a script."""
    intake = ScriptedIntake(script, credited)
    server = make_server()
    add_IntakeServicer_to_server(intake, server)
    port = bind(server, "127.0.0.1:0")
    await server.start()
    link = SessionLink(EdgeId("edge-a"), SchedulerId("site"), f"127.0.0.1:{port}", lambda: WALL_MS)
    running = asyncio.create_task(link.run())
    try:
        async with asyncio.timeout(SOON_S):
            while not link.state().accepts_work:  # noqa: ASYNC110 - the other side is asked
                await asyncio.sleep(0.005)
        yield link, intake
        await link.close()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.stop(None)


def sendable() -> Sendable:
    made = open_frame(1, 1, CREDIT_BYTES)
    return Sendable(
        made.attempt,
        made.decision,
        made.request,
        made.pool,
        made.generation,
        made.facts,
        made.citation,
        made.key_id,
        made.signature,
        made.budget_ms,
    )


def nothing(_: AttemptId) -> list[IntakeFrame]:
    return []


async def handed_on(script: Script, credited: Script = nothing) -> tuple[list[StreamFrame], Tally, list[EdgeFrame]]:
    """Return what a tenant gets, what was counted, and what the intake heard."""
    tally = Tally()
    async with linked(script, credited) as (link, intake):
        async with asyncio.timeout(SOON_S), aclosing(sent(link.send, sendable(), tally)) as frames:
            found = [frame async for frame in frames]
    return found, tally, intake.heard


def accepted(attempt: AttemptId) -> Accepted:
    return Accepted(1, attempt, ReplicaId("r"))


def tokens(attempt: AttemptId, first: int, text: str) -> Tokens:
    return Tokens(1, attempt, first, len(text), text, tuple(range(first, first + len(text))))


def done(attempt: AttemptId, sent: int) -> Done:
    return Done(1, attempt, "stop", PoolCounts(1, 0, sent, sent))


async def test_tokens_that_came_together_are_one_frame() -> None:
    frames, tally, heard = await handed_on(
        lambda attempt: [
            accepted(attempt),
            tokens(attempt, 0, "ab"),
            tokens(attempt, 2, "c"),
            tokens(attempt, 3, "de"),
            done(attempt, 5),
        ]
    )
    attempt = sendable().attempt
    assert frames == [accepted(attempt), tokens(attempt, 0, "abcde"), done(attempt, 5)]
    assert tally.counts() == EdgeCounts(5, 5)
    assert Settle(1, attempt, EdgeCounts(5, 5)) in heard


async def test_what_came_before_a_frame_that_cannot_be_read_is_handed_on() -> None:
    def script(attempt: AttemptId) -> list[IntakeFrame]:
        return [accepted(attempt), tokens(attempt, 0, "ab")]

    async with linked(script, nothing) as (link, intake):
        intake.garbled = True
        async with asyncio.timeout(SOON_S), aclosing(sent(link.send, sendable(), Tally())) as frames:
            found = [frame async for frame in frames]
    attempt = sendable().attempt
    assert found[:2] == [accepted(attempt), tokens(attempt, 0, "ab")]
    assert isinstance(found[-1], Broken)
    assert len(found) == 3


async def test_what_came_together_is_credited_whole() -> None:
    texts = [letter * 20_000 for letter in "abc"]
    _, _, heard = await handed_on(
        lambda attempt: [
            accepted(attempt),
            *(Tokens(1, attempt, number, 1, text, ()) for number, text in enumerate(texts)),
        ],
        lambda attempt: [done(attempt, 3)],
    )
    credited = sum(frame.size_bytes for frame in heard if isinstance(frame, Credit))
    assert credited == sum(held_bytes(text, ()) for text in texts)


async def test_tokens_are_handed_on_in_order_with_what_came_between_them() -> None:
    frames, tally, _ = await handed_on(
        lambda attempt: [
            tokens(attempt, 0, "a"),
            tokens(attempt, 1, "b"),
            accepted(attempt),
            tokens(attempt, 2, "c"),
            done(attempt, 3),
        ]
    )
    attempt = sendable().attempt
    assert frames == [tokens(attempt, 0, "ab"), accepted(attempt), tokens(attempt, 2, "c"), done(attempt, 3)]
    assert tally.counts() == EdgeCounts(3, 3)


@pytest.mark.parametrize("more", [0, 1])
async def test_an_intake_that_sends_more_frames_than_a_stream_has_cuts_it(more: int) -> None:
    frames, tally, _ = await handed_on(
        lambda attempt: [
            tokens(attempt, 0, "a"),
            *([accepted(attempt)] * (FRAMES_MAX - 2 + more)),
            done(attempt, 1),
        ]
    )
    last = frames[-1]
    if more:
        # A prefix, and no gap: nothing that waited is handed on.
        assert frames == [last]
        assert isinstance(last, Broken)
        assert last.code == "protocol_violation"
        assert tally.counts() == EdgeCounts(1, 0)
    else:
        assert isinstance(last, Done)
        assert len(frames) == FRAMES_MAX


async def test_what_was_sent_since_a_pool_was_heard_of_is_taken_from_what_it_takes() -> None:
    left: list[int] = []

    def script(attempt: AttemptId) -> list[IntakeFrame]:
        stream = len(left) + 1
        report = [replace(load(1 + stream), openings=5)] if stream in (1, 4) else []
        return [*report, replace(done(attempt, 0), stream=stream)]

    async with linked(script, nothing) as (link, _):
        assert (link.left(POOL), link.left(PoolId("another"))) == (0, 0)
        for _ in range(4):
            async with asyncio.timeout(SOON_S), aclosing(sent(link.send, sendable(), Tally())) as frames:
                assert [type(frame) async for frame in frames] == [Done]
            left.append(link.left(POOL))
    assert left == [5, 4, 3, 5]


@pytest.mark.parametrize("openings", [1, 0, None])
async def test_what_a_pool_takes_is_never_less_than_nothing(openings: int | None) -> None:
    left: list[int] = []

    def script(attempt: AttemptId) -> list[IntakeFrame]:
        stream = len(left) + 1
        report = [replace(load(2), openings=openings)] if stream == 1 else []
        return [*report, replace(done(attempt, 0), stream=stream)]

    async with linked(script, nothing) as (link, _):
        for _ in range(3):
            async with asyncio.timeout(SOON_S), aclosing(sent(link.send, sendable(), Tally())) as frames:
                assert [type(frame) async for frame in frames] == [Done]
            left.append(link.left(POOL))
    assert left == [openings or 0, 0, 0]

"""What is ready leaves in messages that are not too large, and what no message holds is refused before it is opened."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from hypothesis import given
from hypothesis import strategies as st

from node_agent.uplink.sending import Sendable, Tally
from orchestrator.engines.generation import Generation, Message, Resume, Role, Said, Sampling
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import AttemptId, ModelId, digest_of
from orchestrator.wire import session_edge as e
from orchestrator.wire.convert_session import edge_batch_out, fits, intake_batch_out, intake_frame_in
from orchestrator.wire.frames import (
    CREDIT_BYTES_MIN,
    MESSAGE_BYTES_MAX,
    Beat,
    Done,
    EdgeFrame,
    IntakeFrame,
    Open,
    Refused,
    StreamFrame,
    Tokens,
    Welcome,
)
from orchestrator.wire.portions import PORTION_BYTES_MAX, generation_bytes_most, portions
from orchestrator.wire.silence import FUTILE_MAX
from tests.sending import sent
from tests.session.machines import edge, welcome
from tests.session.test_what_a_link_hands_on import SOON_S, linked, nothing, sendable
from tests.session.world import WALL_MS, made_id, open_frame
from tests.values import replace

LARGE = 1_200_000
"""Characters of a prompt of which seven are more than a message."""


def asking(text: str, said: Said | None = None) -> Generation:
    return Generation(ModelId("m"), (Message(Role.USER, text),), Sampling(), said)


def opening(number: int, text: str) -> Open:
    return replace(open_frame(number, number, CREDIT_BYTES_MIN), generation=asking(text))


TEXTS = st.tuples(st.sampled_from("aé中𝄞"), st.sampled_from([1, 1_000, 300_000, 700_000, 1_100_000])).map(
    lambda drawn: drawn[0] * drawn[1]
)


@given(st.lists(TEXTS, min_size=1, max_size=10))
def test_attempts_leave_in_order_in_messages_that_are_not_too_large(texts: list[str]) -> None:
    frames: list[EdgeFrame] = [opening(number, text) for number, text in enumerate(texts, 1)]
    told = portions(frames)
    assert [frame for portion in told for frame in portion] == frames
    for portion in told:
        assert len(portion) == 1 or edge_batch_out(1, portion).ByteSize() <= PORTION_BYTES_MAX


@given(st.lists(st.tuples(TEXTS, st.sampled_from([0, 1, 100_000])), min_size=1, max_size=10))
def test_tokens_leave_in_order_in_messages_that_are_not_too_large(drawn: list[tuple[str, int]]) -> None:
    attempt = AttemptId(made_id("att", 1))
    frames: list[IntakeFrame] = [
        Tokens(1, attempt, number, ids or 1, text, (2**32 - 1,) * ids) for number, (text, ids) in enumerate(drawn)
    ]
    told = portions(frames)
    assert [frame for portion in told for frame in portion] == frames
    for portion in told:
        assert len(portion) == 1 or intake_batch_out(1, portion).ByteSize() <= PORTION_BYTES_MAX


def test_what_is_ready_mostly_leaves_as_one_message() -> None:
    frames: list[EdgeFrame] = [opening(number, "hello" * 100) for number in range(1, 300)]
    assert portions(frames) == [frames]
    many: list[IntakeFrame] = [Beat(number) for number in range(1, 1_000)]
    assert portions(many) == [many]


@given(TEXTS, st.none() | st.sampled_from([0, 50_000]))
def test_what_a_generation_takes_is_never_taken_for_less(text: str, ids: int | None) -> None:
    said = None if ids is None else Said(Resume.IDS, digest_of(b"m"), ids, text, (2**32 - 1,) * ids)
    frame = replace(open_frame(1, 1, CREDIT_BYTES_MIN), generation=asking(text, said))
    bare = edge_batch_out(1, [open_frame(1, 1, CREDIT_BYTES_MIN)]).ByteSize()
    assert edge_batch_out(1, [frame]).ByteSize() - bare <= generation_bytes_most(frame.generation) + 200


def asked_for(number: int, text: str) -> Sendable:
    return replace(sendable(), attempt=AttemptId(made_id("att", number)), generation=asking(text))


async def test_large_prompts_that_come_together_all_arrive() -> None:
    """A message that is too large would end the transport, and be as large again on the next one."""

    def finished(attempt: AttemptId) -> list[IntakeFrame]:
        return [Done(int(attempt[4:], 16), attempt, "stop", PoolCounts())]

    async with linked(finished, nothing) as (link, intake):

        async def ask(number: int) -> list[StreamFrame]:
            async with aclosing(sent(link.send, asked_for(number, "x" * LARGE), Tally())) as frames:
                return [frame async for frame in frames]

        async with asyncio.timeout(SOON_S):
            answers = await asyncio.gather(*(ask(number) for number in range(1, 9)))
    assert [type(answer[-1]) for answer in answers] == [Done] * 8
    opened = [frame for frame in intake.heard if isinstance(frame, Open)]
    assert [frame.stream for frame in opened] == [*range(1, 9)]
    assert {len(frame.generation.messages[0].text) for frame in opened} == {LARGE}


async def test_an_attempt_that_no_message_holds_is_refused_and_the_session_goes_on() -> None:
    def finished(attempt: AttemptId) -> list[IntakeFrame]:
        return [Done(1, attempt, "stop", PoolCounts())]

    async with linked(finished, nothing) as (link, intake), asyncio.timeout(SOON_S):
        for text, end in (("x" * (MESSAGE_BYTES_MAX + 1), Refused), ("x" * (MESSAGE_BYTES_MAX - 5_000), Done)):
            async with aclosing(sent(link.send, asked_for(1, text), Tally())) as frames:
                found = [frame async for frame in frames]
            assert type(found[-1]) is end
            if isinstance(found[-1], Refused):
                assert found[-1].code == "body_too_large"
    assert sum(isinstance(frame, Open) for frame in intake.heard) == 1


def test_whether_an_attempt_fits_is_told_to_the_byte() -> None:
    bare = edge_batch_out(2**64 - 1, [opening(1, "x" * (MESSAGE_BYTES_MAX - 10_000))]).ByteSize()
    room = MESSAGE_BYTES_MAX - bare
    assert fits(opening(1, "x" * (MESSAGE_BYTES_MAX - 10_000 + room)))
    assert not fits(opening(1, "x" * (MESSAGE_BYTES_MAX - 10_000 + room + 1)))


def test_a_count_that_the_wire_cannot_carry_is_told_as_the_most_that_it_can() -> None:
    done = Done(1, AttemptId(made_id("att", 1)), "stop", PoolCounts(2**32, 2**40, 2**52, 7))
    told = intake_frame_in(intake_batch_out(1, [done]).frames[0])
    assert isinstance(told, Done)
    assert told.counts == PoolCounts(2**32 - 1, 2**32 - 1, 2**32 - 1, 7)


def attached_again(machine: e.EdgeSession, now_us: int, *, answered: bool) -> None:
    """Lose the transport and go on over another one, on which the beat behind the greeting is answered or is not."""
    machine.lost(now_us)
    machine.connected(now_us, WALL_MS)
    greeting: Welcome = replace(welcome(), continued=True, last_stream=1)
    beats = [
        one.frame
        for one in machine.received(machine.epoch, [greeting], now_us, WALL_MS)
        if isinstance(one, e.Send) and isinstance(one.frame, Beat)
    ]
    if answered:
        machine.received(machine.epoch, [Beat(0, beats[-1].number)], now_us, WALL_MS)


def test_transports_on_which_nothing_is_answered_give_no_new_time_for_ever() -> None:
    """What cannot be sent ends each transport that tries: the session would be taken up again without end."""
    machine, now_us = edge(), 300_000
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), now_us)
    for _ in range(60):
        now_us += 30_000
        attached_again(machine, now_us, answered=False)
        machine.lost(now_us)
        told = machine.tick(now_us)
        if machine.state is e.State.CLOSED:
            break
        machine.connected(now_us, WALL_MS)
        machine.received(machine.epoch, [replace(welcome(), continued=True, last_stream=1)], now_us, WALL_MS)
    assert told[-1] == e.Close("session_lost")
    assert machine.reattached >= FUTILE_MAX


def test_a_transport_on_which_something_was_answered_gives_new_time() -> None:
    machine, now_us = edge(), 300_000
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), now_us)
    for _ in range(10 * FUTILE_MAX):
        now_us += e.REATTACH_TRY_MS * 1_000 // 2
        attached_again(machine, now_us, answered=True)
        machine.lost(now_us)
        assert machine.tick(now_us) == []
        machine.connected(now_us, WALL_MS)
        machine.received(machine.epoch, [replace(welcome(), continued=True, last_stream=1)], now_us, WALL_MS)
    assert machine.state is e.State.LIVE

"""A comment that waits for a slow reader is in nobody's way, and events go out whole and in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from node_agent.front.exchange import Exchange
from node_agent.front.framing import read_head
from node_agent.front.sse import KEEP_ALIVE
from node_agent.front.stream import EventStream
from orchestrator.policy.ids import make_request_id
from orchestrator.wire.catalogue import Problem, ProblemError
from tests.front.room import until

EVENT = b"data: a\n\n"


class SlowReader:
    """A client of the front that takes everything, and has enough until it is told otherwise."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.gone = False
        self.fault: Problem | None = None
        self.left: Callable[[], None] | None = None
        self.sent: list[bytes] = []
        self.takes = asyncio.Event()
        self.untaken = 0
        self.waits = 0
        """How many wait for it at once, and the most that ever did."""
        self.waits_most = 0

    def here(self) -> bytes | None:
        return b""

    def bound(self, size_max: int) -> None:
        """It has no body."""

    async def part(self) -> tuple[bytes, bool] | None:
        return None

    def begin(self, status: int, lines: list[str], length: int | None, close: bool) -> None:
        """It keeps no head."""

    def put(self, data: bytes, last: bool = False) -> bool:
        self.sent.append(data)
        return self.takes.is_set()

    async def writable(self) -> None:
        self.waits += 1
        self.waits_most = max(self.waits_most, self.waits)
        try:
            await self.takes.wait()
        finally:
            self.waits -= 1

    def untaken_bytes(self) -> int:
        return self.untaken


def exchange_with(reader: SlowReader, write_timeout_ms: int) -> Exchange:
    head = read_head(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n")
    return Exchange(head, reader, make_request_id(1, bytes(10)), write_timeout_ms)


async def test_an_event_behind_a_comment_that_waits_goes_out_and_waits_after_it() -> None:
    reader, stalls = SlowReader(), list[Exception]()
    exchange = exchange_with(reader, 5_000)
    events = EventStream(exchange, 10, stalls.append, asyncio.get_running_loop())
    await until(lambda: reader.waits == 1)
    assert not events.put(EVENT)
    taken = asyncio.create_task(events.taken())
    await asyncio.sleep(0.03)
    assert not taken.done()
    reader.takes.set()
    await taken
    await events.close()
    exchange.done()
    assert reader.sent == [KEEP_ALIVE, EVENT]
    assert (reader.waits, reader.waits_most, stalls) == (0, 1, [])


async def test_one_who_takes_neither_a_comment_nor_an_event_is_told_of_once_by_each() -> None:
    reader, stalls = SlowReader(), list[Exception]()
    exchange = exchange_with(reader, 30)
    events = EventStream(exchange, 10, stalls.append, asyncio.get_running_loop())
    await until(lambda: reader.waits == 1)
    assert not events.put(EVENT)
    with pytest.raises(ProblemError) as slow:
        await events.taken()
    await events.close()
    exchange.done()
    assert slow.value.problem.code == "slow_reader"
    assert [type(stall) for stall in stalls] == [ProblemError]
    assert reader.waits_most == 1


async def test_nothing_is_commented_while_events_come_in_time() -> None:
    reader = SlowReader()
    reader.takes.set()
    exchange = exchange_with(reader, 5_000)
    loop = asyncio.get_running_loop()
    events = EventStream(exchange, 500, lambda stall: None, loop)
    for _ in range(60):
        assert events.put(EVENT)
        events.wrote_s = loop.time()
        await asyncio.sleep(0.01)
    await events.close()
    exchange.done()
    assert reader.sent == [EVENT] * 60

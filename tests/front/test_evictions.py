"""Where every connection is taken, the one whose client loses least is ended for another, and it is told of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path

import pytest

from orchestrator.telemetry.logs import LogSink
from tests.front.room import Room, done, request_bytes, room_in, saying, until

HEALTH = request_bytes("GET", "/healthz", [("Host", "e")])
MOST = 6


class Guest:
    """One client and its connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self) -> None:
        self.writer.write(HEALTH)
        async with asyncio.timeout(2):
            assert (await self.reader.readuntil(b"true}")).startswith(b"HTTP/1.1 200 ")

    def ended(self) -> bool:
        return self.reader.at_eof() or self.reader.exception() is not None


class Guests:
    """The clients of a room that has few connections."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.all: list[Guest] = []

    async def come(self, *, asks: bool) -> Guest:
        before = set(self.room.server._connections)
        guest = Guest(*await asyncio.open_connection("127.0.0.1", self.room.server.port))
        self.all.append(guest)
        await until(lambda: bool(set(self.room.server._connections) - before))
        if asks:
            await guest.ask()
            await asyncio.sleep(0.01)  # the clock of the loop counts milliseconds
        return guest

    async def next_to_go(self) -> Guest:
        """Another comes: return who was ended for it."""
        staying = [guest for guest in self.all if not guest.ended()]
        await self.come(asks=True)
        await until(lambda: any(guest.ended() for guest in staying))
        (gone,) = [guest for guest in staying if guest.ended()]
        return gone


@asynccontextmanager
async def guests(folder: Path, monkeypatch: pytest.MonkeyPatch, newest: int = 0) -> AsyncIterator[Guests]:
    monkeypatch.setattr("node_agent.front.serve.CONNECTIONS_MAX", MOST)
    monkeypatch.setattr("node_agent.front.evictions.NEWEST", newest)
    async with room_in(folder, saying(done())) as room:
        here = Guests(room)
        try:
            yield here
        finally:
            for guest in here.all:
                guest.writer.transport.abort()


async def test_who_never_had_an_answer_goes_first_and_then_who_asked_longest_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guests(tmp_path, monkeypatch) as here:
        first, second = await here.come(asks=True), await here.come(asks=True)
        begun, silent = await here.come(asks=False), await here.come(asks=False)
        begun.writer.write(HEALTH[:9])
        third, fourth = await here.come(asks=True), await here.come(asks=True)
        await first.ask()
        await asyncio.sleep(0.01)
        going = [await here.next_to_go() for _ in range(5)]
        assert going == [silent, begun, second, third, fourth]
        page = here.room.metrics.render().decode()
        assert 'tidegate_connections_cut_total{cut="evicted"} 5.0' in page
        await first.ask()


async def test_who_has_begun_another_request_stays_while_anybody_else_can_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guests(tmp_path, monkeypatch) as here:
        first, *others = [await here.come(asks=True) for _ in range(MOST)]
        first.writer.write(HEALTH[:-1])
        await asyncio.sleep(0.05)
        assert [await here.next_to_go() for _ in range(3)] == others[:3]
        first.writer.write(HEALTH[-1:])
        assert (await first.reader.readuntil(b"true}")).startswith(b"HTTP/1.1 200 ")


async def test_newcomers_do_not_end_each_other_while_others_are_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.front.evictions.CHOSEN_AT_ONCE", 1)
    async with guests(tmp_path, monkeypatch, newest=2) as here:
        idle = [await here.come(asks=True) for _ in range(MOST)]
        new = [await here.come(asks=False) for _ in range(3)]
        await until(lambda: all(guest.ended() for guest in idle[:3]))
        assert not any(guest.ended() for guest in new)
        new.append(await here.come(asks=False))
        await until(lambda: new[0].ended())
        assert not any(guest.ended() for guest in (*idle[3:], *new[1:]))
        await new[1].ask()


async def test_what_was_ended_or_refused_for_want_of_room_is_told_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = StringIO()
    with LogSink(written, "edge"):
        async with guests(tmp_path, monkeypatch) as here:
            for _ in range(MOST + 3):
                await here.come(asks=True)
            await until(lambda: _told(written) == 3, 3)
    lines = written.getvalue().splitlines()
    assert all(json.loads(line)["limit"] == MOST for line in lines if "connections_full" in line)


def _told(written: StringIO) -> int:
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    return sum(line["count"] for line in lines if line["event"] == "connections_full")

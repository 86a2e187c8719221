"""One task serves what comes on a connection: nothing of one request reaches the next, and it ends with the client."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from node_agent.front.connection import Connection
from node_agent.front.framing import Head
from node_agent.front.groups import GROUP_MAX, Groups
from node_agent.front.http import Client
from tests.front.room import until

REQUEST = b"GET /a HTTP/1.1\r\nHost: e\r\n\r\n"


class House:
    """Answers every request, and does then what the test wants."""

    head_timeout_s = idle_timeout_s = write_timeout_s = 5.0
    draining = False

    def __init__(self) -> None:
        self.groups = Groups()
        self.connections: set[Connection] = set()
        self.tasks: list[asyncio.Task[object] | None] = []
        self.held: list[weakref.ref[object]] = []
        """What every request holds."""
        self.then: Callable[[], object] = list

    async def app(self, head: Head, client: Client) -> None:
        assert client.task is asyncio.current_task()
        self.tasks.append(client.task)
        client.left = lambda: None
        self.held.append(weakref.ref(client.left))
        await asyncio.sleep(0)
        client.begin(200, ["content-length: 2"], 2, False)
        client.put(b"ok", True)
        self.then()

    def came(self, connection: Connection) -> bool:
        self.connections.add(connection)
        return True

    def left(self, connection: Connection) -> None:
        self.connections.remove(connection)


class Theirs:
    """The client's end of a connection."""

    def __init__(self, end: socket.socket, ours: asyncio.Transport, house: House, connection: Connection) -> None:
        self.end = end
        self.ours = ours
        """The other end."""
        self.house = house
        self.connection = connection

    async def ask(self) -> None:
        """Ask, and read the answer."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.end, REQUEST)
        answer = await asyncio.wait_for(loop.sock_recv(self.end, 4096), 2.0)
        assert answer.endswith(b"\r\n\r\nok")

    def tasks(self) -> list[asyncio.Task[object]]:
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


@asynccontextmanager
async def connected() -> AsyncIterator[Theirs]:
    house, loop = House(), asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        transport, connection = await loop.connect_accepted_socket(lambda: Connection(house, loop), ours)
        yield Theirs(theirs, transport, house, connection)
    await until(lambda: not house.connections)


async def test_requests_have_the_same_task_and_it_ends_with_the_client() -> None:
    async with connected() as client:
        for _ in range(3):
            await client.ask()
        first, *others = client.house.tasks
        assert others == [first, first]
        assert client.tasks() == [first]
    await until(lambda: client.tasks() == [])


async def test_two_that_come_at_once_are_served_one_after_the_other() -> None:
    async with connected() as client:
        await asyncio.get_running_loop().sock_sendall(client.end, REQUEST)
        await client.ask()
        await until(lambda: len(client.house.tasks) == 2)


async def test_between_two_requests_nothing_of_the_first_is_held() -> None:
    gc.collect()
    gc.disable()
    try:
        async with connected() as client:
            await client.ask()
            await until(lambda: not client.connection.busy)
            assert client.house.held[0]() is None
    finally:
        gc.enable()


def _fail() -> None:
    raise RuntimeError


def _cancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


def _cancel_and_take_back() -> None:
    _cancel()
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


@pytest.mark.parametrize("then", [_fail, _cancel, _cancel_and_take_back])
async def test_what_one_request_ends_with_does_not_reach_the_next(then: Callable[[], object]) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with connected() as client:
        client.house.then = then
        await client.ask()
        client.house.then = list
        await client.ask()
        await client.ask()
        first, second, third = client.house.tasks
        assert first is not second is third
    await until(lambda: client.tasks() == [])


@pytest.mark.parametrize("served", [0, 1], ids=["the first", "another"])
async def test_a_request_broken_off_before_its_first_step_is_counted_out(served: int) -> None:
    async with connected() as client:
        for _ in range(served):
            await client.ask()
        await until(lambda: not client.connection.busy)
        client.connection.data_received(REQUEST)
        client.house.groups.add(lambda: broken_off.extend(client.connection.abort()))
        broken_off: list[asyncio.Task[None]] = []
        await until(lambda: not client.house.connections)
        assert len(broken_off) == 1
        assert len(client.house.tasks) == served
    await until(lambda: client.tasks() == [])


async def test_a_connection_broken_off_before_its_request_began_is_counted_out() -> None:
    async with connected() as client:
        client.connection.data_received(REQUEST)
        assert client.connection.busy
        client.connection.abort()
        await until(lambda: not client.house.connections)
        assert (client.house.tasks, client.connection.busy) == ([], False)


@pytest.mark.parametrize("broken_off", [False, True])
async def test_a_client_who_left_before_its_request_began_is_counted_out(broken_off: bool) -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with connected() as client:
        house, connection = client.house, client.connection
        for _ in range(20 * GROUP_MAX):
            house.groups.add(lambda: None)  # so many are before it that it is lost first
        connection.data_received(REQUEST)
        client.ours.abort()
        for _ in range(10):
            await asyncio.sleep(0)
        assert (connection.busy, house.tasks) == (True, [])
        if broken_off:
            assert connection.abort() == []
            assert not house.connections
        await until(lambda: not house.connections and not connection.busy)
        for _ in range(30):
            await asyncio.sleep(0)
        assert (len(house.tasks), failures) == (0 if broken_off else 1, [])
    await until(lambda: client.tasks() == [])

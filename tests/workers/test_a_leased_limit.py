"""A real edge of two processes: a tenant at one of them has more than its share, and never more than its limit."""

from __future__ import annotations

import asyncio
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from orchestrator.watch.lending import HUNG_US
from tests.idempotency.lone_edge import API_KEY, TIMEOUT_S, LoneEdge, lone_edge
from tests.workers.soon_hung import SOON_HUNG
from tests.workers.test_an_edge_of_two import BODY, CHAT, both, connection_to, folder, gone, local, process_of, until

__all__ = ["folder"]

LIMIT = 16
SHARE = LIMIT // 2
FLOOR = 1
LINES = f"processes: 2\nrequests_max: 64\ntenant_requests_max: {LIMIT}\n"
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {API_KEY}\r\n"
ASKED = f"{HEAD}content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY


class Tenant:
    """One tenant whose connections are all with one process."""

    def __init__(self, edge: LoneEdge, process: psutil.Process, stack: ExitStack, connections: int) -> None:
        self._edge = edge
        self._idle = [stack.enter_context(connection_to(edge, process)) for _ in range(connections)]
        self.busy: list[socket.socket] = []

    async def ask(self) -> int:
        """Send on every connection where nothing is under way. Returns for how many the engine was asked, of all."""
        sent, engine = self._idle, self._edge.engine
        asked = engine.asked + len(sent)
        for line in sent:
            line.sendall(ASKED)
        await until(lambda: engine.asked + len(readable(sent)) == asked)
        self._idle = readable(sent)
        for line in self._idle:
            assert line.recv(65536).startswith(b"HTTP/1.1 429")
        self.busy += [line for line in sent if line not in self._idle]
        return len(self.busy)

    async def ask_until(self, count: int) -> None:
        end_at = time.monotonic() + TIMEOUT_S
        while await self.ask() != count:
            await asyncio.sleep(0.1)
            assert time.monotonic() < end_at, len(self.busy)


def readable(lines: list[socket.socket]) -> list[socket.socket]:
    return select.select(lines, [], [], 0)[0]


@contextmanager
def held(edge: LoneEdge) -> Iterator[ExitStack]:
    """Whatever the engine was asked is answered before the connections go."""
    with ExitStack() as stack:
        yield stack
        edge.engine.may_answer.set()


def gauge(edge: LoneEdge, index: int, name: str) -> float:
    page = local(edge, index, "/metrics").decode()
    return float(page.partition(f"\n{name} ")[2].split("\n")[0])


@pytest.mark.timeout(240)
async def test_a_tenant_at_one_process_has_nearly_its_whole_limit_and_the_edge_never_more(folder: Path) -> None:
    with lone_edge(folder, LINES) as edge, held(edge) as stack:
        processes = await both(edge)
        first, second = (Tenant(edge, process, stack, LIMIT + 4) for process in processes)
        await second.ask_until(LIMIT - FLOOR)
        assert edge.engine.asked == LIMIT - FLOOR > SHARE
        # The other keeps its floor, and nobody has more than both may have.
        assert [await first.ask(), await second.ask(), await first.ask()] == [FLOOR, LIMIT - FLOOR, FLOOR]
        assert edge.engine.asked == LIMIT
        # What comes free in one may be used in the other, but for a spare place.
        for line in second.busy[:12]:
            line.close()
        second.busy = second.busy[12:]
        await first.ask_until(LIMIT - 4)
        assert (await second.ask(), await first.ask()) == (4, LIMIT - 4)
        assert edge.engine.asked == LIMIT + 12
        edge.engine.may_answer.set()
        assert edge.stop(signal.SIGTERM) == 0
        assert gone(processes)


@pytest.mark.timeout(240)
async def test_a_burst_at_one_process_gets_at_once_what_the_other_does_not_use(folder: Path) -> None:
    with lone_edge(folder, LINES) as edge, held(edge) as stack:
        processes = await both(edge)
        burst = Tenant(edge, processes[1], stack, LIMIT - FLOOR)
        assert await burst.ask() == LIMIT - FLOOR, "nobody was refused while half of the limit was free"
        # What the edge has no more of is refused, and what is refused has no place.
        more = Tenant(edge, processes[1], stack, 4)
        assert await more.ask() == 0
        assert edge.engine.asked == LIMIT - FLOOR
        edge.engine.may_answer.set()
        assert edge.stop(signal.SIGTERM) == 0


@pytest.mark.timeout(240)
async def test_what_a_killed_process_leased_is_free_and_all_is_even_when_all_are_idle(folder: Path) -> None:
    with lone_edge(folder, LINES) as edge, held(edge) as stack:
        processes = await both(edge)
        first, second = (Tenant(edge, process, stack, LIMIT) for process in processes)
        await second.ask_until(LIMIT - FLOOR)
        processes[1].kill()
        await first.ask_until(LIMIT - FLOOR)
        assert edge.engine.asked == 2 * (LIMIT - FLOOR)
        # The one in its place begins with its floor, since the other has the rest.
        again = await both(edge)
        assert again[1] != processes[1]
        third = Tenant(edge, again[1], stack, 4)
        assert await third.ask() == FLOOR
        assert edge.engine.asked == 2 * LIMIT - FLOOR
        assert {gauge(edge, index, "tidegate_uneven_limits") for index in (0, 1)} == {1.0}
        edge.engine.may_answer.set()
        await until(lambda: not any(gauge(edge, index, "tidegate_uneven_limits") for index in (0, 1)))
        assert [gauge(edge, index, "tidegate_places") for index in (0, 1)] == [32.0, 32.0]


@pytest.mark.timeout(240)
async def test_a_process_that_hangs_is_ended_and_its_lease_with_it(folder: Path) -> None:
    assert HUNG_US == 30_000_000, "as docs/operations.md says; this one waits for a third of it"
    with lone_edge(folder, LINES, SOON_HUNG) as edge, held(edge) as stack:
        processes = await both(edge)
        first, second = (Tenant(edge, process, stack, LIMIT) for process in processes)
        await second.ask_until(LIMIT - FLOOR)
        processes[1].suspend()
        # What runs in it counts for as long as it may run.
        assert (await first.ask(), edge.engine.asked) == (FLOOR, LIMIT)
        assert await asyncio.to_thread(gone, processes[1:])
        await first.ask_until(LIMIT - FLOOR)
        await until(lambda: local(edge, 1, "/healthz").startswith(b"HTTP/1.1 200"))
        assert process_of(edge, 1) != processes[1]

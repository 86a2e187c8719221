"""Connections of tenants never take the descriptors that all else needs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from node_agent.front.app import Front
from node_agent.front.descriptors import KEPT, LEAST, connections_within
from node_agent.front.serve import CONNECTIONS_MAX, FrontServer
from tests.front.room import done, room_in, saying, until


@pytest.mark.parametrize("ways", [0, 1, 2, 3])
@pytest.mark.parametrize("requests", [16, 1_024])
@pytest.mark.parametrize("descriptors", [512, 1_024, 4_096, 8_192, 1 << 20])
def test_what_connections_and_their_requests_hold_leaves_what_is_kept_back(
    descriptors: int, requests: int, ways: int
) -> None:
    most = connections_within(descriptors, requests, ways, CONNECTIONS_MAX)
    assert LEAST <= most <= CONNECTIONS_MAX
    # No request runs without a connection.
    assert most + ways * min(requests, most) <= descriptors - KEPT


def test_with_enough_descriptors_there_are_as_many_connections_as_ever() -> None:
    assert connections_within(8_192, 1_024, 3, CONNECTIONS_MAX) == CONNECTIONS_MAX
    assert connections_within(1_024, 1_024, 1, CONNECTIONS_MAX) == 384
    assert connections_within(64, 1_024, 1, CONNECTIONS_MAX) == LEAST


async def test_a_server_holds_as_many_connections_as_it_is_told(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        few = await _served(room.front)
        try:
            silent = [await asyncio.open_connection("127.0.0.1", few.port) for _ in range(5)]
            await until(lambda: sum(reader.at_eof() or reader.exception() is not None for reader, _ in silent) == 2)
            assert len(few._connections) == 3
            for _, writer in silent:
                writer.transport.abort()
        finally:
            await few.stop(0.0)


async def _served(front: Front) -> FrontServer:
    server = FrontServer(front, "127.0.0.1", 0, connections_max=3)
    await server.start()
    return server

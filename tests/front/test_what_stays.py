"""What is left of a request once it is over: nothing that only a search for cycles would find."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from node_agent.border.decider import Asked
from node_agent.border.gate import Answer
from node_agent.idempotency.desk import Claim
from tests.border.edge import ALL, Edge
from tests.front.room import chat_body, done, room_in, saying
from tests.values import replace


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_with_a_key_leaves_nothing_of_itself(tmp_path: Path, stream: bool) -> None:
    """The real front, desk and gate: between them a request is held by what it holds."""
    for name in ("edge", "room"):
        (tmp_path / name).mkdir()
    edge = Edge(tmp_path / "edge", "edge-singapore", dict(ALL))
    base = edge.asked("acme-sg")

    async def ask(asked: Asked) -> Answer:
        return await edge.gate.ask(replace(base, departure=asked.departure, body=asked.body))

    try:
        async with room_in(tmp_path / "room", saying(done())) as room:
            room.front._completions._ask = ask  # the one that the front was made with
            gc.collect()
            gc.disable()
            try:
                reply = await room.call(body=chat_body(stream=stream), headers=[("Idempotency-Key", "k")])
                assert reply.status == 200
                edge.routes.sent.clear()
                assert not [one for one in gc.get_objects() if type(one) is Claim]
            finally:
                gc.enable()
    finally:
        await edge.spool.close_async()

"""A canary in every place that a tenant fills: none of it is in a log line, a metric or an error."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from secrets import token_hex

from node_agent.border.decider import Asked
from orchestrator.telemetry.logs import LogSink
from tests.front.room import (
    ACME,
    CHAT,
    Frames,
    Key,
    Room,
    broken,
    chat_body,
    done,
    request_bytes,
    room_in,
    saying,
    tokens,
)


async def everything_goes_wrong(room: Room, canary: str) -> list[bytes]:
    """Fill every place with the canary, in requests that fail in every room of the front."""
    question = [{"role": "user", "content": canary}]
    good = chat_body(messages=question)
    bodies = [
        good,
        chat_body(messages=question, stream=True),
        good[:-1],
        chat_body(messages=question, temperature=canary),
        chat_body(messages=question, model=canary),
        chat_body(messages=question, stop=[canary * 10]),
        chat_body(messages=[{"role": canary, "content": canary}]),
        f'{{"model": "{canary}", "model": "{canary}"}}'.encode(),
        canary.encode(),
    ]
    replies = [(await room.call(body=body)).body for body in bodies]
    headers = [
        ("x-tidegate-labels", f'origin="{canary}"'),
        ("x-tidegate-tenant", canary),
        ("content-encoding", canary),
        ("x-request-id", canary),
        ("idempotency-key", canary),
        ("user-agent", canary),
        ("cookie", canary),
    ]
    replies += [(await room.call(body=good, headers=[header])).body for header in headers]
    stranger = Key("strangerkey1").text()[:-6] + "AAAAAA"
    lines = [("Host", canary), ("Connection", "close"), ("Authorization", f"Bearer {stranger}")]
    replies.append((await room.raw(request_bytes("POST", CHAT, lines))).body)
    for path in (f"/v1/{canary}", f"/v1/models/{canary}", f"{CHAT}?key={canary}"):
        replies.append((await room.call("POST" if "chat" in path else "GET", path)).body)
    return replies


async def test_no_canary_is_told(tmp_path: Path) -> None:
    canary = f"canary{token_hex(12)}"
    stream = io.StringIO()

    async def crashing(asked: Asked) -> Frames:
        yield tokens(canary)
        raise RuntimeError(canary)

    async def refusing(asked: Asked) -> None:
        raise ValueError(canary)

    with LogSink(stream, "node_agent", logging.DEBUG):
        async with room_in(tmp_path, crashing) as room:
            replies = await everything_goes_wrong(room, canary)
            room.gate.plan = saying(tokens(canary), broken())
            replies += await everything_goes_wrong(room, canary)
            room.gate.before = refusing
            replies += await everything_goes_wrong(room, canary)
            shown = room.metrics.render().decode()
            asked = len(room.gate.asked)
            room.gate.before, room.gate.plan = None, saying(tokens(canary), done())
            answered = await room.call(body=chat_body())
    # The positive controls: the canary did reach the gate and the tenant, and there are lines to look through.
    assert canary in answered.body.decode()
    assert asked > 10
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sum(line["event"] == "request_ended" for line in lines) == len(replies) + 1
    assert sum(line["event"] == "task_failed" for line in lines) > 5
    assert {line.get("tenant_id") for line in lines if "http_status" in line} == {None, "acme"}
    assert canary not in stream.getvalue()
    assert canary not in shown
    for secret in (ACME.text(), ACME.text().split("_", 2)[2], ACME.secret.hex()):
        assert secret not in stream.getvalue() + shown
    # The half of an answer that was streamed before it was cut is the tenant's; every other word of ours is clean.
    for reply in replies:
        told = [line for line in reply.split(b"\n\n") if b'"content"' not in line]
        assert all(canary.encode() not in line for line in told)


async def test_what_is_said_of_a_request_fits_in_one_line(tmp_path: Path) -> None:
    stream = io.StringIO()
    with LogSink(stream, "node_agent"):
        async with room_in(tmp_path, saying(tokens("a", count=3), done())) as room:
            await room.call(body=chat_body(), key=None)
            await room.call(body=chat_body(n=2))
            await room.call(body=chat_body())
            request = room.gate.asked[0].request
    refused, answered = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (refused["outcome"], refused["code"], refused["http_status"]) == ("refused", "unsupported_value", 400)
    assert answered["request_id"] == request
    assert (answered["outcome"], answered["pool"], answered["delivered_tokens"]) == ("answered", "sg-pool", 3)
    assert (answered["tenant_id"], answered["key_id"]) == ("acme", "acmekey1")

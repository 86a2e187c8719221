"""How long a request may take: what the edge allows, lowered by its tenant's contract and by its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from node_agent.front.framing import read_head
from node_agent.front.limits import Limits
from node_agent.front.timeouts import allowed_time
from node_agent.front.visit import Counters, Visit
from orchestrator.policy.ids import make_request_id
from orchestrator.policy.tenants import Service
from orchestrator.telemetry.metrics import Metrics
from orchestrator.wire.deadlines import Waits
from tests.front.room import ACME, LIMITS, broken, bundle_in, chat_body, done, room_in, saying, tokens
from tests.values import replace

HEADER = "x-tidegate-timeout-ms"
OK = saying(tokens("ok"), done())


ODD = ("0", "-1", "+5", "1.5", "1e3", " ", "", "5s", "0x10", "1_000", "٣", "1000000000", "01")


@pytest.mark.parametrize("value", ODD)
async def test_a_bound_that_is_no_whole_number_of_milliseconds_is_refused(tmp_path: Path, value: str) -> None:
    async with room_in(tmp_path, OK) as room:
        raw = value.encode().decode("latin-1")
        reply = await room.call(body=chat_body(), headers=[(HEADER, raw)])
        assert (reply.status, reply.header("x-should-retry")) == (400, "false")
        error = reply.error()
        assert (error["code"], error["param"]) == ("invalid_header", HEADER)
        assert room.gate.asked == []


async def test_a_bound_is_given_once(tmp_path: Path) -> None:
    async with room_in(tmp_path, OK) as room:
        reply = await room.call(body=chat_body(), headers=[(HEADER, "5"), (HEADER, "5")])
        assert (reply.status, reply.error()["code"]) == (400, "invalid_header")


async def test_a_request_may_lower_its_time_and_not_raise_it(tmp_path: Path) -> None:
    async with room_in(tmp_path, OK) as room:
        for value in ("20000", "99999999"):
            assert (await room.call(body=chat_body(), headers=[(HEADER, value)])).status == 200
        lowered, raised = (asked.budget_ms for asked in room.gate.asked)
        assert lowered <= 20_000 < raised <= 30_000


def test_a_contract_lowers_every_bound_and_raises_none(tmp_path: Path) -> None:
    tenant = next(iter(bundle_in(tmp_path).tenants))
    limits = replace(Limits(**cast(dict[str, Any], LIMITS)), waits=Waits(5_000, 1_000))
    service = Service(timeout_ms=9_000, first_token_timeout_ms=400, between_tokens_timeout_ms=50_000)
    plain = read_head(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert allowed_time(plain, replace(tenant, service=service), limits) == (9_000, Waits(400, 1_000))
    asking = read_head(f"POST / HTTP/1.1\r\nHost: a\r\n{HEADER}: 100\r\n\r\n".encode())
    assert allowed_time(asking, tenant, limits) == (100, limits.waits)


def test_what_is_left_of_a_time_counts_from_the_head_and_ends_at_nothing() -> None:
    now_s = [100.0]
    visit = Visit(make_request_id(1, bytes(10)), Counters(Metrics()), lambda: now_s[0])
    assert visit.left_ms(9_000) == 9_000
    now_s[0] += 2.5
    assert (visit.left_ms(9_000), visit.left_ms(2_500), visit.left_ms(100)) == (6_500, 0, 0)


async def test_an_answer_that_is_cut_says_what_was_consumed(tmp_path: Path) -> None:
    late = broken("timeout_between_tokens", "No token came for 30000 ms after the last one.")
    async with room_in(tmp_path, saying(tokens("a"), tokens("b"), late)) as room:
        streamed = await room.call(body=chat_body(stream=True), key=ACME)
        whole = await room.call(body=chat_body())
    assert (streamed.status, streamed.ended) == (200, True)
    assert b"[DONE]" not in streamed.body
    assert (whole.status, whole.header("retry-after")) == (504, "2")
    for error in (json.loads(streamed.events()[-1])["error"], whole.error()):
        assert error["code"] == "timeout_between_tokens"
        assert "30000 ms" in error["message"]
    assert json.loads(streamed.events()[-1])["error"]["usage"]["completion_tokens"] == 2
    # Who does not stream gets nothing of an answer that was cut, and has consumed nothing.
    assert "usage" not in whole.error()

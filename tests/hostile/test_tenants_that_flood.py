"""Connections, requests and keys by the thousand, hang-ups at every moment, and clients who do not read."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Sequence
from functools import partial

import pytest

from benchmarks.stand import EDGE_ONLY, INSTANT, TWO_HOP
from tests.hostile import engine
from tests.hostile.besieged import Besieged, for_a_while, until
from tests.hostile.client import Answer, body, get, head, request

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

MODEL = f"{INSTANT}-{TWO_HOP}"
SHORT = body(MODEL, stream=False, max_tokens=2)
ATTACK_S = 1.5
TENANT_REQUESTS_MAX = 256
FULL = frozenset(((429, "tenant_limit"), (429, "tenant_share"), (503, "engine_busy"), (503, "no_feasible_pool")))


def counted(answers: Sequence[Answer]) -> Counter[tuple[int, str]]:
    """Return how many were told what."""
    return Counter(answer.told for answer in answers)


async def test_silent_connections_are_let_go_for_others(besieged: Besieged) -> None:
    async with besieged.siege():
        crowds = [await besieged.door.crowd(1_500)]
        crowds.append(await besieged.door.crowd(300, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"))
        crowds.append(await besieged.door.crowd(200, head(besieged.key, len(SHORT)) + SHORT[:10]))
        await asyncio.sleep(ATTACK_S / 2)
        for _ in range(3):
            crowds[1].send(b"X")
            crowds[2].send(b" ")
            await asyncio.sleep(ATTACK_S / 3)
        # A body that comes in crumbs has its time, and then an answer.
        late = {told[9:12] for told in crowds[2].heard()}
        for crowd in crowds:
            crowd.reset()
    assert late == {b"408"}


async def test_connections_come_and_go(besieged: Besieged) -> None:
    async with besieged.siege():
        for _ in range(6):
            crowd = await besieged.door.crowd(300, b"\r")
            await asyncio.sleep(0.05)
            crowd.reset()


async def test_clients_who_hang_up_at_any_moment_leave_nothing(besieged: Besieged) -> None:
    asked = body(besieged.model(0, TWO_HOP), "MODE=drip_text", max_tokens=500)
    whole = request(besieged.key, asked)
    keyed = request(besieged.key, asked, "Idempotency-Key: hang-up")
    begun = len(whole) - len(asked)
    moments = [(0, 0.0), (10, 0.0), (begun, 0.0), (len(whole) - 5, 0.0), (len(whole), 0.0), (len(whole), 0.01)]
    moments += [(len(whole), 0.1), (len(whole), 0.5)]

    async def one(raw: bytes, end: int, wait_s: float) -> None:
        with contextlib.suppress(ConnectionError):
            async with besieged.door.connection() as (_, writer):
                writer.write(raw[:end])
                await asyncio.sleep(wait_s)

    async with besieged.siege():
        for _ in range(3):
            await asyncio.gather(*(one(whole, *moment) for moment in moments * 25), one(keyed, len(keyed), 0.05))


async def test_a_half_closed_connection_ends_what_hangs_on_it(besieged: Besieged) -> None:
    asked = request(besieged.key, body(besieged.model(1, EDGE_ONLY), "MODE=hang"))
    async with besieged.siege():
        crowd = await besieged.door.crowd(100, asked)
        await asyncio.sleep(0.3)
        crowd.half_close()
        await asyncio.sleep(0.3)
        # It has room at once, long before the first token would be too late.
        answers = await besieged.door.all([request(besieged.key, SHORT)] * 100, at_once=100)
        crowd.reset()
    assert counted(answers) == {(200, ""): 100}


async def test_who_does_not_read_has_no_further_answers_made(besieged: Besieged) -> None:
    async with besieged.siege():
        pages = await besieged.door.crowd(200, get("/openapi.json") * 100, receive_bytes=2_048)
        texts = await besieged.door.crowd(
            40,
            request(besieged.key, body(besieged.model(2, EDGE_ONLY), "MODE=long_text")) * 4,
            receive_bytes=2_048,
        )
        await asyncio.sleep(ATTACK_S)
        pages.reset()
        texts.reset()


async def test_a_tenant_who_asks_without_end_is_told_its_limit(besieged: Besieged) -> None:
    hanging = request(besieged.key, body(besieged.model(3, EDGE_ONLY), "MODE=hang"))
    async with besieged.siege():
        crowd = await besieged.door.crowd(TENANT_REQUESTS_MAX, hanging)
        await asyncio.sleep(0.3)
        refused = await for_a_while(ATTACK_S / 2, 8, lambda: besieged.door.ask(request(besieged.key, SHORT)))
        crowd.reset()
        # Its places are free again, as soon as it has hung up.
        await asyncio.sleep(0.5)
        served = await besieged.door.all([request(besieged.key, SHORT)] * 50)
        quick = await for_a_while(ATTACK_S, 100, lambda: besieged.door.ask(request(besieged.key, SHORT)))
    assert set(counted(refused)) == {(429, "tenant_limit")}
    assert counted(served) == {(200, ""): 50}
    assert counted(quick)[200, ""]
    assert set(counted(quick)) <= {(200, ""), *FULL}


async def test_large_bodies_at_once_are_answered(besieged: Besieged) -> None:
    large = request(besieged.key, body(MODEL, "x" * 1_000_000, stream=False))
    async with besieged.siege():
        answers = await besieged.door.all([large] * 40, at_once=20)
    assert set(counted(answers)) <= {(200, ""), (400, "context_length_exceeded"), *FULL}


async def test_strangers_with_keys_by_the_thousand_are_told_the_same(besieged: Besieged) -> None:
    def guess() -> bytes:
        return request(besieged.key[:-8] + secrets.token_hex(4), SHORT)

    async with besieged.siege():
        answers = await for_a_while(ATTACK_S, 32, lambda: besieged.door.ask(guess()))
    assert set(counted(answers)) == {(401, "invalid_api_key")}
    assert len({answer.body.split(b"(request")[0] for answer in answers}) == 1


async def test_pages_for_probes_are_answered_under_floods_of_them(besieged: Besieged) -> None:
    async with besieged.siege():
        paths = ("/metrics", "/healthz", "/readyz", "/openapi.json")
        asking = [partial(besieged.door.ask, get(path)) for path in paths]
        told = await asyncio.gather(*(for_a_while(ATTACK_S, 4, one) for one in asking))
    assert [set(counted(answers)) for answers in told] == [{(200, "")}] * len(paths)


async def test_one_key_is_sent_once_however_often_and_with_what_it_is_asked(besieged: Besieged) -> None:
    line = f"Idempotency-Key: {secrets.token_hex(8)}"
    same = [request(besieged.key, SHORT, line)] * 60
    other = [request(besieged.key, SHORT.replace(b"canary", b"another"), line)] * 60
    async with besieged.siege():
        first = await besieged.door.ask(same[0])
        answers = await besieged.door.all([one for pair in zip(same, other, strict=True) for one in pair], at_once=60)
    assert first.told == (200, "")
    replayed, refused = answers[::2], answers[1::2]
    assert {(one.told, one.body, one.headers["idempotent-replayed"]) for one in replayed} == {
        ((200, ""), first.body, "true")
    }
    assert counted(refused) == {(422, "idempotency_body_differs"): 60}


async def test_keys_by_the_thousand_and_hang_ups_with_keys_harm_nobody(besieged: Besieged) -> None:
    hanging = body(besieged.model(4, TWO_HOP), "MODE=hang_in_middle")
    async with besieged.siege():
        crowds = [
            await besieged.door.crowd(1, request(besieged.key, hanging, f"Idempotency-Key: hang-{number}"))
            for number in range(40)
        ]
        answers = await for_a_while(
            ATTACK_S,
            16,
            lambda: besieged.door.ask(request(besieged.key, SHORT, f"Idempotency-Key: {secrets.token_hex(8)}")),
        )
        for crowd in crowds:
            crowd.reset()
        # Nobody waits for these any more; what is asked again under such a key is not sent again.
        again = request(besieged.key, hanging, "Idempotency-Key: hang-0")
        told: list[Answer] = []

        async def over() -> bool:
            told.append(await besieged.door.ask(again))
            return told[-1].code == "idempotency_result_not_kept"

        for _ in range(60):
            if await over():
                break
            await asyncio.sleep(0.1)
    assert set(counted(answers)) <= {(200, ""), *FULL}
    assert {one.status for one in told} == {409}
    assert told[-1].code == "idempotency_result_not_kept"


async def test_a_reader_of_one_byte_now_and_then_holds_up_nobody(besieged: Besieged) -> None:
    asked = request(besieged.key, body(besieged.model(5, TWO_HOP), "MODE=crumbs", max_tokens=engine.TOKENS))
    async with besieged.siege() as good:
        crowd = await besieged.door.crowd(100, asked, receive_bytes=2_048)
        before = good.asked
        await until(lambda: good.asked > before + 20, 30, "nobody was served beside slow readers")
        crowd.reset()

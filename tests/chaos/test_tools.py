"""The tools of the scenarios see what they are for: a suite that finds nothing must be able to find something."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from benchmarks.ports import KeptPorts
from orchestrator.cli.processes import ProcessSpec, Supervisor, port_accepts
from tests.chaos.client import Ending, Mode, Plan, Told, ask, new_session
from tests.chaos.declared import GENERAL, HOME, PERSONAL, ROOT
from tests.chaos.evidence import Findings, Seen, billed, decided, lawful
from tests.chaos.load import Asked, Lane
from tests.chaos.proxy import HEALTHY, Proxy, Toxics
from tests.chaos.report import recovery_ms, summed
from tests.chaos.trend import growth_of
from tests.chaos.words import TOKEN_CHARS, Verdict, answer, judge, prompt_of
from tests.values import replace

PLAN = Plan("t-1", "edge-a", "http://127.0.0.1:1", "key", "calm", GENERAL, None, Mode.STREAM, 10)
DECISION: dict[str, Any] = {
    "attempt": "att_1",
    "request": "req_1",
    "client_request": "t-1",
    "pool": "cn-guizhou",
    "decided_ms": 100,
}
START: dict[str, Any] = {"tag": "t-1", "kind": GENERAL, "at_ms": 101}
USAGE: dict[str, Any] = {
    "attempt": "att_1",
    "request": "req_1",
    "outcome": "complete",
    "counts": {"edge": {"delivered": 10}},
}


def told_as(ending: Ending, received: int = 10) -> Told:
    told = Told(PLAN, 0.0, ending)
    told.request, told.received = "req_1", received
    return told


def found_in(seen: Seen, told: Told) -> Findings:
    found = Findings()
    decided(seen, found)
    lawful(seen, found)
    billed(seen, found, [told])
    return found


def test_a_text_is_judged_token_by_token() -> None:
    text = answer("p", 5)
    assert judge("p", text).verdict is Verdict.PREFIX
    assert judge("p", text[:-1]).verdict is Verdict.WRONG
    assert judge("q", text).verdict is Verdict.WRONG
    assert judge("p", text[: 2 * TOKEN_CHARS] + text[TOKEN_CHARS:]).verdict is Verdict.REPEATED
    assert judge("p", text[:TOKEN_CHARS] + text[2 * TOKEN_CHARS :]).verdict is Verdict.WRONG


def test_records_that_fit_are_found_clean() -> None:
    seen = Seen([DECISION], [USAGE], [{"attempt": "att_1"}], [], [("cn-guizhou", START)])
    assert found_in(seen, told_as(Ending.ANSWERED)).clean


@pytest.mark.parametrize(
    ("what", "seen"),
    [
        ("unrecorded", Seen([], [USAGE], [], [], [("cn-guizhou", START)])),
        ("unrecorded", Seen([DECISION, DECISION], [USAGE], [], [], [("cn-guizhou", START)])),
        ("unrecorded", Seen([DECISION], [USAGE], [], [], [("cn-guizhou", START), ("cn-guizhou", START)])),
        ("unrecorded", Seen([DECISION], [USAGE], [], [], [("cn-guizhou", {**START, "at_ms": 99})])),
        ("unrecorded", Seen([DECISION], [USAGE], [{"attempt": "att_2"}], [], [])),
        ("unrecorded", Seen([DECISION], [USAGE], [], [], [(HOME, START)])),
        ("violations", Seen([DECISION], [USAGE], [], [], [("cn-guizhou", {**START, "kind": PERSONAL})])),
        ("violations", Seen([DECISION], [USAGE], [], [], [("cn-guizhou", {**START, "kind": "?"})])),
        ("misbilled", Seen([DECISION], [], [], [], [])),
        ("misbilled", Seen([DECISION], [USAGE, USAGE], [], [], [])),
        ("misbilled", Seen([DECISION], [USAGE, {**USAGE, "attempt": "att_2"}], [], [], [])),
        ("misbilled", Seen([DECISION], [{**USAGE, "counts": {"edge": {"delivered": 9}}}], [], [], [])),
    ],
)
def test_records_that_do_not_fit_are_found(what: str, seen: Seen) -> None:
    found = found_in(seen, told_as(Ending.ANSWERED))
    assert getattr(found, what) >= 1
    assert not found.clean


def test_a_key_that_ran_twice_is_found() -> None:
    again = [{**DECISION, "attempt": "att_2", "request": "req_2"}, {**USAGE, "attempt": "att_2", "request": "req_2"}]
    seen = Seen([DECISION, again[0]], [USAGE, again[1]], [], [], [])
    told = told_as(Ending.ANSWERED)
    assert found_in(seen, told).clean
    told.plan = replace(PLAN, mode=Mode.KEYED)
    assert found_in(seen, told).misbilled == 1


def test_a_tenant_who_hung_up_pays_at_least_what_came() -> None:
    seen = Seen([DECISION], [USAGE], [], [], [])
    assert found_in(seen, told_as(Ending.CANCELLED, 9)).clean
    assert found_in(seen, told_as(Ending.CANCELLED, 11)).misbilled == 1


def test_what_ended_badly_fails_a_scenario() -> None:
    for ending in (Ending.LOST, Ending.CLOSED, Ending.DUPLICATED):
        asked = [Asked(Lane(1), [told_as(ending)])]
        assert not summed("one", asked, [], 0, Findings(), [], {}).passed
    for ending in (Ending.ANSWERED, Ending.REFUSED, Ending.CUT, Ending.CANCELLED):
        asked = [Asked(Lane(1), [told_as(ending)])]
        assert summed("one", asked, [], 0, Findings(), [], {}).passed


def test_time_to_recover_is_that_of_the_slowest_edge_and_kind() -> None:
    def begun(at_s: float, first_s: float, edge: str) -> Told:
        told = Told(replace(PLAN, edge=edge), at_s)
        told.first_s = first_s
        return told

    tries = [begun(0.5, 0.9, "edge-a"), begun(1.2, 1.5, "edge-a"), begun(1.4, 2.0, "edge-b"), begun(3, 4, "edge-b")]
    assert recovery_ms(tries, 1.0) == pytest.approx(1000)
    assert recovery_ms(tries, 5.0) is None


class Engine:
    """One engine process, and its journal."""

    def __init__(self, port: int, journal: Path) -> None:
        self.port = port
        self.journal = journal

    def plan(self, tag: str, tokens: int, port: int | None = None, cancel_after: int | None = None) -> Plan:
        url = f"http://127.0.0.1:{port or self.port}"
        return Plan(tag, "none", url, "key", "calm", GENERAL, None, Mode.STREAM, tokens, cancel_after)

    async def counters(self) -> dict[str, int]:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{self.port}/counters") as response:
                found: dict[str, int] = await response.json()
        return found

    async def until_running(self, count: int) -> dict[str, int]:
        while True:
            counters = await self.counters()
            if counters["running"] == count:
                return counters
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    kept = KeptPorts(1)
    port, journal = kept.numbers[0], tmp_path / "journal.jsonl"
    told = ("--port", str(port), "--journal", str(journal), "--slots", "2", "--token-ms", "5")
    argv = (sys.executable, "-m", "tests.chaos.engine", *told)
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(ProcessSpec("engine", argv, cwd=ROOT, ready=port_accepts("127.0.0.1", port)))
        await supervisor.wait_ready("engine", 30_000)
        yield Engine(port, journal)


async def test_the_engine_answers_with_its_tokens_and_journals_them(engine: Engine) -> None:
    async with new_session() as session:
        plans = [engine.plan(f"t-{number}", 12) for number in range(5)]
        tolds = await asyncio.gather(*(ask(session, plan) for plan in plans))
    assert [told.ending for told in tolds] == [Ending.ANSWERED] * 5
    counters = await engine.counters()
    assert (counters["started"], counters["finished"], counters["running"], counters["waiting"]) == (5, 5, 0, 0)
    lines = [json.loads(line) for line in engine.journal.read_text().splitlines()]
    assert sorted(line["tag"] for line in lines if line["what"] == "start") == [plan.tag for plan in plans]


async def test_the_engine_ends_what_nobody_reads(engine: Engine) -> None:
    async with new_session() as session:
        told = await ask(session, engine.plan("t-1", 10_000, cancel_after=3))
    assert told.ending is Ending.CANCELLED
    counters = await engine.until_running(0)
    assert (counters["started"], counters["cancelled"]) == (1, 1)


async def test_the_engine_continues_its_own_words_and_no_others(engine: Engine) -> None:
    prompt = prompt_of("t-1", GENERAL)
    url = f"http://127.0.0.1:{engine.port}/v1/chat/completions"

    async def continued(partial: str) -> tuple[int, str]:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": partial}]
        body = {"model": "words", "messages": messages, "max_tokens": 3, "continue_final_message": True}
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
            text = await response.text()
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        return response.status, "".join(choice["delta"].get("content", "") for choice in choices)

    whole = answer(prompt, 7)
    assert await continued(whole[: 4 * TOKEN_CHARS]) == (200, whole[4 * TOKEN_CHARS :])
    assert (await continued(whole[: 4 * TOKEN_CHARS - 1]))[0] == 400
    assert (await continued(answer("another prompt", 4)))[0] == 400


async def test_the_proxy_delays_holds_back_and_resets_and_sees_words(engine: Engine) -> None:
    kept = KeptPorts(1)
    proxy = Proxy(kept.numbers[0], engine.port, [b"chaos general ", b"never said"])
    await proxy.start()
    try:
        async with new_session() as session:
            proxy.set(Toxics(latency_ms=30, jitter_ms=10))
            told = await ask(session, engine.plan("t-1", 5, proxy.port))
            assert told.ending is Ending.ANSWERED
            assert told.first_ms is not None
            assert told.first_ms >= 60
            assert (proxy.seen[b"chaos general "], proxy.seen[b"never said"]) == (1, 0)

            proxy.set(Toxics(hold_down=True))
            held = asyncio.create_task(ask(session, engine.plan("t-2", 5, proxy.port)))
            await asyncio.sleep(0.3)
            assert not held.done()
            proxy.set(HEALTHY)
            assert (await held).ending is Ending.ANSWERED

            cut = asyncio.create_task(ask(session, engine.plan("t-3", 10_000, proxy.port)))
            await engine.until_running(1)
            assert proxy.reset() >= 1
            assert (await cut).ending is Ending.CLOSED

            proxy.set(Toxics(refuse=True))
            assert (await ask(session, engine.plan("t-4", 5, proxy.port))).ending is not Ending.ANSWERED
    finally:
        await proxy.stop()


def test_a_leak_is_told_from_what_stays_level() -> None:
    level = growth_of([(at * 10, 50_000_000 + at % 3) for at in range(40)], [30] * 40, [8] * 40)
    leaking = growth_of([(at * 10, 50_000_000 + at * 50_000) for at in range(40)], list(range(40)), [8] * 40)
    assert abs(level.bytes_per_request) < 1
    assert (level.descriptors_more, level.threads_more) == (0, 0)
    assert leaking.bytes_per_request == pytest.approx(5_000)
    assert leaking.descriptors_more == 30

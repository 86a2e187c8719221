"""What an edge learns of its pools, from the replies that pass its gate; and what of it, and of prompts, is written."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import pytest

from node_agent.border.decider import Asked, Commitment
from node_agent.border.gate import Gate
from node_agent.border.memory import Memory
from node_agent.uplink.routes import Way
from node_agent.uplink.sending import Sendable, Sending
from orchestrator.engines.generation import Message, Role, Sampling
from orchestrator.ledger.money import parse_units
from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.fleet import Pool, PrefixCache
from orchestrator.placement.prefix import BLOCK_CHARS
from orchestrator.placement.requests import PoolLoad
from orchestrator.placement.settings import Canary, Change
from orchestrator.policy.ids import EdgeId, KeyId, ModelId, PoolId, TenantId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.tenants import Service
from orchestrator.spool.records import FullReason, RecordKind, SpoolFull
from orchestrator.wire.catalogue import ProblemError
from orchestrator.wire.frames import Broken, Done, StreamFrame, Tokens
from tests.border.edge import Edge, answers, breaks, refuses
from tests.border.example import Plan
from tests.bundles.sides import NOW_MS
from tests.values import replace

Make = Callable[..., Edge]
GUIZHOU, SHANGHAI = PoolId("cn-guizhou"), PoolId("cn-shanghai")
GERMANY = frozenset({Jurisdiction("DE")})
WORDS = "a secret of the firm "
LONG = (WORDS * 400)[: 5 * BLOCK_CHARS]
"""Five blocks of a prompt."""


class Clock:
    """Moves only when it is told to."""

    def __init__(self) -> None:
        self.us = NOW_MS * 1000

    def __call__(self) -> int:
        return self.us

    def wait_ms(self, ms: int) -> None:
        self.us += ms * 1000


def streams(
    clock: Clock, first_ms: int = 400, token_ms: int = 20, tokens: int = 11, prompt: int = 10, cached: int = 0
) -> Plan:
    """An answer whose first token comes after `first_ms`, and the others one by one."""

    def frames(sendable: Sendable) -> Iterator[StreamFrame]:
        for number in range(tokens):
            clock.wait_ms(token_ms if number else first_ms)
            yield Tokens(1, sendable.attempt, number, 1, "x", (7,))
        counts = PoolCounts(prompt, cached, tokens, tokens)
        yield Done(1, sendable.attempt, "stop", counts, 100_000, 0)

    return cast(Plan, frames)


def ticking(edge: Edge) -> Clock:
    """Give an edge a clock that moves, and a gate that has learned nothing."""
    clock = Clock()
    edge.gate = Gate(edge.name, replace(edge.gate._hands, now_ns=lambda: clock() * 1000))
    return clock


def with_settings(edge: Edge, **changes: Any) -> None:
    assert edge.current is not None
    assert edge.current.settings is not None
    edge.current = replace(edge.current, settings=replace(edge.current.settings, **changes))


def with_shared_prefixes(edge: Edge, *names: str) -> None:
    assert edge.current is not None
    fleet = edge.current.fleet
    pools = tuple(
        replace(pool, prefix_cache=PrefixCache.SHARED) if pool.id in names else pool for pool in fleet.pools
    )
    edge.current = replace(edge.current, fleet=replace(fleet, pools=pools))


def saying(edge: Edge, text: str, tenant: str = "acme-sg", **sampling: Any) -> Asked:
    return edge.asked(tenant, messages=(Message(Role.USER, text),), sampling=Sampling(**sampling))


def asked_of(record: dict[str, Any]) -> dict[str, Any]:
    return cast(dict[str, Any], record["asked"])


def view_of(record: dict[str, Any], pool: PoolId = GUIZHOU) -> dict[str, Any]:
    return next(view for view in asked_of(record)["views"] if view["pool"] == pool)


async def answered(edge: Edge, asked: Asked) -> dict[str, Any]:
    """Have it answered, and return the record of its decision."""
    await edge.text(asked)
    return edge.records("decision")[-1]


async def refused(edge: Edge, asked: Asked) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        # A cut attempt would be replaced by another: that is not what is looked at here.
        await edge.gate.ask(replace(asked, resumes=False))
    return caught.value


async def test_no_more_of_a_prompt_teaches_than_is_billed(make_edge: Make) -> None:
    learned = []
    for told in (2_048 - 11, 4_000_000_000):  # what the declared context has room for beside the answer, and a lie
        edge = make_edge()
        clock = ticking(edge)
        for number in range(12):
            edge.routes.plans["cn-guizhou"] = streams(clock, prompt=told if number % 2 else 10)
            await answered(edge, edge.asked("acme-sg"))
        learned.append(view_of(await answered(edge, edge.asked("acme-sg")))["speed"])
    assert learned[0] is not None
    assert learned[0] == learned[1]


async def test_after_replies_the_next_record_shows_a_learned_speed(make_edge: Make) -> None:
    edge = make_edge()
    clock = ticking(edge)
    edge.routes.plans["cn-guizhou"] = streams(clock)
    records = [await answered(edge, edge.asked("acme-sg")) for _ in range(30)]
    speeds = [view_of(record)["speed"] for record in records]
    assert speeds[0] is None
    assert [speed["samples"] for speed in speeds[1:]] == list(range(1, 30))
    # 65 ms a token were declared, 20 are measured; a slot is held for 250 ms and ten times 20.
    assert speeds[-1]["decode_ns"] == pytest.approx(20_000_000, rel=0.05)
    assert speeds[-1]["service_us"] == pytest.approx(450_000, rel=0.1)
    assert view_of(records[-1], SHANGHAI)["speed"] is None
    terms = [one["terms"] for one in records[-1]["placement"]["candidates"] if one["pool"] == GUIZHOU]
    # 400 ms to the first token: 50 of the way, 100 that the pool waited, the rest its engine.
    assert terms[0]["prefill_us"] == pytest.approx(250_000, rel=0.05)


async def test_a_slow_tenant_does_not_make_a_pool_slow(make_edge: Make) -> None:
    edge = make_edge()
    clock = ticking(edge)
    edge.routes.plans["cn-guizhou"] = streams(clock)
    for _ in range(20):
        await answered(edge, edge.asked("acme-sg"))
    for _ in range(20):
        answer = await edge.gate.ask(edge.asked("acme-sg"))
        async for _ in answer.frames:
            clock.wait_ms(900)
    speed = view_of(await answered(edge, edge.asked("acme-sg")))["speed"]
    assert speed["samples"] == 40, "of the first token they tell all the same"
    assert speed["decode_ns"] == pytest.approx(20_000_000, rel=0.1)
    assert speed["service_us"] == pytest.approx(450_000, rel=0.1)


async def test_how_long_the_last_frame_is_looked_at_is_no_part_of_an_answer(make_edge: Make) -> None:
    edge = make_edge()
    clock = ticking(edge)
    edge.routes.plans["cn-guizhou"] = streams(clock)
    for _ in range(40):
        answer = await edge.gate.ask(edge.asked("acme-sg"))
        async for frame in answer.frames:
            clock.wait_ms(10_000 if isinstance(frame, Done) else 0)
    speed = view_of(await answered(edge, edge.asked("acme-sg")))["speed"]
    assert speed["decode_ns"] == pytest.approx(20_000_000, rel=0.05)


async def test_the_length_of_answers_is_learned_by_tenant(make_edge: Make) -> None:
    edge = make_edge()
    edge.routes.plans["cn-guizhou"] = streams(ticking(edge), tokens=33)
    first = await answered(edge, saying(edge, "Hello."))
    assert asked_of(first)["output_tokens"] == 128, "as the settings say"
    second = await answered(edge, saying(edge, "Hello."))
    assert asked_of(second)["output_tokens"] == 33
    short = await answered(edge, saying(edge, "Hello.", max_tokens=5))
    assert asked_of(short)["output_tokens"] == 5
    stranger = saying(edge, "Hello.")
    stranger = replace(stranger, tenant=replace(stranger.tenant, id=TenantId("stranger")))
    assert asked_of(await answered(edge, stranger))["output_tokens"] == 128


async def test_the_length_of_prompts_is_learned_from_the_counts_of_pools(make_edge: Make) -> None:
    edge = make_edge()
    edge.routes.plans["cn-guizhou"] = streams(ticking(edge), prompt=500)
    first = await answered(edge, saying(edge, "x" * 1_000))
    second = await answered(edge, saying(edge, "x" * 1_000))
    assert (asked_of(first)["prompt_tokens"], asked_of(second)["prompt_tokens"]) == (251, 501)


async def test_a_prefix_is_expected_where_it_was_sent_and_prefixes_are_shared(make_edge: Make) -> None:
    edge = make_edge()
    with_shared_prefixes(edge, GUIZHOU)
    edge.routes.plans["cn-guizhou"] = streams(ticking(edge), prompt=1_280, cached=1_279)
    first = await answered(edge, saying(edge, LONG))
    assert view_of(first)["cached_tokens"] == 0
    second = await answered(edge, saying(edge, LONG + "And one word more."))
    assert 1_100 < view_of(second)["cached_tokens"] < asked_of(second)["prompt_tokens"]
    assert view_of(second, SHANGHAI)["cached_tokens"] == 0
    other = await answered(edge, saying(edge, "B" + LONG))
    assert view_of(other)["cached_tokens"] == 0


async def test_a_prefix_is_expected_for_no_other_tenant_and_no_other_model(make_edge: Make) -> None:
    edge = make_edge()
    with_shared_prefixes(edge, GUIZHOU)
    edge.routes.plans["cn-guizhou"] = streams(ticking(edge), prompt=1_280)
    asked = saying(edge, LONG)
    await answered(edge, asked)
    stranger = replace(asked, tenant=replace(asked.tenant, id=TenantId("stranger")))
    assert view_of(await answered(edge, stranger))["cached_tokens"] == 0
    assert edge.current is not None
    found = edge.current.fleet.edge(EdgeId(edge.name))
    assert found is not None
    memory = Memory(EdgeId(edge.name), Commitment(KeyId("k"), b"k" * 32))
    larger = replace(asked, generation=replace(asked.generation, model=ModelId("larger")))
    prompts = [memory.prompt(one, found, edge.current.fleet).blocks for one in (asked, stranger, larger)]
    assert [len(blocks) for blocks in prompts] == [5, 5, 5]
    assert len({block for blocks in prompts for block in blocks}) == 15


async def test_prompts_are_hashed_only_where_a_pool_shares_prefixes(make_edge: Make) -> None:
    edge = make_edge()
    assert edge.current is not None
    found = edge.current.fleet.edge(EdgeId(edge.name))
    assert found is not None
    memory = Memory(EdgeId(edge.name), Commitment(KeyId("k"), b"k" * 32))
    asked = saying(edge, LONG)
    assert memory.prompt(asked, found, edge.current.fleet).blocks == ()
    with_shared_prefixes(edge, SHANGHAI)
    blocks = memory.prompt(asked, found, edge.current.fleet).blocks
    assert len(blocks) == 5
    again = Memory(EdgeId(edge.name), Commitment(KeyId("k"), b"K" * 32)).prompt(asked, found, edge.current.fleet)
    assert not set(blocks) & set(again.blocks), "another secret makes other hashes"
    moved = replace(found, place=replace(found.place, infers=GERMANY, stores=GERMANY))
    assert not set(blocks) & set(memory.prompt(asked, moved, edge.current.fleet).blocks), "and another soil"


async def test_nothing_of_a_prompt_is_in_a_record_or_a_log(
    make_edge: Make, caplog: pytest.LogCaptureFixture
) -> None:
    edge = make_edge()
    with_shared_prefixes(edge, GUIZHOU, SHANGHAI)
    clock = ticking(edge)
    edge.routes.plans |= {"cn-guizhou": streams(clock, cached=5), "cn-shanghai": refuses("engine_busy")}
    asked = saying(edge, LONG)
    memory = edge.gate._attempts._memory
    assert edge.current is not None
    found = edge.current.fleet.edge(EdgeId(edge.name))
    assert found is not None
    prompt = memory.prompt(asked, found, edge.current.fleet)
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            await answered(edge, asked)
        edge.routes.plans["cn-guizhou"] = breaks("session_lost")
        await refused(edge, asked)
    written = json.dumps([edge.records("decision"), edge.records("usage")]) + caplog.text + repr(prompt)
    assert "cached_tokens" in written, "the search has something to search"
    assert len(prompt.blocks) == 5
    for word in WORDS.split():
        assert f"{word} " not in written or word in ("a", "of", "the"), word
    assert WORDS not in written
    for block in prompt.blocks:
        assert str(block) not in written
        assert f"{block:x}" not in written


async def test_the_arm_of_a_canary_is_recorded_and_decides(make_edge: Make) -> None:
    edge = make_edge()
    change = Change(value_of_time_pico_per_ms=30_000)
    values = []
    for share_ppm in (0, 1_000_000):
        with_settings(edge, canary=Canary(share_ppm, change))
        record = await answered(edge, edge.asked("acme-sg"))
        (terms,) = [one["terms"] for one in record["placement"]["candidates"] if one["pool"] == GUIZHOU]
        values.append((asked_of(record)["canary"], int(terms["time_pico"]) // terms["time_us"]))
    assert values == [(False, 10), (True, 30)]


async def test_a_request_beyond_its_budget_is_refused_and_recorded(make_edge: Make) -> None:
    edge = make_edge()

    def within(budget: str) -> Asked:
        asked = edge.asked("acme-sg")
        return replace(asked, tenant=replace(asked.tenant, service=Service(budget_pico=parse_units(budget, 1))))

    # 6 tokens at 2 and 8 at 4 units per million.
    error = await refused(edge, within("0.0000424"))
    assert (error.problem.code, error.problem.entry.http) == ("budget_exceeded", 402)
    assert edge.routes.sent == []
    (record,) = edge.records("decision")
    assert record["outcome"] == "budget_exceeded"
    assert record["pool"] is None
    assert {one["drop"] for one in record["placement"]["candidates"]} == {"not_reachable", "over_budget"}
    assert (await edge.text(within("0.000046")))[0] == GUIZHOU


async def test_failures_in_a_row_hold_a_pool_off_and_the_next_record_says_so(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=breaks("session_lost"))
    clock = ticking(edge)
    for _ in range(3):
        await refused(edge, edge.asked("acme-sg"))
        clock.wait_ms(1)
    assert (await edge.text(edge.asked("acme-sg")))[0] == SHANGHAI
    record = edge.records("decision")[-1]
    assert view_of(record)["held_off"]
    assert {one["pool"]: one["drop"] for one in record["placement"]["candidates"]}[GUIZHOU] == "breaker_open"


@pytest.mark.parametrize("code", ["slow_reader", "bad_generation", "context_length_exceeded"])
async def test_what_tenants_bring_about_closes_no_pool_to_others(make_edge: Make, code: str) -> None:
    edge = make_edge(cn_guizhou=breaks(code))
    clock = ticking(edge)
    for _ in range(6):
        await refused(edge, edge.asked("acme-sg"))
        clock.wait_ms(1)
    edge.routes.plans["cn-guizhou"] = answers("G")
    record = await answered(edge, edge.asked("acme-sg"))
    assert record["pool"] == GUIZHOU
    assert not view_of(record)["held_off"]


async def test_a_pool_that_cannot_be_reached_is_held_off_and_one_that_is_busy_is_not(make_edge: Make) -> None:
    for code, held_off in (("engine_unreachable", True), ("engine_busy", False)):
        edge = make_edge(cn_guizhou=refuses(code))
        clock = ticking(edge)
        for _ in range(4):
            assert (await edge.text(edge.asked("acme-sg")))[0] == SHANGHAI
            clock.wait_ms(400)  # within what may be placed again
        assert view_of(edge.records("decision")[-1])["held_off"] is held_off


class Rationed:
    """Ways out over which this edge may start so many attempts at a pool."""

    def __init__(self, edge: Edge, openings: int) -> None:
        self._view = edge.routes.view
        self._openings = openings

    def view(self, pool: Pool, now_us: int) -> Way:
        up, rtt_us, load, running = self._view(pool, now_us)
        return up, rtt_us, replace(cast(PoolLoad, load), openings=self._openings), running


async def test_decisions_that_are_made_at_once_see_each_other(
    make_edge: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = make_edge()
    ticking(edge)
    monkeypatch.setattr(edge.routes, "view", Rationed(edge, openings=2).view)
    pools = sorted(await asyncio.gather(*(chosen(edge) for _ in range(4))))
    assert pools == [GUIZHOU, GUIZHOU, SHANGHAI, SHANGHAI], "though none had left when the others were decided"


async def chosen(edge: Edge) -> str:
    answer = await edge.gate.ask(edge.asked("acme-sg"))
    return answer.pool.id


async def in_flight(edge: Edge) -> tuple[int, int, int]:
    """What the next decision holds to be under way at the cheaper pool."""
    edge.routes.plans["cn-guizhou"] = answers("G")
    view = view_of(await answered(edge, edge.asked("acme-sg")))
    return view["own_in_flight"], view["unseen"], view["unseen_tokens"]


async def test_while_an_answer_runs_it_is_counted_and_no_longer(make_edge: Make) -> None:
    edge = make_edge()
    ticking(edge)
    answer = await edge.gate.ask(edge.asked("acme-sg"))
    await anext(answer.frames)
    assert await in_flight(edge) == (1, 1, 0), "its first token is here, so its prompt waits no more"
    await answer.frames.aclose()
    assert await in_flight(edge) == (0, 0, 0)


@pytest.mark.parametrize(
    "plan", [refuses("engine_busy"), refuses("bad_generation"), breaks("engine_failed"), answers()]
)
async def test_however_an_attempt_ends_it_is_counted_no_more(make_edge: Make, plan: Plan) -> None:
    edge = make_edge(cn_guizhou=plan, cn_shanghai=plan)
    ticking(edge)
    try:
        await edge.text(edge.asked("acme-sg"))
    except ProblemError:
        pass
    assert await in_flight(edge) == (0, 0, 0)


async def test_an_attempt_that_could_not_be_recorded_is_counted_no_more(
    make_edge: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = make_edge()
    ticking(edge)

    async def full(kind: RecordKind, *_: Any, **__: Any) -> None:
        raise SpoolFull(kind, FullReason.CAPACITY)

    with monkeypatch.context() as patched:
        patched.setattr(edge.spool, "append_async", full)
        assert (await refused(edge, edge.asked("acme-sg"))).problem.code == "evidence_unavailable"
    assert edge.routes.sent == []
    assert await in_flight(edge) == (0, 0, 0)


async def test_an_impatient_tenant_leaves_nothing_counted_and_everything_settled(make_edge: Make) -> None:
    edge = make_edge()
    ticking(edge)
    send = edge.routes.send
    for begun in (False, True):
        waiting = asyncio.Event()
        edge.routes.send = dying(begun, waiting)  # type: ignore[method-assign, assignment]
        task = asyncio.create_task(chosen(edge))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        edge.routes.send = send  # type: ignore[method-assign]
        assert await in_flight(edge) == (0, 0, 0)
    outcomes = [usage["outcome"] for usage in edge.records("usage")]
    assert outcomes == ["cancelled", "complete", "broken", "complete"]


def dying(begun: bool, waiting: asyncio.Event) -> Callable[[Pool, Sendable, object, int], Sending]:
    """A way out that brings nothing, or a break, and then takes long to close."""

    class Dying:
        def __init__(self, sendable: Sendable) -> None:
            self.broken = Broken(1, sendable.attempt, "engine_failed", "It died.", PoolCounts())

        async def next(self, now_us: int) -> StreamFrame | None:
            if not begun:
                waiting.set()
                await asyncio.Event().wait()
            return self.broken

        async def close(self) -> None:
            if begun:
                waiting.set()
                await asyncio.Event().wait()

    return lambda _pool, sendable, _tally, _now_us: Dying(sendable)


async def test_numbers_beyond_all_measure_break_no_later_record(
    make_edge: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = make_edge()
    clock = ticking(edge)
    worst = (1 << 32) - 1
    edge.routes.plans["cn-guizhou"] = streams(clock, first_ms=1, prompt=worst, cached=worst)
    view = edge.routes.view

    def absurd(pool: Pool, now_us: int) -> Way:
        up, rtt_us, load, running = view(pool, now_us)
        most = replace(cast(PoolLoad, load), queued_tokens=1 << 63, kv_tokens=1 << 63, kv_used_tokens=1 << 63)
        return up, rtt_us, most, running

    monkeypatch.setattr(edge.routes, "view", absurd)
    for _ in range(3):
        record = await answered(edge, saying(edge, LONG))
    assert view_of(record)["load"]["kv_tokens"] == 1 << 48


def test_the_plans_of_these_tests_are_frames() -> None:
    sendable = cast(Sendable, type("S", (), {"attempt": "att_1"})())
    frames: Iterable[StreamFrame] = streams(Clock(), tokens=2)(sendable)
    assert [type(frame) for frame in frames] == [Tokens, Tokens, Done]

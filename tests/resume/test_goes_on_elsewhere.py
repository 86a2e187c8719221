"""A stream that is cut goes on elsewhere: no gap, no repeat, one bill, through the one door, and never for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from node_agent.border.decider import Asked
from node_agent.border.gate import ATTEMPTS_MAX, Gate
from node_agent.border.resume import RETAINED_BYTES_MAX
from orchestrator.engines.generation import Resume, Sampling
from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.wire.catalogue import ProblemError
from orchestrator.wire.frames import Broken, Done
from tests.border.edge import SECRET_WORDS, Edge
from tests.resume.wordy import EQUAL, OTHER, PROMPT_TOKENS, TOKENS, Read, Wordy, read, whole
from tests.values import replace

Make = Callable[..., Edge]
GUIZHOU, SHANGHAI = "cn-guizhou", "cn-shanghai"


async def ask(edge: Edge, asked: Asked | None = None) -> Read:
    return await read(await edge.gate.ask(asked or edge.asked("acme-sg")))


def stopped(got: Read) -> dict[str, object]:
    """Why it did not go on."""
    assert isinstance(got.end, Broken)
    assert got.answer.stopped is not None
    return got.answer.stopped.to_json()


def usages(edge: Edge, request: str | None = None) -> list[dict[str, Any]]:
    """The usage records of one request, or of all, in the order of the answer."""
    found = [one for one in edge.records("usage") if request in (None, one["request"])]
    return sorted(found, key=lambda one: one["first_token"])


def anew(edge: Edge, **plans: Wordy) -> Asked:
    """The edge as if nothing had happened, with other plans; and a new request."""
    edge.gate = Gate(edge.name, edge.hands)
    edge.routes.plans = {pool.replace("_", "-"): plan for pool, plan in plans.items()}
    edge.routes.down = frozenset({"eu-frankfurt"})
    edge.routes.sent.clear()
    return edge.asked("acme-sg")


@pytest.mark.parametrize("by", [Resume.IDS, Resume.TEXT])
@pytest.mark.parametrize("code", ["session_lost", "engine_failed", "engine_protocol", "draining"])
async def test_cut_at_every_token_text_usage_and_bill_are_those_of_the_undisturbed_run(
    make_edge: Make, code: str, by: Resume
) -> None:
    equal = replace(EQUAL, by=by)
    edge = make_edge()
    undisturbed = await ask(edge, anew(edge, cn_guizhou=Wordy(continuing=equal)))
    assert undisturbed.text == whole(edge.asked("acme-sg").generation)
    for at in range(TOKENS + 1):
        first = Wordy([(at, code)], equal, after=lambda: setattr(edge.routes, "down", frozenset({GUIZHOU})))
        asked = anew(edge, cn_guizhou=first, cn_shanghai=Wordy(continuing=equal))
        got = await ask(edge, asked)
        assert got.text == undisturbed.text, f"cut at {at}"
        assert got.places == list(range(TOKENS))
        assert isinstance(got.end, Done)
        assert got.end.counts.prompt == PROMPT_TOKENS
        assert got.answer.price == undisturbed.answer.price
        records = usages(edge, asked.request)
        assert sum(one["counts"]["edge"]["delivered"] for one in records) == TOKENS
        assert sum(one["counts"]["pool"]["generated"] for one in records) == TOKENS
        assert [one["price"] is not None for one in records] == [False, True]
        assert [one["pool"] for one in records] == [GUIZHOU, SHANGHAI]
        assert records[1]["continues"] == records[0]["attempt"]
        assert [one["first_token"] for one in records] == [0, at]
        parts = [(one.pool.id, one.first_token, one.tokens) for one in got.answer.segments]
        both = [(GUIZHOU, 0, at), (SHANGHAI, at, TOKENS - at)]
        assert parts == (both if at else both[1:]), "one that said nothing has no part"


async def test_the_second_attempt_is_decided_recorded_and_signed_like_the_first(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=Wordy([(3, "session_lost")]), cn_shanghai=Wordy())
    recorded: list[int] = []
    edge.routes.on_send = lambda sendable: recorded.append(
        sum(1 for record in edge.records("decision") if record["attempt"] == sendable.attempt)
    )
    asked = edge.asked_overseas()
    await ask(edge, asked)
    assert recorded == [1, 1], "each is in the spool before it leaves"
    first, second = edge.records("decision")
    assert (first["continues"], first["first_token"]) == (None, 0)
    assert (second["continues"], second["first_token"]) == (first["attempt"], 3)
    assert first["facts"]["processed_in"] == []
    assert second["facts"]["processed_in"] == ["CN"], "what was said there brings its law"
    assert second["facts"]["label"] == first["facts"]["label"]
    assert second["payload_bytes"] > first["payload_bytes"]
    assert second["commitment"] != first["commitment"]
    (_, sent), (_, again) = edge.routes.sent
    assert again.continues == sent.attempt
    assert again.facts.processed_in == {"CN"}
    assert again.inputs is not None
    assert {part.kind for part in again.inputs.parts if part.count} == {"user", "assistant"}
    everything = b"".join(entry.data for entry in edge.spool.read_from())
    for words in (SECRET_WORDS, *whole(asked.generation).split()):
        assert words.encode() not in everything


async def test_cut_twice_it_goes_on_twice(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=Wordy([(2, "session_lost")]), cn_shanghai=Wordy([(5, "session_lost")]))
    got = await ask(edge)
    assert got.text == whole(edge.asked("acme-sg").generation)
    assert [(one.pool.id, one.first_token, one.tokens) for one in got.answer.segments] == [
        (GUIZHOU, 0, 2),
        (SHANGHAI, 2, 3),
        (GUIZHOU, 5, 3),
    ]
    records = usages(edge)
    assert [one["continues"] for one in records] == [None, records[0]["attempt"], records[1]["attempt"]]


@pytest.mark.parametrize("code", ["engine_failed", "draining", "session_lost"])
async def test_an_attempt_that_is_cut_before_it_goes_on_leaves_the_wait_for_a_pool(make_edge: Make, code: str) -> None:
    edge = make_edge()
    everywhere, loop = frozenset({GUIZHOU, SHANGHAI, "eu-frankfurt"}), asyncio.get_running_loop()

    def down() -> None:
        edge.routes.down = everywhere
        loop.call_later(0.15, setattr, edge.routes, "down", everywhere - {GUIZHOU})

    # Both fail at once; the first is back in a moment.
    cut, lost = Wordy([(3, "session_lost")]), Wordy([(3, code)], after=down)
    asked = anew(edge, cn_guizhou=cut, cn_shanghai=lost)
    edge.gate = Gate(edge.name, replace(edge.hands, patience_ms=3_000))
    cut.after = lambda: setattr(edge.routes, "down", frozenset({GUIZHOU, "eu-frankfurt"}))
    got = await ask(edge, asked)
    assert got.text == whole(asked.generation)
    assert [one.pool.id for one in got.answer.segments if one.tokens] == [GUIZHOU, GUIZHOU]


async def test_what_breaks_everything_is_not_tried_for_ever(make_edge: Make) -> None:
    edge = make_edge()
    for at in (0, 3):
        poison = [(at, "engine_failed")] * 99
        asked = anew(edge, cn_guizhou=Wordy(poison), cn_shanghai=Wordy(poison))
        if at:
            assert stopped(await ask(edge, asked))["reason"] == "attempts"
        else:
            with pytest.raises(ProblemError) as cut:
                await ask(edge, asked)
            assert cut.value.problem.code == "engine_failed"
        assert len(edge.routes.sent) == ATTEMPTS_MAX


@pytest.mark.parametrize("code", ["slow_reader", "timeout_total", "internal_error", "bad_generation"])
async def test_what_another_attempt_would_not_help_is_told(make_edge: Make, code: str) -> None:
    edge = make_edge(cn_guizhou=Wordy([(3, code)]), cn_shanghai=Wordy())
    got = await ask(edge)
    assert stopped(got)["reason"] == "cause"
    assert len(edge.routes.sent) == 1


async def test_only_an_equal_goes_on(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=Wordy([(3, "engine_protocol")]), cn_shanghai=Wordy(continuing=OTHER))
    got = await ask(edge)
    assert stopped(got)["reason"] == "identity"
    assert len(edge.routes.sent) == 2
    assert got.places == [0, 1, 2]


@pytest.mark.parametrize("says", [OTHER, NOT_CONTINUED, replace(EQUAL, by=Resume.TEXT)])
async def test_not_a_token_is_taken_of_one_that_does_not_say_it_is_an_equal(make_edge: Make, says: Continuing) -> None:
    edge = make_edge(cn_guizhou=Wordy([(3, "engine_protocol")]), cn_shanghai=Wordy(says=says))
    got = await ask(edge)
    assert got.places == [0, 1, 2]
    assert isinstance(got.end, Broken)
    assert [one["outcome"] for one in usages(edge)] == ["broken", "broken"], "what it made is accounted for"
    assert edge.routes.closed == 2


@pytest.mark.parametrize("continuing", [NOT_CONTINUED, Continuing(EQUAL.identity), Continuing(None, Resume.IDS)])
async def test_an_answer_of_an_unknown_model_does_not_go_on(make_edge: Make, continuing: Continuing) -> None:
    edge = make_edge(cn_guizhou=Wordy([(3, "session_lost")], continuing), cn_shanghai=Wordy(continuing=continuing))
    assert stopped(await ask(edge))["reason"] == "engine"
    assert usages(edge)[0]["resumable"] == "engine"
    # Before the first token nothing has to be equal.
    edge = make_edge(cn_guizhou=Wordy([(0, "session_lost")], continuing), cn_shanghai=Wordy(continuing=continuing))
    assert isinstance((await ask(edge)).end, Done)


async def test_a_tenant_may_want_none_of_it(make_edge: Make) -> None:
    for at in (0, 3):
        edge = make_edge(cn_guizhou=Wordy([(at, "session_lost")]), cn_shanghai=Wordy())
        asked = replace(edge.asked("acme-sg"), resumes=False)
        if at:
            assert stopped(await ask(edge, asked))["reason"] == "tenant"
            assert usages(edge)[0]["resumable"] == "tenant"
        else:
            with pytest.raises(ProblemError):
                await ask(edge, asked)
        assert len(edge.routes.sent) == 1


async def test_what_is_kept_has_one_budget_and_is_given_back(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=Wordy([(3, "session_lost")]), cn_shanghai=Wordy())
    edge.gate = Gate(edge.name, replace(edge.hands, retained_bytes=300))
    long = replace(edge.asked("acme-sg"), body=b"x" * 301)
    assert stopped(await ask(edge, long))["reason"] == "budget"
    assert usages(edge)[0]["resumable"] == "budget"
    edge = make_edge(cn_guizhou=Wordy([(TOKENS, "session_lost")]), cn_shanghai=Wordy())
    edge.gate = Gate(edge.name, replace(edge.hands, retained_bytes=300))
    assert stopped(await ask(edge))["reason"] == "budget", "an answer grows beyond it"
    assert edge.gate._retained.used_bytes == 0
    edge = make_edge(cn_guizhou=Wordy([None, (3, "session_lost")]), cn_shanghai=Wordy())
    edge.gate = Gate(edge.name, replace(edge.hands, retained_bytes=1_500))
    other = await edge.gate.ask(edge.asked("acme-sg"))
    await anext(other.frames)
    assert edge.gate._retained.used_bytes > 0
    await other.frames.aclose()
    assert edge.gate._retained.used_bytes == 0
    assert isinstance((await ask(edge)).end, Done)
    assert edge.gate._retained.used_bytes == 0
    assert RETAINED_BYTES_MAX == 64 << 20


async def test_a_request_that_is_given_up_before_it_begins_keeps_nothing_and_sends_nothing(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=Wordy())
    asking = asyncio.create_task(edge.gate.ask(edge.asked("acme-sg")))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert edge.gate._retained.used_bytes == 0
    assert edge.routes.sent == []
    asking = asyncio.create_task(edge.gate.ask(edge.asked("acme-sg")))
    await asyncio.sleep(0)  # it waits for its record now
    assert edge.gate._retained.used_bytes > 0
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert edge.gate._retained.used_bytes == 0
    assert edge.routes.sent == []


async def test_cut_while_a_pool_holds_newer_law_it_waits_for_the_law_and_goes_on(make_edge: Make) -> None:
    edge = make_edge(
        cn_guizhou=Wordy([(3, "session_lost")]), cn_shanghai=Wordy(["policy_newer"])
    )
    edge.routes.plans[SHANGHAI].got = _Noticing(lambda: setattr(edge, "current", edge.example.bundle()))  # type: ignore[attr-defined]
    got = await ask(edge)
    assert got.text == whole(edge.asked("acme-sg").generation)
    numbers = [record["citation"]["manifest"] for record in edge.records("decision")]
    assert numbers == [1, 1, 2]
    assert {record["continues"] for record in edge.records("decision")[1:]} == {edge.routes.sent[0][1].attempt}


class _Noticing(list[Any]):
    """A list that tells of each attempt that arrives."""

    def __init__(self, tell: Callable[[], object]) -> None:
        super().__init__()
        self._tell = tell

    def append(self, item: Any) -> None:
        super().append(item)
        self._tell()


async def test_the_seed_is_fixed_before_the_first_send(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=Wordy([(3, "session_lost")]), cn_shanghai=Wordy())
    await ask(edge, edge.asked("acme-sg", sampling=Sampling(temperature=0.7, max_tokens=8)))
    first, second = (sent.generation.sampling for _, sent in edge.routes.sent)
    assert first.seed is not None
    assert first == second
    edge = make_edge(cn_guizhou=Wordy())
    await ask(edge, edge.asked("acme-sg", sampling=Sampling(temperature=0.7, seed=5)))
    assert edge.routes.sent[0][1].generation.sampling.seed == 5


async def test_hanging_up_while_it_goes_on_settles_both(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=Wordy([(3, "session_lost")]), cn_shanghai=Wordy())
    answer = await edge.gate.ask(edge.asked("acme-sg"))
    for _ in range(4):
        await anext(answer.frames)
    await answer.frames.aclose()
    assert [one["outcome"] for one in usages(edge)] == ["broken", "cancelled"]
    assert edge.routes.closed == 2


async def test_no_word_that_was_said_is_in_a_log(make_edge: Make, caplog: pytest.LogCaptureFixture) -> None:
    edge = make_edge(cn_guizhou=Wordy([(3, "session_lost")]), cn_shanghai=Wordy([(5, "internal_error")]))
    with caplog.at_level("DEBUG"):
        got = await ask(edge)
    assert {"stream_cut", "stream_continued"} <= {record.msg for record in caplog.records}
    shown = caplog.text + json.dumps(stopped(got)) + repr([sent for _, sent in edge.routes.sent])
    for said in got.text.split():
        assert said not in shown

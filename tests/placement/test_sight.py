"""What is known of pools follows from reports and replies, and every attempt that was counted is uncounted once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from orchestrator.placement.cost import cost
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.sight import NO_FLOW, SPEED_KEEP_US, TOKENS_MAX, End, Ending, Flight, Sight
from orchestrator.placement.speed import LEARN_EVERY_US, Speed
from orchestrator.policy.ids import ModelId, PoolId
from tests.placement.test_choice import MODEL
from tests.placement.test_cost_terms import REQUEST, SPOT, WORTH
from tests.values import replace

HERE, THERE = PoolId("here"), PoolId("there")
DECLARED = Speed(100_000, 10_000_000, 0)
FASTER = Speed(50_000, 10_000_000, 0)
IDLE = PoolLoad(1, 8, 0, 0, 64, 0)
RTT_US = 1_000
LATER_US = 60_000_000
COMPLETE = Ending(End.COMPLETE, 100, 0, 11, 0, 0)


@dataclass
class Way:
    """What the way to one pool says of it."""

    rtt_us: int | None = None
    load: PoolLoad | None = None
    heard_us: int = 0


class Told(Sight):
    """A sight, and beside it what its caller keeps: what the ways say, and attempts by name."""

    def __init__(self, *, watch_first: bool = False) -> None:
        super().__init__(watch_first=watch_first)
        self.ways: defaultdict[PoolId, Way] = defaultdict(Way)
        self.flights: dict[str, Flight] = {}

    def measured(self, pool: PoolId, rtt_us: int | None) -> None:
        self.ways[pool].rtt_us = rtt_us

    def heard(self, pool: PoolId, load: PoolLoad | None, at_us: int) -> None:
        self.ways[pool].load, self.ways[pool].heard_us = load, at_us

    def seen(self, at_us: int = 0, pool: PoolId = HERE, model: ModelId = MODEL) -> PoolView:
        way = self.ways[pool]
        return self.view(pool, model, at_us, True, way.rtt_us, way.load, way.heard_us, flow=NO_FLOW)

    def go(
        self,
        attempt: str = "a",
        at_us: int = 0,
        pool: PoolId = HERE,
        tokens: int = 100,
        cached: int = 0,
        declared: Speed = DECLARED,
        model: ModelId = MODEL,
        **more: Any,
    ) -> None:
        """Tell of one attempt of so many prompt tokens, of which so many were expected to be held there."""
        view = PoolView(pool, True, RTT_US, IDLE, 0, cached_tokens=cached)
        request = replace(REQUEST, prompt_tokens=tokens, upload_bytes=0)
        terms = cost(request, SPOT, view, WORTH)
        self.flights[attempt] = self.sent(pool, model, declared, terms, tokens, at_us, **more)

    def leave(self, attempt: str, at_us: int) -> None:
        self.left(self.flights[attempt], at_us)

    def speak(self, attempt: str, at_us: int) -> None:
        self.first_token(self.flights[attempt], at_us)

    def end(self, attempt: str, ending: Ending, at_us: int) -> None:
        self.ended(self.flights[attempt], ending, at_us)


def counts(view: PoolView) -> tuple[int, int, int]:
    return view.own_in_flight, view.unseen, view.unseen_tokens


def measured(rtt_us: int | None = RTT_US) -> Told:
    sight = Told()
    sight.measured(HERE, rtt_us)
    return sight


def test_of_a_pool_that_nobody_spoke_of_nothing_is_known() -> None:
    assert Told().seen() == PoolView(HERE, True, None, None, 0)


def test_own_attempts_are_counted_until_a_report_can_have_seen_them() -> None:
    sight = measured()
    sight.go("a", 0, tokens=100, cached=30)
    sight.go("b", 500)
    assert counts(sight.seen()) == (2, 2, 170)
    sight.heard(HERE, IDLE, RTT_US - 1)
    assert counts(sight.seen()) == (2, 2, 170), "it was made before the first one arrived"
    sight.heard(HERE, IDLE, RTT_US)
    assert counts(sight.seen()) == (2, 1, 100)
    sight.heard(HERE, IDLE, RTT_US + 500)
    assert counts(sight.seen()) == (2, 0, 0)


def test_where_the_way_was_never_measured_no_report_is_taken_to_have_seen_anything() -> None:
    sight = measured(None)
    sight.go()
    sight.heard(HERE, IDLE, 10**9)
    assert counts(sight.seen()) == (1, 1, 100)
    sight.measured(HERE, RTT_US)
    sight.heard(HERE, IDLE, 10**9)
    assert counts(sight.seen()) == (1, 0, 0)


def test_a_first_token_says_that_a_prompt_waits_no_more() -> None:
    sight = Told()
    sight.go()
    sight.go("b")
    sight.speak("a", 10)
    assert counts(sight.seen()) == (2, 2, 100), "it runs, though no report counts it"
    sight.speak("a", 20)
    assert counts(sight.seen()) == (2, 2, 100)
    sight.end("a", COMPLETE, 30)
    assert counts(sight.seen()) == (1, 1, 100)


def test_an_attempt_is_counted_from_the_choice_and_measured_from_when_it_leaves() -> None:
    sight = measured()
    sight.go("a", 0)
    sight.heard(HERE, IDLE, RTT_US + 10)
    assert counts(sight.seen()) == (1, 0, 0)
    sight.leave("a", 50_000)
    assert counts(sight.seen()) == (1, 1, 100), "it was still here when that report was made"
    sight.go("b", 40_000)
    sight.leave("b", 50_500)
    sight.heard(HERE, IDLE, RTT_US + 50_400)
    assert counts(sight.seen()) == (2, 1, 100)
    sight.speak("a", 50_000 + RTT_US + 10_000)
    sight.end("a", COMPLETE, 200_000)
    speed = sight.seen(LATER_US).speed
    assert speed is not None
    assert speed.fixed_us + 100 * speed.prefill_ns // 1000 == pytest.approx(10_000, rel=0.01)


def test_the_age_of_a_report_is_counted_from_when_it_was_heard() -> None:
    sight = measured()
    sight.heard(HERE, replace(IDLE, age_ms=99), 5_000)
    loads = [sight.seen(at_us).load for at_us in (5_000, 7_999, 4_000)]
    assert [load.age_ms for load in loads if load is not None] == [0, 2, 0]


def test_a_lost_link_forgets_the_load_and_keeps_what_was_learned() -> None:
    sight = measured()
    sight.heard(HERE, IDLE, 0)
    sight.go()
    sight.speak("a", 5_000)
    sight.end("a", COMPLETE, 9_000)
    sight.heard(HERE, None, 0)
    view = sight.seen()
    assert view.load is None
    assert view.rtt_us == RTT_US
    assert view.speed is not None
    sight.heard(THERE, None, 0)
    assert sight.seen(pool=THERE).load is None


@pytest.mark.parametrize("end", [End.REFUSED, End.FAILED, End.CANCELLED])
def test_only_a_complete_reply_teaches_a_speed(end: End) -> None:
    sight = measured()
    sight.go()
    sight.speak("a", 10_000)
    sight.end("a", replace(COMPLETE, end=end), 20_000)
    assert sight.seen(LATER_US).speed is None
    sight.go("b")
    sight.end("b", COMPLETE, 20_000)
    assert sight.seen(LATER_US).speed is None, "without a first token there is nothing to measure"
    sight.go("c")
    sight.speak("c", 10_000)
    sight.end("c", COMPLETE, 20_000)
    speed = sight.seen(LATER_US).speed
    assert speed is not None
    assert speed.samples == 1
    assert sight.seen(LATER_US, model=ModelId("other")).speed is None
    assert sight.seen(LATER_US, THERE).speed is None


def test_a_reply_that_its_reader_held_up_teaches_no_decoding() -> None:
    sight = measured()
    sight.go()
    sight.speak("a", 10_000)
    sight.end("a", replace(COMPLETE, held_up=True), 10**9)
    speed = sight.seen(LATER_US).speed
    assert speed is not None
    assert (speed.decode_ns, speed.service_us) == (DECLARED.decode_ns, None)


def test_other_declared_rates_begin_anew() -> None:
    sight = measured()
    for number in range(2):
        sight.go(str(number))
        sight.speak(str(number), 10_000)
        if number:
            sight.end(str(number), COMPLETE, 20_000 + LEARN_EVERY_US)
            sight.go("new", declared=FASTER)
            sight.speak("new", 10_000)
            sight.end("new", COMPLETE, 20_000 + LEARN_EVERY_US)
        else:
            sight.end(str(number), COMPLETE, 20_000)
    speed = sight.seen(LATER_US).speed
    assert speed is not None
    assert speed.samples == 1


def test_a_pools_own_counts_correct_what_is_believed_of_its_prefixes() -> None:
    sight = measured()
    sight.go(blocks=(1, 2), expected_cached=80)
    assert sight.expect((1, 2, 3), 10, 1_000, 0) == {HERE: (20, 20)}
    sight.speak("a", 10)
    sight.end("a", replace(COMPLETE, cached_tokens=0), 20)
    assert sight.expect((1, 2, 3), 10, 1_000, 0) == {HERE: (18, 20)}
    sight.go("b", blocks=(1, 2), expected_cached=80)
    sight.end("b", Ending(End.COMPLETE), 30)
    assert sight.expect((1, 2, 3), 10, 1_000, 0) == {HERE: (18, 20)}, "a pool that counts nothing says nothing"


@pytest.mark.parametrize("field", ["queued_tokens", "kv_tokens", "kv_used_tokens"])
def test_what_a_pool_says_beyond_all_measure_stays_a_number_that_a_record_holds(field: str) -> None:
    sight = measured()
    sight.heard(HERE, replace(IDLE, **{field: (1 << 64) - 1}), 0)
    load = sight.seen().load
    assert load is not None
    assert {getattr(load, name) for name in ("queued_tokens", "kv_tokens", "kv_used_tokens")} == {None, TOKENS_MAX}


def test_failures_hold_a_pool_off_and_no_other() -> None:
    sight = Told()
    for number in range(3):
        sight.go(str(number), 10 * number)
        sight.go(f"other-{number}", 10 * number, pool=THERE)
        sight.end(str(number), Ending(End.FAILED), 10 * number + 5)
        sight.end(f"other-{number}", Ending(End.REFUSED), 10 * number + 5)
    assert sight.seen(30).held_off
    assert not sight.seen(30, THERE).held_off


def test_an_end_that_is_told_twice_counts_once() -> None:
    sight = measured()
    sight.go()
    for _ in range(2):
        sight.end("a", Ending(End.CANCELLED), 1)
        sight.speak("a", 2)
    assert counts(sight.seen()) == (0, 0, 0)


@dataclass
class Flying:
    """An attempt as the machine below remembers it."""

    name: str
    pool: PoolId
    sent_us: int
    tokens: int
    first: bool = False
    counted: bool = False


class Attempts(RuleBasedStateMachine):
    """Attempts, reports and losses in any order; beside it the plainest book of them."""

    flying = Bundle("flying")

    def __init__(self) -> None:
        super().__init__()
        self.sight = Told()
        self.now_us = 0
        self.made = 0
        self.rtt_us: dict[PoolId, int | None] = {HERE: None, THERE: None}
        self.load: dict[PoolId, PoolLoad | None] = {HERE: None, THERE: None}
        self.heard_us = {HERE: 0, THERE: 0}
        self.book: dict[str, Flying] = {}

    @rule(us=st.integers(1, 5_000))
    def wait(self, us: int) -> None:
        self.now_us += us

    @rule(
        target=flying,
        pool=st.sampled_from([HERE, THERE]),
        tokens=st.integers(0, 5_000),
        cached=st.integers(0, 6_000),
        blocks=st.lists(st.integers(0, 9), max_size=3, unique=True),
    )
    def send(self, pool: PoolId, tokens: int, cached: int, blocks: list[int]) -> str:
        self.made += 1
        name = str(self.made)
        self.sight.go(name, self.now_us, pool, tokens, cached, blocks=blocks, expected_cached=cached)
        uncached = tokens - min(cached, max(0, tokens - 1))
        self.book[name] = Flying(name, pool, self.now_us, uncached)
        return name

    @rule(name=flying)
    def leave(self, name: str) -> None:
        self.sight.leave(name, self.now_us)
        if name in self.book and not self.book[name].first:
            self.book[name].sent_us, self.book[name].counted = self.now_us, False

    @rule(name=flying)
    def first_token(self, name: str) -> None:
        self.sight.speak(name, self.now_us)
        if name in self.book:
            self.book[name].first = True

    @rule(
        name=consumes(flying),
        end=st.sampled_from(list(End)),
        prompt=st.integers(0, 9_000),
        cached=st.integers(0, 9_000),
        output=st.integers(0, 900),
        queued=st.none() | st.integers(0, 90_000),
        beside=st.none() | st.integers(0, 99),
        held_up=st.booleans(),
    )
    def end(
        self,
        name: str,
        end: End,
        prompt: int,
        cached: int,
        output: int,
        queued: int | None,
        beside: int | None,
        held_up: bool,
    ) -> None:
        before = {pool: self.sight.seen(self.now_us, pool).speed for pool in (HERE, THERE)}
        self.sight.end(name, Ending(end, prompt, cached, output, queued, beside, held_up), self.now_us)
        flown = self.book.pop(name)
        if end is not End.COMPLETE or not flown.first:
            assert {pool: self.sight.seen(self.now_us, pool).speed for pool in (HERE, THERE)} == before

    @rule(pool=st.sampled_from([HERE, THERE]), running=st.integers(0, 20))
    def report(self, pool: PoolId, running: int) -> None:
        load = self.load[pool] = replace(IDLE, running=running)
        self.heard_us[pool] = self.now_us
        self.sight.heard(pool, load, self.now_us)

    @rule(pool=st.sampled_from([HERE, THERE]), rtt_us=st.none() | st.integers(0, 4_000))
    def measure(self, pool: PoolId, rtt_us: int | None) -> None:
        self.sight.measured(pool, rtt_us)
        self.rtt_us[pool] = rtt_us

    @rule(pool=st.sampled_from([HERE, THERE]))
    def lose(self, pool: PoolId) -> None:
        self.sight.heard(pool, None, 0)
        self.load[pool] = None

    @precondition(lambda self: not self.book)
    @invariant()
    def when_all_have_ended_nothing_is_left(self) -> None:
        for pool in (HERE, THERE):
            assert counts(self.sight.seen(self.now_us, pool)) == (0, 0, 0)

    @invariant()
    def the_counts_are_those_of_the_book(self) -> None:
        for pool in (HERE, THERE):
            view = self.sight.seen(self.now_us, pool)
            own = [one for one in self.book.values() if one.pool == pool]
            rtt_us = self.rtt_us[pool]
            if self.load[pool] is not None and rtt_us is not None:
                for one in own:
                    one.counted = one.counted or one.sent_us <= self.heard_us[pool] - rtt_us
            unseen = [one for one in own if not one.counted]
            waiting = sum(one.tokens for one in unseen if not one.first)
            assert counts(view) == (len(own), len(unseen), waiting)
            said = None if self.load[pool] is None or view.load is None else replace(view.load, age_ms=0)
            assert said == self.load[pool]
            assert view.rtt_us == rtt_us


Attempts.TestCase.settings = examples(max_examples=60, stateful_step_count=40)
TestAttempts = Attempts.TestCase


def test_a_view_has_a_cost_whatever_was_learned() -> None:
    sight = measured()
    for number in range(30):
        at_us = number * LEARN_EVERY_US
        sight.go(str(number), at_us)
        sight.speak(str(number), at_us + 1)
        sight.end(str(number), Ending(End.COMPLETE, 10**9, 10**9, 10**9, 0, 10**9), at_us + 1)
    request = PlacementRequest(MODEL, frozenset(), 1_000, 100, 0)
    view = sight.seen()
    assert view.speed is not None
    assert view.speed.samples == 30
    found = cost(request, SPOT, view, WORTH)
    assert found.total_pico > 0
    assert found.first_us == found.rtt_us + found.upload_us + found.queue_us + found.prefill_us
    assert found.time_us == found.first_us + found.decode_us


def test_of_a_model_the_pools_that_are_out_are_those_that_are_ejected() -> None:
    sight = Told(watch_first=True)
    names = [PoolId(f"p{number}") for number in range(4)]
    number = 0
    most: frozenset[PoolId] = frozenset()
    for step in range(40):
        now_us = step * 6_000_000
        for name in reversed(names):
            if sight.ejected(name, MODEL, now_us):
                continue
            number += 1
            sight.go(str(number), now_us, name)
            took_us = 5_000_000 if name == names[0] else 100_000
            sight.speak(str(number), now_us + took_us)
            sight.end(str(number), Ending(End.COMPLETE, 10, 0, 10, 0, 0), now_us + took_us + 1)
        out = sight.out(MODEL, now_us)
        assert out == {name for name in names if sight.ejected(name, MODEL, now_us)}
        assert sight.out(ModelId("other"), now_us) == frozenset()
        assert [sight.seen(now_us, name).held_off for name in names] == [name in out for name in names]
        most |= out
    assert most == {names[0]}


def test_a_learned_speed_that_no_reply_confirms_is_forgotten_and_learned_anew() -> None:
    sight = measured()
    sight.go("slow", 0)
    sight.speak("slow", 900_000)
    sight.end("slow", COMPLETE, 1_000_000)
    assert sight.seen(1_000_000 + SPEED_KEEP_US).speed is not None
    assert sight.seen(1_000_001 + SPEED_KEEP_US).speed is None
    at_us = 2_000_000 + SPEED_KEEP_US
    sight.go("again", at_us)
    sight.speak("again", at_us + 10_000)
    sight.end("again", COMPLETE, at_us + 20_000)
    learned = sight.seen(at_us + 20_000).speed
    assert learned is not None
    assert learned.samples == 1

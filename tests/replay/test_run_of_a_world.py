"""A run: what each request meets on its way, that none is lost or counted twice, and what is counted of each."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.placement.replay.outcome import Run
from orchestrator.placement.replay.router import Choice, Refuse, Send
from orchestrator.placement.replay.world import Link, Outage, SimRequest, World
from orchestrator.policy.ids import ModelId
from orchestrator.policy.jurisdictions import Jurisdiction
from tests.replay.small_world import GPU, MS, S, Script, blocks, play, pool, request, to, world
from tests.values import replace

SMALL = replace(GPU, slots=2, kv_tokens=400)
ALONE_US = 10 * MS + 50 * 100
"""A prompt of 50 tokens on an idle replica."""


def test_the_first_token_takes_a_round_trip_the_upload_and_the_prompt() -> None:
    asked = request(1, at_us=3, upload_bytes=2_000)
    outcome = play(world(), [asked], to(0)).outcomes[0]
    assert outcome.first_us == 100 * MS + 2 * MS + ALONE_US
    assert outcome.end_us == outcome.first_us + 10 * 11 * MS
    assert (outcome.token_us, outcome.output_tokens, outcome.finished, outcome.attempts) == (11 * MS, 11, True, 1)
    assert (outcome.pool, outcome.replica, outcome.refused, outcome.broken) == (0, 0, None, False)


def test_a_router_hears_of_each_attempt_when_its_edge_does() -> None:
    router = to(0)
    play(world(), [request(1, at_us=3)], router)
    first_us = 3 + 100 * MS + ALONE_US
    assert router.left == [(3, 1, Send(0))]
    assert router.firsts == [(first_us, 1)]
    (reply,) = router.replies
    assert (reply.sent_us, reply.first_us, reply.end_us) == (3, first_us, first_us + 10 * 11 * MS)
    assert (reply.prompt_tokens, reply.output_tokens, reply.queued_us, reply.together) == (50, 11, 0, 0)


def test_jitter_lengthens_a_round_trip_by_its_mean_and_never_turns_the_order_round() -> None:
    links = [[Link(rtt_us=0, jitter_us=80 * MS, bytes_per_s=1)]]
    # Far apart, so that each is alone.
    asked = [request(number, number * 5 * S, output_tokens=2) for number in range(3_000)]
    outcomes = play(world(links=links), asked, to(0)).outcomes
    waits = [outcome.first_us - ALONE_US for outcome in outcomes if outcome.first_us is not None]
    assert sum(waits) / len(waits) == pytest.approx(80 * MS, rel=0.05)
    assert all(outcome.first_us <= outcome.end_us for outcome in outcomes)  # type: ignore[operator]


def test_what_no_replica_has_room_for_waits_in_the_pools_line_for_the_first_that_has() -> None:
    two = pool(replicas=2, gpu=replace(GPU, slots=1))
    asked = [request(1, output_tokens=50), request(2, 1, output_tokens=5), request(3, 2), request(4, 3)]
    router = to(0)
    outcomes = play(world(two), asked, router).outcomes
    assert [outcome.replica for outcome in outcomes] == [0, 1, 1, 1]
    assert [report.line for report in router.scheduled] == [0, 0, 1, 0]
    ends = {reply.request: reply for reply in router.replies}
    assert ends[3].queued_us == (50 * MS + ALONE_US + 4 * 11 * MS + 1) - (50 * MS + 2)


def test_a_request_sent_to_a_replica_by_name_waits_there_though_another_is_idle() -> None:
    two = pool(replicas=2, gpu=replace(GPU, slots=1))
    outcomes = play(world(two), [request(1), request(2, 1)], to(0, 1)).outcomes
    assert [outcome.replica for outcome in outcomes] == [1, 1]
    assert outcomes[1].first_us > 2 * outcomes[0].first_us - 100 * MS  # type: ignore[operator]


def test_requests_with_a_common_beginning_find_it_cached() -> None:
    asked = [request(number, number * S, blocks=blocks(1, 5)) for number in range(2)]
    outcomes = play(world(), asked, to(0)).outcomes
    assert [outcome.cached_tokens for outcome in outcomes] == [0, 49]
    assert outcomes[0].first_us - outcomes[1].first_us == 49 * 100  # type: ignore[operator]


def test_a_full_pool_refuses_and_the_request_is_placed_again_knowing_where_it_was() -> None:
    full = pool(gpu=replace(GPU, slots=1), waiting_max=1)
    router = Script(lambda request, edge, tried, hopped, now_us: Send(1 if tried else 0))
    outcomes = play(world(full, pool(1)), [request(number) for number in range(3)], router).outcomes
    assert [(outcome.pool, outcome.attempts) for outcome in outcomes] == [(0, 1), (0, 1), (1, 2)]
    assert router.asked[-1] == (100 * MS, 2, 0, (0,))
    assert outcomes[2].first_us == 200 * MS + ALONE_US
    assert [reply.refused for reply in router.replies] == [True, False, False, False]


def test_after_three_refusals_a_request_is_turned_away() -> None:
    none = pool(gpu=replace(GPU, slots=0), waiting_max=0)
    router = to(0)
    (outcome,) = play(world(none), [request(1)], router).outcomes
    assert (outcome.refused, outcome.attempts, outcome.finished) == ("attempts_spent", 3, False)
    assert [tried for _, _, _, tried in router.asked] == [(), (0,), (0, 0)]
    assert (outcome.cost_pico, outcome.first_us, outcome.end_us) == (0, None, None)


@pytest.mark.parametrize(
    "asked", [request(1, model=ModelId("other")), request(1, prompt_tokens=90_000, output_tokens=10_001)]
)
def test_a_pool_refuses_what_it_cannot_serve(asked: SimRequest) -> None:
    (outcome,) = play(world(), [asked], to(0)).outcomes
    assert outcome.refused == "attempts_spent"


def test_a_router_may_turn_a_request_away_with_a_reason() -> None:
    (outcome,) = play(world(), [request(1)], Script(lambda *_: Refuse("no_pool"))).outcomes
    assert (outcome.refused, outcome.attempts, outcome.pool) == ("no_pool", 0, -1)


def test_an_outage_breaks_a_stream_whose_first_token_has_come_and_it_is_not_placed_again() -> None:
    outage = Outage(0, 90 * MS + 1, 2 * S)
    router = to(0)
    (outcome,) = play(world(outages=[outage]), [request(1)], router).outcomes
    assert (outcome.broken, outcome.finished, outcome.refused, outcome.attempts) == (True, False, None, 1)
    assert outcome.first_us == 100 * MS + ALONE_US
    assert (outcome.output_tokens, outcome.cost_pico) == (3, 3), "what it generated is paid for"
    (reply,) = router.replies
    assert (reply.broken, reply.refused, reply.end_us) == (True, False, 140 * MS + 1)


def test_an_outage_before_the_first_token_has_the_request_placed_again() -> None:
    outage = Outage(0, 60 * MS, 2 * S)
    router = Script(lambda request, edge, tried, hopped, now_us: Send(1 if tried else 0))
    (outcome,) = play(world(pool(), pool(1), outages=[outage]), [request(1)], router).outcomes
    assert (outcome.finished, outcome.attempts, outcome.pool, outcome.cost_pico) == (True, 2, 1, 11)
    assert [(reply.pool, reply.broken, reply.refused) for reply in router.replies] == [
        (0, True, False),
        (1, False, False),
    ]
    assert outcome.first_us == 110 * MS + 100 * MS + ALONE_US


def test_what_waits_at_a_pool_that_goes_away_was_not_started_and_what_comes_meanwhile_is_refused() -> None:
    one = pool(gpu=replace(GPU, slots=1), waiting_max=1)
    asked = [request(1), request(2), request(3, 70 * MS), request(4, 200 * MS)]
    router = to(0)
    play(world(one, outages=[Outage(0, 55 * MS, 220 * MS)]), asked, router)
    first = {reply.request: reply for reply in reversed(router.replies)}
    assert (first[1].broken, first[1].refused) == (True, False)
    assert [(first[number].broken, first[number].refused) for number in (2, 3)] == [(False, True)] * 2
    assert first[4].output_tokens == 11, "when it arrives the pool is back"


def test_edges_hear_of_an_outage_half_a_round_trip_after_it_begins_and_ends_and_nothing_between() -> None:
    router = to(0)
    router.report_us = 10 * MS
    twice = [Outage(0, 95 * MS, 12 * S), Outage(0, 11 * S, 25_005 * MS)]
    play(world(outages=twice), [request(1, 0), request(2, 26 * S)], router)
    heard = [now_us for now_us, *_ in router.reports if 145 * MS <= now_us <= 26 * S]
    assert heard == [145 * MS, 11_050 * MS, 25_055 * MS]
    assert [report.up for *_, report in router.reports if 45 * MS < report.made_us < 26 * S] == [
        *[True] * 5,
        False,
        False,
        True,
    ]
    numbers = [report.number for *_, report in router.reports]
    assert numbers == sorted(set(numbers))


def test_reports_come_every_period_from_a_busy_pool_and_every_ten_seconds_from_an_idle_one() -> None:
    router = to(0)
    play(world(), [request(1, 120 * MS), request(2, 25 * S)], router)
    made = [report.made_us for *_, report in router.reports]
    assert made == [0, 200 * MS, 300 * MS, 10_300 * MS, 20_300 * MS, 25_100 * MS]
    assert all(now_us == report.made_us + 50 * MS for now_us, _, _, report in router.reports)
    busy = router.reports[1][3]
    assert (busy.running, busy.waiting, busy.kv_used, busy.line, busy.up) == ((1,), (0,), (61,), 0, True)


def test_pools_do_not_report_in_step() -> None:
    router = to(0)
    play(world(pool(), pool(1)), [request(1)], router)
    assert [(number, report.made_us) for _, _, number, report in router.reports][:2] == [(0, 0), (1, 50 * MS)]


def test_a_first_token_that_set_out_before_an_outage_still_comes_before_the_news_of_the_cut() -> None:
    links = [[Link(rtt_us=0, jitter_us=400 * MS, bytes_per_s=1)]]
    router = to(0)
    asked = [request(number, output_tokens=50) for number in range(40)]
    of = world(pool(gpu=replace(GPU, slots=40)), links=links, outages=[Outage(0, S, 2 * S)])
    outcomes = play(of, asked, router).outcomes
    late = [reply.request for reply in router.replies if reply.broken and reply.first_us == reply.end_us]
    assert late
    assert all(outcomes[number].broken for number in late)


def test_a_send_outside_the_law_is_a_violation_though_the_pool_refused_it() -> None:
    none = pool(gpu=replace(GPU, slots=0), waiting_max=0)
    router = Script(lambda request, edge, tried, hopped, now_us: Send(1 if tried else request.number))
    of = world(none, pool(1))
    outcomes = play(of, [request(0), request(1)], router, permits=lambda _: 0b10).outcomes
    assert [(outcome.pool, outcome.violated, outcome.finished) for outcome in outcomes] == [
        (1, True, True),
        (1, False, True),
    ]


def test_bytes_are_counted_once_for_each_way_and_as_moved_only_when_they_cross_a_border() -> None:
    abroad = pool(1, jurisdiction=Jurisdiction("CN"))
    asked = [request(number, number * S, upload_bytes=1_000) for number in range(2)]
    router = Script(lambda request, edge, tried, hopped, now_us: Send(request.number))
    home, away = play(world(pool(), abroad), asked, router).outcomes
    assert home.egress_bytes == away.egress_bytes == 1_000 + 11 * 4
    assert (home.moved_bytes, away.moved_bytes) == (0, 1_044)


def test_an_attempt_is_billed_by_what_it_used_and_when_it_was_sent() -> None:
    bills: list[tuple[int, ...]] = []

    def bill(request: SimRequest, *what: int) -> int:
        bills.append((request.number, *what))
        return 7

    asked = [request(number, number * S, blocks=blocks(1, 5), upload_bytes=30) for number in range(2)]
    outcomes = play(world(), asked, to(0), bill=bill).outcomes
    assert bills == [(0, 0, 0, 11, 1_000_000, 30, 44), (1, 0, 49, 11, 1_001_000, 30, 44)]
    assert [outcome.cost_pico for outcome in outcomes] == [7, 7]


def test_what_is_under_way_at_the_horizon_is_not_finished_and_is_billed_for_what_it_made() -> None:
    asked = [request(1), request(2, 90 * MS), request(3, 500 * MS)]
    result = play(world(), asked, to(0), horizon_us=120 * MS)
    assert (result.arrived, result.ended_us) == (2, 120 * MS)
    running, coming = result.outcomes
    assert (running.finished, running.broken, running.refused, running.cost_pico) == (False, False, None, 6)
    assert (running.first_us, running.end_us) == (115 * MS, None)
    assert (coming.finished, coming.cost_pico, coming.attempts) == (False, 0, 1)


def test_the_warm_up_warms_caches_and_is_not_told_of() -> None:
    asked = [request(number, number * S, blocks=blocks(1, 5)) for number in range(3)]
    result = play(world(), asked, to(0), warmup_us=S)
    assert [(outcome.number, outcome.cached_tokens) for outcome in result.outcomes] == [(1, 49), (2, 49)]
    assert result.arrived == 3


def test_requests_out_of_order_or_of_the_same_number_are_an_error() -> None:
    with pytest.raises(ValueError, match="precedes"):
        play(world(), [request(1, 5), request(2, 4)], to(0))
    with pytest.raises(ValueError, match="two requests"):
        play(world(), [request(1, 5), request(1, 5)], to(0))


def test_progress_is_told_now_and_then() -> None:
    told: list[int] = []
    play(world(), [request(number, number * MS) for number in range(2_500)], to(0), progress=told.append)
    assert told == [1_000, 2_000]


def random_trace(seed: int, count: int, gap_us: int) -> list[SimRequest]:
    chance, at_us, trace = Random(seed), 0, []
    for number in range(count):
        at_us += int(chance.expovariate(1 / gap_us))
        prompt = chance.randint(1, 150)
        whole = blocks(chance.randrange(4), -(-prompt // 10))
        trace.append(
            request(
                number,
                at_us,
                edge=chance.randrange(2),
                prompt_tokens=prompt,
                output_tokens=chance.randint(1, 60),
                blocks=whole,
                upload_bytes=prompt * 4,
            )
        )
    return trace


def random_router(seed: int) -> Script:
    chance = Random(seed)

    def say(request: SimRequest, edge: int, tried: tuple[int, ...], hopped: bool, now_us: int) -> Choice:
        return Send(chance.randrange(3), chance.choice([None, 0, 1]))

    return Script(say)


def random_world(outages: list[tuple[int, int, int]], waiting_max: int) -> World:
    pools = [pool(number, replicas=2, gpu=SMALL, waiting_max=waiting_max) for number in range(3)]
    links = [[Link(20 * MS * (1 + (edge + number) % 3), 5 * MS, 100_000) for number in range(3)] for edge in range(2)]
    gone = [Outage(number, from_us, from_us + for_us) for number, from_us, for_us in outages]
    return world(*pools, edges="DE FR", links=links, outages=gone)


outages = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4 * S), st.integers(1, S)), max_size=4)


@settings(max_examples=60)
@given(st.integers(0, 1_000), st.integers(5 * MS, 200 * MS), st.integers(0, 4), outages)
def test_every_request_ends_exactly_once_and_nothing_is_made_from_nothing(
    seed: int, gap_us: int, waiting_max: int, gone: list[tuple[int, int, int]]
) -> None:
    trace = random_trace(seed, 60, gap_us)
    router = random_router(seed)
    outcomes = play(random_world(gone, waiting_max), trace, router, seed).outcomes
    assert [outcome.number for outcome in outcomes] == list(range(60))
    assert Counter(reply.request for reply in router.replies) == Counter(number for _, number, _ in router.left)
    made: Counter[int] = Counter()
    for reply in router.replies:
        assert not (reply.refused and (reply.broken or reply.output_tokens))
        made[reply.request] += reply.output_tokens
    for outcome, asked in zip(outcomes, trace, strict=True):
        assert outcome.finished + outcome.broken + (outcome.refused is not None) == 1
        assert 1 <= outcome.attempts <= 3
        assert outcome.cost_pico == made[outcome.number]
        if outcome.finished:
            assert outcome.output_tokens == asked.output_tokens
            assert 0 < outcome.first_us <= outcome.end_us  # type: ignore[operator]
        if outcome.broken:
            assert outcome.first_us is not None
            assert 0 < outcome.output_tokens < asked.output_tokens


def replay(seed: int) -> Run:
    return play(random_world([(0, S, S)], 3), random_trace(1, 200, 20 * MS), random_router(2), seed)


def test_the_same_seed_is_the_same_run_and_another_is_another() -> None:
    assert replay(4) == replay(4)
    assert replay(4).outcomes != replay(5).outcomes


def test_the_mean_number_at_a_pool_is_the_arrival_rate_times_the_mean_stay() -> None:
    """Little's law: reports, which look at the pool now and then, and replies, which time each stay, must agree."""
    chance, at_us, asked = Random(3), 0, []
    for number in range(6_000):
        at_us += int(chance.expovariate(1 / (60 * MS)))
        asked.append(request(number, at_us, output_tokens=chance.randint(1, 60), prompt_tokens=chance.randint(1, 200)))
    router = to(0)
    router.report_us = 37 * MS
    result = play(world(pool(replicas=2, waiting_max=10_000)), asked, router)
    reports = [report for *_, report in router.reports if any(report.running)]
    ticks = result.ended_us / router.report_us
    present = sum(sum(report.running) + sum(report.waiting) + report.line for report in reports) / ticks
    stay_us = sum(outcome.end_us - 100 * MS for outcome in result.outcomes if outcome.end_us) / len(asked)
    assert present == pytest.approx(len(asked) / result.ended_us * stay_us, rel=0.03)
    assert present > 2

"""What an edge does when its router holds a request, or hands it to another edge."""

from __future__ import annotations

import pytest

from orchestrator.placement.replay.router import Choice, Forward, Hold, Send
from orchestrator.placement.replay.run import DRAIN_US
from orchestrator.placement.replay.world import Link, SimRequest
from orchestrator.policy.jurisdictions import Jurisdiction
from tests.replay.small_world import GPU, MS, S, Script, play, pool, request, world

ALONE_US = 10 * MS + 50 * 100
FAR = Link(rtt_us=200 * MS, jitter_us=0, bytes_per_s=1_000_000)
NEAR = Link(rtt_us=10 * MS, jitter_us=0, bytes_per_s=1_000_000)


def hold_until(until_us: int) -> Script:
    def say(request: SimRequest, edge: int, tried: tuple[int, ...], hopped: bool, now_us: int) -> Choice:
        return Hold() if now_us < until_us else Send(0)

    return Script(say)


def test_what_is_held_is_asked_for_again_every_ten_milliseconds() -> None:
    router = hold_until(35 * MS)
    (outcome,) = play(world(), [request(1, 2 * MS)], router).outcomes
    assert [now_us for now_us, *_ in router.asked] == [2 * MS, 12 * MS, 22 * MS, 32 * MS, 42 * MS]
    assert outcome.first_us == 40 * MS + 100 * MS + ALONE_US


def test_only_the_head_of_a_line_is_asked_for_and_all_follow_in_order_when_it_may_go() -> None:
    router = hold_until(15 * MS)
    play(world(), [request(number, number) for number in range(4)], router)
    assert [number for _, number, *_ in router.asked] == [0, 0, 0, 1, 2, 3]
    assert [number for _, number, _ in router.left] == [0, 1, 2, 3]


def test_the_head_is_asked_for_when_a_report_or_a_reply_comes() -> None:
    def say(request: SimRequest, edge: int, tried: tuple[int, ...], hopped: bool, now_us: int) -> Choice:
        return Send(0) if request.number == 1 or now_us > 300 * MS else Hold()

    router = Script(say)
    play(world(), [request(1), request(2, 1)], router)
    asked = {now_us for now_us, number, *_ in router.asked if number == 2}
    heard = {now_us for now_us, *_ in router.reports if now_us < 300 * MS}
    assert heard <= asked
    assert router.replies[0].end_us in asked


def test_a_request_that_is_placed_again_stands_before_those_that_are_held() -> None:
    def say(request: SimRequest, edge: int, tried: tuple[int, ...], hopped: bool, now_us: int) -> Choice:
        if request.number == 1 and not tried:
            return Send(1)
        return Send(0) if now_us > 150 * MS else Hold()

    full = pool(1, context_tokens=1)
    router = Script(say)
    play(world(pool(), full), [request(1), request(2, 1)], router)
    assert [number for _, number, _ in router.left] == [1, 1, 2]


def test_what_is_held_for_ever_is_told_of_as_unfinished() -> None:
    router = Script(lambda *_: Hold(), report_us=60 * S)
    result = play(world(), [request(1), request(2)], router, horizon_us=10 * S)
    assert [(outcome.finished, outcome.refused, outcome.attempts) for outcome in result.outcomes] == [
        (False, None, 0),
        (False, None, 0),
    ]
    assert result.ended_us == 10 * S
    assert DRAIN_US > 10 * S


def forwarder(to_edge: int = 1) -> Script:
    def say(request: SimRequest, edge: int, tried: tuple[int, ...], hopped: bool, now_us: int) -> Choice:
        return Send(1) if hopped else Forward(to_edge)

    return Script(say)


def test_a_forwarded_request_takes_the_way_to_the_other_edge_and_back() -> None:
    of = world(pool(), pool(1), edges="DE CN", links=[[NEAR, FAR], [FAR, NEAR]], home=(0, 1))
    router = forwarder()
    (outcome,) = play(of, [request(1)], router).outcomes
    assert [(now_us, edge) for now_us, _, edge, _ in router.asked] == [(0, 0), (100 * MS, 1)]
    assert outcome.first_us == 100 * MS + 10 * MS + ALONE_US + 100 * MS
    assert (outcome.edge, outcome.hopped, outcome.finished, outcome.attempts) == (0, True, True, 1)
    assert router.firsts == [(110 * MS + ALONE_US, 1)], "the edge that sent it hears at its own time"


def test_without_a_home_there_the_way_between_edges_goes_by_the_nearest_pool_of_both() -> None:
    of = world(pool(), pool(1), edges="DE CN", links=[[NEAR, FAR], [FAR, NEAR]])
    router = forwarder()
    play(of, [request(1)], router)
    assert router.asked[1][0] == 105 * MS


def test_a_hop_over_a_border_moves_what_it_carries() -> None:
    of = world(pool(), pool(1, jurisdiction=Jurisdiction("CN")), edges="DE CN", home=(0, 1))
    (outcome,) = play(of, [request(1, upload_bytes=500)], forwarder()).outcomes
    assert (outcome.moved_bytes, outcome.egress_bytes) == (500 + 11 * 4, 500 + 11 * 4)


@pytest.mark.parametrize("say", [lambda *_: Forward(1), lambda *_: Forward(0)])
def test_a_second_hop_or_one_to_the_same_edge_is_an_error(say: object) -> None:
    with pytest.raises(ValueError, match="forwarded twice"):
        play(world(pool(), edges="DE CN"), [request(1)], Script(say))  # type: ignore[arg-type]


def test_a_scheduler_that_names_no_replica_of_its_pool_is_an_error() -> None:
    class Wrong(Script):
        def replica(self, *_: object) -> int:
            return 7

    with pytest.raises(ValueError, match="no replica 7"):
        play(world(pool(gpu=GPU)), [request(1)], Wrong())

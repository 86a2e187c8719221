"""Openings: what every session may send fits into the room, whoever chooses what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.placement.openings import Demand, share_openings

COUNTS = st.one_of(st.just(0), st.just(0), st.integers(0, 5), st.integers(0, 10_000))
SESSIONS = st.lists(st.builds(Demand, st.text(max_size=3), COUNTS, COUNTS), max_size=40, unique_by=lambda one: one.key)
ROOMS = st.one_of(st.integers(0, 8), st.integers(0, 60), st.integers(0, 10_000))
TURNS = st.integers(0, 10**9)


def parted(sessions: Sequence[Demand]) -> tuple[list[Demand], list[Demand]]:
    """Those with demand, and the idle ones."""
    active = [one for one in sessions if one.in_flight or one.recent]
    return active, [one for one in sessions if one not in active]


def weight(demand: Demand) -> int:
    return demand.in_flight + demand.recent + 1


@given(st.integers(-5, 10_000), SESSIONS, TURNS)
def test_the_openings_of_all_sessions_fit_into_the_room(room: int, sessions: list[Demand], turn: int) -> None:
    shares = share_openings(room, sessions, turn)
    assert shares.keys() == {one.key for one in sessions}
    assert all(share >= 0 for share in shares.values())
    assert sum(shares.values()) <= max(room, 0)


@given(ROOMS, SESSIONS, TURNS)
def test_no_room_is_kept_back_while_anyone_has_demand(room: int, sessions: list[Demand], turn: int) -> None:
    active, idle = parted(sessions)
    assert sum(share_openings(room, sessions, turn).values()) == (room if active else min(room, len(idle)))


@given(ROOMS, SESSIONS, TURNS)
def test_every_session_with_demand_gets_one_while_there_is_one_for_each(
    room: int, sessions: list[Demand], turn: int
) -> None:
    active, _ = parted(sessions)
    shares = share_openings(room, sessions, turn)
    served = [one for one in active if shares[one.key] >= 1]
    assert len(served) == min(room, len(active))


@given(ROOMS, SESSIONS, TURNS)
def test_an_idle_session_gets_one_of_what_the_others_leave(room: int, sessions: list[Demand], turn: int) -> None:
    active, idle = parted(sessions)
    shares = share_openings(room, sessions, turn)
    assert all(shares[one.key] <= 1 for one in idle)
    assert sum(shares[one.key] for one in idle) == min(len(idle), max(0, room - len(active)))


@given(ROOMS, SESSIONS, TURNS)
def test_what_does_not_reach_round_goes_round(room: int, sessions: list[Demand], turn: int) -> None:
    active, idle = parted(sessions)
    for some, left in ((active, room), (idle, room - len(active))):
        if some and left > 0:
            turns = ceil(len(some) / min(left, len(some)))
            seen = [share_openings(room, sessions, turn + later) for later in range(turns)]
            assert all(any(shares[one.key] for shares in seen) for one in some)


@given(st.integers(1, 60), st.integers(1, 60), TURNS)
def test_a_quiet_intake_opens_to_every_session_within_sessions_over_room_turns(
    room: int, number: int, turn: int
) -> None:
    sessions = [Demand(str(one), 0, 0) for one in range(number)]
    served: Counter[str] = Counter()
    for later in range(ceil(number / room)):
        served.update(share_openings(room, sessions, turn + later))
    assert min(served.values()) >= 1


@given(ROOMS, SESSIONS, TURNS)
def test_what_is_left_is_shared_in_proportion_to_demand(room: int, sessions: list[Demand], turn: int) -> None:
    active, _ = parted(sessions)
    left = room - len(sessions)
    if not active or left <= 0:
        return
    quotas = {one.key: Fraction(left * weight(one), sum(map(weight, active))) for one in active}
    half = ceil(room / 2) - 1
    top = max(active, key=weight)
    if len(active) > 1 and quotas[top.key] > half:
        others = sum(weight(one) for one in active if one is not top)
        quotas = {one.key: Fraction((left - half) * weight(one), others) for one in active} | {top.key: Fraction(half)}
    shares = share_openings(room, sessions, turn)
    assert all(abs(shares[one.key] - 1 - quotas[one.key]) < 1 for one in active)


@given(ROOMS, SESSIONS, TURNS)
def test_more_demand_never_gets_less(room: int, sessions: list[Demand], turn: int) -> None:
    active, _ = parted(sessions)
    if room < len(active):
        return
    shares = share_openings(room, sessions, turn)
    ordered = sorted(active, key=weight)
    for less, more in pairwise(ordered):
        assert shares[less.key] <= shares[more.key] + (1 if weight(less) == weight(more) else 0)


@given(ROOMS, SESSIONS, TURNS)
def test_nobody_gets_more_than_half_while_another_has_demand(room: int, sessions: list[Demand], turn: int) -> None:
    active, _ = parted(sessions)
    most = max(share_openings(room, sessions, turn).values(), default=0)
    assert most <= (ceil(room / 2) if len(active) > 1 else room)


def test_the_only_session_with_demand_gets_all_that_the_idle_ones_leave() -> None:
    sessions = [Demand("busy", 3, 20), Demand("idle", 0, 0), Demand("quiet", 0, 0)]
    assert share_openings(100, sessions, 0) == {"busy": 98, "idle": 1, "quiet": 1}


def test_a_flood_of_one_session_leaves_half_to_the_others() -> None:
    sessions = [Demand("flood", 90_000, 0), Demand("a", 1, 0), Demand("b", 0, 1)]
    assert share_openings(100, sessions, 0) == {"flood": 50, "a": 25, "b": 25}


@given(ROOMS, SESSIONS.flatmap(lambda some: st.tuples(st.just(some), st.permutations(some))), TURNS)
def test_the_same_demand_gets_the_same_share_in_whatever_order_it_comes(
    room: int, orders: tuple[list[Demand], list[Demand]], turn: int
) -> None:
    sessions, mixed = orders
    assert share_openings(room, mixed, turn) == share_openings(room, sessions, turn)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 3), TURNS)
def test_equals_take_turns_at_what_cannot_be_divided(equals: int, extra: int, larger: int, turn: int) -> None:
    sessions = [Demand(f"equal-{one:02}", 1, 1) for one in range(equals)]
    sessions += [Demand(f"larger-{one}", 50 + one, 0) for one in range(larger)]
    room = len(sessions) + extra
    totals: Counter[str] = Counter()
    for later in range(equals):
        totals.update(share_openings(room, sessions, turn + later))
    got = [totals[f"equal-{one:02}"] for one in range(equals)]
    assert max(got) - min(got) <= (1 if larger else 0)


def test_a_session_that_is_there_twice_and_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        share_openings(3, [Demand("a", 0, 0), Demand("a", 1, 0)], 0)
    for counts in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            Demand("a", *counts)


ROOM_BY_PRICE = (120, 300, 700, 1_500)
"""Free slots and free places of four pools, the cheapest first."""
EDGES = tuple(f"edge-{one:04}" for one in range(1_000))
Openings = Sequence[Mapping[str, int]]
"""By pool: what each edge may send there."""


def burst(wishes: Mapping[str, int], openings: Openings | None) -> list[Counter[str]]:
    """Let every edge send its wishes in the same instant and return what arrives at each pool, by edge.

    An edge knows the prices and its own openings, and nothing of any other edge. What finds no opening is not sent.
    """
    arrived: list[Counter[str]] = [Counter() for _ in ROOM_BY_PRICE]
    for edge, wish in wishes.items():
        for pool, _ in enumerate(ROOM_BY_PRICE):
            sent = wish if openings is None else min(wish, openings[pool][edge])
            arrived[pool][edge] += sent
            wish -= sent
    return arrived


def opened(demands: Sequence[Mapping[str, int]], turn: int) -> list[dict[str, int]]:
    """Let every pool share its room, each by what it has seen itself."""
    return [
        share_openings(room, [Demand(edge, 0, seen.get(edge, 0)) for edge in EDGES], turn)
        for room, seen in zip(ROOM_BY_PRICE, demands, strict=True)
    ]


def test_without_openings_a_thousand_edges_run_over_the_cheapest_pool() -> None:
    wishes = {edge: 1 + place % 5 for place, edge in enumerate(EDGES)}
    arrived = burst(wishes, None)
    assert [pool.total() for pool in arrived] == [3_000, 0, 0, 0]
    assert arrived[0].total() > 20 * ROOM_BY_PRICE[0]


@settings(max_examples=20)
@given(st.integers(0, 10**9), st.integers(0, 10_000))
def test_with_openings_a_thousand_edges_never_send_a_pool_more_than_its_room(seed: int, turn: int) -> None:
    chance = Random(seed)
    wishes = {edge: chance.choice((0, 1, 3, 10, 200)) for edge in EDGES}
    seen: list[dict[str, int]] = [{edge: chance.choice((0, 0, 1, 40)) for edge in EDGES} for _ in ROOM_BY_PRICE]
    for later in range(3):
        arrived = burst(wishes, opened(seen, turn + later))
        for room, pool in zip(ROOM_BY_PRICE, arrived, strict=True):
            assert pool.total() <= room
        seen = [dict(pool) for pool in arrived]


def test_a_burst_of_a_thousand_edges_is_sent_in_a_few_turns_and_no_edge_is_shut_out() -> None:
    wishes = {edge: 1 + place % 5 for place, edge in enumerate(EDGES)}
    seen: list[dict[str, int]] = [{} for _ in ROOM_BY_PRICE]
    shut_out = set(EDGES)
    turns = 0
    while any(wishes.values()):
        arrived = burst(wishes, opened(seen, turns))
        turns += 1
        for room, pool in zip(ROOM_BY_PRICE, arrived, strict=True):
            assert pool.total() <= room
            wishes = {edge: wish - pool[edge] for edge, wish in wishes.items()}
            shut_out -= {edge for edge, sent in pool.items() if sent}
        # Every request ends before the next turn, so that the room is whole again.
        seen = [dict(pool) for pool in arrived]
        if turns == 1:
            assert not shut_out
    assert turns <= 5

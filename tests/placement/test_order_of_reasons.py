"""The first reason in the documented order is named, a queue is full only when nothing is free, and the shipped prices
place as the shipped comments say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement.capabilities import Capability
from orchestrator.placement.fleet import Fleet, Pool, Prices
from orchestrator.placement.pick import Drop, Placement, place
from orchestrator.placement.plan import Plan
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.ids import EdgeId, ModelId, PoolId
from orchestrator.policy.tenants import Service
from orchestrator.policy.verdicts import Verdict
from tests.border.example import Example
from tests.placement.test_choice import ALLOW, DENY, EDGE, GUIZHOU, REQUEST, SETTINGS, SHANGHAI, pool, price, view
from tests.values import replace

ONLY = PoolId("only")
NEEDS = replace(
    REQUEST,
    capabilities=frozenset({Capability.CHAT, Capability.TOOLS}),
    tried=frozenset({ONLY}),
    entitled=False,
    revision="r2",
    max_tokens=2_048,
    service=Service(budget_pico=5),
    bill_pico=6,
)
DRAINING = replace(SETTINGS, drains=frozenset({ONLY}), caps={ONLY: 1})
UNPRICED = Prices()


@dataclass
class Hopeless:
    """One pool with every reason against it."""

    pool: Pool
    request: PlacementRequest = NEEDS
    verdict: Verdict = DENY
    view: PoolView | None = None
    settings: PlacementSettings = DRAINING
    prices: Prices = UNPRICED

    def placed(self) -> Placement:
        fleet, views = Fleet(pools=(self.pool,)), {} if self.view is None else {ONLY: self.view}
        plan = Plan(EDGE, fleet, self.prices, self.settings.currency)
        return place(self.request, plan, {ONLY: self.verdict}, views, self.settings, 0, 0)


def permit(case: Hopeless) -> None:
    case.verdict = ALLOW


def entitle(case: Hopeless) -> None:
    case.request = replace(case.request, entitled=True)


def serve(case: Hopeless) -> None:
    case.pool = replace(case.pool, models=pool("only").models)


def insist_less(case: Hopeless) -> None:
    case.request = replace(case.request, revision=None)


def ask_for_less(case: Hopeless) -> None:
    case.request = replace(case.request, max_tokens=2_047)


def need_less(case: Hopeless) -> None:
    case.request = replace(case.request, capabilities=REQUEST.capabilities)


def reach(case: Hopeless) -> None:
    case.pool = replace(case.pool, reachable_from=frozenset({EDGE}))


def refill(case: Hopeless) -> None:
    case.settings = replace(SETTINGS, caps={ONLY: 1})


def forget(case: Hopeless) -> None:
    case.request = replace(case.request, tried=frozenset())


def come_up(case: Hopeless) -> None:
    case.view = view("only", load=PoolLoad(1, 4, 4, 8, 8, 0, openings=1), own_in_flight=1, unseen=1, held_off=True)


def close_the_breaker(case: Hopeless) -> None:
    assert case.view is not None
    case.view = replace(case.view, held_off=False)


def raise_the_cap(case: Hopeless) -> None:
    case.settings = replace(SETTINGS, caps={ONLY: 2})


def make_room(case: Hopeless) -> None:
    assert case.view is not None
    case.view = replace(case.view, load=PoolLoad(1, 4, 4, 7, 8, 0, openings=1))


def grant_openings(case: Hopeless) -> None:
    assert case.view is not None
    case.view = replace(case.view, load=PoolLoad(1, 4, 4, 7, 8, 0, openings=2))


def give_price(case: Hopeless) -> None:
    case.prices = Prices((price("only", 1),))


def afford(case: Hopeless) -> None:
    case.request = replace(case.request, bill_pico=5)


STEPS: list[tuple[Drop, Callable[[Hopeless], None]]] = [
    (Drop.NOT_PERMITTED, permit),
    (Drop.ENTITLEMENT, entitle),
    (Drop.MODEL, serve),
    (Drop.REVISION, insist_less),
    (Drop.CAPABILITY, need_less),
    (Drop.CONTEXT, ask_for_less),
    (Drop.NOT_REACHABLE, reach),
    (Drop.DRAINED, refill),
    (Drop.TRIED, forget),
    (Drop.DOWN, come_up),
    (Drop.BREAKER, close_the_breaker),
    (Drop.CAPPED, raise_the_cap),
    (Drop.FULL, make_room),
    (Drop.NO_OPENING, grant_openings),
    (Drop.NO_PRICE, give_price),
    (Drop.BUDGET, afford),
]


def test_the_first_reason_in_the_documented_order_is_named() -> None:
    case = Hopeless(pool("only", models=(), scheduler=None, intake=None, engine="engine"))
    for drop, remedy in STEPS:
        assert case.placed().counts() == {drop.value: 1}
        remedy(case)
    chosen = case.placed().chosen
    assert chosen is not None
    assert chosen.pool.id == ONLY
    assert [drop for drop, _ in STEPS] == list(Drop), "the enumeration is the documentation of the order"


@pytest.mark.parametrize(
    ("slots", "running", "waiting", "waiting_max", "full"),
    [
        (4, 4, 8, 8, True),
        (4, 4, 7, 8, False),
        (4, 3, 0, 0, False),
        (4, 4, 0, 0, True),
        (4, 3, 8, 8, False),
        (0, 0, 0, 8, False),
        (0, 0, 8, 8, True),
    ],
)
def test_a_pool_is_full_when_no_slot_is_free_and_no_more_may_wait(
    slots: int, running: int, waiting: int, waiting_max: int, full: bool
) -> None:
    assert PoolLoad(1, slots, running, waiting, waiting_max, 0).full() == full


@given(
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**6),
    st.lists(st.integers(1, 10**6), min_size=6, max_size=6),
)
def test_whatever_is_chosen_is_permitted_and_within_epsilon_of_the_best(
    allowed: list[bool], chance: int, epsilon_ppm: int, prices: list[int]
) -> None:
    names = [f"pool-{number}" for number in range(len(allowed))]
    fleet = Fleet(pools=tuple(pool(name) for name in names))
    verdicts = {PoolId(name): ALLOW if one else DENY for name, one in zip(names, allowed, strict=True)}
    views = {PoolId(name): view(name) for name in names}
    costs = Prices(tuple(price(name, amount) for name, amount in zip(names, prices, strict=False)))
    settings = replace(SETTINGS, epsilon_ppm=epsilon_ppm)
    plan = Plan(EDGE, fleet, costs, settings.currency)
    placement = place(REQUEST, plan, verdicts, views, settings, 0, chance)
    assert [candidate.pool.id for candidate in placement.candidates] == sorted(names)
    assert (placement.chosen is None) == (not any(allowed))
    if placement.chosen is None:
        return
    totals = [one.terms.total_pico for one in placement.candidates if one.terms is not None]
    assert placement.chosen.terms is not None
    assert verdicts[placement.chosen.pool.id].allowed
    assert placement.chosen.terms.total_pico <= min(totals) + min(totals) * epsilon_ppm // 10**6
    again = place(REQUEST, plan, verdicts, views, settings, 0, chance)
    assert again == placement, "the same chance makes the same choice"


@pytest.fixture
def shipped() -> Callable[[int], str]:
    """The shipped fleet, prices and settings, with round trips of 220 and 180 ms; asked for the choice."""
    bundle = Example().bundle()
    assert bundle.settings is not None
    settings = bundle.settings
    request = PlacementRequest(ModelId("smollm2-135m-instruct"), frozenset({Capability.CHAT}), 40, 48, 400)
    verdicts = {one.id: ALLOW if one.id in (GUIZHOU, SHANGHAI) else DENY for one in bundle.fleet.pools}

    def choose(ahead: int) -> str:
        views = {
            GUIZHOU: PoolView(GUIZHOU, True, 220_000, PoolLoad(2, 8, min(ahead, 8), max(0, ahead - 8), 64, 5), 0),
            SHANGHAI: PoolView(SHANGHAI, True, 180_000, PoolLoad(2, 8, 0, 0, 64, 5), 0),
        }
        edge = EdgeId("edge-singapore")
        plan = Plan(edge, bundle.fleet, bundle.prices, settings.currency)
        placed = place(request, plan, verdicts, views, settings, 0, 0)
        assert placed.chosen is not None
        return placed.chosen.pool.id

    return choose


def test_the_shipped_prices_go_to_the_cheaper_pool_though_it_is_farther(shipped: Callable[[int], str]) -> None:
    assert shipped(0) == GUIZHOU


def test_a_queue_of_some_seconds_overturns_the_shipped_prices(shipped: Callable[[int], str]) -> None:
    assert shipped(40) == SHANGHAI

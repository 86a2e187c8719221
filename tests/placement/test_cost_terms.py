"""J: every term by hand, never less where something gets worse, and unknown is not nothing. Prices by hour and date."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.money import Currency
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.cost import Spot, Terms, cost
from orchestrator.placement.fleet import Carbon, DatedPrice, Fleet, PoolCost, Prices, Tariff
from orchestrator.placement.plan import Plan
from orchestrator.placement.prices import NEVER_MS, egress_at, next_change_ms, tokens_at
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.settings import PlacementSettings, Worth
from orchestrator.placement.speed import PPM, Speed
from orchestrator.policy.ids import EdgeId, ModelId, PoolId
from orchestrator.policy.tenants import Service
from tests.placement.test_choice import EDGE, MODEL, USD, pool
from tests.values import replace

ONLY = PoolId("only")
REQUEST = PlacementRequest(MODEL, frozenset(), 1_000, 100, 4_000)
SPEED = Speed(50_000, 10_000_000, 500_000, fixed_us=2_000, service_us=1_500_000, spread_ppm=0)
CARBON = Carbon(500, 3_600, 72_000)
SPOT = Spot(TokenPrice(USD, 200, 50, 800), 80, CARBON, 8, SPEED)
LOAD = PoolLoad(2, 8, 8, 2, 64, 0, queued_tokens=6_000)
VIEW = PoolView(ONLY, True, 30_000, LOAD, 3, 1, 500, 1_000_000, 400)
WORTH = PlacementSettings(
    USD,
    value_of_time_pico_per_ms=1_000,
    late_price_pico_per_ms=5_000,
    slo_first_ms=500,
    slo_token_us=10_000,
    epsilon_ppm=0,
    unknown_rtt_ms=400,
    expected_output_tokens=1,
    carbon_pico_per_gram=10**9,
    unknown_bytes_per_s=100_000,
    age_spread_ppm=50_000,
).worth(None)


def terms(request: PlacementRequest = REQUEST, spot: Spot = SPOT, view: PoolView = VIEW, worth: Worth = WORTH) -> Terms:
    return cost(request, spot, view, worth)


def loaded(**changes: Any) -> PoolView:
    return replace(VIEW, load=replace(LOAD, **changes))


def test_every_term_is_what_a_hand_makes_it() -> None:
    found = terms()
    # 600 tokens are not held, 400 are, 100 come back.
    assert found.tokens_pico == 600 * 200 + 400 * 50 + 100 * 800 == 220_000
    # 4,000 bytes there and 4 for each token back.
    assert found.egress_pico == 4_400 * 80 == 352_000
    # 600 * 3,600 + 100 * 72,000 = 9,360,000 microjoules, 2.6 microwatt-hours, 1,300 micrograms at 500 g/kWh.
    assert found.carbon_pico == 1_300_000
    assert found.upload_us == 4_000
    assert found.prefill_us == 2_000 + 600 * 50 == 32_000
    # Eleven are ahead of eight slots: four end first, one every 187.5 ms. Two replicas take in what waits.
    assert found.told_us == 4 * 1_500_000 // 8 + ((6_000 + 500) * 50 + 3 * 2_000) // 2 == 915_500
    assert found.queue_us == found.told_us
    # Five ahead in each replica, but four slots: three beside it.
    assert found.beside == 3
    assert found.decode_us == 100 * 11_500 == 1_150_000
    assert found.first_us == 30_000 + 4_000 + 915_500 + 32_000 == 981_500
    assert (found.late_first_us, found.late_decode_us) == (481_500, 150_000)
    assert found.time_pico == 2_131_500
    assert found.late_pico == 631_500 * 5 == 3_157_500
    # Its prompt holds up five others for 30 ms each, and its 100 tokens three of them for half a millisecond each.
    assert found.others_us == 5 * 30_000 + 3 * 100 * 500 == 300_000
    assert found.others_pico == 300_000
    assert found.total_pico == 220_000 + 352_000 + 1_300_000 + 2_131_500 + 3_157_500 + 300_000


def test_an_idle_pool_makes_nobody_wait_and_its_streams_run_alone() -> None:
    found = terms(view=replace(VIEW, load=PoolLoad(2, 8, 0, 0, 64, 0, queued_tokens=0), unseen=0, unseen_tokens=0))
    assert (found.queue_us, found.beside, found.decode_us, found.others_us) == (0, 0, 1_000_000, 0)


def test_without_a_report_its_own_attempts_and_the_declared_slots_count() -> None:
    found = terms(view=replace(VIEW, load=None, own_in_flight=9, unseen=9, unseen_tokens=700))
    # Ten with this one, eight slots: two end first. One waits already, and 700 tokens are not taken in.
    assert found.queue_us == 2 * 1_500_000 // 8 + 700 * 50 + 2_000
    assert found.beside == 7


def test_what_was_learned_of_reports_stretches_the_wait() -> None:
    found = terms(view=replace(VIEW, speed=replace(SPEED, queue_ppm=2 * PPM)))
    assert found.queue_us == 2 * found.told_us == 1_831_000


def test_full_memory_makes_wait_though_slots_are_free() -> None:
    room: dict[str, Any] = {"running": 4, "waiting": 0, "queued_tokens": 0, "kv_tokens": 10_000}
    roomy = terms(view=replace(loaded(**room, kv_used_tokens=8_000), unseen=0, unseen_tokens=0))
    tight = terms(view=replace(loaded(**room, kv_used_tokens=9_400), unseen=0, unseen_tokens=0))
    assert roomy.queue_us == 0
    # 500 tokens are missing, and each of four streams holds 2,350: one ends first.
    assert tight.queue_us == 1_500_000 // 8


def test_a_spread_makes_late_what_is_on_time_in_the_mean() -> None:
    on_time = replace(WORTH, slo_first_us=981_500, slo_token_us=11_500)
    assert terms(worth=on_time).late_pico == 0
    spread = replace(VIEW, speed=replace(SPEED, spread_ppm=200_000))
    found = terms(view=spread, worth=on_time)
    assert found.spread_us == 196_300
    # A normal's mean beyond its own mean is 0.3989 of its deviation.
    assert found.late_first_us == pytest.approx(0.39894 * 196_300, abs=5)
    assert found.late_decode_us == pytest.approx(0.39894 * 230_000, abs=5)


def test_an_old_report_widens_the_spread() -> None:
    assert terms(view=loaded(age_ms=2_000)).spread_us == 2_000_000 * 50_000 // PPM == 100_000


def test_a_tenants_promise_goes_before_the_settings() -> None:
    settings = PlacementSettings(USD, 10, 20, 30, 40, 0, 50, 60, carbon_pico_per_gram=70)
    assert settings.worth(None) == settings.worth(Service())
    own = settings.worth(Service(value_of_time_pico_per_ms=0, late_price_pico_per_ms=2, slo_first_ms=3, slo_token_us=4))
    assert (own.value_of_time_pico_per_ms, own.late_price_pico_per_ms) == (0, 2)
    assert (own.slo_first_us, own.slo_token_us, own.carbon_pico_per_gram) == (3_000, 4, 70)


COUNTS = st.integers(0, 200)
TOKENS = st.integers(0, 200_000)
MAYBE = st.none() | TOKENS
LOADS = st.builds(
    PoolLoad, st.integers(1, 8), st.integers(1, 64), COUNTS, COUNTS, COUNTS, st.integers(0, 20_000), MAYBE, MAYBE, MAYBE
)
VIEWS = st.builds(
    PoolView,
    st.just(ONLY),
    st.just(True),
    st.none() | st.integers(0, 500_000),
    st.none() | LOADS,
    COUNTS,
    COUNTS,
    TOKENS,
    st.none() | st.integers(1_000, 10**9),
    TOKENS,
    st.none()
    | st.builds(
        Speed,
        st.integers(1, 10**6),
        st.integers(1, 10**8),
        st.integers(0, 10**7),
        st.integers(0, 10**6),
        st.none() | st.integers(1, 10**8),
        st.integers(0, 2 * PPM),
        st.integers(PPM // 4, 8 * PPM),
    ),
)
REQUESTS = st.builds(
    PlacementRequest, st.just(MODEL), st.just(frozenset()), st.integers(1, 100_000), st.integers(1, 4_000), TOKENS
)
MORE = st.integers(0, 100_000)


def total(request: PlacementRequest, view: PoolView, spot: Spot = SPOT) -> int:
    return cost(request, spot, view, WORTH).total_pico


@given(REQUESTS, VIEWS, MORE, st.sampled_from(["input_pico", "cached_pico", "output_pico"]))
def test_dearer_tokens_never_cost_less(request_: PlacementRequest, view: PoolView, more: int, kind: str) -> None:
    dearer = replace(SPOT.tokens, **{kind: getattr(SPOT.tokens, kind) + more})
    assert total(request_, view, replace(SPOT, tokens=dearer)) >= total(request_, view)
    assert total(request_, view, replace(SPOT, egress_pico_per_byte=80 + more)) >= total(request_, view)
    assert total(request_, view, replace(SPOT, carbon=replace(CARBON, grams_per_kwh=500 + more))) >= total(
        request_, view
    )


@given(REQUESTS, VIEWS, MORE)
def test_a_longer_way_never_costs_less(request_: PlacementRequest, view: PoolView, more: int) -> None:
    near = replace(view, rtt_us=view.rtt_us or 0, bytes_per_s=(view.bytes_per_s or 1_000) + more)
    assert near.rtt_us is not None
    assert total(request_, replace(near, rtt_us=near.rtt_us + more)) >= total(request_, near)
    assert total(request_, replace(near, bytes_per_s=view.bytes_per_s or 1_000)) >= total(request_, near)


@given(REQUESTS, VIEWS, LOADS, st.sampled_from(["running", "waiting", "age_ms"]), st.integers(0, 300))
def test_a_fuller_or_older_report_never_costs_less(
    request_: PlacementRequest, view: PoolView, load: PoolLoad, field: str, more: int
) -> None:
    worse = replace(load, **{field: getattr(load, field) + more})
    assert total(request_, replace(view, load=worse)) >= total(request_, replace(view, load=load))


@given(REQUESTS, VIEWS, LOADS, TOKENS, MORE)
def test_more_tokens_in_line_or_in_memory_never_cost_less(
    request_: PlacementRequest, view: PoolView, load: PoolLoad, tokens: int, more: int
) -> None:
    for field in ("queued_tokens", "kv_used_tokens"):
        less, worse = (replace(load, kv_tokens=150_000, **{field: some}) for some in (tokens, tokens + more))
        assert total(request_, replace(view, load=worse)) >= total(request_, replace(view, load=less))


@given(REQUESTS, VIEWS, COUNTS, MORE)
def test_more_of_its_own_that_no_report_counted_never_cost_less(
    request_: PlacementRequest, view: PoolView, more: int, more_tokens: int
) -> None:
    worse = replace(
        view,
        own_in_flight=view.own_in_flight + more,
        unseen=view.unseen + more,
        unseen_tokens=view.unseen_tokens + more_tokens,
    )
    assert total(request_, worse) >= total(request_, view)


@given(REQUESTS, VIEWS, MORE)
def test_more_tokens_that_no_pool_holds_never_cost_less(request_: PlacementRequest, view: PoolView, more: int) -> None:
    longer = replace(request_, prompt_tokens=request_.prompt_tokens + more)
    assert total(longer, view) >= total(request_, view)
    assert total(request_, replace(view, cached_tokens=max(0, view.cached_tokens - more))) >= total(request_, view)


@given(REQUESTS, VIEWS, TOKENS, st.integers(0, 200))
def test_what_is_held_never_raises_the_price_of_tokens(
    request_: PlacementRequest, view: PoolView, held: int, cached_pico: int
) -> None:
    spot = replace(SPOT, tokens=replace(SPOT.tokens, cached_pico=cached_pico))
    with_it = cost(request_, spot, replace(view, cached_tokens=held), WORTH)
    without = cost(request_, spot, replace(view, cached_tokens=0), WORTH)
    assert with_it.tokens_pico <= without.tokens_pico
    assert with_it.cached_tokens < request_.prompt_tokens, "the last token is always worked out"


@given(REQUESTS, VIEWS)
def test_what_is_unknown_is_taken_as_declared_unknown_and_not_as_nothing(
    request_: PlacementRequest, view: PoolView
) -> None:
    no_rtt, no_width = replace(view, rtt_us=None), replace(view, bytes_per_s=None)
    assert cost(request_, SPOT, no_rtt, WORTH).rtt_us == WORTH.unknown_rtt_us
    assert not cost(request_, SPOT, no_rtt, WORTH).rtt_measured
    assert total(request_, no_rtt) == total(request_, replace(view, rtt_us=WORTH.unknown_rtt_us))
    assert total(request_, no_width) == total(request_, replace(view, bytes_per_s=WORTH.unknown_bytes_per_s))


@given(REQUESTS, VIEWS, LOADS, st.integers(1, 50))
def test_a_queue_of_unknown_tokens_holds_prompts_like_this_one(
    request_: PlacementRequest, view: PoolView, load: PoolLoad, waiting: int
) -> None:
    unknown = replace(load, waiting=waiting, queued_tokens=None)
    known = replace(unknown, queued_tokens=waiting * request_.prompt_tokens)
    empty = replace(unknown, queued_tokens=0)
    assert total(request_, replace(view, load=unknown)) == total(request_, replace(view, load=known))
    assert total(request_, replace(view, load=unknown)) >= total(request_, replace(view, load=empty))


@given(REQUESTS, VIEWS)
def test_carbon_is_nothing_where_nobody_said_what_the_pool_emits(request_: PlacementRequest, view: PoolView) -> None:
    assert cost(request_, replace(SPOT, carbon=None), view, WORTH).carbon_pico == 0
    assert cost(request_, SPOT, view, replace(WORTH, carbon_pico_per_gram=0)).carbon_pico == 0


MINUTE_MS = 60_000
DAY_MS = 1_440 * MINUTE_MS
TODAY_MS = 20_000 * DAY_MS


def priced(input_pico: int) -> TokenPrice:
    return TokenPrice(USD, input_pico, 0, 0)


BASE, NIGHT, NOON, SPOT_PRICE, LATER = (priced(number) for number in range(1, 6))
NIGHTLY = Tariff(22 * 60 + 30, 6 * 60, NIGHT)
AT_NOON = Tariff(12 * 60, 13 * 60, NOON)
DEAR = PoolCost(ONLY, MODEL, BASE, 80, (NIGHTLY, AT_NOON))


def at(hours: int, minutes: int, ms: int = 0) -> int:
    return TODAY_MS + (hours * 60 + minutes) * MINUTE_MS + ms


@pytest.mark.parametrize(
    ("now_ms", "tokens"),
    [
        (at(22, 29, 59_999), BASE),
        (at(22, 30), NIGHT),
        (at(23, 59, 59_999), NIGHT),
        (at(24, 0), NIGHT),
        (at(29, 59, 59_999), NIGHT),
        (at(0, 0), NIGHT),
        (at(5, 59), NIGHT),
        (at(6, 0), BASE),
        (at(11, 59), BASE),
        (at(12, 0), NOON),
        (at(12, 59), NOON),
        (at(13, 0), BASE),
    ],
)
def test_a_tariff_holds_from_its_minute_until_its_minute_over_midnight_too(now_ms: int, tokens: TokenPrice) -> None:
    assert tokens_at(DEAR, now_ms) == tokens


def test_a_dated_price_goes_before_a_tariff_and_a_tariff_before_the_base() -> None:
    dated = DatedPrice(at(12, 10), at(12, 20), SPOT_PRICE)
    both = replace(DEAR, dated=(dated,))
    hours = [(12, 9), (12, 10), (12, 19), (12, 20), (13, 0)]
    assert [tokens_at(both, at(*hour)) for hour in hours] == [NOON, SPOT_PRICE, SPOT_PRICE, NOON, BASE]


@pytest.mark.parametrize("turned", [False, True])
def test_of_overlapping_dated_prices_the_one_that_began_last_counts(turned: bool) -> None:
    long = DatedPrice(at(1, 0), at(9, 0), SPOT_PRICE)
    short = DatedPrice(at(2, 0), at(3, 0), LATER)
    overlapping = replace(DEAR, tariffs=(), dated=(short, long) if turned else (long, short))
    found = [tokens_at(overlapping, at(hour, 30)) for hour in (0, 1, 2, 3, 8, 9)]
    assert found == [BASE, SPOT_PRICE, LATER, SPOT_PRICE, SPOT_PRICE, BASE]


def test_of_overlapping_tariffs_the_first_in_the_file_counts() -> None:
    overlapping = replace(DEAR, tariffs=(AT_NOON, Tariff(0, 1_439, NIGHT)))
    assert tokens_at(overlapping, at(12, 30)) == NOON
    assert tokens_at(overlapping, at(13, 30)) == NIGHT


MINUTES = st.integers(0, 1_439)
TARIFFS = st.lists(st.builds(Tariff, MINUTES, MINUTES, st.builds(priced, st.integers(10, 19))), max_size=3)
MOMENTS = st.integers(TODAY_MS - DAY_MS, TODAY_MS + 2 * DAY_MS)
DATED = st.lists(st.builds(DatedPrice, MOMENTS, MOMENTS, st.builds(priced, st.integers(20, 29))), max_size=3)


@given(TARIFFS, DATED, st.integers(TODAY_MS, TODAY_MS + DAY_MS), st.integers(0, 10**9))
def test_no_price_changes_before_the_moment_that_was_foretold(
    tariffs: list[Tariff], dated: list[DatedPrice], now_ms: int, later_ms: int
) -> None:
    costed = replace(DEAR, tariffs=tuple(tariffs), dated=tuple(dated))
    change_ms = next_change_ms(costed, now_ms)
    assert change_ms > now_ms
    until_ms = min(change_ms, now_ms + 3 * DAY_MS)
    assert tokens_at(costed, now_ms + later_ms % (until_ms - now_ms)) == tokens_at(costed, now_ms)
    assert tokens_at(costed, until_ms - 1) == tokens_at(costed, now_ms)


def test_without_tariffs_and_dates_nothing_ever_changes() -> None:
    assert next_change_ms(replace(DEAR, tariffs=()), TODAY_MS) == NEVER_MS


def test_an_edge_pays_for_its_own_link() -> None:
    links = replace(DEAR, links={EDGE: 7, EdgeId("free"): 0})
    assert [egress_at(links, EdgeId(edge)) for edge in (EDGE, "free", "other")] == [7, 0, 80]


def test_a_plan_follows_the_hours_forwards_and_back() -> None:
    fleet = Fleet(pools=(pool("only"),))
    changing = replace(DEAR, dated=(DatedPrice(at(3, 0), at(4, 0), SPOT_PRICE),))
    plan = Plan(EDGE, fleet, Prices((changing,)), USD)
    found = []
    for moment in (at(2, 59, 59_999), at(3, 0), at(3, 59), at(4, 0), at(3, 30), at(12, 0), at(22, 30), at(24 + 12, 0)):
        (offer,) = plan.offers(MODEL, moment)
        assert offer.spot is not None
        found.append(offer.spot.tokens)
    assert found == [NIGHT, SPOT_PRICE, SPOT_PRICE, NIGHT, SPOT_PRICE, NOON, NIGHT, NOON]


def test_a_price_in_another_currency_is_no_price() -> None:
    fleet = Fleet(pools=(pool("only"),))
    (offer,) = Plan(EDGE, fleet, Prices((DEAR,)), Currency("CNY")).offers(MODEL, TODAY_MS)
    assert offer.served is not None
    assert offer.spot is None


def test_a_plan_forgets_models_that_are_asked_for_by_the_thousand() -> None:
    plan = Plan(EDGE, Fleet(pools=(pool("only"),)), Prices((DEAR,)), USD)
    for number in range(2_000):
        (offer,) = plan.offers(ModelId(f"model-{number}"), TODAY_MS)
        assert (offer.served, offer.spot) == (None, None)
    assert len(plan._arranged) <= 256
    (offer,) = plan.offers(MODEL, TODAY_MS)
    assert offer.spot is not None

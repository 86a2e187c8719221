"""What a pool charges the operator at a given moment: base price, tariff of the hour, or a dated (spot) price."""

from __future__ import annotations

from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.fleet import PoolCost
from orchestrator.policy.ids import EdgeId

DAY_MINUTES = 1_440
MINUTE_MS = 60_000
NEVER_MS = 1 << 62


def tokens_at(cost: PoolCost, now_ms: int) -> TokenPrice:
    """Return the price of tokens at `now_ms`: a dated price in force, else the tariff of the hour, else the base.

    Of several dated prices in force the one that began last counts; of several tariffs the first in the file.
    """
    best = None
    for dated in cost.dated:
        if dated.from_ms <= now_ms < dated.until_ms and (best is None or dated.from_ms >= best.from_ms):
            best = dated
    if best is not None:
        return best.tokens
    if cost.tariffs:
        minute = now_ms // MINUTE_MS % DAY_MINUTES
        for tariff in cost.tariffs:
            if tariff.covers(minute):
                return tariff.tokens
    return cost.tokens


def egress_at(cost: PoolCost, edge: EdgeId) -> int:
    """Return the price of a byte on the link between `edge` and the pool, in pico-units."""
    return cost.links.get(edge, cost.egress_pico_per_byte)


def next_change_ms(cost: PoolCost, now_ms: int) -> int:
    """Return the first moment after `now_ms` at which `tokens_at` may answer another thing; far away without any."""
    moments = [moment for dated in cost.dated for moment in (dated.from_ms, dated.until_ms) if moment > now_ms]
    for tariff in cost.tariffs:
        for minute in (tariff.from_minute, tariff.until_minute):
            today_ms = now_ms - now_ms % (DAY_MINUTES * MINUTE_MS) + minute * MINUTE_MS
            moments.append(today_ms if today_ms > now_ms else today_ms + DAY_MINUTES * MINUTE_MS)
    return min(moments, default=NEVER_MS)

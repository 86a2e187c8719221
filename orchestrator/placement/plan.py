"""One bundle arranged for the decisions of one edge: by model, what each declared pool serves and charges."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.ledger.money import Currency
from orchestrator.placement.cost import Spot
from orchestrator.placement.fleet import Fleet, Pool, PoolCost, Prices, ServedModel
from orchestrator.placement.prices import NEVER_MS, egress_at, next_change_ms, tokens_at
from orchestrator.policy.ids import EdgeId, ModelId

MODELS_MAX = 256
"""Models whose arrangement is remembered; beyond it, all are forgotten at once."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What one pool offers for one model now."""

    pool: Pool
    served: ServedModel | None
    """None: it does not serve the model."""
    spot: Spot | None
    """None: nothing is known of what it costs, or not in the currency that is compared."""
    reachable: bool


@dataclass(frozen=True, slots=True)
class _Arranged:
    offers: tuple[Offer, ...]
    from_ms: int
    until_ms: int


class Plan:
    """Remembers the offers of each model until a price changes."""

    def __init__(self, edge: EdgeId, fleet: Fleet, prices: Prices, currency: Currency) -> None:
        self.edge = edge
        self.pools: tuple[Pool, ...] = tuple(sorted(fleet.pools, key=lambda pool: pool.id))
        self._currency = currency
        self._costs: dict[tuple[str, str], PoolCost] = {(cost.pool, cost.model): cost for cost in prices.costs}
        self._arranged: dict[ModelId, _Arranged] = {}  # bounded: MODELS_MAX

    def offers(self, model: ModelId, now_ms: int) -> tuple[Offer, ...]:
        """Return what every pool offers for `model` at `now_ms`, in the order of `pools`."""
        if model in self._arranged:
            known = self._arranged[model]
            if known.from_ms <= now_ms < known.until_ms:
                return known.offers
        if len(self._arranged) >= MODELS_MAX:
            self._arranged.clear()
        known = self._arranged[model] = self._arrange(model, now_ms)
        return known.offers

    def _arrange(self, model: ModelId, now_ms: int) -> _Arranged:
        offers, until_ms = [], NEVER_MS
        for pool in self.pools:
            served, cost = pool.served(model), self._costs.get((pool.id, model))
            spot = None
            if served is not None and cost is not None:
                until_ms = min(until_ms, next_change_ms(cost, now_ms))
                tokens = tokens_at(cost, now_ms)
                if tokens.currency == self._currency:
                    egress = egress_at(cost, self.edge)
                    spot = Spot(tokens, egress, cost.carbon, pool.slots, served.speed(pool.slots))
            offers.append(Offer(pool, served, spot, pool.reachable(self.edge)))
        return _Arranged(tuple(offers), now_ms, until_ms)

"""The shape of a request, as placement is told it: what is asked, what the contract says, what the tenant would pay.

The edge and `explain` shape with it, so that what is explained is what is decided. Pure.
"""

from __future__ import annotations

from orchestrator.ledger.rating import pico_of
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.fleet import Prices
from orchestrator.placement.requests import PlacementRequest
from orchestrator.policy.ids import ModelId, PoolId
from orchestrator.policy.tenants import Tenant


def shape_of(
    tenant: Tenant,
    prices: Prices,
    model: ModelId,
    capabilities: frozenset[Capability],
    prompt_tokens: int,
    output_tokens: int,
    upload_bytes: int,
    *,
    max_tokens: int | None = None,
    tried: frozenset[PoolId] = frozenset(),
    canary: bool = False,
) -> PlacementRequest:
    """Return the shape of one request of `tenant`. Its price book says what it would pay with nothing cached."""
    price = prices.price(tenant.price_book, model)
    return PlacementRequest(
        model,
        capabilities,
        prompt_tokens,
        output_tokens,
        upload_bytes,
        tried,
        max_tokens,
        tenant.revisions.get(model),
        tenant.service,
        None if price is None else pico_of(price, prompt_tokens, 0, output_tokens),
        0 if price is None else price.input_pico - price.cached_pico,
        model in tenant.models,
        canary,
    )

"""The cost of sending one request to one pool, in integer pico-units of one currency (DESIGN section 5).

``J(pool) = tokens + egress + value_of_time * t + late_price * max(0, t - slo)`` with
``t = rtt + queue_wait + prefill * prompt_tokens + output_tokens * time_per_token(load)``.
Time is computed in microseconds and priced in pico-units; no hand-made weight appears.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.ledger.rating import rate
from orchestrator.placement.fleet import Pool, PoolCost, ServedModel
from orchestrator.placement.requests import PlacementRequest, PoolView
from orchestrator.placement.settings import PlacementSettings

OUTPUT_BYTES_PER_TOKEN = 4
"""For the egress estimate only."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Every term of J, and the times behind them."""

    tokens_pico: int
    egress_pico: int
    time_pico: int
    late_pico: int
    rtt_us: int
    rtt_measured: bool
    queue_us: int
    prefill_us: int
    decode_us: int

    @property
    def total_pico(self) -> int:
        """J itself."""
        return self.tokens_pico + self.egress_pico + self.time_pico + self.late_pico

    @property
    def time_us(self) -> int:
        """Expected time to the last token."""
        return self.rtt_us + self.queue_us + self.prefill_us + self.decode_us


def cost(
    request: PlacementRequest,
    pool: Pool,
    served: ServedModel,
    price: PoolCost,
    view: PoolView,
    settings: PlacementSettings,
) -> Terms:
    """Return the terms of J for this request at this pool."""
    slots, ahead = _occupancy(pool, view)
    alone_us = request.prompt_tokens * served.prefill_us_per_token + request.output_tokens * served.decode_us_per_token
    # Whoever stands beyond the slots waits for as many answers as stand before it in its slot.
    queue_us = max(0, ahead + 1 - slots) * alone_us // max(1, slots)
    # Streams that run together share the memory bandwidth that decoding lives on: linear in the batch, to first order.
    together = min(ahead + 1, max(1, slots))
    decode_us = request.output_tokens * served.decode_us_per_token * (slots + together - 1) // max(1, slots)
    prefill_us = request.prompt_tokens * served.prefill_us_per_token
    rtt_us = settings.unknown_rtt_ms * 1000 if view.rtt_us is None else view.rtt_us
    time_us = rtt_us + queue_us + prefill_us + decode_us
    late_us = max(0, time_us - settings.slo_ms * 1000)
    moved_bytes = request.upload_bytes + request.output_tokens * OUTPUT_BYTES_PER_TOKEN
    return Terms(
        tokens_pico=rate(price.tokens, request.prompt_tokens, 0, request.output_tokens).amount_pico,
        egress_pico=moved_bytes * price.egress_pico_per_byte,
        time_pico=time_us * settings.value_of_time_pico_per_ms // 1000,
        late_pico=late_us * settings.late_price_pico_per_ms // 1000,
        rtt_us=rtt_us,
        rtt_measured=view.rtt_us is not None,
        queue_us=queue_us,
        prefill_us=prefill_us,
        decode_us=decode_us,
    )


def _occupancy(pool: Pool, view: PoolView) -> tuple[int, int]:
    """Return (slots, streams ahead of a new one). Our own attempts count even where no report has seen them yet."""
    if view.load is None:
        return max(1, pool.slots), view.own_in_flight
    return max(1, view.load.slots), max(view.load.running + view.load.waiting, view.own_in_flight)

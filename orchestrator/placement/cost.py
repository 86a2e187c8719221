"""J: what it costs to send one request to one pool or replica, in whole pico-units of one currency (DESIGN section 5).

``J = tokens(uncached, cached, out; hour) + egress + carbon + value_of_time * t + late_price * lateness`` where
``t = rtt + upload + queue + prefill + decode`` and lateness is the mean of what lies beyond the promise: of the first
token beyond `slo_first`, and of the rest of the answer beyond `slo_token` for each token. Both are means over the
estimated distribution, which widens with the age of what is known. No hand-made weight appears. No term of time is
taken for longer than `TIME_MAX_US`: a figure beyond it is no estimate.

``+ value_of_time * others``: engines share their steps, so a prompt that is taken in holds up every stream that runs or
waits in its replica for as long, and one more stream slows each of the others a little. Without this term a router
that fills the cheapest pools first makes all of their tenants wait to save the operator a fraction (Pigou's toll; for
queues: Naor, The regulation of queue size by levying tolls, Econometrica 37(1), 1969).
"""

from __future__ import annotations

import msgspec

from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.fleet import Carbon
from orchestrator.placement.lateness import mean_late_us
from orchestrator.placement.requests import PlacementRequest, PoolView
from orchestrator.placement.settings import Worth
from orchestrator.placement.speed import PPM, TIME_MAX_US, Speed

OUTPUT_BYTES_PER_TOKEN = 4
"""For the egress estimate only."""
MICROJOULES_PER_KWH = 3_600_000_000_000


class Spot(msgspec.Struct, frozen=True):
    """One pool, or replica, for one model: what is declared of it and what it charges now."""

    tokens: TokenPrice
    egress_pico_per_byte: int
    carbon: Carbon | None
    slots: int
    """Declared streams at once, until a report says more."""
    speed: Speed
    """Declared, until replies say more."""


class Terms(msgspec.Struct, frozen=True):
    """Every term of J, and the times behind them."""

    tokens_pico: int
    egress_pico: int
    carbon_pico: int
    time_pico: int
    late_pico: int
    others_pico: int
    """What its work is worth to those whose answers it slows."""
    rtt_us: int
    rtt_measured: bool
    upload_us: int
    queue_us: int
    prefill_us: int
    decode_us: int
    spread_us: int
    """Standard deviation of the time to the first token."""
    late_first_us: int
    late_decode_us: int
    cached_tokens: int
    others_us: int
    """How much later the answers of others come, all together."""
    told_us: int
    """The queue as the last report alone makes it, before what replies taught of such reports."""
    beside: int
    """Streams that are expected to decode beside it in its replica."""

    @property
    def total_pico(self) -> int:
        """J itself."""
        own_pico = self.tokens_pico + self.egress_pico + self.carbon_pico + self.time_pico + self.late_pico
        return own_pico + self.others_pico

    @property
    def first_us(self) -> int:
        """Expected time to the first token."""
        return self.rtt_us + self.upload_us + self.queue_us + self.prefill_us

    @property
    def time_us(self) -> int:
        """Expected time to the last token."""
        return self.first_us + self.decode_us


def cost(request: PlacementRequest, spot: Spot, view: PoolView, worth: Worth) -> Terms:
    """Return the terms of J for this request at this spot."""
    speed = view.speed or spot.speed
    prompt, output = request.prompt_tokens, request.output_tokens
    cached = min(view.cached_tokens, max(0, prompt - 1))
    uncached = prompt - cached
    rtt_us = min(TIME_MAX_US, worth.unknown_rtt_us if view.rtt_us is None else view.rtt_us)
    bytes_per_s = view.bytes_per_s or worth.unknown_bytes_per_s
    upload_us = min(TIME_MAX_US, request.upload_bytes * 1_000_000 // bytes_per_s)
    prefill_us = min(TIME_MAX_US, speed.fixed_us + uncached * speed.prefill_ns // 1000)
    beside, ahead, told_us = _company(request, spot, speed, view, prefill_us)
    queue_us = min(TIME_MAX_US, told_us * speed.queue_ppm // PPM)
    decode_us = min(TIME_MAX_US, output * (speed.decode_ns + speed.stream_ns * beside) // 1000)
    own_prefill_us = min(TIME_MAX_US, uncached * speed.prefill_ns // 1000)
    others_us = min(TIME_MAX_US, own_prefill_us * ahead + output * speed.stream_ns * beside // 1000)
    first_us = rtt_us + upload_us + queue_us + prefill_us
    age_ms = 0 if view.load is None else view.load.age_ms
    spread_us = min(TIME_MAX_US, first_us * speed.spread_ppm // PPM + age_ms * worth.age_spread_ppm // 1000)
    late_first_us = mean_late_us(first_us, spread_us, worth.slo_first_us)
    late_decode_us = mean_late_us(decode_us, decode_us * speed.spread_ppm // PPM, output * worth.slo_token_us)
    price = spot.tokens
    moved_bytes = request.upload_bytes + output * OUTPUT_BYTES_PER_TOKEN
    return Terms(
        tokens_pico=uncached * price.input_pico + cached * price.cached_pico + output * price.output_pico,
        egress_pico=moved_bytes * spot.egress_pico_per_byte,
        carbon_pico=_carbon_pico(spot.carbon, uncached, output, worth.carbon_pico_per_gram),
        time_pico=(first_us + decode_us) * worth.value_of_time_pico_per_ms // 1000,
        late_pico=(late_first_us + late_decode_us) * worth.late_price_pico_per_ms // 1000,
        others_pico=others_us * worth.others_value_pico_per_ms // 1000,
        rtt_us=rtt_us,
        rtt_measured=view.rtt_us is not None,
        upload_us=upload_us,
        queue_us=queue_us,
        prefill_us=prefill_us,
        decode_us=decode_us,
        spread_us=spread_us,
        late_first_us=late_first_us,
        late_decode_us=late_decode_us,
        cached_tokens=cached,
        others_us=others_us,
        told_us=told_us,
        beside=beside,
    )


def _company(
    request: PlacementRequest, spot: Spot, speed: Speed, view: PoolView, prefill_us: int
) -> tuple[int, int, int]:
    """Return (streams beside it while it decodes, streams ahead of it, microseconds that it waits, as told).

    Both counts are of its replica; what is ahead runs or waits.
    """
    load = view.load
    if load is None:
        replicas, slots, ahead = 1, max(1, spot.slots), view.own_in_flight
        waiting, queued = max(0, ahead - slots), 0
    else:
        replicas, slots = max(1, load.replicas), max(1, load.slots)
        ahead = load.running + load.waiting + view.unseen
        waiting = load.waiting + view.unseen
        # A queue whose tokens are unknown holds prompts like this one.
        queued = load.waiting * request.prompt_tokens if load.queued_tokens is None else load.queued_tokens
    queued += view.unseen_tokens
    service_us = speed.service_us
    if service_us is None:
        service_us = prefill_us + request.output_tokens * speed.decode_ns // 1000
    # Whoever stands beyond the slots waits until as many streams have ended as stand before it.
    over = max(0, ahead + 1 - slots, _over_memory(request, view))
    before_us = (queued * speed.prefill_ns // 1000 + waiting * speed.fixed_us) // replicas
    queue_us = over * service_us // slots + before_us
    beside = min(ahead // replicas, max(0, slots // replicas - 1))
    return beside, ahead // replicas, min(TIME_MAX_US, queue_us)


def _over_memory(request: PlacementRequest, view: PoolView) -> int:
    """Return how many streams must end before keys and values of this request fit; 0 where memory is unknown."""
    load = view.load
    if load is None or load.kv_tokens is None or load.kv_used_tokens is None or load.running == 0:
        return 0
    need = request.prompt_tokens + request.output_tokens + view.unseen_tokens
    short = load.kv_used_tokens + need - load.kv_tokens
    if short <= 0:
        return 0
    each = max(1, load.kv_used_tokens // load.running)
    return min(load.running, -(-short // each))


def _carbon_pico(carbon: Carbon | None, uncached: int, output: int, pico_per_gram: int) -> int:
    if carbon is None:
        return 0
    microjoules = uncached * carbon.input_uj + output * carbon.output_uj
    micrograms = microjoules * carbon.grams_per_kwh // (MICROJOULES_PER_KWH // 1_000_000)
    return micrograms * pico_per_gram // 1_000_000

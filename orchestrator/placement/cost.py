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
from orchestrator.placement.lateness import Z_MAX, mean_late_us
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
    total_pico: int
    """J itself."""
    first_us: int
    """Expected time to the first token."""
    time_us: int
    """Expected time to the last token."""


def cost(request: PlacementRequest, spot: Spot, view: PoolView, worth: Worth) -> Terms:
    """Return the terms of J for this request at this spot."""
    speed = view.speed or spot.speed
    prompt, output = request.prompt_tokens, request.output_tokens
    cached = view.cached_tokens
    if cached and cached >= prompt:
        cached = prompt - 1 if prompt > 1 else 0
    uncached = prompt - cached
    rtt_us = worth.unknown_rtt_us if view.rtt_us is None else view.rtt_us
    upload_us = request.upload_bytes * 1_000_000 // (view.bytes_per_s or worth.unknown_bytes_per_s)
    own_prefill_us = uncached * speed.prefill_ns // 1000
    prefill_us = speed.fixed_us + own_prefill_us
    # Comparisons, not `min`: all of this is done for every candidate of every request.
    rtt_us = rtt_us if rtt_us < TIME_MAX_US else TIME_MAX_US
    upload_us = upload_us if upload_us < TIME_MAX_US else TIME_MAX_US
    own_prefill_us = own_prefill_us if own_prefill_us < TIME_MAX_US else TIME_MAX_US
    prefill_us = prefill_us if prefill_us < TIME_MAX_US else TIME_MAX_US
    beside, ahead, told_us = _company(request, spot, speed, view, prefill_us)
    queue_us = told_us * speed.queue_ppm // PPM
    queue_us = queue_us if queue_us < TIME_MAX_US else TIME_MAX_US
    decode_us = output * (speed.decode_ns + speed.stream_ns * beside) // 1000
    decode_us = decode_us if decode_us < TIME_MAX_US else TIME_MAX_US
    others_us = own_prefill_us * ahead + output * speed.stream_ns * beside // 1000
    others_us = others_us if others_us < TIME_MAX_US else TIME_MAX_US
    first_us = rtt_us + upload_us + queue_us + prefill_us
    age_ms = 0 if view.load is None else view.load.age_ms
    spread_us = first_us * speed.spread_ppm // PPM + age_ms * worth.age_spread_ppm // 1000
    spread_us = spread_us if spread_us < TIME_MAX_US else TIME_MAX_US
    late_first_us = late_decode_us = 0
    # Where even a slow answer keeps the promise, as most do, its lateness need not be worked out.
    if first_us + Z_MAX * spread_us > worth.slo_first_us:
        late_first_us = mean_late_us(first_us, spread_us, worth.slo_first_us)
    decode_spread_us, slo_decode_us = decode_us * speed.spread_ppm // PPM, output * worth.slo_token_us
    if decode_us + Z_MAX * decode_spread_us > slo_decode_us:
        late_decode_us = mean_late_us(decode_us, decode_spread_us, slo_decode_us)
    price, carbon = spot.tokens, spot.carbon
    tokens_pico = uncached * price.input_pico + cached * price.cached_pico + output * price.output_pico
    egress_pico = (request.upload_bytes + output * OUTPUT_BYTES_PER_TOKEN) * spot.egress_pico_per_byte
    carbon_pico = 0 if carbon is None else _carbon_pico(carbon, uncached, output, worth.carbon_pico_per_gram)
    time_pico = (first_us + decode_us) * worth.value_of_time_pico_per_ms // 1000
    late_pico = (late_first_us + late_decode_us) * worth.late_price_pico_per_ms // 1000
    others_pico = others_us * worth.others_value_pico_per_ms // 1000
    total_pico = tokens_pico + egress_pico + carbon_pico + time_pico + late_pico + others_pico
    # By position, in the order of the fields: finding 22 names would take a third of the time of all this.
    return Terms(
        tokens_pico, egress_pico, carbon_pico, time_pico, late_pico, others_pico,
        rtt_us, view.rtt_us is not None, upload_us, queue_us, prefill_us, decode_us, spread_us,
        late_first_us, late_decode_us, cached, others_us, told_us, beside,
        total_pico, first_us, first_us + decode_us,
    )  # fmt: skip


def _company(
    request: PlacementRequest, spot: Spot, speed: Speed, view: PoolView, prefill_us: int
) -> tuple[int, int, int]:
    """Return (streams beside it while it decodes, streams ahead of it, microseconds that it waits, as told).

    Both counts are of its replica; what is ahead runs or waits.
    """
    load = view.load
    if load is None:
        replicas, slots, ahead = 1, spot.slots, view.own_in_flight
        slots = slots if slots > 1 else 1
        waiting, queued = ahead - slots if ahead > slots else 0, 0
    else:
        replicas, slots = load.replicas if load.replicas > 1 else 1, load.slots if load.slots > 1 else 1
        ahead = load.running + load.waiting + view.unseen
        waiting = load.waiting + view.unseen
        # A queue whose tokens are unknown holds prompts like this one.
        queued = load.waiting * request.prompt_tokens if load.queued_tokens is None else load.queued_tokens
    queued += view.unseen_tokens
    service_us = speed.service_us
    if service_us is None:
        service_us = prefill_us + request.output_tokens * speed.decode_ns // 1000
    # Whoever stands beyond the slots, or has no room for its keys and values, waits until as many streams have ended.
    over = 0 if load is None or load.kv_tokens is None else _over_memory(request, view)
    over = ahead + 1 - slots if ahead + 1 - slots > over else over
    before_us = (queued * speed.prefill_ns // 1000 + waiting * speed.fixed_us) // replicas
    queue_us = over * service_us // slots + before_us
    ahead //= replicas
    most = slots // replicas - 1 if slots > replicas else 0
    return ahead if ahead < most else most, ahead, queue_us if queue_us < TIME_MAX_US else TIME_MAX_US


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


def _carbon_pico(carbon: Carbon, uncached: int, output: int, pico_per_gram: int) -> int:
    microjoules = uncached * carbon.input_uj + output * carbon.output_uj
    micrograms = microjoules * carbon.grams_per_kwh // (MICROJOULES_PER_KWH // 1_000_000)
    return micrograms * pico_per_gram // 1_000_000

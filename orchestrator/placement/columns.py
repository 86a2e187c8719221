"""J over arrays: what `cost` says of one pool, for all pools of a board at once, in 64-bit integers.

`cost` is the specification; a test holds the two equal. What does not depend on the request is worked out when a pool
is written, in Python's own integers; a decision then does some sixty passes over arrays that are there already.

Whole numbers of 64 bits overflow where Python's do not. `row_of` takes only what lies within the bounds below, and
`within` says whether a request does; for all that does, no step of the arithmetic leaves 64 bits. They are far wider
than anything that runs: 100 s per prompt token, 10 s per output token, a million streams ahead, 10^7 prompt tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from orchestrator.placement.cost import MICROJOULES_PER_KWH, OUTPUT_BYTES_PER_TOKEN, Spot
from orchestrator.placement.lateness import SCALE_BITS, STEPS, UNIT_LOSS, Z_MAX
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.settings import Worth
from orchestrator.placement.speed import PPM, QUEUE_MAX_PPM, SPREAD_MAX_PPM, TIME_MAX_US, Speed

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

PROMPT_MAX = 10**7
OUTPUT_MAX = 400_000
UPLOAD_MAX_BYTES = 10**12
PREFILL_MAX_NS = 10**11
DECODE_MAX_NS = 10**10
"""Of a stream that runs alone."""
BESIDE_MAX_NS = 10**12
"""More per token for all that run beside it."""
SERVICE_MAX_US = 10**12
STREAMS_MAX = 10**6
"""Ahead, waiting, or running."""
REPLICAS_MAX = 10**5
TOKENS_MAX = 10**15
"""In memory, queued, or unseen."""
CLOCK_MAX_US = 1 << 61
PER_MS_MAX_PICO = 10**9
"""Value of time, and price of lateness: one unit of currency a second, as settings files have it at most."""
MONEY_MAX_PICO = 1 << 61
"""All terms but those of time: two million units of currency for one request."""
NOT_IN_PICO = (1 << 63) - 1
"""Stands for a pool that is no candidate."""
_WIDE = 1 << 62
_PLAIN_PER_MS_PICO = _WIDE // (8 * TIME_MAX_US)
"""Below it time times price stays within 64 bits: five terms of time, and lateness of less than these and a half."""
_SLO_MAX_US = 1 << 47
"""A promise beyond this is kept whatever happens: no sum of times comes near it."""
_NEVER_HEARD_US = 1 << 62
_CARBON_DIVISOR = MICROJOULES_PER_KWH // 1_000_000

Row = tuple[int, ...]
"""One pool in the order of `Columns`."""
ROW_COLUMNS = 25
UNTIMED, GUESSED_WAIT = 10, 13
PRICE_COLUMNS = 7
WORDS = 11
QUIET: Row = (0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0)
"""Stands in a row that says nothing: there nothing divides by zero."""


def _loss_lines() -> tuple[Ints, Ints]:
    """Return the table of the unit loss as a line per step: ``spread * first[i] + u * second[i]``, scaled.

    With ``u = slo - mean + Z_MAX * spread`` and i steps of `spread` in ``u * STEPS``, `mean_late_us` reads
    ``spread * low + (high - low) * (u * STEPS - i * spread)``: the same, without the remainder.
    """
    steps = [after - before for before, after in pairwise((*UNIT_LOSS, 0))]
    first = [loss - step * number for number, (loss, step) in enumerate(zip(UNIT_LOSS, steps, strict=True))]
    return np.array(first, np.int64), np.array([step * STEPS for step in steps], np.int64)


_LOSS_FIRST, _LOSS_SECOND = _loss_lines()
_SHIFT_STEPS = STEPS.bit_length() - 1
_SHIFT_Z = Z_MAX.bit_length() - 1


def _zero_d(value: int) -> Ints:
    """Return a number as an array without axes: operations take it without converting it."""
    return np.array(value, np.int64)


_NOTHING, _ONE, _THOUSAND, _PPM, _TIME_MAX = (_zero_d(value) for value in (0, 1, 1000, PPM, TIME_MAX_US))
_STEP_BITS, _Z_BITS, _LOSS_BITS = _zero_d(_SHIFT_STEPS), _zero_d(_SHIFT_Z), _zero_d(SCALE_BITS)


def mean_late_us_each(mean_us: Ints, spread_us: Ints, slo_us: Ints, work: Sequence[Ints]) -> Ints:
    """Return `mean_late_us` of each, in one of four arrays of `work`. Overwrites these and `spread_us`.

    Equal to it where 0 <= spread <= 2 * TIME_MAX_US, 0 <= mean <= 10 * TIME_MAX_US and 0 <= slo <= 2^47.
    """
    over, within, at, line = work
    # With a spread of 1 the loss exceeds what is certain by less than 1 and is rounded down to it: as with 0.
    np.maximum(spread_us, _ONE, out=spread_us)
    np.subtract(mean_us, slo_us, over)
    np.left_shift(spread_us, _Z_BITS, within)
    np.subtract(within, over, within)
    np.left_shift(within, _STEP_BITS, at)
    np.floor_divide(at, spread_us, at)
    # Below the table the first line runs under `over`; the last entry is nothing, and so is all beyond it.
    _LOSS_SECOND.take(at, out=line, mode="clip")
    np.multiply(within, line, within)
    _LOSS_FIRST.take(at, out=line, mode="clip")
    np.multiply(spread_us, line, line)
    np.add(within, line, line)
    np.right_shift(line, _LOSS_BITS, line)
    # The chords of a convex function lie above its asymptote: within the table `over` is never the greater one.
    return np.maximum(line, over, out=line)


def row_of(view: PoolView, declared: Speed, declared_slots: int, heard_us: int, unknown: tuple[int, int]) -> Row | None:
    """Return the row of a pool, or None where a number lies beyond the bounds of this module.

    `unknown` are the round trip and the bandwidth to take where none was measured.
    """
    speed, load, unseen_tokens = view.speed or declared, view.load, view.unseen_tokens
    prefill_ns, fixed_us, decode_ns = speed.prefill_ns, speed.fixed_us, speed.decode_ns
    if load is None:
        replicas, slots, ahead, heard_us = 1, max(1, declared_slots), view.own_in_flight, _NEVER_HEARD_US
        waiting, tokens, guessed_wait = max(0, ahead - slots), unseen_tokens, 0
        short, each, most_ended = 0, 1, 0
    elif _is_counted(load) and view.unseen >= 0 and 0 <= heard_us <= CLOCK_MAX_US:
        replicas, slots = max(1, load.replicas), max(1, load.slots)
        ahead, waiting = load.running + load.waiting + view.unseen, load.waiting + view.unseen
        tokens = unseen_tokens + (load.queued_tokens or 0)
        guessed_wait = load.waiting if load.queued_tokens is None else 0
        short, each, most_ended = _memory(load, unseen_tokens)
    else:
        return None
    beside_ns = speed.stream_ns * min(ahead // replicas, max(0, slots // replicas - 1))
    rtt_us = unknown[0] if view.rtt_us is None else view.rtt_us
    bytes_per_s = view.bytes_per_s or unknown[1]
    if not (
        _is_bounded(speed)
        and 0 <= beside_ns <= BESIDE_MAX_NS
        and rtt_us >= 0
        and 1 <= bytes_per_s < _WIDE
        and 0 <= ahead <= STREAMS_MAX
        and slots < _WIDE
        and unseen_tokens >= 0
        and 0 <= tokens <= TOKENS_MAX
        and -TOKENS_MAX <= short <= TOKENS_MAX
        and each <= TOKENS_MAX
    ):
        return None
    waited_us = waiting * fixed_us
    queued_us = guessed_most = 0
    if guessed_wait:
        # So many tokens take TIME_MAX_US: no more are told apart.
        guessed_most = min(2 * TOKENS_MAX, TIME_MAX_US * 1000 * replicas // max(1, prefill_ns) + 1)
    else:
        queued_us = min(TIME_MAX_US, (tokens * prefill_ns // 1000 + waited_us) // replicas)
        tokens = waited_us = 0
    return (
        prefill_ns,
        fixed_us,
        decode_ns,
        decode_ns + beside_ns,
        speed.spread_ppm,
        speed.spread_ppm,
        min(TIME_MAX_US, rtt_us),
        bytes_per_s,
        max(0, ahead + 1 - slots),
        speed.service_us or 0,
        1 if speed.service_us is None else 0,
        slots,
        queued_us,
        guessed_wait,
        tokens,
        guessed_most,
        waited_us,
        replicas,
        short,
        each,
        most_ended,
        speed.queue_ppm,
        heard_us,
        beside_ns,
        ahead // replicas,
    )


def _is_counted(load: PoolLoad) -> bool:
    return load.running >= 0 and load.waiting >= 0 and load.replicas <= REPLICAS_MAX


def _is_bounded(speed: Speed) -> bool:
    return (
        0 <= speed.prefill_ns <= PREFILL_MAX_NS
        and 0 <= speed.fixed_us <= TIME_MAX_US
        and 0 <= speed.decode_ns <= DECODE_MAX_NS
        and 0 <= speed.spread_ppm <= SPREAD_MAX_PPM
        and 0 <= speed.queue_ppm <= QUEUE_MAX_PPM
        and (speed.service_us is None or 0 <= speed.service_us <= SERVICE_MAX_US)
    )


def _memory(load: PoolLoad, unseen_tokens: int) -> tuple[int, int, int]:
    """Return (tokens short before this request, tokens that a stream frees, streams that can end).

    What is short is such that the whole of it, divided by what a stream frees, comes out rounded up.
    """
    used, fit = load.kv_used_tokens, load.kv_tokens
    if used is None or fit is None or load.running == 0:
        return 0, 1, 0
    each = max(1, used // load.running)
    return used + unseen_tokens - fit + each - 1, each, load.running


class _Most(msgspec.Struct, frozen=True):
    """The greatest prices of a column, whatever their sign."""

    token_pico: int = 0
    output_pico: int = 0
    byte_pico: int = 0
    input_uj: int = 0
    output_uj: int = 0
    grams_per_kwh: int = 0


class Columns:
    """One array per number that J is made of, one element per pool, and room to work in."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows = np.zeros((ROW_COLUMNS, size), np.int64)
        self._rows[:] = np.array(QUIET, np.int64)[:, None]
        rows = self._rows
        self._prefill_ns, self._fixed_us, self._decode_ns, self._token_ns = rows[0], rows[1], rows[2], rows[3]
        # Twice: for the first token, and for the rest.
        self._spread_ppm = rows[4:6].reshape(-1)
        self._rtt_us, self._bytes_per_s, self._over, self._service_us, self._untimed = rows[6:11]
        self._slots, self._queued_us, self._guessed_wait, self._guessed_tokens, self._guessed_most = rows[11:16]
        self._waited_us, self._replicas, self._short, self._each, self._most_ended = rows[16:21]
        self._queue_ppm, self._heard_us, self._beside_ns, self._ahead = rows[21:]
        self._guesses = 0
        """Rows whose queue is of unknown length."""
        self._untimed_rows = 0
        """Rows where nobody knows how long a stream holds its slot."""
        self._prices = np.zeros((PRICE_COLUMNS, size), np.int64)
        self._input, self._cached, self._output, self._egress = self._prices[:4]
        self._input_uj, self._output_uj, self._grams = self._prices[4:]
        self._most: _Most | None = _Most()
        self._total, self._prefill_us, self._queue_us, self._others_us = np.zeros((4, size), np.int64)
        self._one, self._two = np.zeros((2, size), np.int64)
        both = np.zeros((7, 2 * size), np.int64)
        self._mean_us, self._spread_us, self._slo_us = both[0], both[1], both[2]
        self._first_us, self._decode_us = both[0, :size], both[0, size:]
        self._spread_first_us = both[1, :size]
        self._late_work = (both[3], both[4], both[5], both[6])
        self._uncached = np.zeros(size, np.int64)
        self._told = np.zeros(WORDS, np.int64)
        self._words: tuple[Ints, ...] = tuple(self._told[at : at + 1].reshape(()) for at in range(WORDS))

    def put(self, index: int, row: Row) -> None:
        """Put the row of a pool in its place."""
        rows = self._rows
        self._untimed_rows += row[UNTIMED] - rows.item(UNTIMED, index)
        self._guesses += (row[GUESSED_WAIT] > 0) - (rows.item(GUESSED_WAIT, index) > 0)
        rows[:, index] = row

    def charge(self, spots: Sequence[Spot | None]) -> None:
        """Take the prices of all pools anew; nothing where there is none."""
        columns: list[list[int]] = [[0] * self._size for _ in self._prices]
        for index, spot in enumerate(spots):
            if spot is None:
                continue
            tokens, carbon = spot.tokens, spot.carbon
            columns[0][index] = tokens.input_pico
            columns[1][index] = tokens.cached_pico
            columns[2][index] = tokens.output_pico
            columns[3][index] = spot.egress_pico_per_byte
            if carbon is not None:
                columns[4][index] = carbon.input_uj
                columns[5][index] = carbon.output_uj
                columns[6][index] = carbon.grams_per_kwh
        most = [max(max(column, default=0), -min(column, default=0)) for column in columns]
        self._most = None
        if max(most) < _WIDE:
            self._prices[:] = columns
            self._most = _Most(max(most[0], most[1]), *most[2:])

    def within(self, request: PlacementRequest, worth: Worth, now_us: int) -> bool:
        """Whether J of this request is the same in 64 bits as in Python's integers, for every row that is in."""
        prompt, output, upload, most = request.prompt_tokens, request.output_tokens, request.upload_bytes, self._most
        if most is None or not (
            0 <= prompt <= PROMPT_MAX
            and 0 <= output <= OUTPUT_MAX
            and 0 <= upload <= UPLOAD_MAX_BYTES
            and 0 <= worth.value_of_time_pico_per_ms <= PER_MS_MAX_PICO
            and 0 <= worth.late_price_pico_per_ms <= PER_MS_MAX_PICO
            and 0 <= worth.others_value_pico_per_ms <= PER_MS_MAX_PICO
            and worth.slo_first_us >= 0
            and worth.slo_token_us >= 0
            and 0 <= now_us <= CLOCK_MAX_US
            and worth.age_spread_ppm >= 0
            and now_us // 1000 * worth.age_spread_ppm < _WIDE
        ):
            return False
        money = prompt * most.token_pico + output * most.output_pico
        money += (upload + output * OUTPUT_BYTES_PER_TOKEN) * most.byte_pico
        carbon_pico = worth.carbon_pico_per_gram
        if carbon_pico:
            joules = (prompt * most.input_uj + output * most.output_uj) * most.grams_per_kwh
            money += joules + joules // _CARBON_DIVISOR * abs(carbon_pico) + abs(carbon_pico)
        return money < MONEY_MAX_PICO

    def total_pico(self, request: PlacementRequest, worth: Worth, cached: Mapping[int, int], now_us: int) -> Ints:
        """Return J of every row, in an array that the next call overwrites. `cached` is by index, tokens held."""
        prompt, output, upload = request.prompt_tokens, request.output_tokens, request.upload_bytes
        self._told[:] = (
            prompt,
            output,
            upload * 1_000_000,
            prompt + output,
            upload + output * OUTPUT_BYTES_PER_TOKEN,
            now_us,
            worth.age_spread_ppm,
            worth.value_of_time_pico_per_ms,
            worth.late_price_pico_per_ms,
            worth.others_value_pico_per_ms,
            worth.carbon_pico_per_gram,
        )
        prompt_, output_, upload_, need_, moved_, now_, age_ppm_, value_, late_, others_, carbon_ = self._words
        uncached, most = prompt_, max(0, prompt - 1)
        if cached:
            uncached = self._uncached
            uncached.fill(prompt)
            for index, tokens in cached.items():
                uncached[index] = prompt - min(tokens, most)
        total, one = self._total, self._one
        np.multiply(self._input, uncached, total)
        np.multiply(self._output, output_, one)
        np.add(total, one, total)
        np.multiply(self._egress, moved_, one)
        np.add(total, one, total)
        for index, tokens in cached.items():
            total[index] += min(tokens, most) * self._cached.item(index)
        if worth.carbon_pico_per_gram:
            self._add_carbon(uncached, output_, carbon_)
        self._time(uncached, prompt_, output_, upload_, need_)
        self._spread(now_, age_ppm_)
        size = self._size
        self._slo_us[:size].fill(min(_SLO_MAX_US, worth.slo_first_us))
        self._slo_us[size:].fill(min(_SLO_MAX_US, output * worth.slo_token_us))
        late = mean_late_us_each(self._mean_us, self._spread_us, self._slo_us, self._late_work)
        np.add(self._first_us, self._decode_us, one)
        self._add_worth(one, value_, worth.value_of_time_pico_per_ms)
        np.add(late[:size], late[size:], one)
        self._add_worth(one, late_, worth.late_price_pico_per_ms)
        self._add_worth(self._others_us, others_, worth.others_value_pico_per_ms)
        return total

    def _add_carbon(self, uncached: Ints, output: Ints, pico_per_gram: Ints) -> None:
        one, two = self._one, self._two
        np.multiply(self._input_uj, uncached, one)
        np.multiply(self._output_uj, output, two)
        np.add(one, two, one)
        np.multiply(one, self._grams, one)
        np.floor_divide(one, _CARBON_DIVISOR, one)
        np.multiply(one, pico_per_gram, one)
        np.floor_divide(one, _PPM, one)
        np.add(self._total, one, self._total)

    def _time(self, uncached: Ints, prompt: Ints, output: Ints, upload: Ints, need: Ints) -> None:
        """Work out the means: to the first token, and of the rest; and the time that it takes from others."""
        prefill, queue, others, one = self._prefill_us, self._queue_us, self._others_us, self._one
        first, decode = self._first_us, self._decode_us
        np.multiply(self._prefill_ns, uncached, prefill)
        np.floor_divide(prefill, _THOUSAND, prefill)
        np.minimum(prefill, _TIME_MAX, out=prefill)
        np.multiply(prefill, self._ahead, others)
        np.multiply(self._beside_ns, output, one)
        np.floor_divide(one, _THOUSAND, one)
        np.add(others, one, others)
        np.minimum(others, _TIME_MAX, out=others)
        np.add(prefill, self._fixed_us, prefill)
        np.minimum(prefill, _TIME_MAX, out=prefill)
        np.multiply(self._token_ns, output, decode)
        np.floor_divide(decode, _THOUSAND, decode)
        np.minimum(decode, _TIME_MAX, out=decode)
        # As many streams must end as stand before it beyond the slots, or until its keys and values fit.
        np.add(self._short, need, queue)
        np.floor_divide(queue, self._each, queue)
        np.minimum(queue, self._most_ended, out=queue)
        np.maximum(queue, self._over, out=queue)
        service = self._service_us
        if self._untimed_rows:
            np.multiply(self._decode_ns, output, one)
            np.floor_divide(one, _THOUSAND, one)
            np.add(one, prefill, one)
            np.multiply(one, self._untimed, one)
            service = np.add(one, service, one)
        np.multiply(queue, service, queue)
        np.floor_divide(queue, self._slots, queue)
        np.add(queue, self._queued_us, queue)
        if self._guesses:
            np.multiply(self._guessed_wait, prompt, one)
            np.add(one, self._guessed_tokens, one)
            np.minimum(one, self._guessed_most, out=one)
            np.multiply(one, self._prefill_ns, one)
            np.floor_divide(one, _THOUSAND, one)
            np.add(one, self._waited_us, one)
            np.floor_divide(one, self._replicas, one)
            np.add(queue, one, queue)
        np.minimum(queue, _TIME_MAX, out=queue)
        np.multiply(queue, self._queue_ppm, queue)
        np.floor_divide(queue, _PPM, queue)
        np.minimum(queue, _TIME_MAX, out=queue)
        np.floor_divide(upload, self._bytes_per_s, first)
        np.minimum(first, _TIME_MAX, out=first)
        np.add(first, self._rtt_us, first)
        np.add(first, prefill, first)
        np.add(first, queue, first)

    def _spread(self, now_us: Ints, age_spread_ppm: Ints) -> None:
        """Work out the spreads of both means. That of the first token widens with the age of the report."""
        age, spread, first = self._one, self._spread_us, self._spread_first_us
        np.multiply(self._mean_us, self._spread_ppm, spread)
        np.floor_divide(spread, _PPM, spread)
        np.subtract(now_us, self._heard_us, age)
        np.maximum(age, _NOTHING, out=age)
        np.floor_divide(age, _THOUSAND, age)
        np.multiply(age, age_spread_ppm, age)
        np.floor_divide(age, _THOUSAND, age)
        np.add(first, age, first)
        np.minimum(first, _TIME_MAX, out=first)

    def _add_worth(self, time_us: Ints, pico_per_ms: Ints, price_pico: int) -> None:
        """Add what so much time is worth to J."""
        if price_pico >= _PLAIN_PER_MS_PICO:
            # The same, without the whole product: 1000 * t * p // 1000 = t * p.
            rest = np.remainder(time_us, _THOUSAND, out=self._two)
            np.multiply(rest, pico_per_ms, rest)
            np.floor_divide(rest, _THOUSAND, rest)
            np.floor_divide(time_us, _THOUSAND, time_us)
            np.multiply(time_us, pico_per_ms, time_us)
            np.add(time_us, rest, time_us)
        else:
            np.multiply(time_us, pico_per_ms, time_us)
            np.floor_divide(time_us, _THOUSAND, time_us)
        np.add(self._total, time_us, self._total)

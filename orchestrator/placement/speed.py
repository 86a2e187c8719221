"""How fast a pool or replica is for one model, and how that is learned from its own replies.

Two straight lines, each fitted by least squares that forget (Ljung, System Identification, 11.2): time to the first
token against uncached prompt tokens, and time per output token against the streams beside it. The declared speed is
the first guess, worth a few samples. Means throughout: a percentile of a term is no term of a sum. One sample moves
them by a bounded step only (Huber, Robust Statistics, 7.3), and what a peer counted is bounded before it is believed.
"""

from __future__ import annotations

from math import inf, isqrt

import msgspec

PPM = 1_000_000
FORGET = 0.97
"""Weight of a sample once the next one is in: about 33 samples count."""
SHARE = 1 - FORGET
"""Weight of one sample in a mean that forgets."""
WHOLE_SQUARES_US = 1 << 26
"""Up to here squares of microseconds are whole numbers that a float holds exactly."""
SPREAD_MIN_PPM = 50_000
SPREAD_MAX_PPM = 2_000_000
FAR = 32
"""Learned rates stay within this factor of the declared ones: beyond it a measurement is broken, not a GPU slow."""
OUTLIER = 4
"""A sample counts as at most this many times what was expected: a stall teaches a step, not itself."""
OUTLIER_MIN_US = 100_000
"""What is expected of a first token is taken for at least this, so that a small guess can be left at once."""
TIME_MAX_US = 10**10
"""About three hours."""
TOKENS_MAX = 10**7
BESIDE_MAX = 10**4
"""Larger figures are no measurements. A learned speed stands in decision records, whose numbers have an end."""
RATE_MIN_NS = 1_000
"""A declared rate of nothing is one that rounds to nothing: it may be learned to be `FAR` times this."""
DECLARED_SPREAD_PPM = 300_000
"""How far off a declared speed is taken to be, relative, until replies tell."""
QUEUE_MIN_PPM = 250_000
QUEUE_MAX_PPM = 8_000_000
SEEN_US = 500_000
"""A time to the first token as good as any, before one was seen."""
TOLD_US = 50_000
"""A wait that says little: what is told and what was waited are compared on top of it."""
RATE_WEIGHT = 3.0
"""A declared rate is worth about three replies at first."""
LEARN_EVERY_US = 5_000
"""Over time a speed is learned from about one reply in so long; of more than 4,600 replies a second, from one in 23.

About 33 samples count. Of a pool that ends 3,000 replies a second 33 in a row are 11 ms of its life, which is noise,
and to learn from each takes 5 % of an edge's time for a request.
"""
LEARN_SAVED_US = 33 * LEARN_EVERY_US
"""What a calm saves for a burst: as many as count all teach."""
STRIDES = (1, 3, 7, 13, 23)
"""Beyond that one in so many teaches, of any place in a group that ends together: the first alone, which waited least,
would be no sample of it. Odd, for the groups in which requests begin are 16."""
FADE = 0.9
FADED_MIN = 0.01
"""What is left of that once others are in, and in the end: enough to say how a line lies where replies do not."""
FIRST_SCALE_TOKENS = 1_000
"""Unit of prompt length inside the fit: keeps its numbers near one."""


class Speed(msgspec.Struct, frozen=True):
    """What is believed of one pool, or replica, and one model. Nanoseconds per token; of one replica."""

    prefill_ns: int
    """Per uncached prompt token."""
    decode_ns: int
    """Per output token of a stream that runs alone."""
    stream_ns: int
    """More per output token for each stream beside it in its replica."""
    fixed_us: int = 0
    """Of every request, besides queue, distance and prompt: what programs on the way take."""
    service_us: int | None = None
    """Mean time for which a stream holds its slot; None until one was seen to end."""
    spread_ppm: int = DECLARED_SPREAD_PPM
    """Standard deviation of the time to the first token, relative to its mean."""
    queue_ppm: int = PPM
    """How long a wait really is, relative to what reports make of it: they are old, and others have heard them too."""
    samples: int = 0
    """Replies behind it, as far as counted."""


class Measured(msgspec.Struct, frozen=True):
    """One reply, as whoever sent the request measured it."""

    first_us: int
    """From sending to the first token."""
    besides_us: int
    """Of `first_us`: what was expected of distance, upload and queue. The rest is the engine's."""
    expected_first_us: int
    """What the whole time to the first token was expected to be."""
    queued_us: int | None
    """What it waited at the pool, as the pool says; None when nobody said."""
    told_us: int
    """What the last report made of that wait."""
    uncached_tokens: int
    decode_us: int | None
    """From the first to the last token; None where the reader held it up, so that it says nothing of the pool."""
    output_tokens: int
    beside: int
    """Streams beside it in its replica while it decoded, as far as known."""

    def bounded(self) -> Measured:
        """Return the same with every figure within its bounds."""
        queued_us, decode_us = self.queued_us, self.decode_us
        return Measured(
            first_us=_within(self.first_us, 0, TIME_MAX_US),
            besides_us=max(0, self.besides_us),
            expected_first_us=_within(self.expected_first_us, 0, TIME_MAX_US),
            queued_us=None if queued_us is None else max(0, queued_us),
            told_us=_within(self.told_us, 0, TIME_MAX_US),
            uncached_tokens=_within(self.uncached_tokens, 0, TOKENS_MAX),
            decode_us=None if decode_us is None else _within(decode_us, 0, TIME_MAX_US),
            output_tokens=self.output_tokens,
            beside=_within(self.beside, 0, BESIDE_MAX),
        )


class _Guess(msgspec.Struct, frozen=True):
    """One number of a line before anything was seen, and where it can lie at all."""

    value: float
    weight: float
    """In samples."""
    least: float
    most: float

    def hold(self, value: float) -> float:
        """Return what lies within, nearest to `value`."""
        value = self.most if self.most < value else value
        return value if value > self.least else self.least


class _Line:
    """y = a + b * x by least squares that forget, within bounds. The guesses fade, and never quite go.

    Sums stand for the samples, and the bounds hold in the fit, not after it: where every x is alike, many lines fit,
    and to cut a or b of one alone would leave a line that does not. Of those the guesses choose.
    """

    __slots__ = ("_a", "_b", "_faded", "_n", "_x", "_xx", "_xy", "_y", "a", "b", "whole_a", "whole_b")

    def __init__(self, a: _Guess, b: _Guess) -> None:
        self._a, self._b = a, b
        self._faded = 1.0
        self._n = self._x = self._xx = self._y = self._xy = 0.0
        self.a, self.b = a.hold(a.value), b.hold(b.value)
        self.whole_a, self.whole_b = round(self.a), round(self.b)

    def learn(self, x: float, y: float, least: float) -> None:
        """Take in one sample. Less than `least` is never expected."""
        expected = self.a + self.b * x
        most = OUTLIER * (least if least > expected else expected)
        y = most if most < y else y
        self._n = aa = self._n * FORGET + 1
        self._x = ab = self._x * FORGET + x
        self._xx = bb = self._xx * FORGET + x * x
        self._y = ya = self._y * FORGET + y
        self._xy = yb = self._xy * FORGET + x * y
        faded = self._faded * FADE
        self._faded = faded = FADED_MIN if faded < FADED_MIN else faded
        guess_a, guess_b = self._a, self._b
        weight_a, weight_b = faded * guess_a.weight, faded * guess_b.weight
        aa, bb = aa + weight_a, bb + weight_b
        ya, yb = ya + weight_a * guess_a.value, yb + weight_b * guess_b.value
        scale = aa * bb - ab * ab
        a = b = inf
        if scale > 0:
            a, b = (ya * bb - yb * ab) / scale, (yb * aa - ya * ab) / scale
        if not (guess_a.least <= a <= guess_a.most and guess_b.least <= b <= guess_b.most):
            a, b = self._best_side(a, b, aa, ab, bb, ya, yb)
        self.a, self.b = a, b
        self.whole_a, self.whole_b = round(a), round(b)

    def _best_side(
        self, free_a: float, free_b: float, aa: float, ab: float, bb: float, ya: float, yb: float
    ) -> tuple[float, float]:
        """Return the best of the box, where the best of all lies beyond it.

        The loss is convex: towards the best of all it only falls, so that the best of the box lies on a side beyond
        which that is.
        """
        guess_a, guess_b = self._a, self._b
        low, high, left, right = guess_b.least, guess_b.most, guess_a.least, guess_a.most
        double_ab, double_ya, double_yb = 2 * ab, 2 * ya, 2 * yb
        best_a, best_b, least = left, low, inf
        if not low <= free_b <= high:
            for b in (low, high):
                a = (ya - ab * b) / aa
                a = right if right < a else a if a > left else left
                loss = (aa * a - double_ya) * a + (bb * b - double_yb + double_ab * a) * b
                if loss < least:
                    best_a, best_b, least = a, b, loss
        if not left <= free_a <= right:
            for a in (left, right):
                b = (yb - ab * a) / bb
                b = high if high < b else b if b > low else low
                loss = (aa * a - double_ya) * a + (bb * b - double_yb + double_ab * a) * b
                if loss < least:
                    best_a, best_b, least = a, b, loss
        return best_a, best_b


def _rate(declared_ns: int, least_ns: int) -> _Guess:
    """Return what is guessed of a rate: as declared, which is worth about three samples, and within reach of it."""
    return _Guess(declared_ns, RATE_WEIGHT, least_ns, max(declared_ns, RATE_MIN_NS) * FAR)


class SpeedLearner:
    """Learns one `Speed`. Deterministic; holds a few numbers, whatever it sees."""

    __slots__ = (
        "_decode", "_expected", "_first", "_missed", "_passing", "_queue_ppm", "_samples", "_saved_us", "_service",
        "_service_us", "_streams", "_stride", "_told", "_waited", "believed", "declared", "rates", "taught_us",
    )  # fmt: skip

    def __init__(self, declared: Speed) -> None:
        self.declared = declared
        prefill_ns, decode_ns = self.rates = (declared.prefill_ns, declared.decode_ns)
        """The declared rates that it began from. Slots may come and go."""
        stream_max_ns = FAR * max(declared.stream_ns, decode_ns, RATE_MIN_NS)
        # Microseconds per thousand tokens are nanoseconds per token.
        self._first = _Line(
            _Guess(declared.fixed_us, 1.0, 0, TIME_MAX_US), _rate(prefill_ns, max(prefill_ns // FAR, 1))
        )
        self._decode = _Line(
            _rate(decode_ns, max(decode_ns // FAR, 1)), _Guess(declared.stream_ns, RATE_WEIGHT, 0, stream_max_ns)
        )
        self._service: float | None = declared.service_us
        self._service_us = None if declared.service_us is None else max(1, declared.service_us)
        # Means of squares: a ratio of two means, not a mean of ratios, which short waits would dominate.
        self._expected = float(SEEN_US) ** 2
        self._missed = self._expected * (declared.spread_ppm / PPM) ** 2
        self._told = self._waited = 0.0
        self._queue_ppm = PPM
        self._samples = 0
        self._streams = 0 if declared.service_us is None else 1
        self.believed = declared
        """The speed that is believed now."""
        self.taught_us = 0
        """When the last reply came that it was taught by: kept for whoever forgets what nothing confirms."""
        self._saved_us = LEARN_SAVED_US
        self._stride = 0
        """Which of `STRIDES`."""
        self._passing = 0
        """So many of the next replies are passed over, if they come soon."""

    def passes_over(self, now_us: int) -> bool:
        """Whether the reply that ended now teaches nothing, because too many end. One that does counts as taught by."""
        since_us = now_us - self.taught_us
        if self._passing and since_us < LEARN_SAVED_US:
            self._passing -= 1
            return True
        self.taught_us = now_us
        saved_us = self._saved_us + since_us
        saved_us = (saved_us if saved_us < LEARN_SAVED_US else LEARN_SAVED_US) - LEARN_EVERY_US
        if saved_us < 0:
            saved_us, self._stride = 0, min(self._stride + 1, len(STRIDES) - 1)
        elif saved_us > LEARN_SAVED_US // 2:
            self._stride = 0
        self._saved_us, self._passing = saved_us, STRIDES[self._stride] - 1
        return False

    def learn(self, seen: Measured) -> None:
        """Take in one complete reply."""
        # Nearly every figure is one that was measured.
        if not (
            0 <= seen.first_us <= TIME_MAX_US
            and seen.besides_us >= 0
            and 0 <= seen.expected_first_us <= TIME_MAX_US
            and (seen.queued_us is None or seen.queued_us >= 0)
            and 0 <= seen.told_us <= TIME_MAX_US
            and 0 <= seen.uncached_tokens <= TOKENS_MAX
            and (seen.decode_us is None or 0 <= seen.decode_us <= TIME_MAX_US)
            and 0 <= seen.beside <= BESIDE_MAX
        ):
            seen = seen.bounded()
        first_us, expected_us, told_us = seen.first_us, seen.expected_first_us, seen.told_us
        engine_us = first_us - seen.besides_us if first_us > seen.besides_us else 0
        first = self._first
        first.learn(seen.uncached_tokens / FIRST_SCALE_TOKENS, engine_us, OUTLIER_MIN_US)
        if seen.decode_us is not None:
            self._learn_stream(seen, engine_us, seen.decode_us)
        # What it took, or as much as that may exceed what was expected.
        most_us = OUTLIER * (expected_us if expected_us > OUTLIER_MIN_US else OUTLIER_MIN_US)
        missed_us = (most_us if most_us < first_us else first_us) - expected_us
        expected, missed = self._expected, self._missed
        if most_us <= WHOLE_SQUARES_US:
            # The same numbers, sooner: neither figure is larger than what it may be at most.
            expected += (expected_us * expected_us - expected) * SHARE
            missed += (missed_us * missed_us - missed) * SHARE
        else:
            expected += (float(expected_us) ** 2 - expected) * SHARE
            missed += (float(missed_us) ** 2 - missed) * SHARE
        self._expected, self._missed = expected, missed
        if seen.queued_us is not None:
            most_us = OUTLIER * (told_us if told_us > OUTLIER_MIN_US else OUTLIER_MIN_US)
            waited_us = most_us if most_us < seen.queued_us else seen.queued_us
            told, waited = self._told, self._waited
            self._told = told = told + (told_us - told) * SHARE
            self._waited = waited = waited + (waited_us - waited) * SHARE
            queue_ppm = round((waited + TOLD_US) / (told + TOLD_US) * PPM)
            queue_ppm = queue_ppm if queue_ppm < QUEUE_MAX_PPM else QUEUE_MAX_PPM
            self._queue_ppm = queue_ppm if queue_ppm > QUEUE_MIN_PPM else QUEUE_MIN_PPM
        spread_ppm = isqrt(int(missed / (expected if expected > 1.0 else 1.0) * PPM * PPM))
        spread_ppm = spread_ppm if spread_ppm < SPREAD_MAX_PPM else SPREAD_MAX_PPM
        self._samples = samples = self._samples + 1
        decode = self._decode
        self.believed = Speed(
            first.whole_b,
            decode.whole_a,
            decode.whole_b,
            first.whole_a,
            self._service_us,
            spread_ppm if spread_ppm > SPREAD_MIN_PPM else SPREAD_MIN_PPM,
            self._queue_ppm,
            samples,
        )

    def _learn_stream(self, seen: Measured, engine_us: int, decode_us: int) -> None:
        """Take in how fast its tokens came, and for how long it held its slot."""
        if seen.output_tokens > 1:
            token_ns = decode_us * 1000 / (seen.output_tokens - 1)
            self._decode.learn(seen.beside, token_ns, RATE_MIN_NS)
        held_us, before = engine_us + decode_us, self._service
        self._streams += 1
        if before is None:
            service: float = held_us
        else:
            # The plain mean of the first ones, so that the first is not long remembered alone.
            most_us = OUTLIER * (before if before > OUTLIER_MIN_US else OUTLIER_MIN_US)
            step_us = (most_us if most_us < held_us else held_us) - before
            share = 1 / self._streams
            service = before + step_us * (share if share > SHARE else SHARE)
        service_us = round(service)
        self._service, self._service_us = service, service_us if service_us > 1 else 1


def _within(value: int, least: int, most: int) -> int:
    return least if value < least else most if value > most else value

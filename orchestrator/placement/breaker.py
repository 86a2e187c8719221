"""The breaker of one pool at one edge: attempts that fail in a row hold it off, and a trial lets it back. Pure.

A failure may be brought about by what was asked. So failures in a row of one flow alone hold off that flow alone, and
for as long as nothing of its own goes well, whatever others fare; failures of several flows, without a success in
between, hold off all. What nothing that was asked can have brought about, such as a connection that could not be made,
counts for all.
"""

from __future__ import annotations

from orchestrator.placement.hold import Hold
from orchestrator.policy.ids import FlowId

FAILURES_MAX = 3
HOLD_MIN_US = 1_000_000
HOLD_MAX_US = 30_000_000
FLOWS_MAX = 64
"""Flows of which failures are remembered; beyond it, the one that failed the longest ago is forgotten."""
KEPT_US = 60_000_000
"""Failures of a flow are forgotten so long after the last one when others fare well."""


class _Row:
    """Failures in a row. Streams that break together count as one."""

    __slots__ = ("failed_us", "failures", "hold")

    def __init__(self) -> None:
        self.failures = 0
        self.failed_us = -1
        self.hold = Hold(HOLD_MIN_US, HOLD_MAX_US)

    def end(self) -> None:
        """Something went well."""
        if self.failures:
            self.failures = 0
            self.hold.begin(HOLD_MIN_US)


class _OwnRow(_Row):
    """Those of one flow, which hold off nobody else."""

    __slots__ = ()

    def held_off(self, flow: FlowId, now_us: int) -> bool:
        return self.failures >= FAILURES_MAX and self.hold.resting(flow, now_us)

    def failed(self, attempt: object, flow: FlowId, sent_us: int, now_us: int) -> None:
        trial = self.hold.over(attempt, flow)
        if not trial and sent_us <= self.failed_us:
            return  # it ran beside one that has been counted
        self.failed_us = now_us
        self.failures += 1
        if trial:
            self.hold.went_badly(None, now_us)
        elif self.failures >= FAILURES_MAX:
            self.hold.again(now_us)


class _CommonRow(_Row):
    """Those of all flows. Of a single one, however many, they say nothing to others."""

    __slots__ = ("_first", "_several")

    def __init__(self) -> None:
        super().__init__()
        self._first: FlowId | None = None
        """Whose the first failure was; None where it was nobody's."""
        self._several = False
        """Whether they are of several flows, or some are nobody's."""

    @property
    def is_open(self) -> bool:
        return self._several and self.failures >= FAILURES_MAX

    def failed(self, attempt: object, flow: FlowId, blamed: FlowId | None, sent_us: int, now_us: int) -> None:
        """Count a failure of an attempt of `flow`; `blamed` is None where it is nobody's."""
        was_open = self.is_open
        trial = was_open and self.hold.over(attempt, flow)
        if not self.failures:
            self._first, self._several = blamed, blamed is None
        elif blamed is None or blamed != self._first:
            self._several = True
        counted = trial or sent_us > self.failed_us
        if counted:  # else it ran beside one that has been
            self.failed_us = now_us
            self.failures += 1
        if trial:
            self.hold.went_badly(blamed, now_us)
        elif self.is_open and (not was_open or (counted and blamed is None)):
            self.hold.again(now_us)


class Breaker:
    """Closed, open for a while, then trials: of each flow, and of all."""

    __slots__ = ("_all", "_own", "troubled")

    def __init__(self) -> None:
        self.troubled = False
        """Whether a failure is remembered. While none is nobody is held off, and nothing but a failure need be told."""
        self._all = _CommonRow()
        self._own: dict[FlowId, _OwnRow] = {}  # bounded: FLOWS_MAX, the one that failed last at its end

    def held_off(self, flow: FlowId | None, now_us: int) -> bool:
        """Whether nothing new of a flow should be sent now; None asks for what holds off all."""
        if self._all.is_open and self._all.hold.resting(flow, now_us):
            return True
        own = None if flow is None else self._own.get(flow)
        return own is not None and flow is not None and own.held_off(flow, now_us)

    def sent(self, attempt: object, flow: FlowId) -> None:
        """An attempt left; after a hold, it is a trial."""
        if self._all.is_open:
            self._all.hold.sent(attempt, flow)
        own = self._own.get(flow)
        if own is not None and own.failures >= FAILURES_MAX:
            own.hold.sent(attempt, flow)

    def succeeded(self, attempt: object, flow: FlowId, now_us: int) -> None:
        """An attempt brought a token, or was refused in good order."""
        if not self._all.is_open or self._all.hold.tries(attempt, flow):
            self._all.end()
        own = self._own.get(flow)
        if own is not None and (own.failures < FAILURES_MAX or own.hold.tries(attempt, flow)):
            own.end()  # when it failed last stays known, for what ran beside that
        while self._own:
            oldest = next(iter(self._own))
            if self._own[oldest].hold.trying() or now_us - self._own[oldest].failed_us < KEPT_US:
                break
            del self._own[oldest]
        self.troubled = bool(self._own) or self._all.failures > 0

    def failed(self, attempt: object, flow: FlowId, sent_us: int, now_us: int) -> None:
        """An attempt, sent at `sent_us`, was cut: what was asked may have brought that about."""
        self.troubled = True
        own = self._own.pop(flow, None)
        if own is None:
            own = _OwnRow()
            if len(self._own) >= FLOWS_MAX:
                del self._own[next(iter(self._own))]
        self._own[flow] = own
        own.failed(attempt, flow, sent_us, now_us)
        self._all.failed(attempt, flow, flow, sent_us, now_us)

    def unreached(self, attempt: object, flow: FlowId, sent_us: int, now_us: int) -> None:
        """An attempt could not be delivered, or the way to the pool was lost: that is nobody's fault who asks."""
        self.troubled = True
        if flow in self._own:
            self._own[flow].hold.over(attempt, flow)
        self._all.failed(attempt, flow, None, sent_us, now_us)

    def abandoned(self, attempt: object, flow: FlowId) -> None:
        """An attempt ended without telling anything of the pool."""
        self._all.hold.over(attempt, flow)
        if flow in self._own:
            self._own[flow].hold.over(attempt, flow)

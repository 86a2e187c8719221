"""How long a place gets no work after it failed, and whose trial lets it back. Pure.

A trial that goes badly may be the place's fault or that of what was asked. So it holds off its own flow, for twice as
long each time; only when another flow's went badly too are all held off again. Two flows may try at once: one whose
trial says nothing for long keeps nobody else from it.
"""

from __future__ import annotations

from orchestrator.policy.ids import FlowId

TRIALS_MAX = 2
"""Trials that may be under way at once, each of another flow."""


class Hold:
    """One place, for as long as it is held off. Until `until_us` it gets nothing; after that, trials."""

    __slots__ = ("_blamed", "_blamed_hold_us", "_blamed_until_us", "_most_us", "_trials", "hold_us", "until_us")

    def __init__(self, least_us: int, most_us: int) -> None:
        """It begins with `least_us`, doubles with each bad trial, and never exceeds `most_us`."""
        self._most_us = most_us
        self._trials: dict[FlowId, object] = {}  # bounded: TRIALS_MAX
        self.begin(least_us)

    def begin(self, hold_us: int) -> None:
        """Forget trials, and hold for so long the next time."""
        self.hold_us = hold_us
        self.until_us = -1
        self._blamed: FlowId | None = None
        """Whose trial went badly last, while nobody else's did."""
        self._blamed_hold_us = 0
        self._blamed_until_us = -1
        self._trials.clear()

    def resting(self, flow: FlowId | None, now_us: int) -> bool:
        """Whether a flow is held off now; None asks whether any flow is, or will be once a trial leaves."""
        if now_us < self.until_us:
            return True
        if flow is None:
            return bool(self._trials) or now_us < self._blamed_until_us
        if flow in self._trials or len(self._trials) >= TRIALS_MAX:
            return True
        return flow == self._blamed and now_us < self._blamed_until_us

    def again(self, now_us: int) -> None:
        """Hold all off from now, for as long as the last time."""
        self.until_us = now_us + self.hold_us

    def sent(self, attempt: object, flow: FlowId) -> None:
        """An attempt leaves: it is a trial, where there is room for one of its flow."""
        if flow not in self._trials and len(self._trials) < TRIALS_MAX:
            self._trials[flow] = attempt

    def tries(self, attempt: object, flow: FlowId) -> bool:
        """Whether an attempt is a trial."""
        return bool(self._trials) and flow in self._trials and self._trials[flow] == attempt

    def over(self, attempt: object, flow: FlowId) -> bool:
        """An attempt ended. Returns whether it was a trial; another may go in its place."""
        if not self.tries(attempt, flow):
            return False
        del self._trials[flow]
        return True

    def went_badly(self, flow: FlowId | None, now_us: int) -> int:
        """A trial that is over went badly. Returns for how long that holds off whom it holds off, in microseconds.

        `flow` is whose it was; None where nothing that was asked can have brought it about, which holds off all.
        """
        if flow is not None and self._blamed in (None, flow):
            before_us = self.hold_us if self._blamed is None else self._blamed_hold_us
            self._blamed, self._blamed_hold_us = flow, min(2 * before_us, self._most_us)
            self._blamed_until_us = now_us + self._blamed_hold_us
            return self._blamed_hold_us
        self._blamed, self._blamed_until_us = None, -1
        self.hold_us = min(2 * self.hold_us, self._most_us)
        self.again(now_us)
        return self.hold_us

    def went_well(self, flow: FlowId) -> int:
        """A trial of a flow went well. Returns how long the hold was for it, in microseconds."""
        return max(self.hold_us, self._blamed_hold_us) if flow == self._blamed else self.hold_us

    def trying(self) -> bool:
        """Whether a trial is under way."""
        return bool(self._trials)

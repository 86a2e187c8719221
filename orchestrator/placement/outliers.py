"""Which of several equal places is so much slower, or fails so much more, than the others that it gets no work. Pure.

Places are compared with their siblings for the same model, never with a figure of their own: when all are slow, nobody
is an outlier. What is compared is a measured time relative to the declared one, to the first token and after it. A
place is ejected when its last few exceed `SLOW_FACTOR` times what its siblings took in the same spell: after these had
become slow, and begun before the last of them ended, so that whoever rests is judged by nothing that comes later. They
count only from when the siblings are as they are now, and never again once they were found to be no slower than the
siblings of their time: a spell that all had is held against nobody. What has not brought a token yet counts with the
time that it has waited, so that silence shows too. Or when half of its attempts fail while its siblings' did not, up to
the last of these failures. At most a third is ejected, and never the last. An ejection ends with trials; one that goes
badly doubles it (see `hold`).

What is slow or fails may be so by what was asked. So where a judgement would rest on one flow alone, its work there is
compared with its own work at the siblings, and counts for nothing while the place does others' work in time. `fared`
says the same of failures.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

import msgspec

from orchestrator.placement.fared import Fared, add_failure, fails_alone, fails_much, kept
from orchestrator.placement.hold import Hold
from orchestrator.policy.ids import FlowId, ModelId, PoolId

SLOW_FACTOR = 5
SLOW_MIN = 4
"""So many in a row must be slow, those that still wait included."""
LEAST_RATIO = 0.2
"""What siblings took is taken for at least this part of what is declared: caches make some answers very quick."""
FLOOR_US = 250_000
"""Added to what is expected: small times say little."""
OTHERS_SLOW_MIN = 2
"""So many of other flows than one must be among them, to say more than that the one is slow there."""
FRESH_MIN = 2
"""So many answers of a sibling must have come since, for it to be compared with."""
KEPT = 8
"""Samples of one kind that are kept of one place."""
ACTIVE_US = 60_000_000
"""A place without work for so long is no sibling, and its samples are none."""
LOOK_EVERY_US = 250_000
HOLD_MIN_US = 5_000_000
HOLD_MAX_US = 300_000_000


class Turn(Enum):
    """What became of a place."""

    OUT = "out"
    """It gets no work for a while: it became an outlier, or its trial went badly."""
    TRIED = "tried"
    """An attempt left for it as a trial."""
    BACK = "back"
    """Its trial went well."""


class Change(msgspec.Struct, frozen=True):
    """A place became an outlier, is tried, or is one no more."""

    place: PoolId
    model: ModelId
    turn: Turn
    hold_us: int
    """How long it is out at least when it is ejected at this moment."""


class _Sample(msgspec.Struct, frozen=True):
    flow: FlowId
    begun_us: int
    ended_us: int
    expected_us: int
    ratio: float
    """How long it took, relative to what was expected."""

    def ratio_since(self, since_us: int) -> float:
        """The same of what lies after `since_us`."""
        return (self.ended_us - max(self.begun_us, since_us)) / self.expected_us

    def slow_since_us(self, ratio: float, since_us: int) -> int:
        """When it had taken longer than `ratio` times what was expected, counted from `since_us`."""
        return max(self.begun_us, since_us) + int(ratio * self.expected_us)


class _Usual(msgspec.Struct, frozen=True):
    """How siblings are."""

    ratio: float
    since_us: int

    def exceeded_by(self, sample: _Sample) -> bool:
        """Whether it took far longer, of that what lies after `since_us`."""
        return sample.ratio_since(self.since_us) > SLOW_FACTOR * self.ratio


@dataclass(slots=True)
class _Series:
    """Times of one kind of one place."""

    done: deque[_Sample] = field(default_factory=lambda: deque(maxlen=KEPT))
    since_us: int = 0
    """Since when it has been about as it is now."""
    settled_us: int = -1
    """What ended until then was held against its own time, and is held against nothing else."""
    latest: dict[FlowId, _Sample] = field(default_factory=dict)  # bounded: KEPT
    """The last one of each flow."""

    def add(self, sample: _Sample) -> None:
        """One more came. When it is quite another than the last ones were, they say nothing of now."""
        ratio, flow, latest = sample.ratio, sample.flow, self.latest
        if len(latest) >= KEPT and flow not in latest:
            del latest[next(iter(latest))]
        latest[flow] = sample
        # Most are like the one before, and need no closer look.
        if self.done and not self.done[-1].ratio <= 2 * ratio <= 4 * self.done[-1].ratio:
            level = median([one.ratio for one in self.done])
            if not level <= SLOW_FACTOR * ratio <= SLOW_FACTOR * SLOW_FACTOR * level:
                self.done.clear()
                self.since_us = sample.begun_us
        self.done.append(sample)

    def recent(self, since_us: int, until_us: int, flow: FlowId | None = None) -> list[float]:
        """Return what ended since, and had begun by then: of one flow alone, where one is given."""
        found = [one for one in self.done if one.ended_us >= since_us and one.begun_us <= until_us]
        return [one.ratio for one in found if flow is None or one.flow == flow]

    def last_run(self, usual: _Usual, *, settle: bool = False) -> list[_Sample]:
        """Return the last ones that are far slower than usual, up to one that is not, or is settled.

        With `settle` that one is: nor will it be slow when siblings become quicker.
        """
        run: list[_Sample] = []
        for sample in reversed(self.done):
            if sample.ended_us <= self.settled_us:
                break
            if not usual.exceeded_by(sample):
                self.settled_us = sample.ended_us if settle else self.settled_us
                break
            run.append(sample)
        return run


class Sent(msgspec.Struct, eq=False):
    """An attempt that left, for as long as it is under way. Whoever sends it holds it, and tells of it by it."""

    place: PoolId
    model: ModelId
    flow: FlowId
    """Whose it is."""
    sent_us: int
    begun_us: int
    """When its own time began: after distance, upload and queue."""
    expected_us: int
    """How long its first token was expected to take from then."""
    first_us: int | None
    """When its first token came."""
    over: bool
    """Whether it has ended: what is told of it later counts no more."""


@dataclass(slots=True)
class _Place:
    first: _Series = field(default_factory=_Series)
    rest: _Series = field(default_factory=_Series)
    fared: deque[Fared] = field(default_factory=kept)
    failed_us: int = -1
    waiting: dict[Sent, None] = field(default_factory=dict)  # bounded: by the attempts in flight
    """What has not brought a token, in the order in which it left; empty where first tokens are not compared."""
    active_us: int = 0
    out: bool = False
    """Whether it is ejected, or waits for a trial."""
    hold: Hold = field(default_factory=lambda: Hold(HOLD_MIN_US, HOLD_MAX_US))
    back_us: int = -HOLD_MAX_US
    """When it came back last."""

    def clear(self) -> None:
        self.first.done.clear()
        self.rest.done.clear()
        self.fared.clear()


@dataclass(slots=True)
class _Siblings:
    """The places that serve one model."""

    places: defaultdict[PoolId, _Place] = field(default_factory=lambda: defaultdict(_Place))
    """Bounded: by the places there are."""
    looked_us: int = -LOOK_EVERY_US


class Outliers:
    """Watches every place that one program sends to."""

    def __init__(self, watch_first: bool) -> None:
        """`watch_first` compares times to the first token too: only where no queue of another's is in them."""
        self._watch_first = watch_first
        self.out: dict[tuple[PoolId, ModelId], _Place] = {}
        """Places that are ejected, or wait for a trial. Nearly always none: then nothing need be asked of any."""
        self._models: defaultdict[ModelId, _Siblings] = defaultdict(_Siblings)
        self.changed: dict[tuple[PoolId, ModelId], Change] = {}  # bounded: by the places and models there are
        """What changed since `changes` was asked last. Nearly always nothing: then it need not be asked."""

    def changes(self) -> tuple[Change, ...]:
        """Return what changed since this was asked last: of each place and model the last."""
        changes = tuple(self.changed.values())
        self.changed.clear()
        return changes

    def ejected(self, place: PoolId, model: ModelId, now_us: int, flow: FlowId | None = None) -> bool:
        """Whether a place gets no new work for `model` now, of a flow or, with None, of any flow.

        After its time, until a trial is under way, it may.
        """
        found = self.out.get((place, model))
        return found is not None and found.hold.resting(flow, now_us)

    def due(self, place: PoolId, model: ModelId, now_us: int, flow: FlowId | None = None) -> bool:
        """Whether a trial is wanted: what is known of the place is what it was ejected for."""
        found = self.out.get((place, model))
        return found is not None and not found.hold.resting(flow, now_us)

    def forget(self, place: PoolId) -> None:
        """What is there now is another than was: nothing of it is known."""
        for model, siblings in self._models.items():
            siblings.places.pop(place, None)
            self.out.pop((place, model), None)

    def sent(self, sent: Sent, now_us: int) -> None:
        """An attempt left."""
        found = self._models[sent.model].places[sent.place]
        if now_us - found.active_us >= ACTIVE_US:
            found.first.done.clear()
            found.rest.done.clear()
        found.active_us = now_us
        if self._watch_first:
            found.waiting[sent] = None
        if found.out and not found.hold.resting(sent.flow, now_us):
            found.hold.sent(sent, sent.flow)
            self._changed(sent.place, sent.model, Turn.TRIED, found.hold.hold_us)

    def first_token(self, sent: Sent, now_us: int) -> None:
        """The first token of an attempt came."""
        if sent.over or sent.first_us is not None:
            return
        sent.first_us = now_us
        if not self._watch_first:
            return
        siblings = self._models[sent.model]
        found = siblings.places[sent.place]
        if sent in found.waiting:
            del found.waiting[sent]
        came_us = now_us if now_us > sent.begun_us else sent.begun_us
        found.first.add(_sample(sent.flow, sent.begun_us, came_us, sent.expected_us))
        if now_us - siblings.looked_us >= LOOK_EVERY_US:
            self._look(sent.model, now_us)

    def complete(self, sent: Sent, now_us: int, expected_us: int | None) -> bool:
        """An attempt ended well; its tokens after the first were expected to take so long, None says nothing of it.

        Returns whether it was the trial that brings its place back.
        """
        if sent.over:
            return False
        sent.over = True
        siblings = self._models[sent.model]
        found = siblings.places[sent.place]
        found.active_us = now_us
        found.fared.append(Fared(now_us, sent.flow, False))
        if sent.first_us is None:
            found.waiting.pop(sent, None)
        elif expected_us is not None:
            found.rest.add(_sample(sent.flow, sent.first_us, now_us, expected_us))
        if found.out and found.hold.over(sent, sent.flow):
            return self._tried(found, sent, now_us)
        if now_us - siblings.looked_us >= LOOK_EVERY_US:
            self._look(sent.model, now_us)
        return False

    def failed(self, sent: Sent, now_us: int) -> None:
        """An attempt was cut. What was cut together counts once."""
        self._failed(sent, sent.flow, now_us)

    def unreached(self, sent: Sent, now_us: int) -> None:
        """An attempt never reached its place, or the way there was lost: nothing that was asked brought that about."""
        self._failed(sent, None, now_us)

    def abandoned(self, sent: Sent, now_us: int) -> None:
        """An attempt ended before it told anything; that it brought no token in its time stays known."""
        if sent.over:
            return
        sent.over = True
        found = self._models[sent.model].places[sent.place]
        slow = sent in found.waiting and self._exceeds(found, sent, now_us)
        found.waiting.pop(sent, None)
        if slow:
            found.first.add(_sample(sent.flow, sent.begun_us, now_us, sent.expected_us))
        if found.out and found.hold.over(sent, sent.flow) and slow:
            self._again(found, sent, sent.flow, now_us)

    # Inside

    def _failed(self, sent: Sent, blamed: FlowId | None, now_us: int) -> None:
        if sent.over:
            return
        sent.over = True
        found = self._models[sent.model].places[sent.place]
        found.waiting.pop(sent, None)
        found.active_us = now_us
        if found.out and found.hold.over(sent, sent.flow):
            self._again(found, sent, blamed, now_us)
        elif sent.sent_us > found.failed_us:
            found.failed_us = now_us
            add_failure(found.fared, now_us, blamed)
            self._look(sent.model, now_us)

    def _changed(self, place: PoolId, model: ModelId, turn: Turn, hold_us: int) -> None:
        self.changed[place, model] = Change(place, model, turn, hold_us)

    def _exceeds(self, found: _Place, sent: Sent, now_us: int) -> bool:
        usual = self._usual(found, sent.model, True, now_us - ACTIVE_US, now_us)
        return usual is not None and usual.exceeded_by(_sample(sent.flow, sent.begun_us, now_us, sent.expected_us))

    def _others(self, found: _Place, model: ModelId, now_us: int) -> list[_Place]:
        """Return the siblings that work."""
        places = self._models[model].places.values()
        return [one for one in places if one is not found and not one.out and _active(one, now_us)]

    def _usual(
        self, found: _Place, model: ModelId, first: bool, since_us: int, until_us: int, flow: FlowId | None = None
    ) -> _Usual | None:
        """Return what the siblings of a place took in a spell, relative to what was expected; None where few tell.

        With a flow, what they took for that flow.
        """
        others = [one.first if first else one.rest for one in self._others(found, model, since_us + ACTIVE_US)]
        recent = [(one, one.recent(since_us, until_us, flow)) for one in others]
        told = [(median(ratios), one.since_us) for one, ratios in recent if len(ratios) >= FRESH_MIN]
        if not told or 2 * len(told) < len(others):
            return None
        return _Usual(max(LEAST_RATIO, median(one for one, _ in told)), int(median(since for _, since in told)))

    def _look(self, model: ModelId, now_us: int) -> None:
        """Judge every place."""
        siblings = self._models[model]
        siblings.looked_us = now_us
        # Against the quickest of all nearly nobody is slow, and only who is gets a closer look.
        least = {first: self._least(siblings, first, now_us) for first in (True, False)}
        for place, found in siblings.places.items():
            if found.out or not _active(found, now_us):
                continue
            slow = self._slow(found, model, least, now_us) or self._failing(found, model, now_us)
            if slow and self._may_eject(siblings, now_us):
                self._eject(place, model, found, now_us)

    def _may_eject(self, siblings: _Siblings, now_us: int) -> bool:
        active = sum(1 for one in siblings.places.values() if one.out or _active(one, now_us))
        out = sum(1 for one in siblings.places.values() if one.out)
        return out < min(active - 1, max(1, active // 3))

    @staticmethod
    def _least(siblings: _Siblings, first: bool, now_us: int) -> float:
        since_us = now_us - ACTIVE_US
        recent = ((one.first if first else one.rest).recent(since_us, now_us) for one in siblings.places.values())
        return max(LEAST_RATIO, min((median(ratios) for ratios in recent if ratios), default=LEAST_RATIO))

    def _slow(self, found: _Place, model: ModelId, least: dict[bool, float], now_us: int) -> bool:
        if self._watch_first:
            waiting = [_sample(one.flow, one.begun_us, now_us, one.expected_us) for one in found.waiting]
            if self._exceeding(found, model, True, waiting, least[True], now_us):
                return True
        return self._exceeding(found, model, False, [], least[False], now_us)

    def _exceeding(
        self, found: _Place, model: ModelId, first: bool, waiting: list[_Sample], least: float, now_us: int
    ) -> bool:
        """Whether the last few are slow, by what siblings took since they were, until the last of them ended."""
        series = found.first if first else found.rest
        run = _last_run(series, waiting, _Usual(least, 0), settle=True)
        if len(run) < SLOW_MIN:
            return False
        usual = self._usual(found, model, first, now_us - ACTIVE_US, _until_us(run))
        if usual is None or len(run := _last_run(series, waiting, usual)) < SLOW_MIN:
            return False
        slow_us = min(sample.slow_since_us(SLOW_FACTOR * usual.ratio, usual.since_us) for sample in run)
        lone = _lone(run)
        usual = self._usual(found, model, first, slow_us, _until_us(run), lone)
        if usual is not None and lone is not None:
            others = [one for one in series.latest.values() if one.flow != lone and one.ended_us >= slow_us]
            if not all(map(usual.exceeded_by, others)):
                return False  # what it does for others meanwhile, it does in time
        return usual is not None and len(_last_run(series, waiting, usual, settle=True)) >= SLOW_MIN

    def _failing(self, found: _Place, model: ModelId, now_us: int) -> bool:
        if not fails_much(found.fared):
            return False
        siblings = [one.fared for one in self._others(found, model, now_us)]
        return fails_alone(found.fared, siblings, found.failed_us)

    def _tried(self, found: _Place, sent: Sent, now_us: int) -> bool:
        """A trial ended well, as far as it ended: where it was not slow either, its place is back."""
        kinds = ((True, found.first), (False, found.rest)) if self._watch_first else ((False, found.rest),)
        for first, series in kinds:
            usual = self._usual(found, sent.model, first, now_us - ACTIVE_US, now_us)
            if usual is not None and series.done and usual.exceeded_by(series.done[-1]):
                self._again(found, sent, sent.flow, now_us)
                return False
        del self.out[sent.place, sent.model]
        found.out = False
        # One that is out again soon is out for longer.
        hold_us = found.hold.went_well(sent.flow)
        hold_us = min(hold_us * 2, HOLD_MAX_US) if now_us - found.back_us < HOLD_MAX_US else HOLD_MIN_US
        found.hold.begin(hold_us)
        found.back_us = now_us
        found.clear()
        self._changed(sent.place, sent.model, Turn.BACK, hold_us)
        return True

    def _again(self, found: _Place, sent: Sent, blamed: FlowId | None, now_us: int) -> None:
        """A trial that is over went badly."""
        hold_us = found.hold.went_badly(blamed, now_us)
        found.clear()
        self._changed(sent.place, sent.model, Turn.OUT, hold_us)

    def _eject(self, place: PoolId, model: ModelId, found: _Place, now_us: int) -> None:
        found.out = True
        found.hold.again(now_us)
        found.clear()
        self.out[place, model] = found
        self._changed(place, model, Turn.OUT, found.hold.hold_us)


def _sample(flow: FlowId, begun_us: int, ended_us: int, expected_us: int) -> _Sample:
    expected_us += FLOOR_US
    return _Sample(flow, begun_us, ended_us, expected_us, (ended_us - begun_us) / expected_us)


def _lone(run: list[_Sample]) -> FlowId | None:
    """Return the flow on which a slow run rests, when hardly any other is in it."""
    flow, count = Counter(sample.flow for sample in run).most_common(1)[0]
    return flow if len(run) - count < OTHERS_SLOW_MIN else None


def _active(found: _Place, now_us: int) -> bool:
    return now_us - found.active_us < ACTIVE_US


def _until_us(run: list[_Sample]) -> int:
    """Return until when a sibling's must have begun to be of the spell of these: one look later may be the next one."""
    return max(sample.ended_us for sample in run) + LOOK_EVERY_US


def _last_run(series: _Series, waiting: list[_Sample], usual: _Usual, *, settle: bool = False) -> list[_Sample]:
    """Return what is far slower than usual: of what waits all, of what came the last, up to one that is not.

    What still waits and is not slow yet says nothing.
    """
    return [sample for sample in waiting if usual.exceeded_by(sample)] + series.last_run(usual, settle=settle)

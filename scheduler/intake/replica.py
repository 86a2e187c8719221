"""One replica of a pool, as its queue sees it: how it is, what it has, and how full that makes it. Pure.

What is asked of it for every choice is counted where it changes, and not when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

import msgspec

from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.placement.requests import PoolLoad
from orchestrator.placement.sight import Flight
from orchestrator.policy.ids import ModelId, PoolId, ReplicaId
from scheduler.intake.choice import Asked


class ReplicaCondition(Enum):
    """How a replica is, for `status`."""

    UP = "up"
    SUSPECT = "suspect"
    OUTLIER = "outlier"
    """Far worse than its siblings: it gets one trial at a time."""
    DOWN = "down"
    LEAVING = "leaving"
    """Another has its name now: it ends what it has, and gets nothing more."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a replica says of itself in a beat, or its engine on its page. None is unknown, and unknown is not zero."""

    queued_tokens: int | None = None
    """Prompt tokens that are accepted and not yet taken in."""
    kv_tokens: int | None = None
    """Tokens whose keys and values fit."""
    kv_used_tokens: int | None = None
    others_running: int = 0
    """Requests in the engine's batch that are not ours: it may be shared."""
    others_waiting: int = 0
    siblings_slots: int = 0
    """So many of these others may be work of sibling processes in slots that are theirs: they take none of ours."""

    def slots_of_others(self) -> int:
        """Return how many of our slots others have."""
        return max(0, self.others_running + self.others_waiting - self.siblings_slots)


class Given(msgspec.Struct, eq=False):
    """A work that a replica has."""

    work: int
    number: int
    """Counts what was given: a replica takes in what it got first."""
    asked: Asked
    replica: Replica
    flight: Flight
    """What is learned from of it."""
    submitted_us: int
    until_us: int
    given_us: int
    taken_us: int
    """When its prompt was taken in, as far as is known."""
    cached_tokens: int
    """Of its prompt, what the replica is expected to hold."""
    tokens: int
    """Of its prompt, what is not cached: estimated, until the replica has counted."""
    started: bool = False
    """Whether the replica has counted its prompt."""
    counted: bool = False
    """Whether the replica's last beat counted it."""
    first: bool = False
    """Whether its first token came."""
    stopped: bool = False
    """Whether its replica was told that its time is over."""
    held_up: bool = False
    """Whether its replica had to wait for whoever reads it."""


@dataclass(slots=True, eq=False)
class Replica:
    """One engine serving one model, as the queue sees it. Its work and what it told change by its methods alone."""

    id: ReplicaId
    incarnation: str
    model: ModelId
    slots: int
    heard_us: int
    healthy: bool = True
    beats: bool = True
    """Whether it beats; an engine reached by probes does not, and is never silent."""
    told: Told = Told()
    out: bool = False
    """Whether it is an outlier among its siblings, so that its free slots are none."""
    continuing: Continuing = NOT_CONTINUED
    """What its model is, and what it continues an answer by."""
    leaving: bool = False
    """Whether another has its name, and it only ends what it has."""
    place: PoolId = field(init=False)
    """Its name to a `Sight`, for which it is a place to send to."""
    work: dict[int, Given] = field(init=False, default_factory=dict)
    unread: dict[int, Given] = field(init=False, default_factory=dict)
    """Of its work, what has not brought a token, in the order in which it was given."""
    free: int = field(init=False)
    """Slots that are free, of ours and of what others have in the engine."""
    queued_tokens: int = field(init=False)
    """Prompt tokens of ours that it has not taken in: as it told, and what was given since."""
    _reading: int = field(init=False, default=0)
    """How many works `unread` has."""
    _decoding: int = field(init=False, default=0)
    """How many works bring tokens."""
    _spare: int = field(init=False, default=0)
    """As `free`; below nought where others have taken slots of ours."""
    _counted_tokens: int = field(init=False, default=0)
    """Of the prompts of `unread`, what its last word counted."""

    def __post_init__(self) -> None:
        self.place = PoolId(self.id)
        self.hear(self.told)

    def fits(self, asked: Asked) -> bool:
        """Whether it can do this work at all: its model and, of an answer that goes on, its very identity."""
        return self.model == asked.model and (asked.needs is None or asked.needs == self.continuing)

    def hear(self, told: Told) -> None:
        """It said how full it is."""
        self.told = told
        self._spare = self.slots - len(self.work)
        self._spare -= told.slots_of_others()
        self.free = max(0, self._spare)
        self._counted_tokens = 0
        self.queued_tokens = told.queued_tokens or 0
        for given in self.unread.values():
            given.counted = given.started
            if given.counted:
                self._counted_tokens += given.tokens
            if not given.counted or told.queued_tokens is None:
                self.queued_tokens += given.tokens

    def take(self, given: Given) -> None:
        """It has one more work."""
        self.work[given.work] = self.unread[given.work] = given
        self._reading += 1
        self.queued_tokens += given.tokens
        self._spare -= 1
        if self.free:
            self.free -= 1

    def start(self, given: Given, prompt_tokens: int, now_us: int) -> None:
        """It has read the prompt of a work and counted it."""
        if given.started:
            return
        tokens = max(0, prompt_tokens - given.cached_tokens)
        if not given.first:
            # No word of it can have counted this one before it was started.
            self.queued_tokens += tokens - given.tokens
        given.started, given.tokens = True, tokens
        if self.beats:
            given.taken_us = max(given.taken_us, now_us)

    def move_on(self, given: Given, now_us: int) -> None:
        """The prompt of a work is taken in, or will not be."""
        given.first = True
        del self.unread[given.work]
        self._reading -= 1
        self._decoding += 1
        if self.beats:
            # Our own engine takes in one prompt after the other: what came later began no earlier than now.
            for later in self.unread.values():
                if later.number > given.number:
                    later.taken_us = max(later.taken_us, now_us)
        told_tokens = self.told.queued_tokens
        if not given.counted or told_tokens is None:
            self.queued_tokens -= given.tokens
            return
        self._counted_tokens -= given.tokens
        if told_tokens > self._counted_tokens:
            self.queued_tokens -= told_tokens - self._counted_tokens
            self.told = replace(self.told, queued_tokens=self._counted_tokens)

    def drop(self, given: Given, now_us: int) -> int:
        """A work ended. Return how many streams decoded beside it."""
        if not given.first:
            self.move_on(given, now_us)
        del self.work[given.work]
        self._decoding -= 1
        self._spare += 1
        if self._spare > 0:
            self.free = self._spare
        return self._decoding + self.told.others_running

    def beside(self, given: Given) -> int:
        """Return how many streams decode beside a work."""
        others = self.told.others_running
        return self._decoding - 1 + others if given.first else self._decoding + others

    def load(self, asked: Asked) -> PoolLoad:
        """Return how full it is now. What we gave it is known here, and a beat can only be older."""
        told = self.told
        # By position: asked of each candidate of each choice.
        return PoolLoad(
            1,
            self.slots,
            self._decoding + told.others_running,
            # In the engine, for their prompts to be taken in.
            self._reading + told.others_waiting,
            0,
            0,
            # What others have waiting there is taken to be like this work.
            self.queued_tokens + told.others_waiting * asked.prompt_tokens,
            told.kv_tokens,
            told.kv_used_tokens,
        )

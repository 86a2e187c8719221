"""What is counted of a replica where it changes is what a look at all of its work would find."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from orchestrator.policy.ids import ModelId, ReplicaId
from scheduler.intake.choice import Asked
from scheduler.intake.replica import Given, Replica, Told
from tests.intake.work import work_of

ASKED = Asked(ModelId("small"), 100)


class ReplicaMachine(RuleBasedStateMachine):
    """Drives one replica."""

    def __init__(self) -> None:
        super().__init__()
        self.now_us = 0
        self.last = 0
        self.replica = Replica(ReplicaId("r"), "1", ModelId("small"), 1, 0)

    @initialize(slots=st.integers(0, 6), beats=st.booleans())
    def begin(self, slots: int, beats: bool) -> None:
        """It comes up."""
        self.replica = Replica(ReplicaId("r"), "1", ModelId("small"), slots, 0, beats=beats)

    @rule(tokens=st.integers(0, 500), cached=st.integers(0, 500))
    def take(self, tokens: int, cached: int) -> None:
        """It gets a work."""
        self.last += 1
        self.replica.take(work_of(self.last, self.replica, tokens, cached))

    @rule(data=st.data(), tokens=st.integers(0, 1_000))
    def start(self, data: st.DataObject, tokens: int) -> None:
        """It counted a prompt, perhaps once more."""
        if self.replica.work:
            self.replica.start(self.one(data), tokens, self.later())

    @rule(data=st.data())
    def first_token(self, data: st.DataObject) -> None:
        """A first token came."""
        if self.replica.unread:
            number = data.draw(st.sampled_from(sorted(self.replica.unread)))
            self.replica.move_on(self.replica.unread[number], self.later())

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """A work ended, with or without a token."""
        if self.replica.work:
            self.replica.drop(self.one(data), self.later())

    @rule(
        queued=st.none() | st.integers(0, 2_000),
        running=st.integers(0, 4),
        waiting=st.integers(0, 4),
        siblings=st.integers(0, 4),
    )
    def hear(self, queued: int | None, running: int, waiting: int, siblings: int) -> None:
        """It told how full it is."""
        self.replica.hear(Told(queued, None, None, running, waiting, siblings))

    @invariant()
    def counts_are_sums(self) -> None:
        """Slots, prompts and streams, counted anew."""
        replica, told = self.replica, self.replica.told
        others = max(0, told.others_running + told.others_waiting - told.siblings_slots)
        assert replica.free == replica.slots - min(replica.slots, len(replica.work) + others)
        unread = [given for given in replica.work.values() if not given.first]
        assert list(replica.unread.values()) == unread
        new = [given.tokens for given in unread if told.queued_tokens is None or not given.counted]
        assert replica.queued_tokens == sum(new) + (told.queued_tokens or 0)
        load = replica.load(ASKED)
        assert load.waiting == len(unread) + told.others_waiting
        assert load.running == len(replica.work) - len(unread) + told.others_running
        assert load.queued_tokens == replica.queued_tokens + told.others_waiting * ASKED.prompt_tokens
        for given in replica.work.values():
            decoding = [one for one in replica.work.values() if one.first and one is not given]
            assert replica.beside(given) == len(decoding) + told.others_running
            assert given.started or not given.counted

    def one(self, data: st.DataObject) -> Given:
        """Return some work."""
        return self.replica.work[data.draw(st.sampled_from(sorted(self.replica.work)))]

    def later(self) -> int:
        """Let some time pass."""
        self.now_us += 1_000
        return self.now_us


TestReplica = ReplicaMachine.TestCase
TestReplica.settings = settings(
    max_examples=200, stateful_step_count=40, derandomize=True, deadline=None, database=None
)

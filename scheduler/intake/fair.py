"""What waits for a slot of one pool, and whose turn it is. Pure.

Each flow (one tenant entity at one edge) has a queue of its own, first come first served, and an account of the tokens
that it took, prompt and answer together. It is the turn of the flow that took least. An account counts from the common
one, which is that of the flow served last: who takes nothing falls behind it and so has credit, but never more than
`CREDIT_TOKENS`, and what is behind by that much is forgotten. So a flow that sends ten times its share waits for
itself, the others wait as if it sent its share, their bursts included, and nobody saves up turns without end. Accounts
are kept per model, for only replicas of that model can serve it.

The places are bounded for all together (`waiting_max`) and by `shares.may_hold` for each flow. When all are taken and a
flow with less than its share comes, the newest of the flow that holds most makes room: nothing of it was started.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from orchestrator.placement.shares import equal_share, may_hold
from orchestrator.policy.ids import ModelId
from scheduler.intake.choice import Asked

CREDIT_TOKENS = 16_384
"""About thirty short requests: a burst that a flow which keeps to its share may send without waiting for itself."""
DEBT_TOKENS_MAX = 8_192
"""At most so much is charged at once for an answer that was longer than expected."""
FLOWS_MAX = 4_096
"""Accounts of flows that have nothing waiting; beyond them the one that is furthest behind is forgotten."""
NOTHING_HELD: Mapping[str, int] = {}


class Waiting(msgspec.Struct, frozen=True):
    """One work that waits."""

    work: int
    asked: Asked
    submitted_us: int
    until_us: int
    """Nobody waits for it after this."""


@dataclass(slots=True)
class _Flow:
    taken_tokens: int
    order: int
    """Of two that took the same, the one that began to wait first."""
    queue: deque[Waiting] = field(default_factory=deque)  # bounded: by the places of the whole queue


class _Turns:
    """The flows of one model."""

    def __init__(self) -> None:
        self.waiting: dict[str, _Flow] = {}  # bounded: by the places of the whole queue
        self.idle: dict[str, _Flow] = {}  # bounded: FLOWS_MAX
        """The flows that have nothing waiting, in the order in which they ended to wait."""
        self._common_tokens = 0
        self._order = 0

    def push(self, one: Waiting) -> None:
        name = one.asked.flow
        flow = self.waiting.get(name)
        if flow is None:
            flow = self.waiting[name] = self.begun(name)
        flow.queue.append(one)

    def head(self, held: Mapping[str, int], share: int | None) -> Waiting | None:
        """Return whose turn it is. Asked again without a `remove`, it answers the same."""
        first: _Flow | None = None
        for name, flow in self.waiting.items():
            if share is not None and name in held and held[name] >= share:
                continue
            if first is None or (flow.taken_tokens, flow.order) < (first.taken_tokens, first.order):
                first = flow
        return None if first is None else first.queue[0]

    def served(self, one: Waiting) -> None:
        """The head was given to a replica."""
        self.charge(self.waiting[one.asked.flow], one.asked)
        self.remove(one)

    def remove(self, one: Waiting) -> None:
        name = one.asked.flow
        flow = self.waiting[name]
        flow.queue.remove(one)
        if not flow.queue:
            del self.waiting[name]
            self.rest(name, flow)

    def begun(self, name: str) -> _Flow:
        """Return the account of a flow that had nothing waiting, with no more than its credit."""
        self._order += 1
        least = self._common_tokens - CREDIT_TOKENS
        flow = self.idle.pop(name, None)
        if flow is None:
            return _Flow(least, self._order)
        flow.order = self._order
        if flow.taken_tokens < least:
            flow.taken_tokens = least
        return flow

    def charge(self, flow: _Flow, asked: Asked) -> None:
        """Something of a flow was given to a replica."""
        if flow.taken_tokens > self._common_tokens:
            self._common_tokens = flow.taken_tokens
        flow.taken_tokens += asked.prompt_tokens + asked.output_tokens

    def rest(self, name: str, flow: _Flow) -> None:
        """A flow has nothing waiting. Forget one that has not for long, when it is as far behind as one may be."""
        idle = self.idle
        idle[name] = flow
        if len(idle) > FLOWS_MAX:
            del idle[min(idle, key=lambda name: idle[name].taken_tokens)]
            return
        # The first alone: there may be thousands, and this is done for each request.
        for first, account in idle.items():
            if account.taken_tokens <= self._common_tokens - CREDIT_TOKENS:
                del idle[first]
            return


class FairQueue:
    """Everything that waits at one pool."""

    def __init__(self, waiting_max: int) -> None:
        self._max = waiting_max
        self._turns: defaultdict[ModelId, _Turns] = defaultdict(_Turns)
        """Bounded: by the models that replicas here have served."""
        self.works: dict[int, Waiting] = {}  # bounded: waiting_max, and one that is being judged
        """What waits, in the order in which it came. Changed here alone."""
        self.prompt_tokens = 0
        """Of all that waits."""
        self._held: dict[str, int] = {}
        """By flow, over all models."""

    def __len__(self) -> int:
        return len(self.works)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self.works.values())

    def flows(self) -> tuple[str, ...]:
        """Return the flows that wait."""
        return tuple(self._held)

    def models(self) -> list[ModelId]:
        """Return the models that something waits for."""
        return [model for model, turns in self._turns.items() if turns.waiting]

    def push(self, one: Waiting) -> None:
        """One more waits. Whether it may, `outgrown` says."""
        asked = one.asked
        self._turns[asked.model].push(one)
        self.works[one.work] = one
        self.prompt_tokens += asked.prompt_tokens
        self._held[asked.flow] = self._held.get(asked.flow, 0) + 1

    def head(self, model: ModelId, held: Mapping[str, int] = NOTHING_HELD, share: int | None = None) -> Waiting | None:
        """Return the work whose turn it is; with a `share`, of the flows that have fewer slots than that in `held`.

        None when there is none.
        """
        return self._turns[model].head(held, share)

    def served(self, one: Waiting) -> None:
        """The head of its model was given to a replica."""
        self._turns[one.asked.model].served(one)
        self._forget(one)

    def passed(self, asked: Asked) -> None:
        """A work was given to a replica without waiting, for nothing waits: the same as `push` and `served`."""
        turns = self._turns[asked.model]
        flow = turns.begun(asked.flow)
        turns.charge(flow, asked)
        turns.rest(asked.flow, flow)

    def set_aside(self, one: Waiting) -> None:
        """It has its place still, but no turn until it is `put_back`, behind what its flow has waiting."""
        self._turns[one.asked.model].remove(one)

    def put_back(self, one: Waiting) -> None:
        """One that was set aside may have its turn again."""
        self._turns[one.asked.model].push(one)

    def drop(self, work: int) -> Waiting | None:
        """Take out one that nobody waits for any more. Returns None when it does not wait here."""
        one = self.works.get(work)
        if one is None:
            return None
        self._turns[one.asked.model].remove(one)
        self._forget(one)
        return one

    def correct(self, asked: Asked, tokens: int) -> None:
        """A work that was served took so many tokens more than was expected, or less: its flow's account says so."""
        turns = self._turns[asked.model]
        flow = turns.idle.get(asked.flow) or turns.waiting.get(asked.flow)
        if flow is not None:
            flow.taken_tokens += tokens if tokens < DEBT_TOKENS_MAX else DEBT_TOKENS_MAX

    def outgrown(self, newest: Waiting) -> Waiting | None:
        """Return which one must leave now that `newest` waits too: itself, one of a flow that holds more, or None."""
        flow = newest.asked.flow
        held, taken, flows = self._held[flow] - 1, len(self.works) - 1, len(self._held)
        if may_hold(held, taken, self._max, flows):
            return None
        if held >= equal_share(self._max, flows) or taken < self._max or self._max == 0:
            return newest
        most = max(self._held, key=lambda name: (self._held[name], name))
        if self._held[most] <= held + 1:
            return newest
        return max((one for one in self if one.asked.flow == most), key=lambda one: (one.submitted_us, one.work))

    def waited_us(self, flow: str, now_us: int) -> int:
        """Return how long the first of a flow has waited."""
        for one in self.works.values():
            if one.asked.flow == flow:
                return now_us - one.submitted_us
        return 0

    def late(self, now_us: int) -> list[Waiting]:
        """Return what waited for as long as it may."""
        return [one for one in self if one.until_us <= now_us]

    def _forget(self, one: Waiting) -> None:
        del self.works[one.work]
        self.prompt_tokens -= one.asked.prompt_tokens
        flow = one.asked.flow
        held = self._held[flow] - 1
        if held:
            self._held[flow] = held
        else:
            del self._held[flow]

"""What this edge has learned: of its pools, of the length of prompts and answers, and of which prefixes lie where.

Decides nothing and sends nothing: the gate tells it what happens and asks it for views. Nothing of it leaves the edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b

import msgspec

from node_agent.border.decider import Asked, Commitment, Expected
from node_agent.uplink.routes import Way
from orchestrator.placement.fleet import Edge, Fleet, Pool, PrefixCache
from orchestrator.placement.lengths import Lengths, Script, script_of
from orchestrator.placement.outliers import Change
from orchestrator.placement.pick import Candidate
from orchestrator.placement.prefix import BLOCK_CHARS, any_block, salted
from orchestrator.placement.requests import PlacementRequest, PoolView
from orchestrator.placement.settings import PlacementSettings
from orchestrator.placement.sight import End, Ending, Flight, Sight
from orchestrator.policy.ids import EdgeId, FlowId, ModelId, PoolId
from orchestrator.wire.catalogue import Cause, Problem
from orchestrator.wire.frames import Broken, Done, Refused, StreamFrame

UNDELIVERED = frozenset({"engine_unreachable", "session_lost", "no_replica"})
"""They say that a pool cannot be reached: not that it is busy, nor anything of what was asked."""
SALT_PERSON = b"tidegate-prefix"
# A member costs several times as much by way of its enumeration, and each request asks.
_SHARED, _CANCELLED, _COMPLETE = PrefixCache.SHARED, End.CANCELLED, End.COMPLETE
_UNREACHED = Ending(End.UNREACHED)


class Prompt(msgspec.Struct, frozen=True):
    """What may be known of a prompt without its words."""

    chars: int
    script: Script
    blocks: tuple[int, ...]
    """Salted hashes of its growing prefixes; empty where no pool shares prefixes."""
    tokens: int
    """Estimated."""

    def __repr__(self) -> str:
        return f"Prompt({self.chars} characters)"


class Known(msgspec.Struct, frozen=True):
    """What is known of a request, and of every pool for it, before it is placed."""

    expected: Expected
    views: Mapping[PoolId, PoolView]
    before_belief: Mapping[PoolId, int]
    """Cached tokens by the index alone, before what replies said of it. Of pools that are expected to hold some."""


class Memory:
    """Everything that one edge learns."""

    def __init__(self, edge: EdgeId, commitment: Commitment) -> None:
        self._edge = edge
        # A key of its own, derived: whoever learns one of the two learns nothing of the other.
        self._key = blake2b(commitment.key, key=SALT_PERSON, digest_size=32).digest()
        self._sight = Sight()
        # What the gate tells of an attempt and asks after it, said to whoever knows.
        self.left: Callable[[Flight, int], None] = self._sight.left
        self.first_token: Callable[[Flight, int], None] = self._sight.first_token
        self.changed = self._sight.changed
        self.changes: Callable[[], tuple[Change, ...]] = self._sight.changes
        self._lengths = Lengths()

    def prompt(self, asked: Asked, edge: Edge, fleet: Fleet) -> Prompt:
        """Return what is kept of a prompt. Its prefixes are hashed only where some pool shares prefixes."""
        messages = asked.generation.messages
        longest, most, chars = "", 0, 0
        for message in messages:
            size = len(message.text)
            chars += size
            if size > most:
                longest, most = message.text, size
        script = script_of(longest)
        blocks: tuple[int, ...] = ()
        if fleet.shares_prefixes:
            texts = [f"{message.role.value}\x1f{message.text}" for message in messages]
            if any_block(texts):
                blocks = salted(self._salt(asked, edge), texts)
        return Prompt(chars, script, blocks, self._lengths.prompt_tokens(asked.generation.model, script, chars))

    def known(
        self,
        asked: Asked,
        prompt: Prompt,
        fleet: Fleet,
        settings: PlacementSettings,
        view: Callable[[Pool, int], Way],
        now_us: int,
    ) -> Known:
        """Return how long the request probably is, and what is known of every pool; `view` is what its way says."""
        sight, generation = self._sight, asked.generation
        model, said, most = generation.model, generation.said, generation.sampling.max_tokens
        output = self._lengths.output_tokens(asked.tenant.id, model, settings.expected_output_tokens, most)
        expected = Expected(prompt.tokens, output, prompt.blocks)
        if said is not None:
            # What was said already is read again, and is not generated again.
            expected = Expected(prompt.tokens + said.tokens, max(1, output - said.tokens), prompt.blocks)
        held: Mapping[PoolId, tuple[int, int]] = {}
        if prompt.blocks:
            per_block = max(1, prompt.tokens * BLOCK_CHARS // max(1, prompt.chars))
            held = sight.expect(prompt.blocks, per_block, prompt.tokens, now_us)
        views: dict[PoolId, PoolView] = {}
        before: dict[PoolId, int] = {}
        flow = FlowId(asked.tenant.id)
        for pool in fleet.pools:
            place, cached = pool.id, 0
            up, rtt_us, load, _ = view(pool, now_us)
            heard_us = now_us if load is None else now_us - load.age_ms * 1000
            if place in held and pool.prefix_cache is _SHARED:
                cached, before[place] = held[place]
            views[place] = sight.view(
                place, model, now_us, up, rtt_us, load, heard_us, cached, None, flow
            )
        return Known(expected, views, before)

    def alone(self, held_off: Iterable[PoolId], model: ModelId, now_us: int) -> frozenset[PoolId]:
        """Return those of the pools that are `held_off` for a tenant that are so for nobody else."""
        return frozenset(pool for pool in held_off if not self._sight.held_off(pool, model, now_us))

    def sent(
        self,
        asked: Asked,
        prompt: Prompt,
        shape: PlacementRequest,
        chosen: Candidate,
        before: int,
        now_us: int,
    ) -> Flight:
        """An attempt is about to leave for the chosen pool. Returns what it is told of by."""
        if chosen.terms is None or chosen.spot is None:
            raise ValueError("a chosen candidate has its terms")
        pool, declared = chosen.pool, chosen.spot.speed
        blocks = prompt.blocks if pool.prefix_cache is _SHARED else ()
        flow, terms, tokens = FlowId(asked.tenant.id), chosen.terms, shape.prompt_tokens
        return self._sight.sent(pool.id, shape.model, declared, terms, tokens, now_us, blocks, before, flow)

    def ended(
        self,
        flight: Flight,
        asked: Asked,
        prompt: Prompt,
        last: StreamFrame | None,
        now_us: int,
        held_up: bool = False,
    ) -> None:
        """An attempt ended with this frame, or, without one, because nobody waited for it any more. The first counts.

        `held_up` says that the tenant was slow to take it.
        """
        if flight.over:
            return
        if type(last) is not Done:
            self._sight.ended(flight, _unfinished(last), now_us)
            return
        counts, cancelled = last.counts, last.reason == "cancelled"
        end = _CANCELLED if cancelled else _COMPLETE
        self._sight.ended(
            flight,
            Ending(end, counts.prompt, counts.cached, counts.generated, last.queued_us, last.beside, held_up),
            now_us,
        )
        if asked.generation.said is not None:
            return  # neither its prompt nor its answer was whole
        model = asked.generation.model
        if counts.prompt > 0:
            self._lengths.learn_prompt(model, prompt.script, prompt.chars, counts.prompt)
        if not cancelled and counts.generated > 0:
            self._lengths.learn_output(asked.tenant.id, model, counts.generated)

    def _salt(self, asked: Asked, edge: Edge) -> bytes:
        soil = ",".join(sorted(edge.place.soil()))
        # Of the model too: what a pool holds of a prompt for one model is nothing to another.
        scope = f"{asked.tenant.id}\x00{soil}\x00{asked.generation.model}"
        return blake2b(scope.encode(), key=self._key, digest_size=32).digest()


def _unfinished(last: StreamFrame | None) -> Ending:
    if isinstance(last, Refused | Broken) and last.code in UNDELIVERED:
        return _UNREACHED
    if isinstance(last, Refused):
        return Ending(End.REFUSED)
    # What a tenant brought about says nothing of the pool: else one who reads slowly could close it for all others.
    blamed = isinstance(last, Broken) and Problem(last.code).entry.cause is not Cause.TENANT
    return Ending(End.FAILED if blamed else End.CANCELLED)

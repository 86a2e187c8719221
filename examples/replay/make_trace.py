"""Makes `trace.jsonl`: 300 requests that nobody sent, in the format that an edge records. The same seed, the same file.

    python examples/replay/make_trace.py > examples/replay/trace.jsonl

Conversations begin with one of three system prompts and grow turn by turn, so that later prompts share the blocks of
earlier ones; in between come single questions. Nothing of a prompt is in a trace but its length and hashes. What became
of each request (pool, outcome, times, cost, whether the canary's settings chose) is made up as well: `tidegate canary`
has something to read.
"""

from __future__ import annotations

import sys
from random import Random

from orchestrator.files.traces import TraceLine, trace_head, trace_line

SEED = 20261124
REQUESTS = 300
SPAN_MS = 120_000
BURST_MS = (35_000, 55_000)
"""Twice as much comes in between."""
BLOCK_TOKENS = 256
"""As `fleet.yaml` has it."""
SYSTEM_TOKENS = (512, 1_024, 1_536)
EDGES = ("edge-singapore", "edge-singapore", "edge-frankfurt", "edge-tokyo", "edge-virginia", None)
"""None leaves it to the shares of the fleet file."""
TURN_SHARE = 0.75
"""Of requests that are a turn of a conversation."""
MAX_TOKENS = 512
HASH_BITS = 32
CANARY_SHARE = 0.2


class Conversation:
    """One prompt that grows."""

    def __init__(self, chance: Random, number: int) -> None:
        system = chance.randrange(len(SYSTEM_TOKENS))
        self.session = number
        self.edge = chance.choice(EDGES)
        self.tokens = SYSTEM_TOKENS[system]
        self.turns = chance.randint(3, 9)
        # Of one system prompt everybody has the same blocks.
        shared = Random(system)  # noqa: S311 - repeated by its seed
        self.blocks = [shared.getrandbits(HASH_BITS) for _ in range(self.tokens // BLOCK_TOKENS)]

    def grow(self, chance: Random, tokens: int) -> None:
        """Add to the prompt. The last block may be partial; a whole one never changes any more."""
        whole = self.tokens // BLOCK_TOKENS
        self.tokens += tokens
        del self.blocks[whole:]
        while len(self.blocks) * BLOCK_TOKENS < self.tokens:
            self.blocks.append(chance.getrandbits(HASH_BITS))


def lines(chance: Random) -> list[TraceLine]:
    """Return the requests by arrival."""
    talks: list[Conversation] = []
    found: list[TraceLine] = []
    for number, at_ms in enumerate(arrivals(chance)):
        going = [one for one in talks if one.turns > 0]
        if chance.random() < TURN_SHARE and len(going) > 4:
            talk = chance.choice(going)
        else:
            talk = Conversation(chance, number)
            talks.append(talk)
        talk.turns -= 1
        talk.grow(chance, 20 + int(chance.expovariate(1 / 180)))
        output = max(8, min(MAX_TOKENS, int(chance.lognormvariate(4.9, 0.7))))
        found.append(told(chance, talk, at_ms, output))
        talk.grow(chance, output)  # the answer is part of the next turn's prompt
    return found


def arrivals(chance: Random) -> list[int]:
    """Return when the requests arrive, more densely in the burst."""
    moments: list[int] = []
    while len(moments) < REQUESTS:
        at_ms = chance.randrange(SPAN_MS)
        if BURST_MS[0] <= at_ms < BURST_MS[1] or chance.random() < 0.5:
            moments.append(at_ms)
    return sorted(moments)


def told(chance: Random, talk: Conversation, at_ms: int, output: int) -> TraceLine:
    """Return one line, with a made-up account of what became of it: the canary is quicker and dearer."""
    canary = chance.random() < CANARY_SHARE
    failed = chance.random() < 0.02
    cached = min(talk.tokens, 256 * chance.randrange(len(talk.blocks)))
    first_us = int(chance.lognormvariate(13.4 if canary else 13.7, 0.5))
    cost_pico = (talk.tokens - cached) * 300_000 + output * 600_000
    return TraceLine(
        at_ms=at_ms,
        prompt_tokens=talk.tokens,
        output_tokens=output,
        max_tokens=MAX_TOKENS,
        blocks=tuple(talk.blocks),
        session=talk.session,
        edge=talk.edge,
        pool="sg-jurong" if canary else "cn-guizhou",
        outcome="broken" if failed else "complete",
        canary=canary,
        cached_tokens=0 if failed else cached,
        first_us=None if failed else first_us,
        end_us=None if failed else first_us + output * 14_000,
        cost_pico=str(cost_pico * 3 // 2 if canary else cost_pico),
    )


if __name__ == "__main__":
    out = sys.stdout.buffer
    out.write(trace_head())
    for line in lines(Random(SEED)):  # noqa: S311 - repeated by its seed
        out.write(trace_line(line))

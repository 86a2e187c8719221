"""What is billed of an answer, and told to its tenant as usage: what a pool counted, as far as it can be. Pure.

An edge that did not count the prompt itself takes no word for it beyond what its own request allows.
"""

from __future__ import annotations

import sys

from msgspec.structs import replace

from orchestrator.engines.generation import Generation
from orchestrator.engines.prompt_bound import believed_tokens
from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.fleet import Pool

UTF8_BYTES_MOST = 4
"""Of one character."""


def tokens_most(generation: Generation, pool: Pool) -> int:
    """Return how many tokens an answer may have: those asked for, else the whole context that `pool` declares."""
    most = generation.sampling.max_tokens
    if most is not None:
        return most
    served = pool.served(generation.model)
    return sys.maxsize if served is None else served.context_tokens


def billable(counts: PoolCounts, generation: Generation, body_bytes: int, pool: Pool, delivered: int) -> PoolCounts:
    """Return `counts` with no more of the prompt than the request can have, whose body has `body_bytes`.

    Prompt and the tokens that the tenant has, `delivered`, fit into the context that the pool declares. It is `counts`
    itself where they can be so.
    """
    prompt = counts.prompt
    served = pool.served(generation.model)
    if served is not None and prompt + delivered > served.context_tokens:
        prompt = max(0, served.context_tokens - delivered)
    if prompt > body_bytes:  # hardly ever: a token has several bytes
        said = generation.said
        # Read again, what was said may be cut into more tokens than it came in.
        more_bytes = 0 if said is None else len(said.text) * UTF8_BYTES_MOST
        prompt = min(prompt, believed_tokens(body_bytes + more_bytes, raw=generation.raw_prompt is not None))
    if prompt == counts.prompt:
        return counts
    return replace(counts, prompt=prompt, cached=min(prompt, counts.cached))

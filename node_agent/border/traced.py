"""Lines of a trace for replays: what arrived and what became of it, without a payload. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from node_agent.border.decider import Asked, Decided
from orchestrator.files.label_header import write_label_header
from orchestrator.files.traces import TraceLine, trace_line
from orchestrator.ledger.usage import PoolCounts

GENERAL, REGULATED = "general", "regulated"
"""Classes of traffic, as a recorded trace names them."""


def line_of(asked: Asked, decided: Decided) -> TraceLine:
    """Return what there is to say of a request when it was decided; the answer's length is what is expected."""
    chosen, shape = decided.decision.placement.chosen, decided.shape
    terms = None if chosen is None else chosen.terms
    # A trace is made to be carried elsewhere, and hashes of a regulated payload are data derived from it: they stay.
    blocks = () if decided.decision.regulated else decided.blocks
    return TraceLine(
        at_ms=decided.citation.now_ms,
        prompt_tokens=shape.prompt_tokens,
        output_tokens=shape.output_tokens,
        max_tokens=shape.max_tokens,
        blocks=blocks,
        # The second block tells conversations of a tenant apart; the first is often the same system prompt.
        session=blocks[min(1, len(blocks) - 1)] if blocks else None,
        edge=decided.edge.id,
        tenant=asked.tenant.id,
        model=shape.model,
        traffic=REGULATED if decided.decision.regulated else GENERAL,
        labels=write_label_header(asked.declared),
        upload_bytes=shape.upload_bytes,
        decision=decided.id,
        pool=None if chosen is None else chosen.pool.id,
        canary=shape.canary,
        cost_pico=None if terms is None else str(terms.tokens_pico + terms.egress_pico),
    )


def refused_line(asked: Asked, decided: Decided, code: str) -> bytes:
    """Return the line of a request for which nothing was chosen."""
    return trace_line(replace(line_of(asked, decided), outcome=code))


def ended_line(noted: TraceLine, said: str, counts: PoolCounts, first_us: int | None, end_us: int) -> bytes:
    """Return the line of an attempt that has ended: `said` is how, or the code of what cut it."""
    return trace_line(
        replace(
            noted,
            prompt_tokens=counts.prompt or noted.prompt_tokens,
            output_tokens=counts.generated,
            outcome=said,
            cached_tokens=counts.cached,
            first_us=first_us,
            end_us=end_us,
        )
    )

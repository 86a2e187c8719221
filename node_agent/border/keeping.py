"""Whether the law lets an edge keep an answer, to send it again. Pure: asks, and does nothing."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.bundles.assemble import Bundle
from orchestrator.placement.decide import SKEW_REGULATED_MS
from orchestrator.placement.fleet import Edge, Pool
from orchestrator.policy.facts import Facts
from orchestrator.policy.permit import permit_sink
from orchestrator.policy.places import Action


def may_keep(bundle: Bundle, edge: Edge, pool: Pool, facts: Facts, skew_ms: int, now_ms: int) -> bool:
    """Whether what `pool` answers may be stored at `edge`. Whatever stands in doubt is no.

    The answer bears the label of the prompt, and was processed where the pool is. A yes that comes with a duty is a no:
    nothing here discharges the duties of storing.
    """
    if abs(skew_ms) > SKEW_REGULATED_MS and facts.label.regulated():
        return False
    held = tuple(pathway for pathway in facts.pathways if pathway.id not in bundle.revoked.pathways)
    told = replace(facts, pathways=held, processed_in=facts.processed_in | pool.place.soil())
    verdict = permit_sink(bundle.law, told, Action.STORE, edge.place, edge.place, now_ms)
    return verdict.allowed and not verdict.obligations

"""A record holds everything that a placement was told, learned speeds and promises included, and is read as it was."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence.canonical import canonical_bytes, written
from orchestrator.placement.asked import Asked, asked_from_json
from orchestrator.placement.requests import PlacementRequest, PoolView
from orchestrator.policy.ids import ModelId
from orchestrator.policy.tenants import Service
from tests.placement.test_cost_terms import VIEWS

AMOUNTS = st.none() | st.integers(0, 10**30)
SERVICES = st.builds(Service, AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS)
COUNTS = st.integers(0, 10**7)
REQUESTS = st.builds(
    PlacementRequest,
    st.builds(ModelId, st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)),
    st.just(frozenset()),
    COUNTS,
    COUNTS,
    COUNTS,
    max_tokens=st.none() | COUNTS,
    revision=st.none() | st.just("r-7"),
    service=st.none() | SERVICES,
    bill_pico=AMOUNTS,
    cached_rebate_pico=st.integers(-(10**20), 10**20),
    entitled=st.booleans(),
    canary=st.booleans(),
)


@given(REQUESTS, VIEWS, st.integers(0, 2**64 - 1), st.integers(-(10**9), 10**9))
def test_what_was_known_is_read_again_as_it_was(
    request_: PlacementRequest, view: PoolView, chance: int, skew_ms: int
) -> None:
    asked = Asked(request_, {view.pool: view}, chance, frozenset(), frozenset(), skew_ms)
    record = written(asked.to_json())
    assert canonical_bytes(json.loads(record)) == record
    assert asked_from_json(json.loads(record)) == asked
    assert written(asked_from_json(json.loads(record)).to_json()) == record

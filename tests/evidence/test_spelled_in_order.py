"""What is spelled without sorting is in order by itself, whatever it holds: else two spellings of one record exist."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence import citation, records
from orchestrator.evidence.canonical import canonical_bytes, in_order_part, spelled, written, written_part
from orchestrator.evidence.duties import Done
from orchestrator.evidence.records import discharged_part
from orchestrator.ledger import usage
from orchestrator.ledger.usage import ByEdge, Counted, Counts, Outcome, PoolCounts, Price, Resumable, by_pool
from orchestrator.placement import explain
from orchestrator.placement.asked import Asked, AskedWritten, asked_from_json
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.cost import Terms
from orchestrator.placement.explain import placement_to_json, runner_up_to_json
from orchestrator.placement.fleet import Assurance
from orchestrator.placement.pick import Candidate, Drop, Placement
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.speed import Speed
from orchestrator.policy.ids import ModelId, PathwayId, PoolId, RequestId, RuleId, SideId, TenantId
from orchestrator.policy.packs import Obligation, ObligationKind
from orchestrator.policy.tenants import Service
from orchestrator.policy.verdicts import Reason, Verdict
from scheduler.intake import records as intake_records
from tests.evidence.test_record_format import DECISION, decision
from tests.evidence.test_record_format import usage as used
from tests.placement.test_choice import pool
from tests.values import replace

WRITTEN = [
    kind
    for module in (citation, records, usage, explain, intake_records)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
]
VALUES = [records.Owed, usage.PoolCounts, usage.EdgeCounts]
"""They are not written as they are."""

# Words with whatever must be escaped, and names beyond ASCII that UTF-16 sorts otherwise.
awkward = st.sampled_from('ab"\\/\x00\x1f\n\x7f\u00e9\u2028\ud7ff\ue000\U0001f600')
words = st.text(awkward, max_size=6) | st.text(max_size=6)
names = words.map(PoolId)
whole = st.integers(0, 1 << 52)
maybe = st.none() | whole
loads = st.builds(PoolLoad, whole, whole, whole, whole, whole, whole, maybe, maybe, maybe, maybe)
speeds = st.builds(Speed, whole, whole, whole, whole, maybe, whole, whole, whole)
views = st.builds(
    PoolView,
    names,
    st.booleans(),
    maybe,
    st.none() | loads,
    whole,
    whole,
    whole,
    maybe,
    whole,
    st.none() | speeds,
    st.booleans(),
)
services = st.builds(Service, maybe, maybe, maybe, maybe)
requests = st.builds(
    PlacementRequest,
    words.map(ModelId),
    st.frozensets(st.sampled_from(Capability)),
    whole,
    whole,
    whole,
    st.frozensets(names),
    maybe,
    st.none() | words,
    st.none() | services,
    st.none() | st.integers(0, 1 << 80),
    st.integers(-(1 << 80), 1 << 80),
    st.booleans(),
    st.booleans(),
)
askeds = st.builds(
    Asked,
    requests,
    st.lists(views, max_size=4).map(lambda found: {view.pool: view for view in found}),
    st.integers(0, (1 << 64) - 1),
    st.frozensets(names),
    st.frozensets(words.map(PathwayId)),
    st.integers(-(1 << 40), 1 << 40),
)
duties = st.builds(Obligation, st.sampled_from(ObligationKind), words)
verdicts = st.builds(
    Verdict,
    st.booleans(),
    st.lists(words.map(RuleId), max_size=2).map(tuple),
    st.lists(st.builds(Reason, words.map(RuleId), st.none(), words, words), max_size=2).map(tuple),
    st.lists(duties, max_size=2).map(tuple),
    whole,
)
terms = st.lists(whole, min_size=len(Terms.__struct_fields__), max_size=len(Terms.__struct_fields__)).map(
    lambda found: replace(Terms(*found), rtt_measured=bool(found[7] % 2))
)
pools = st.builds(
    lambda name, assurance: replace(pool("cn-guizhou"), id=name, assurance=assurance), names, st.sampled_from(Assurance)
)
dropped = st.builds(Candidate, pools, verdicts, st.sampled_from(Drop), st.none(), st.none(), st.booleans())
rated = st.builds(Candidate, pools, verdicts, st.none(), terms, st.none(), st.booleans())
placements = st.builds(
    lambda found, number: Placement(None if number is None or number >= len(found) else found[number], tuple(found)),
    st.lists(dropped | rated, max_size=5),
    st.none() | st.integers(0, 4),
)


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_what_is_written_names_its_parts_in_order(kind: type[msgspec.Struct]) -> None:
    if kind not in VALUES:
        assert list(kind.__struct_encode_fields__) == sorted(kind.__struct_encode_fields__)


def test_what_was_asked_names_its_parts_in_order() -> None:
    assert list(AskedWritten.__struct_fields__) == sorted(AskedWritten.__struct_fields__)


@given(askeds, placements, words, words, st.lists(duties, max_size=3))
def test_a_decision_of_whatever_values_has_one_spelling(
    asked: Asked, placement: Placement, one: str, other: str, owed: list[Obligation]
) -> None:
    record = replace(
        decision(),
        request=RequestId(one),
        client_request=other,
        tenant=TenantId(other),
        outcome=one,
        asked=asked.to_json(),
        placement=placement_to_json(placement),
        discharged=discharged_part(tuple(Done(duty, one) for duty in owed)),
        retention=(one, other),
        citation=replace(decision().citation, side=SideId(one)),
    ).to_bytes()
    assert record == canonical_bytes(json.loads(record))
    told = json.loads(record)
    assert asked_from_json(told["asked"]) == asked
    for name in ("capabilities", "revoked_pathways", "revoked_pools", "tried"):
        assert told["asked"][name] == sorted(told["asked"][name])
    assert told["placement"]["dropped"] == placement.counts()
    named = [candidate["pool"] for candidate in told["placement"]["candidates"]]
    assert named == [candidate.pool.id for candidate in placement.candidates]


@given(st.lists(rated, max_size=3), st.lists(dropped, max_size=2), st.booleans())
def test_the_runner_up_is_told_wherever_there_is_one(
    possible: list[Candidate], impossible: list[Candidate], chooses: bool
) -> None:
    placement = Placement(possible[0] if possible and chooses else None, (*impossible, *possible))
    told = json.loads(spelled(placement_to_json(placement)))["runner_up"]
    assert told == runner_up_to_json(placement)
    assert (told is not None) == (chooses and len(possible) > 1)


@given(
    words,
    st.sampled_from(Outcome),
    st.none() | st.sampled_from(Counted),
    st.builds(
        Counts,
        st.none() | st.builds(ByEdge, whole, whole, st.booleans()),
        st.none() | st.builds(by_pool, st.builds(PoolCounts, whole, whole, whole, whole), reported=st.booleans()),
    ),
    st.none() | st.builds(Price, st.integers(0, 1 << 90).map(str), words),
    st.none() | st.sampled_from(Resumable),
)
def test_usage_of_whatever_values_has_one_spelling(
    word: str,
    outcome: Outcome,
    counted: Counted | None,
    counts: Counts,
    price: Price | None,
    resumable: Resumable | None,
) -> None:
    record = replace(
        used(),
        tenant=TenantId(word),
        outcome=outcome,
        counted=counted,
        counts=counts,
        price=price,
        resumable=resumable,
    ).to_bytes()
    assert record == canonical_bytes(json.loads(record))
    named = {"pool": counts.pool, "edge": counts.edge}
    assert json.loads(record)["counts"].keys() == {name for name, one in named.items() if one is not None}


@given(words, words)
def test_a_part_that_was_written_stands_as_it_is_in_what_is_spelled(one: str, other: str) -> None:
    class Whole(msgspec.Struct):
        a: msgspec.Raw
        b: msgspec.Raw

    parts = [PoolView(PoolId(one), True, None, None, 0), PoolView(PoolId(other), True, None, None, 0)]
    value = {"a": {one: other, "b": [one]}, "b": parts}
    data = spelled(Whole(written_part(value["a"]), in_order_part(parts)))
    assert data == written(value)


def test_the_decision_that_a_pool_answers_is_named_in_order() -> None:
    account = intake_records._Account(DECISION, written_part({}))
    assert spelled(account) == canonical_bytes({"newest": {}, "answers": DECISION})

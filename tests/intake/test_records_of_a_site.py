"""What a site writes of an attempt: every field of both records says what its name says."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import asdict

from orchestrator.evidence.canonical import written
from orchestrator.evidence.citation import facts_part
from orchestrator.evidence.records import discharged_part
from orchestrator.ledger.usage import ByEdge, ByPool, Counted, Counts, EdgeCounts, Outcome, PoolCounts
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import AttemptId, DecisionId, UsageId
from orchestrator.wire.catalogue import Problem
from scheduler.intake.records import decision_record, usage_record
from scheduler.intake.second_permit import second_permit
from tests.bundles.sides import NOW_MS
from tests.intake.small_house import DOMESTIC, EDGE, MILD, OVERSEAS, TENANT, House, citation, manifest, opened
from tests.intake.test_work_that_goes_on import SAID
from tests.values import replace

HOUSE = House()
BUNDLE = HOUSE.bundle(OVERSEAS)
BEGUN = opened(Facts(TENANT, MILD), citation(BUNDLE), inputs=manifest())
GOES_ON = replace(BEGUN, continues=AttemptId("att_before"), generation=replace(BEGUN.generation, said=SAID))


@pytest.mark.parametrize("problem", [None, Problem("engine_busy")], ids=["permitted", "refused"])
def test_a_decision_names_what_it_was_about_and_what_became_of_it(problem: Problem | None) -> None:
    check = second_permit(BEGUN, EDGE, BUNDLE, BUNDLE, NOW_MS)
    assert check.verdict is not None
    record = decision_record(DecisionId("dec_own"), DOMESTIC, EDGE, GOES_ON, check, problem, 77, NOW_MS + 1)
    told = asdict(record)
    placement = json.loads(written(told.pop("placement")))
    assert (placement["answers"], bool(placement["newest"])) == (BEGUN.decision, True)
    assert told == {
        "id": "dec_own",
        "request": BEGUN.request,
        "client_request": None,
        "attempt": BEGUN.attempt,
        "side": DOMESTIC,
        "program": "scheduler",
        "edge": EDGE,
        "tenant": None,
        "key_id": None,
        "model": BEGUN.generation.model,
        "pool": BEGUN.pool,
        "outcome": "permitted" if problem is None else "engine_busy",
        "labels": None,
        "facts": facts_part(BEGUN.facts),
        "citation": BEGUN.citation,
        "asked": None,
        "inputs": manifest().written,
        "commitment": None,
        "payload_bytes": 77,
        "regulated": False,
        "retention": (),
        "discharged": discharged_part(check.discharged),
        "decided_ms": NOW_MS + 1,
        "continues": "att_before",
        "first_token": SAID.tokens,
        "kind": "decision",
        "v": 4,
    }


def test_a_decision_without_a_verdict_holds_none() -> None:
    check = second_permit(BEGUN, EDGE, None, BUNDLE, NOW_MS)
    record = decision_record(DecisionId("dec_own"), DOMESTIC, EDGE, BEGUN, check, check.problem, 1, NOW_MS)
    assert written(record.placement) == written({"answers": BEGUN.decision, "newest": {}})
    assert (record.outcome, record.retention, record.first_token) == ("policy_stale", (), 0)


def test_usage_names_what_was_counted_and_by_whom() -> None:
    pool, edge = PoolCounts(1, 2, 3, 4), EdgeCounts(5, 6)
    record = usage_record(UsageId("usg_own"), GOES_ON, Outcome.BROKEN, Counted.CHUNKS, pool, edge, NOW_MS)
    assert asdict(record) == {
        "id": "usg_own",
        "request": BEGUN.request,
        "attempt": BEGUN.attempt,
        "decision": BEGUN.decision,
        "tenant": None,
        "pool": BEGUN.pool,
        "model": BEGUN.generation.model,
        "outcome": Outcome.BROKEN,
        "counted": Counted.CHUNKS,
        "counts": Counts(ByEdge(6, 5, reported=True), ByPool(2, 3, 1, reported=False, sent=4)),
        "price": None,
        "ended_ms": NOW_MS,
        "continues": "att_before",
        "first_token": SAID.tokens,
        "resumable": None,
        "kind": "usage",
        "v": 3,
    }

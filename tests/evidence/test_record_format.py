"""The formats of records do not drift unnoticed: each release adds a golden file, and none changes."""

from __future__ import annotations

from pathlib import Path

from orchestrator.evidence.canonical import canonical_bytes
from orchestrator.evidence.citation import Citation, attestation_bytes
from orchestrator.evidence.records import DecisionRecord
from orchestrator.ledger.money import Currency, Money
from orchestrator.ledger.usage import Counted, EdgeCounts, Outcome, PoolCounts, UsageRecord
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.ids import (
    AttemptId,
    DecisionId,
    Digest,
    EdgeId,
    EntityId,
    KeyId,
    ModelId,
    PathwayId,
    PoolId,
    RequestId,
    SideId,
    TenantId,
    UsageId,
)
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Domestic, Effective, Grade, Labels, LabelSources, Personal
from orchestrator.policy.pathways import Pathway, PathwayKind
from orchestrator.policy.permit import Facts

GOLDEN = Path(__file__).parent / "golden"
DE, CN = Jurisdiction("DE"), Jurisdiction("CN")
ATTEMPT = AttemptId("att_" + "a" * 32)
DECISION = DecisionId("dec_" + "d" * 32)
REQUEST = RequestId("req_" + "e" * 32)
FACTS = Facts(
    Entity(EntityId("rhein"), DE, (Owner(EntityId("holding"), DE, 60),)),
    Effective(Personal.PERSONAL, Grade.GENERAL, Domestic.NO, frozenset({DE})),
    (
        Pathway(
            PathwayId("scc-1"),
            PathwayKind.EU_SCC,
            EntityId("rhein"),
            EntityId("operator"),
            frozenset({CN}),
            Personal.PERSONAL,
            1_000,
            2_000,
            "folder 7",
        ),
    ),
    frozenset({CN}),
)
CITATION = Citation(SideId("overseas"), 7, Digest("sha256:" + "0" * 64), 2, 1_790_000_000_000, 1)


def decision() -> DecisionRecord:
    return DecisionRecord(
        id=DECISION,
        request=REQUEST,
        client_request="mine-1",
        attempt=ATTEMPT,
        side=SideId("overseas"),
        program="edge",
        edge=EdgeId("edge-frankfurt"),
        tenant=TenantId("rhein"),
        key_id=KeyId("rheinkey1"),
        model=ModelId("demo"),
        pool=PoolId("eu-frankfurt"),
        outcome="sent",
        sources=LabelSources(declared=Labels(personal=Personal.PERSONAL), soil=frozenset({DE})),
        facts=FACTS,
        citation=CITATION,
        placement={"chosen": "eu-frankfurt", "candidates": []},
        commitment="hmac-sha256:abcdef:00",
        payload_bytes=12,
        regulated=True,
        retention=("P6M",),
        discharged=(("retain:P6M", "retention class P6M on this record"),),
        decided_ms=1_790_000_000_000,
    )


def usage() -> UsageRecord:
    return UsageRecord(
        id=UsageId("usg_" + "b" * 32),
        request=REQUEST,
        attempt=ATTEMPT,
        decision=DECISION,
        tenant=TenantId("rhein"),
        pool=PoolId("eu-frankfurt"),
        model=ModelId("demo"),
        outcome=Outcome.COMPLETE,
        counted=Counted.IDS,
        pool_counts=PoolCounts(10, 2, 5, 5),
        edge_counts=EdgeCounts(5, 4),
        own="edge",
        price=Money(123_456_789_012_345_678, Currency("USD")),
        ended_ms=1_790_000_000_500,
    )


def test_a_decision_record_is_written_as_version_1() -> None:
    assert decision().to_bytes() + b"\n" == (GOLDEN / "decision-v1.json").read_bytes()


def test_a_usage_record_is_written_as_version_1() -> None:
    assert canonical_bytes(usage().to_json()) + b"\n" == (GOLDEN / "usage-v1.json").read_bytes()


def test_an_attestation_is_signed_as_version_1() -> None:
    signed = attestation_bytes(EdgeId("edge-frankfurt"), ATTEMPT, DECISION, PoolId("cn-guizhou"), FACTS, CITATION)
    assert signed + b"\n" == (GOLDEN / "attestation-v1.txt").read_bytes()

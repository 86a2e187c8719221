"""The formats of records do not drift unnoticed: each release adds a golden file, and none changes."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence import records
from orchestrator.evidence.canonical import canonical_bytes, written_part
from orchestrator.evidence.citation import ATTESTATION_VERSION, Citation, attestation_bytes, facts_part
from orchestrator.evidence.duties import Done
from orchestrator.evidence.inputs import ATTEMPT_NAMESPACE, InputManifest, InputPart
from orchestrator.evidence.reading import facts_from_json
from orchestrator.evidence.records import RECORD_VERSION, DecisionRecord, discharged_part, sources_part
from orchestrator.ledger import usage as usages
from orchestrator.ledger.usage import (
    ByEdge,
    Counted,
    Counts,
    Outcome,
    PoolCounts,
    Price,
    Resumable,
    UsageRecord,
    by_pool,
)
from orchestrator.placement.asked import Asked, asked_from_json
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.facts import Declared, Facts
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
from orchestrator.policy.labels import (
    RANK_AXES,
    SET_AXES,
    Clean,
    Domestic,
    Effective,
    Grade,
    Labels,
    LabelSources,
    Personal,
)
from orchestrator.policy.packs import Obligation, ObligationKind
from orchestrator.policy.pathways import Pathway, PathwayKind, Role
from tests.values import replace

GOLDEN = Path(__file__).parent / "golden"
DE, FR, CN = (Jurisdiction(code) for code in ("DE", "FR", "CN"))
ATTEMPT = AttemptId("att_" + "a" * 32)
CUT = AttemptId("att_" + "c" * 32)
DECISION = DecisionId("dec_" + "d" * 32)
REQUEST = RequestId("req_" + "e" * 32)
NOW_MS = 1_790_000_000_000
SOURCES = LabelSources(
    declared=Labels(personal=Personal.PERSONAL, clean=Clean.PSEUDONYMISED, purpose=frozenset({"inference"})),
    attested=Labels(
        personal=Personal.NONE,
        grade=Grade.GENERAL,
        domestic=Domestic.NO,
        origin=frozenset({DE}),
        categories=frozenset({"contact"}),
        located=frozenset({DE}),
        collected=frozenset({DE, FR}),
        asset=frozenset({"payload"}),
    ),
    floor=Labels(categories=frozenset({"work"})),
    soil=frozenset({DE}),
)
FACTS = Facts(
    tenant=Entity(EntityId("rhein"), DE, (Owner(EntityId("holding"), DE, 60),)),
    label=SOURCES.effective(),
    pathways=(
        Pathway(
            id=PathwayId("scc-1"),
            kind=PathwayKind.EU_SCC,
            exporter=EntityId("rhein"),
            exporter_role=Role.CONTROLLER,
            importer=EntityId("operator"),
            importer_role=Role.PROCESSOR,
            countries=frozenset({CN}),
            personal_max=Personal.PERSONAL,
            categories=frozenset({"contact", "work"}),
            valid_from_ms=1_000,
            valid_until_ms=2_000,
            reference="folder 7",
            onward=frozenset({EntityId("sub-processor")}),
            module=2,
        ),
    ),
    processed_in=frozenset({CN}),
    role=Role.CONTROLLER,
    critical_infrastructure=Declared.NO,
    counters=(Counter(CounterKind.CN_PERSONS, 99_999, NOW_MS - 1_000, NOW_MS + 1_000),),
    notices=(("eu-13-cn", "2026-03"),),
)
CITATION = Citation(7, Digest("sha256:" + "0" * 64), NOW_MS, 2, 2, SideId("overseas"))
INPUTS = InputManifest(
    attempt=ATTEMPT,
    parts=(InputPart("user", 1, 12, "hmac-sha256:abcdef:01"), InputPart("tools", 0, 0, None)),
    domestic=Domestic.NO,
    origin=frozenset({DE}),
    collected=frozenset({DE, FR}),
    cache_namespace=ATTEMPT_NAMESPACE,
)
RETAIN = Obligation(ObligationKind.RETAIN, "P6M")
ASKED = Asked(
    PlacementRequest(ModelId("demo"), frozenset({Capability.CHAT}), 4, 256, 12),
    {
        PoolId("eu-frankfurt"): PoolView(PoolId("eu-frankfurt"), True, 2_000, PoolLoad(1, 4, 0, 0, 64, 10), 0),
        PoolId("cn-guizhou"): PoolView(PoolId("cn-guizhou"), False, None, None, 0),
    },
    (1 << 64) - 1,
    frozenset({PoolId("cn-guizhou")}),
    frozenset({PathwayId("scc-1")}),
    -7,
)


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
        labels=sources_part(SOURCES),
        facts=facts_part(FACTS),
        citation=CITATION,
        placement=written_part({"chosen": "eu-frankfurt", "candidates": []}),
        asked=ASKED.to_json(),
        inputs=INPUTS.written,
        commitment="hmac-sha256:abcdef:00",
        payload_bytes=12,
        regulated=True,
        retention=("P6M",),
        discharged=discharged_part(
            (Done(RETAIN, "retention class P6M on this record", (("x-not-recorded", "1"),)),)
        ),
        decided_ms=NOW_MS,
        continues=CUT,
        first_token=17,
        kind=records.KIND,
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
        counts=Counts(ByEdge(4, 5, reported=False), by_pool(PoolCounts(10, 2, 5, 5), reported=True)),
        price=Price("123456789012345678", "USD"),
        ended_ms=1_790_000_000_500,
        continues=CUT,
        first_token=17,
        resumable=Resumable.IDS,
        kind=usages.KIND,
    )


def test_a_decision_record_is_written_as_version_4() -> None:
    assert RECORD_VERSION == 4
    assert decision().to_bytes() + b"\n" == (GOLDEN / "decision-v4.json").read_bytes()


def test_a_record_of_the_other_side_leaves_out_what_it_was_not_told() -> None:
    told = replace(decision(), tenant=None, key_id=None, labels=None, asked=None, inputs=None, commitment=None)
    record = json.loads(told.to_bytes())
    whole = json.loads(decision().to_bytes())
    assert {name for name, value in record.items() if value is None} == {
        "tenant",
        "key_id",
        "labels",
        "asked",
        "inputs",
        "commitment",
    }
    assert record.keys() == whole.keys()


def test_where_a_label_says_less_than_what_counts_is_in_the_record() -> None:
    mismatches = json.loads(decision().to_bytes())["labels"]["mismatches"]
    assert [(one["axis"], one["source"], one["said"], one["effective"]) for one in mismatches] == [
        ("personal", "attested", "none", "personal"),
        ("categories", "attested", "contact", "contact work"),
    ]


def test_what_a_record_holds_can_be_read_again() -> None:
    record = json.loads(decision().to_bytes())
    assert facts_from_json(record["facts"]) == FACTS
    assert asked_from_json(record["asked"]) == ASKED


def test_a_usage_record_is_written_as_version_3() -> None:
    data = usage().to_bytes()
    assert data + b"\n" == (GOLDEN / "usage-v3.json").read_bytes()
    assert canonical_bytes(json.loads(data)) == data


def attestation(inputs: Digest | None) -> bytes:
    pool = PoolId("cn-guizhou")
    return attestation_bytes(EdgeId("edge-frankfurt"), ATTEMPT, DECISION, pool, FACTS, CITATION, inputs)


def test_an_attestation_is_signed_as_version_2() -> None:
    assert ATTESTATION_VERSION == 2
    assert attestation(INPUTS.digest) + b"\n" == (GOLDEN / "attestation-v2.txt").read_bytes()


def test_an_attestation_without_inputs_is_another_one() -> None:
    assert attestation(None) != attestation(INPUTS.digest)
    assert json.loads(attestation(None).split(b"\n", 1)[1])["inputs"] is None


@given(st.text(), st.text())
def test_whatever_words_it_holds_what_is_written_is_canonical(words: str, others: str) -> None:
    duty = Done(replace(RETAIN, argument=words), others)
    placement = written_part({"chosen": words, "candidates": [others], "dropped": {}})
    done = discharged_part((duty,))
    record = replace(decision(), client_request=words, discharged=done, placement=placement).to_bytes()
    used = replace(usage(), tenant=TenantId(words), price=Price("1", others)).to_bytes()
    pool, cites = PoolId(words), replace(CITATION, side=SideId(others))
    signed = attestation_bytes(EdgeId(others), ATTEMPT, DECISION, pool, FACTS, cites, None).split(b"\n", 1)[1]
    inputs = replace(INPUTS, parts=(InputPart(words, 1, 12, others),)).to_bytes()
    for data in (record, used, signed, inputs):
        assert canonical_bytes(json.loads(data)) == data


FACT_CHANGES: dict[str, dict[str, object]] = {
    "tenant": {"tenant": replace(FACTS.tenant, country=CN)},
    **{f"label.{axis}": {"label": replace(FACTS.label, **{axis: getattr(Effective(), axis)})} for axis in RANK_AXES},
    **{
        f"label.{axis}": {"label": replace(FACTS.label, **{axis: getattr(FACTS.label, axis) | {CN, "other"}})}
        for axis in SET_AXES
    },
    "pathways": {"pathways": ()},
    **{
        f"pathway.{name}": {"pathways": (replace(FACTS.pathways[0], **{name: value}),)}
        for name, value in {
            "id": PathwayId("scc-2"),
            "kind": PathwayKind.EU_BCR,
            "exporter": EntityId("other"),
            "exporter_role": Role.PROCESSOR,
            "importer": EntityId("other"),
            "importer_role": Role.CONTROLLER,
            "countries": frozenset({DE}),
            "personal_max": Personal.SENSITIVE,
            "categories": frozenset({"all"}),
            "valid_from_ms": 0,
            "valid_until_ms": 2_001,
            "reference": "folder 8",
            "purposes": frozenset({"embedding"}),
            "onward": frozenset[EntityId](),
            "module": None,
        }.items()
    },
    "processed_in": {"processed_in": frozenset[Jurisdiction]()},
    "role": {"role": None},
    "critical_infrastructure": {"critical_infrastructure": Declared.UNKNOWN},
    "counters": {"counters": ()},
    "notices": {"notices": (("eu-13-cn", "2026-04"),)},
}


@pytest.mark.parametrize("change", FACT_CHANGES.values(), ids=FACT_CHANGES.keys())
def test_whatever_the_law_was_told_is_under_the_signature(change: dict[str, object]) -> None:
    pool = PoolId("cn-guizhou")
    facts = replace(FACTS, **change)  # type: ignore[arg-type]
    signed = attestation_bytes(EdgeId("edge-frankfurt"), ATTEMPT, DECISION, pool, facts, CITATION, INPUTS.digest)
    assert signed != attestation(INPUTS.digest)


def test_every_fact_has_such_a_change() -> None:
    changed = {name.partition(".")[0] for name in FACT_CHANGES} - {"pathway"}
    assert changed == {field.name for field in fields(Facts) if field.init}
    pathway = {name.partition(".")[2] for name in FACT_CHANGES if name.startswith("pathway.")}
    assert pathway == {field.name for field in fields(Pathway)}
    label = {name.partition(".")[2] for name in FACT_CHANGES if name.startswith("label.")}
    assert label == {field.name for field in fields(Effective)}

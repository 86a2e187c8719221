"""What the law wants done is done before anything leaves, or nothing leaves; and the record says what was done."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from node_agent.border.decider import Asked
from orchestrator.evidence.attestation import sealed
from orchestrator.evidence.canonical import written
from orchestrator.evidence.citation import attestation_bytes
from orchestrator.evidence.duties import DISCHARGERS, DISCLOSURE_HEADER, LABEL_HEADER, Done, Means
from orchestrator.evidence.inputs import agrees
from orchestrator.evidence.reading import facts_from_json
from orchestrator.placement.asked import asked_from_json
from orchestrator.policy.ids import EdgeId
from orchestrator.policy.labels import Domestic, Labels, Personal
from orchestrator.policy.packs import Obligation, ObligationKind
from orchestrator.policy.verdicts import CLOCK_SKEW, NO_DISCHARGER
from orchestrator.wire.catalogue import ProblemError
from tests.border.edge import GERMAN, PLAIN, SECRET_WORDS, Edge, refuses
from tests.bundles.sides import Document
from tests.intake.small_house import owe, pack
from tests.values import replace

MakeEdge = Callable[..., Edge]
DUTIES: dict[ObligationKind, str] = {
    ObligationKind.RETAIN: "P1Y",
    ObligationKind.PROVE_NO_DOMESTIC_INPUT: "CN",
    ObligationKind.DISCLOSE: "made-by-ai",
    ObligationKind.LABEL: "synthetic",
    ObligationKind.NOTIFY: "sg-notice",
}


def owing(*kinds: ObligationKind) -> Document:
    """A pack of Singapore with these duties for everything that goes and comes back."""
    return pack("sg-duties", "SG", [owe("SGX", *({kind.value: DUTIES[kind]} for kind in kinds))])


def informed(asked: Asked) -> Asked:
    """The same request of a tenant that has given the notice."""
    return replace(asked, tenant=replace(asked.tenant, notices=(("sg-notice", "2026-03"),)))


async def refused(edge: Edge, asked: Asked) -> ProblemError:
    """Ask for what must not leave, and return the refusal."""
    before = list(edge.routes.sent)
    with pytest.raises(ProblemError) as caught:
        await edge.gate.ask(asked)
    assert edge.routes.sent == before, "nothing was sent"
    assert edge.records("decision")[-1]["attempt"] is None
    return caught.value


@pytest.mark.parametrize("kind", ObligationKind, ids=lambda kind: kind.value)
async def test_without_its_discharger_a_duty_is_a_refusal(
    kind: ObligationKind, make_edge: MakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = make_edge()
    edge.current = edge.example.bundle(packs=(owing(kind),))
    asked = informed(edge.asked("acme-sg"))
    assert await edge.text(asked) == ("cn-guizhou", "G")
    monkeypatch.delitem(DISCHARGERS, kind)
    problem = (await refused(edge, informed(edge.asked("acme-sg")))).problem
    assert (problem.code, problem.entry.http) == ("residency_blocked", 451)
    assert NO_DISCHARGER in problem.rules
    assert kind.value in problem.sentence
    record = edge.records("decision")[-1]
    assert (record["outcome"], record["discharged"], record["inputs"]) == ("residency_blocked", [], None)


@pytest.mark.parametrize("kind", ObligationKind, ids=lambda kind: kind.value)
async def test_a_discharger_that_fails_is_a_refusal_too(
    kind: ObligationKind, make_edge: MakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = make_edge()
    edge.current = edge.example.bundle(packs=(owing(kind),))

    def cannot(duty: Obligation, means: Means) -> Done | None:
        return None

    monkeypatch.setitem(DISCHARGERS, kind, cannot)
    problem = (await refused(edge, informed(edge.asked("acme-sg")))).problem
    assert problem.code == "evidence_unavailable"
    record = edge.records("decision")[-1]
    assert (record["outcome"], record["discharged"]) == ("evidence_unavailable", [])


@pytest.mark.parametrize("kind", ObligationKind, ids=lambda kind: kind.value)
async def test_a_discharger_that_raises_lets_nothing_out(
    kind: ObligationKind, make_edge: MakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = make_edge()
    edge.current = edge.example.bundle(packs=(owing(kind),))

    def bursts(duty: Obligation, means: Means) -> Done | None:
        raise ZeroDivisionError

    monkeypatch.setitem(DISCHARGERS, kind, bursts)
    with pytest.raises((ProblemError, ZeroDivisionError)):
        await edge.gate.ask(informed(edge.asked("acme-sg")))
    assert edge.routes.sent == []


async def test_a_notice_that_was_not_given_is_a_refusal_by_law(make_edge: MakeEdge) -> None:
    edge = make_edge()
    edge.current = edge.example.bundle(packs=(owing(ObligationKind.NOTIFY),))
    problem = (await refused(edge, edge.asked("acme-sg"))).problem
    assert (problem.code, problem.rules) == ("residency_blocked", ("SGX-OBLIGE",))


async def test_what_the_law_wants_said_reaches_the_answer(make_edge: MakeEdge) -> None:
    edge = make_edge()
    edge.current = edge.example.bundle(packs=(owing(ObligationKind.DISCLOSE, ObligationKind.LABEL),))
    answer = await edge.gate.ask(edge.asked("acme-sg"))
    await answer.frames.aclose()
    assert answer.headers == (
        (DISCLOSURE_HEADER, "made-by-ai"),
        (LABEL_HEADER, f'synthetic; id="{answer.decision}"'),
    )
    assert answer.decision == edge.records("decision")[-1]["id"]


async def test_where_no_law_asks_the_answer_says_nothing_more(make_edge: MakeEdge) -> None:
    edge = make_edge()
    owed = {done["obligation"].partition(":")[0] for done in await discharged(edge, edge.asked("acme-sg"))}
    answer = await edge.gate.ask(edge.asked("acme-sg"))
    await answer.frames.aclose()
    assert not owed & {"disclose", "label"}
    assert answer.headers == ()


async def test_after_a_refusal_the_answer_bears_the_headers_of_the_decision_that_held(make_edge: MakeEdge) -> None:
    edge = make_edge(cn_guizhou=refuses("engine_busy"))
    edge.current = edge.example.bundle(packs=(owing(ObligationKind.LABEL),))
    answer = await edge.gate.ask(edge.asked("acme-sg"))
    await answer.frames.aclose()
    first, second = (record["id"] for record in edge.records("decision"))
    assert dict(answer.headers)[LABEL_HEADER] == f'synthetic; id="{second}"'
    assert first != second


async def discharged(edge: Edge, asked: Asked) -> list[dict[str, Any]]:
    await edge.text(asked)
    found: list[dict[str, Any]] = edge.records("decision")[-1]["discharged"]
    return found


async def test_the_record_says_what_was_done_and_keeps_it_as_long_as_promised(make_edge: MakeEdge) -> None:
    edge = make_edge()
    edge.current = edge.example.bundle(packs=(owing(*ObligationKind),))
    done = {one["obligation"]: one["did"] for one in await discharged(edge, informed(edge.asked("acme-sg")))}
    record = edge.records("decision")[-1]
    ((_, sent),) = edge.routes.sent
    assert sent.inputs is not None
    assert done["retain:P1Y"] == "retention class P1Y on this record"
    assert done["prove_no_domestic_input:CN"] == f"input manifest {sent.inputs.digest} states none of CN"
    assert done["disclose:made-by-ai"] == f"header {DISCLOSURE_HEADER}"
    assert done["label:synthetic"] == f"header {LABEL_HEADER}"
    assert done["notify:sg-notice"] == "notice sg-notice version 2026-03"
    assert "P1Y" in record["retention"]
    owed = {f"{kind.value}:{argument}" for kind, argument in DUTIES.items()}
    assert owed <= done.keys()
    verdicts = {one["pool"]: one["verdict"]["obligations"] for one in record["placement"]["candidates"]}
    assert {f"{duty['kind']}:{duty['argument']}" for duty in verdicts[record["pool"]]} == done.keys()


async def test_what_went_in_is_in_the_record_and_signed_with_the_attempt(make_edge: MakeEdge) -> None:
    edge = make_edge()
    asked = edge.asked_overseas()
    await edge.text(asked)
    (record,) = edge.records("decision")
    ((pool, sent),) = edge.routes.sent
    assert sent.inputs is not None
    assert record["inputs"] == json.loads(sent.inputs.to_bytes())
    assert record["inputs"]["attempt"] == record["attempt"] == sent.attempt
    assert agrees(sent.inputs, asked.generation.texts())
    assert sent.inputs.domestic is Domestic.NO
    user, tools = record["inputs"]["parts"]
    assert (user["kind"], user["count"], user["size_bytes"]) == ("user", 1, len(SECRET_WORDS))
    assert user["commitment"].startswith("hmac-sha256:commit:")
    assert (tools["kind"], tools["count"]) == ("tools", 0)
    digest = sent.inputs.digest
    signed = attestation_bytes(EdgeId(edge.name), sent.attempt, sent.decision, pool, sent.facts, sent.citation, digest)
    assert sealed(edge.key.public_key, signed, sent.signature)


async def test_where_no_law_wants_a_proof_no_manifest_is_made(make_edge: MakeEdge) -> None:
    edge = make_edge("edge-frankfurt")
    assert await edge.text(edge.asked("rhein-gmbh", GERMAN)) == ("eu-frankfurt", "F")
    assert edge.records("decision")[-1]["inputs"] is None
    assert edge.routes.sent[-1][1].inputs is None


async def test_the_record_carries_what_the_placement_was_asked(make_edge: MakeEdge) -> None:
    edge = make_edge()
    edge.skew_ms = -1_200
    asked = edge.asked("acme-sg")
    await edge.text(asked)
    (record,) = edge.records("decision")
    told = asked_from_json(record["asked"])
    assert json.loads(written(told.to_json())) == record["asked"]
    assert (told.request.model, told.request.upload_bytes) == (asked.generation.model, len(asked.body))
    assert told.request.capabilities == asked.capabilities
    assert set(told.views) == {"cn-guizhou", "cn-shanghai", "eu-frankfurt"}
    assert told.skew_ms == -1_200
    assert 0 <= told.chance < 1 << 64
    sent = edge.routes.sent[-1][1].facts
    told_law = facts_from_json(record["facts"])
    assert replace(told_law, pathways=sent.pathways) == sent


async def test_what_was_tried_before_is_part_of_what_was_asked(make_edge: MakeEdge) -> None:
    edge = make_edge(cn_guizhou=refuses("engine_busy"))
    await edge.text(edge.asked("acme-sg"))
    assert [record["asked"]["tried"] for record in edge.records("decision")] == [[], ["cn-guizhou"]]


@pytest.mark.parametrize("skew_ms", [30_000, -30_000])
async def test_a_clock_that_is_off_by_thirty_seconds_still_decides(make_edge: MakeEdge, skew_ms: int) -> None:
    edge = make_edge("edge-frankfurt")
    edge.skew_ms = skew_ms
    assert await edge.text(edge.asked("rhein-gmbh", GERMAN)) == ("eu-frankfurt", "F")


@pytest.mark.parametrize("skew_ms", [30_001, -30_001, 10**9])
async def test_a_clock_that_is_off_by_more_refuses_what_is_regulated_and_serves_the_rest(
    make_edge: MakeEdge, skew_ms: int
) -> None:
    regulated = make_edge("edge-frankfurt")
    regulated.skew_ms = skew_ms
    problem = (await refused(regulated, regulated.asked("rhein-gmbh", GERMAN))).problem
    assert problem.code == "residency_blocked"
    assert CLOCK_SKEW in problem.rules
    record = regulated.records("decision")[-1]
    assert record["regulated"]
    assert record["asked"]["skew_ms"] == skew_ms

    edge = make_edge()
    edge.skew_ms = skew_ms
    assert await edge.text(edge.asked("acme-sg")) == ("cn-guizhou", "G")
    assert not edge.records("decision")[-1]["regulated"]
    edge.skew_ms = 0
    regulated.skew_ms = 0
    assert await regulated.text(regulated.asked("rhein-gmbh", GERMAN)) == ("eu-frankfurt", "F"), (
        "and ends with the skew"
    )


def mismatches(edge: Edge) -> dict[str, int]:
    """What the metric has counted, by axis."""
    found: dict[str, int] = {}
    for line in edge.metrics.render().decode().splitlines():
        if line.startswith("tidegate_label_mismatches_total{"):
            axis, count = line.split("}")
            found[axis.partition('axis="')[2].rstrip('"')] = int(float(count))
    return {axis: count for axis, count in found.items() if count}


async def test_a_label_that_says_less_than_what_counts_is_counted_and_recorded(make_edge: MakeEdge) -> None:
    edge = make_edge("edge-frankfurt")
    asked = edge.asked("rhein-gmbh", Labels(personal=Personal.NONE))
    raised = replace(asked, tenant=replace(asked.tenant, floor=Labels(personal=Personal.PERSONAL)))
    await edge.text(raised)
    (record,) = edge.records("decision")
    said = {"axis": "personal", "said": "none", "effective": "personal"}
    assert record["labels"]["mismatches"] == [{**said, "source": "declared"}, {**said, "source": "attested"}]
    assert record["facts"]["label"]["personal"] == "personal"
    assert mismatches(edge) == {"personal": 2}


async def test_a_mismatch_of_a_refused_request_counts_as_well(make_edge: MakeEdge) -> None:
    edge = make_edge()
    await refused(edge, edge.asked("acme-sg", GERMAN))
    (record,) = edge.records("decision")
    assert [(one["axis"], one["source"]) for one in record["labels"]["mismatches"]] == [("personal", "attested")]
    assert mismatches(edge) == {"personal": 1}


async def test_labels_that_agree_are_no_event(make_edge: MakeEdge) -> None:
    edge = make_edge()
    await edge.text(edge.asked("acme-sg", PLAIN))
    assert edge.records("decision")[-1]["labels"]["mismatches"] == []
    assert mismatches(edge) == {}

"""Each duty of the law has one discharger that does what it says it did, and says nothing where it cannot."""

from __future__ import annotations

import pytest

from orchestrator.evidence.duties import (
    DISCHARGERS,
    DISCLOSURE_HEADER,
    LABEL_HEADER,
    Done,
    Means,
    discharge,
)
from orchestrator.evidence.inputs import ATTEMPT_NAMESPACE, InputManifest
from orchestrator.evidence.records import owed
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import AttemptId, DecisionId, EntityId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Domestic, Effective
from orchestrator.policy.packs import Obligation, ObligationKind
from tests.values import replace

SG, CN, UNKNOWN = (Jurisdiction(code) for code in ("SG", "CN", "unknown"))
DECISION = DecisionId("dec_" + "d" * 32)
CLEAN = InputManifest(
    AttemptId("att_" + "a" * 32), (), Domestic.NO, frozenset({SG}), frozenset({SG}), ATTEMPT_NAMESPACE
)
FACTS = Facts(Entity(EntityId("acme"), SG), Effective(), notices=(("eu-13-cn", "2026-03"), ("sg-notice", "1")))
MEANS = Means(FACTS, DECISION, CLEAN)

RETAIN = Obligation(ObligationKind.RETAIN, "P6M")
PROVE = Obligation(ObligationKind.PROVE_NO_DOMESTIC_INPUT, "CN")
DISCLOSE = Obligation(ObligationKind.DISCLOSE, "eu-art-50")
LABEL = Obligation(ObligationKind.LABEL, "synthetic")
NOTIFY = Obligation(ObligationKind.NOTIFY, "eu-13-cn")
ALL = (RETAIN, PROVE, DISCLOSE, LABEL, NOTIFY)

DONE = {
    RETAIN: Done(RETAIN, "retention class P6M on this record"),
    PROVE: Done(PROVE, f"input manifest {CLEAN.digest} states none of CN"),
    DISCLOSE: Done(DISCLOSE, f"header {DISCLOSURE_HEADER}", ((DISCLOSURE_HEADER, "eu-art-50"),)),
    LABEL: Done(LABEL, f"header {LABEL_HEADER}", ((LABEL_HEADER, f'synthetic; id="{DECISION}"'),)),
    NOTIFY: Done(NOTIFY, "notice eu-13-cn version 2026-03"),
}


def test_every_kind_of_duty_has_a_discharger() -> None:
    assert {duty.kind for duty in ALL} == set(ObligationKind) == DISCHARGERS.keys()


@pytest.mark.parametrize("duty", ALL, ids=lambda duty: duty.kind.value)
def test_a_discharger_says_what_it_did(duty: Obligation) -> None:
    assert discharge((duty,), MEANS) == (DONE[duty],)


def test_all_duties_are_done_in_their_order() -> None:
    assert discharge(ALL, MEANS) == tuple(DONE[duty] for duty in ALL)
    assert discharge(ALL[::-1], MEANS) == tuple(DONE[duty] for duty in ALL[::-1])
    assert discharge((), MEANS) == ()


@pytest.mark.parametrize("kind", ObligationKind, ids=lambda kind: kind.value)
def test_without_one_discharger_nothing_that_owes_it_is_permitted(
    kind: ObligationKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert discharge(ALL, MEANS) is not None
    monkeypatch.delitem(DISCHARGERS, kind)
    assert discharge(ALL, MEANS) is None
    rest = tuple(duty for duty in ALL if duty.kind is not kind)
    assert discharge(rest, MEANS) == tuple(DONE[duty] for duty in rest), "the others still do theirs"


CANNOT = [
    ("no manifest", PROVE, replace(MEANS, inputs=None)),
    ("domestic input", PROVE, replace(MEANS, inputs=replace(CLEAN, domestic=Domestic.YES))),
    ("unknown input", PROVE, replace(MEANS, inputs=replace(CLEAN, domestic=Domestic.UNKNOWN))),
    ("a subject there", PROVE, replace(MEANS, inputs=replace(CLEAN, origin=frozenset({SG, CN})))),
    ("collected there", PROVE, replace(MEANS, inputs=replace(CLEAN, collected=frozenset({CN})))),
    ("collected anywhere", PROVE, replace(MEANS, inputs=replace(CLEAN, collected=frozenset({UNKNOWN})))),
    ("a notice that was not given", replace(NOTIFY, argument="in-dpdp"), MEANS),
    ("no notices", NOTIFY, replace(MEANS, facts=replace(FACTS, notices=()))),
]


@pytest.mark.parametrize(("duty", "means"), [case[1:] for case in CANNOT], ids=[case[0] for case in CANNOT])
def test_a_discharger_that_cannot_do_its_duty_does_not_pretend(duty: Obligation, means: Means) -> None:
    assert discharge((duty,), means) is None
    assert discharge((RETAIN, duty, LABEL), means) is None, "and the others do not make up for it"


def test_only_a_proof_about_inputs_needs_their_manifest() -> None:
    assert owed(ALL).inputs
    assert owed((PROVE,)).inputs
    assert not owed(tuple(duty for duty in ALL if duty is not PROVE)).inputs
    assert not owed(()).inputs

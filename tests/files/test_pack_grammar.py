"""Every field that a pack may have arrives as what it says, or is refused with file, line, field and expectation."""

from __future__ import annotations

import pytest

from orchestrator.evidence.records import retain_until_ms
from orchestrator.policy.counters import CounterKind
from orchestrator.policy.facts import Declared
from orchestrator.policy.jurisdictions import EEA, Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Grade, Personal
from orchestrator.policy.packs import (
    Confidence,
    Effect,
    Mode,
    Obligation,
    ObligationKind,
    Operator,
    Subject,
    Test,
)
from orchestrator.policy.pathways import PathwayKind
from tests.files.whole_pack import WHOLE, Edit, load_text, refused

ADEQUATE = frozenset({Jurisdiction("CH"), Jurisdiction("JP")})
KINDS_WORDS = "expected exactly one of retain, prove_no_domestic_input, disclose, label, notify"


def words(*members: str) -> frozenset[str]:
    return frozenset(members)


def test_every_field_of_a_pack_arrives() -> None:
    pack = load_text(WHOLE)
    assert (pack.id, pack.version, pack.topic, pack.mode) == ("xx-whole", 3, "transfer", Mode.SHADOW)
    assert pack.jurisdictions == EEA | {"GB"}, "a list of the pack is one of its own jurisdictions"
    grant, require, oblige, forbid = pack.rules
    assert [rule.effect for rule in pack.rules] == [Effect.GRANT, Effect.REQUIRE, Effect.OBLIGE, Effect.FORBID]
    assert [rule.confidence for rule in pack.rules] == [
        Confidence.MEDIUM,
        Confidence.LOW,
        Confidence.UNCONFIRMED,
        Confidence.HIGH,
    ]
    assert grant.when == (
        Test(Subject.PERSONAL, Operator.AT_MOST, Personal.PERSONAL),
        Test(Subject.GRADE, Operator.AT_MOST, Grade.GENERAL),
        Test(Subject.DOMESTIC, Operator.AT_MOST, Domestic.NO),
        Test(Subject.CLEAN, Operator.AT_MOST, Clean.RAW),
        Test(Subject.CRITICAL_INFRASTRUCTURE, Operator.AT_MOST, Declared.NO),
        Test(Subject.CATEGORIES, Operator.WITHIN, members=words("contact", "work")),
        Test(Subject.ORIGIN, Operator.AVOIDS, members=words("CN")),
        Test(Subject.LOCATED, Operator.WITHIN, members=EEA | ADEQUATE),
        Test(Subject.COLLECTED, Operator.AVOIDS, members=words("CN", "US")),
        Test(Subject.PURPOSE, Operator.WITHIN, members=words("inference", "billing")),
        Test(Subject.ASSET, Operator.WITHIN, members=words("payload", "audit")),
        Test(Subject.PROCESSED_IN, Operator.WITHIN, members=EEA | ADEQUATE),
        Test(Subject.TARGET, Operator.WITHIN, members=EEA | ADEQUATE),
        Test(Subject.TARGET_SOIL, Operator.BEYOND, members=words("CN")),
        Test(Subject.SOURCE, Operator.TOUCHES, members=EEA),
        Test(Subject.SOURCE_SOIL, Operator.AVOIDS, members=words("CN")),
        Test(Subject.ACTION, Operator.IN, members=words("infer", "store")),
        Test(Subject.LEG, Operator.IN, members=words("edge-pool", "sink")),
        Test(Subject.COUNTER, Operator.BELOW, 100_000, counter=CounterKind.CN_PERSONS),
    )
    assert grant.obligations == (
        Obligation(ObligationKind.RETAIN, "P6M"),
        Obligation(ObligationKind.PROVE_NO_DOMESTIC_INPUT, "CN"),
        Obligation(ObligationKind.DISCLOSE, "eu-art-50"),
        Obligation(ObligationKind.LABEL, "synthetic"),
    )
    assert (grant.needs, grant.unless, grant.pathways) == ("", (), ())
    assert require.when == (
        Test(Subject.PERSONAL, Operator.AT_LEAST, Personal.PERSONAL),
        Test(Subject.CATEGORIES, Operator.TOUCHES, members=words("health")),
        Test(Subject.ORIGIN, Operator.BEYOND, members=words("CN")),
        Test(Subject.COUNTER, Operator.AT_LEAST, 10, counter=CounterKind.US_HEALTH),
    )
    assert require.unless == (
        Test(Subject.DOMESTIC, Operator.AT_MOST, Domestic.NO),
        Test(Subject.COLLECTED, Operator.AVOIDS, members=words("CN")),
        Test(Subject.COUNTER, Operator.BELOW, 1_000, counter=CounterKind.US_HEALTH),
    )
    assert require.pathways == (
        frozenset({PathwayKind.EU_SCC, PathwayKind.EU_BCR}),
        frozenset({PathwayKind.EU_TIA}),
    )
    assert require.needs == "Clauses and an assessment."
    assert oblige.obligations == (
        Obligation(ObligationKind.NOTIFY, "eu-13-cn"),
        Obligation(ObligationKind.RETAIN, "P1Y6M2D"),
    )
    assert forbid.when == (Test(Subject.PURPOSE, Operator.BEYOND, members=words("inference")),)


def test_a_grant_that_does_not_say_is_for_inference_of_a_payload_and_its_way_back() -> None:
    text = WHOLE
    for line in ("purpose: {within: [inference, billing]}", "asset: {within: [payload, audit]}"):
        text = text.replace(f"      - {line}\n", "")
    text = text.replace("      - action: {in: [infer, store]}\n", "").replace("leg: sink", "leg: edge-pool")
    text = text.replace("action: store", "action: infer")
    grant = load_text(text).rules[0]
    assert grant.when[-3:] == (
        Test(Subject.ACTION, Operator.IN, members=words("infer", "return")),
        Test(Subject.PURPOSE, Operator.WITHIN, members=words("inference", "embedding")),
        Test(Subject.ASSET, Operator.WITHIN, members=words("payload")),
    )


UNLESS = "unless:"
OBLIGE, GRANT_DUTIES = "id: XX-OBLIGE", "obligations:"
VECTOR = "vectors:"

REFUSED: list[tuple[Edit, str, str]] = [
    # Lists.
    (Edit("name: EU-ADEQUATE", "name: EU"), "lists[0].name", "at least 4 characters"),
    (Edit("name: EU-ADEQUATE", "name: EEA"), "lists[0].name", "such as EU-ADEQUATE"),
    (Edit("name: EU-ADEQUATE", "name: eu-adequate"), "lists[0].name", "in capitals"),
    (Edit("name: WIDER-LIST", "name: EU-ADEQUATE"), "lists[1].name", "once"),
    (Edit("dated: 2026-08-05", "dated: 2026-13-05"), "lists[0].dated", "a date such as"),
    (Edit("members: [CH, JP]", "members: []"), "lists[0].members", "at least one jurisdiction"),
    (Edit("[CH, JP]", "[CH, JP, CH]"), "lists[0].members[2]", "once"),
    (Edit("[CH, JP]", "[CH, WIDER-LIST]"), "lists[0].members[1]", "group EEA"),
    (Edit("[CH, JP]", "[CH, no]"), "lists[0].members[1]", "in capitals"),
    (Edit("[CH, JP]", "[CH, false]"), "lists[0].members[1]", "text"),
    (
        Edit("[EEA, WIDER-LIST]", "[EEA, OTHER-LIST]"),
        "jurisdictions[1]",
        "a list of this pack (EU-ADEQUATE, WIDER-LIST)",
    ),
    (
        Edit("target: {within: [EEA, EU-ADEQUATE]}", "target: {within: [EEA, ADEQUATE]}"),
        "rules[0].when[12].target.within[1]",
        "a list of this pack",
    ),
    # Ordered subjects.
    (Edit("{at_most: raw}", "{at_most: dirty}"), "rules[0].when[3].clean.at_most", "anonymised, deidentified"),
    (
        Edit("critical_infrastructure: {at_most: no}", "critical_infrastructure: {at_most: maybe}"),
        "rules[0].when[4].critical_infrastructure.at_most",
        "no, yes, unknown",
    ),
    (
        Edit("critical_infrastructure: {at_most: no}", "critical_infrastructure: {at_most: false}"),
        "rules[0].when[4].critical_infrastructure.at_most",
        "text",
    ),
    (Edit("clean: {at_most: raw}", "clean: {within: [raw]}"), "rules[0].when[3].clean.within", "at_most, at_least"),
    (Edit("clean: {at_most: raw}", "clean: raw"), "rules[0].when[3].clean", "a mapping"),
    # Sets.
    (Edit("[contact, work]", "[contact, shoes]"), "rules[0].when[5].categories.within[1]", "contact, account, device"),
    (Edit("[contact, work]", "[contact, unknown]"), "rules[0].when[5].categories.within[1]", "contact, account"),
    (Edit("[contact, work]", "[contact, contact]"), "rules[0].when[5].categories.within[1]", "once"),
    (Edit("[contact, work]", "[]"), "rules[0].when[5].categories.within", "at least one"),
    (Edit("[inference, billing]", "[inference, DE]"), "rules[0].when[9].purpose.within[1]", "inference, embedding"),
    (Edit("[payload, audit]", "[payload, model]"), "rules[0].when[10].asset.within[1]", "payload, kv_cache"),
    (
        Edit("origin: {avoids: [CN]}", "origin: {avoids: [CN], within: [DE]}"),
        "rules[0].when[6].origin",
        "exactly one of within, beyond, touches, avoids",
    ),
    (Edit("origin: {avoids: [CN]}", "origin: {avoids: CN}"), "rules[0].when[6].origin.avoids", "a list"),
    (
        Edit("processed_in: {within: [EEA, EU-ADEQUATE]}", "processed_in: {within: [XX]}"),
        "rules[0].when[11].processed_in.within[0]",
        "ISO 3166-1",
    ),
    (
        Edit("located: {within: [EEA, EU-ADEQUATE]}", "located: {within: [unknown]}"),
        "rules[0].when[7].located.within[0]",
        "ISO",
    ),
    # Movements.
    (Edit("{in: [edge-pool, sink]}", "{in: [edge-moon]}"), "rules[0].when[17].leg.in[0]", "subject-edge, edge-pool"),
    (Edit("{in: [edge-pool, sink]}", "{in: []}"), "rules[0].when[17].leg.in", "at least one leg"),
    (Edit("{in: [edge-pool, sink]}", "{in: [sink, sink]}"), "rules[0].when[17].leg.in[1]", "once"),
    (Edit("leg: {in: [edge-pool, sink]}", "leg: {within: [sink]}"), "rules[0].when[17].leg.within", "the fields in"),
    # Counters.
    (
        Edit("name: cn_persons_year, below: 100000", "name: persons, below: 100000"),
        "rules[0].when[18].counter.name",
        "cn_persons_year",
    ),
    (Edit("name: cn_persons_year, below: 100000", "below: 100000"), "rules[0].when[18].counter.name", "missing"),
    (
        Edit("name: cn_persons_year, below: 100000", "name: cn_persons_year"),
        "rules[0].when[18].counter",
        "exactly one of at_least, below",
    ),
    (
        Edit("below: 100000", "below: 100000, at_least: 1"),
        "rules[0].when[18].counter",
        "exactly one of at_least, below",
    ),
    (Edit("below: 100000", "below: 0"), "rules[0].when[18].counter.below", ">= 1"),
    (Edit("below: 100000", 'below: "100000"'), "rules[0].when[18].counter.below", "whole number"),
    (Edit("below: 100000", "below: 100000.5"), "rules[0].when[18].counter.below", "quoted decimal"),
    (Edit("below: 100000", "below: 1000000001"), "rules[0].when[18].counter.below", "<= 1000000000"),
    (Edit("below: 100000", "at_most: 100000"), "rules[0].when[18].counter.at_most", "one of the fields name, at_least"),
    # Tests that are not one test.
    (
        Edit("- clean: {at_most: raw}", "- {clean: {at_most: raw}, grade: {at_most: core}}"),
        "rules[0].when[3]",
        "exactly one",
    ),
    (Edit("- clean: {at_most: raw}", "- personal: {at_most: personal}"), "rules[0].when[3]", "once"),
    (Edit("- clean: {at_most: raw}", "- soil: {within: [DE]}"), "rules[0].when[3].soil", "one of the fields personal"),
    # What lifts a rule.
    (
        Edit("- domestic: {at_most: no}", "- domestic: {at_least: yes}", UNLESS),
        "rules[1].unless[0].domestic.at_least",
        "at_most in a grant",
    ),
    (
        Edit("- collected: {avoids: [CN]}", "- collected: {touches: [DE]}", UNLESS),
        "rules[1].unless[1].collected.touches",
        "within or avoids",
    ),
    (
        Edit("below: 1000}", "at_least: 1000}", UNLESS),
        "rules[1].unless[2].counter.at_least",
        "us_health_persons_12m=1000, unlike 999, which is lower",
    ),
    *(
        (
            Edit("- domestic: {at_most: no}", f"- {subject}: {{{comparison}}}", UNLESS),
            f"rules[1].unless[0].{subject}",
            "a test of a label or a counter",
        )
        for subject, comparison in (
            ("target", "within: [DE]"),
            ("target_soil", "avoids: [CN]"),
            ("source", "within: [DE]"),
            ("source_soil", "within: [DE]"),
            ("action", "in: [infer]"),
            ("leg", "in: [sink]"),
            ("processed_in", "avoids: [CN]"),
        )
    ),
    (
        Edit("- collected: {avoids: [CN]}", "- domestic: {at_most: no}", UNLESS),
        "rules[1].unless[1]",
        "once, but item 0 has it",
    ),
    (
        Edit(
            "    obligations:\n      - retain: P6M",
            "    unless:\n      - grade: {at_most: public}\n    obligations:\n      - retain: P6M",
        ),
        "rules[0].unless",
        "no such field in a grant",
    ),
    # Pathways.
    (Edit("{any_of: [eu_scc, eu_bcr]}", "{any_of: []}"), "rules[1].requires[0].any_of", "at least one"),
    (Edit("{any_of: [eu_scc, eu_bcr]}", "{any_of: [eu_scc, eu_scc]}"), "rules[1].requires[0].any_of[1]", "once"),
    (
        Edit("{any_of: [eu_scc, eu_bcr]}", "{any_of: [eu_scc, eu_pact]}"),
        "rules[1].requires[0].any_of[1]",
        "eu_scc, eu_tia",
    ),
    (Edit("{any_of: [eu_scc, eu_bcr]}", "{all_of: [eu_scc]}"), "rules[1].requires[0].all_of", "any_of"),
    (Edit("{any_of: [eu_scc, eu_bcr]}", "[eu_scc, eu_bcr]"), "rules[1].requires[0]", "expected"),
    (Edit(", eu_tia]", ", eu_tia, eu_tia]"), "rules[1].requires[2]", "once"),
    # Duties.
    (Edit("- retain: P6M", "- retain: P6W", GRANT_DUTIES), "rules[0].obligations[0].retain", "ISO 8601"),
    (Edit("- retain: P6M", "- {}", GRANT_DUTIES), "rules[0].obligations[0]", KINDS_WORDS),
    (Edit("- retain: P6M", "- {retain: P6M, label: a}", GRANT_DUTIES), "rules[0].obligations[0]", KINDS_WORDS),
    (Edit("- retain: P6M", "- retain: 6", GRANT_DUTIES), "rules[0].obligations[0].retain", "text"),
    (Edit("- label: synthetic", "- retain: P6M", GRANT_DUTIES), "rules[0].obligations[3]", "once"),
    (
        Edit("- prove_no_domestic_input: CN", "- prove_no_domestic_input: EEA"),
        "rules[0].obligations[1].prove_no_domestic_input",
        "ISO",
    ),
    (
        Edit("- prove_no_domestic_input: CN", "- prove_no_domestic_input: cn"),
        "rules[0].obligations[1].prove_no_domestic_input",
        "ISO",
    ),
    (
        Edit("- prove_no_domestic_input: CN", "- prove_no_domestic_input: true"),
        "rules[0].obligations[1].prove_no_domestic_input",
        "text",
    ),
    *(
        (
            Edit(f"- {kind}: {was}", f'- {kind}: "{text}"'),
            f"rules[0].obligations[{index}].{kind}",
            "it becomes a header",
        )
        for kind, was, index in (("disclose", "eu-art-50", 2), ("label", "synthetic", 3))
        for text in ("", "Made by AI", "AI", "a\\r\\nx-admin: 1", "a;b=1", "-a", "a-", "a" * 65, "é")
    ),
    (
        Edit("- label: synthetic", "- notify: eu-13-cn", GRANT_DUTIES),
        "rules[0].obligations[3].notify",
        "whose effect is oblige",
    ),
    (Edit("- notify: eu-13-cn", "- notify: EU 13", OBLIGE), "rules[2].obligations[0].notify", "a name"),
    (Edit("- notify: eu-13-cn", "- inform: eu-13-cn", OBLIGE), "rules[2].obligations[0].inform", "one of the fields"),
    # Vectors.
    (
        Edit("action: store\n        leg: sink", "action: store\n        leg: door", VECTOR),
        "rules[0].vectors[0].leg",
        "subject-edge",
    ),
    (
        Edit("target_access: [JP]", "target_access: [JAPAN]"),
        "rules[0].vectors[0].target_access[0]",
        "a list of this pack",
    ),
    (
        Edit("processed_in: [EU-ADEQUATE]", "processed_in: [EU-OTHER]"),
        "rules[0].vectors[0].processed_in[0]",
        "a list of this pack",
    ),
    (Edit("{cn_persons_year: 99999}", "{cn_persons: 99999}"), "rules[0].vectors[0].counters", "as a key"),
    (Edit("{cn_persons_year: 99999}", "{cn_persons_year: -1}"), "rules[0].vectors[0].counters.cn_persons_year", ">= 0"),
    (
        Edit("critical_infrastructure: false", "critical_infrastructure: no"),
        "rules[0].vectors[0].critical_infrastructure",
        "true or false",
    ),
    (Edit("categories: [contact]", "categories: [all]"), "rules[0].vectors[0].label.categories[0]", "contact, account"),
    (Edit("clean: raw", "clean: RAW", VECTOR), "rules[0].vectors[0].label.clean", "anonymised"),
    (Edit("located: [DE]", "located: []"), "rules[0].vectors[0].label.located", "at least one"),
    (Edit("located: [DE]", "located: [DE, unknown]"), "rules[0].vectors[0].label.located[1]", "ISO 3166"),
    (Edit("{label: {asset: [audit]}", "{label: {asset: []}"), "rules[2].vectors[1].label.asset", "at least one"),
    (
        Edit("{label: {purpose: [finetune]}", "{label: {purpose: []}"),
        "rules[3].vectors[0].label.purpose",
        "at least one",
    ),
    # What each field of a vector says is heard: taken away or changed, the vector comes out otherwise.
    (
        Edit("target_access: [JP]", "target_access: [CN]"),
        "rules[0].vectors[0].expect",
        "rule XX-GRANT to hold for vector 0",
    ),
    (Edit("processed_in: [EU-ADEQUATE]", "processed_in: [CN]"), "rules[0].vectors[0].expect", "to hold"),
    (Edit("leg: sink", "leg: edge-subject"), "rules[0].vectors[0].expect", "to hold"),
    (Edit("action: store", "action: export", VECTOR), "rules[0].vectors[0].expect", "to hold"),
    (Edit("{cn_persons_year: 99999}", "{cn_persons_year: 100000}"), "rules[0].vectors[0].expect", "to hold"),
    (Edit("{cn_persons_year: 99999}", "{us_omic_persons_12m: 1}"), "rules[0].vectors[0].expect", "to hold"),
    (Edit("critical_infrastructure: false", "critical_infrastructure: true"), "rules[0].vectors[0].expect", "to hold"),
    (
        Edit("critical_infrastructure: false\n        expect: holds", "expect: holds"),
        "rules[0].vectors[0].expect",
        "to hold",
    ),
    (Edit("from: [DE]", "from: [CN]", VECTOR), "rules[0].vectors[0].expect", "to hold"),
    (
        Edit("domestic: no, collected: [DE]}", "domestic: no}", "id: XX-REQUIRE"),
        "rules[1].vectors[1].expect",
        "not hold",
    ),
]


@pytest.mark.parametrize(("edit", "field", "expected"), REFUSED, ids=lambda part: repr(getattr(part, "new", part))[:50])
def test_what_a_pack_may_not_say_is_refused_at_its_place(edit: Edit, field: str, expected: str) -> None:
    text, line = edit.apply()
    error = refused(text)
    assert error.field == field
    assert expected in error.expected
    if not error.expected.startswith("expected rule ") and "missing" not in error.expected:
        assert error.line in range(line, line + edit.new.count("\n") + 1)
    else:
        assert 0 < error.line <= text.count("\n")


def test_norway_is_a_country_and_no_is_a_word() -> None:
    """`no` is text in our YAML: it never becomes false, whatever an editor says."""
    assert load_text(WHOLE.replace("origin: [NO]", 'origin: ["NO"]')) == load_text(WHOLE)
    assert load_text(WHOLE.replace("{at_most: no}", '{at_most: "no"}')) == load_text(WHOLE)
    assert refused(WHOLE.replace("origin: [NO]", "origin: [no]")).field == "rules[0].vectors[0].label.origin[0]"
    assert refused(WHOLE.replace("domestic: no\n", "domestic: false\n")).field == "rules[0].vectors[0].label.domestic"


@pytest.mark.parametrize("text", ["P6M", "P3Y", "P30D", "P1Y6M", "P9999Y", "P1Y2M3D"])
def test_every_duration_that_is_accepted_can_be_kept(text: str) -> None:
    duty = load_text(Edit("- retain: P6M", f"- retain: {text}", GRANT_DUTIES).apply()[0]).rules[0].obligations[0]
    assert duty == Obligation(ObligationKind.RETAIN, text)
    assert retain_until_ms((text,), 0) > 0


def test_an_unknown_counter_is_refused_with_the_known_ones() -> None:
    error = refused(Edit("{cn_persons_year: 99999}", "{cn_persons: 99999}").apply()[0])
    assert error.field == "rules[0].vectors[0].counters"
    assert all(kind.value in error.expected for kind in CounterKind)

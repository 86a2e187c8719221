"""HOME is the country that is asked, and an exemption may have a price; refused where they mean nothing."""

from __future__ import annotations

import textwrap

from orchestrator.policy.bundle import AdmittedPack, Horizons, Law
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.packs import HOME, Obligation, ObligationKind
from tests.files.whole_pack import load_text, refused

AU, KE = Jurisdiction("AU"), Jurisdiction("KE")
TEXT = textwrap.dedent(
    """\
    version: 1
    id: xx-home
    title: Two countries, each with its own border
    topic: transfer
    jurisdictions: [AU, KE]
    effective_from: 2026-01-01
    mode: enforce
    rules:
      - id: XX-LEAVE
        effect: require
        when:
          - personal: {at_least: personal}
          - target: {beyond: [HOME]}
        unless:
          - collected: {avoids: [HOME]}
        exemption_obligations: [{prove_no_domestic_input: AU}]
        requires: [recorded_basis]
        sentence: Personal data leaves its country on a basis.
        source: {instrument: An Act, article: "1", dated: 2026-01-01}
        confidence: low
        vectors:
          - {label: {personal: personal}, from: [AU], target: [KE], action: infer, expect: holds}
          - {label: {personal: personal}, asked: KE, from: [AU], target: [KE], action: infer, expect: not}
    """
)


def test_each_country_reads_home_as_itself() -> None:
    pack = load_text(TEXT)
    law = Law([AdmittedPack(pack, pack.jurisdictions)], Horizons(1, 2, 3))
    for country in (AU, KE):
        (read,) = law.packs_of(country)
        tests = [*read.pack.rules[0].when, *read.pack.rules[0].unless]
        assert [test.members for test in tests if test.members] == [{country}, {country}]
    assert any(HOME in test.members for test in pack.rules[0].when), "the pack itself stays as it was written"


def test_a_pack_without_home_is_read_as_it_is() -> None:
    pack = load_text(
        TEXT.replace("HOME", "AU").replace(
            "target: [KE], action: infer, expect: not", "target: [AU], action: infer, expect: not"
        )
    )
    law = Law([AdmittedPack(pack, pack.jurisdictions)], Horizons(1, 2, 3))
    assert law.packs_of(AU)[0].pack is pack


def test_an_exemption_has_its_price() -> None:
    rule = load_text(TEXT).rules[0]
    assert rule.exemption == (Obligation(ObligationKind.PROVE_NO_DOMESTIC_INPUT, "AU"),)
    assert rule.obligations == ()


def test_a_price_without_an_exemption_is_refused() -> None:
    text = TEXT.replace("    unless:\n      - collected: {avoids: [HOME]}\n", "")
    assert "unless" not in text
    assert refused(text).field == "rules[0].exemption_obligations"


def test_a_notice_is_no_price() -> None:
    error = refused(TEXT.replace("{prove_no_domestic_input: AU}", "{notify: told}"))
    assert error.field == "rules[0].exemption_obligations[0].notify"
    assert "oblige" in error.expected


def test_what_is_asked_in_a_vector_is_a_country() -> None:
    assert refused(TEXT.replace("asked: KE", "asked: XX")).field == "rules[0].vectors[1].asked"


def test_home_is_no_name_of_a_list() -> None:
    text = TEXT.replace("rules:", "lists: [{name: HOME, dated: 2026-01-01, members: [AU]}]\nrules:", 1)
    assert refused(text).field == "lists[0].name"

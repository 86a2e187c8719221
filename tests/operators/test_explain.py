"""What `tidegate explain` says of the example requests, by pool, movement and jurisdiction, was worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.desk import (
    LAW,
    NOW,
    NOW_MS,
    REQUESTS,
    TWO_SIDES,
    Json,
    change,
    copy_of,
    explain,
    pool,
    run,
    said,
    verdicts,
    write,
)

Said = dict[str, str]
"""By jurisdiction, the rules that refuse; nothing where it allows."""
Route = tuple[Said, Said]
"""There and back."""

HOME_DE: Route = ({"DE": ""}, {"DE": ""})
AI = {"disclose ai-interaction", "label ai-generated"}
LOGS = {"retain P6M"}
PROOF = {"prove_no_domestic_input CN"}

# General data: CN-CBDF-03, SG-PDPA-GENERAL and EU-GENERAL grant it everywhere.
GENERAL = {
    "cn-guizhou": ({"CN": "", "SG": ""}, {"CN": "", "SG": ""}),
    "cn-shanghai": ({"CN": "", "SG": ""}, {"CN": "", "SG": ""}),
    "eu-frankfurt": ({"DE": "", "SG": ""}, {"DE": "", "SG": ""}),
}
# No papers for China, and no notice that names it. The answer may come back: it stays in, or returns to, the EEA.
GERMAN_IN_CHINA: Route = ({"CN": "", "DE": "EU-13-CN EU-46 EU-RA"}, {"CN": "", "DE": ""})
GERMAN = {"cn-guizhou": GERMAN_IN_CHINA, "cn-shanghai": GERMAN_IN_CHINA, "eu-frankfurt": HOME_DE}
# Singapore's own rule on leaving it, and the notice that China asks for when its persons' data leaves it, under every
# threshold though it is. The law of China comes along to Frankfurt, where the payload is beyond China both ways.
CHINESE_IN_CHINA: Route = ({"CN": "", "SG": "SG-PDPA-26"}, {"CN": "CN-CBDF-10", "SG": ""})
CHINESE = {
    "cn-guizhou": CHINESE_IN_CHINA,
    "cn-shanghai": CHINESE_IN_CHINA,
    "eu-frankfurt": (
        {"CN": "CN-CBDF-10", "DE": "", "SG": "SG-PDPA-26"},
        {"CN": "CN-CBDF-10", "DE": "EU-46", "SG": ""},
    ),
}
# 10,000 persons are not more than 10,000: the US allows. Frankfurt's way back to Singapore leaves the EEA.
HEALTH_IN_CHINA: Route = ({"CN": "", "SG": "SG-PDPA-26", "US": ""}, {"CN": "", "SG": "", "US": ""})
HEALTH = {
    "cn-guizhou": HEALTH_IN_CHINA,
    "cn-shanghai": HEALTH_IN_CHINA,
    "eu-frankfurt": (
        {"DE": "", "SG": "SG-PDPA-26", "US": ""},
        {"DE": "EU-46 EU-46-SPECIAL", "SG": "", "US": ""},
    ),
}
# What was made in China brings the law of China to Frankfurt.
BOTH: Route = ({"CN": "", "DE": ""}, {"CN": "", "DE": ""})
RESUMED = {"cn-guizhou": BOTH, "cn-shanghai": BOTH, "eu-frankfurt": BOTH}
# Papers with river-cloud for CN, and with tidegate-europe for DE and CN and whoever reads there from China. None with
# the operators in Singapore. The Chinese owner of 49 % in Paris has no say, the one of 50 % in Singapore has.
PAPERS = {
    "cn-river": ({"CN": "", "DE": ""}, {"CN": "", "DE": ""}),
    "de-main": HOME_DE,
    "de-remote": ({"CN": "", "DE": ""}, {"CN": "", "DE": ""}),
    "fr-loire": ({"DE": "", "FR": ""}, {"DE": "", "FR": ""}),
    "sg-harbour": ({"DE": "EEA-D-46", "SG": ""}, {"DE": "", "SG": "SG-D-26"}),
    "sg-straits": ({"CN": "", "DE": "EEA-D-46", "SG": "SG-D-26"}, {"CN": "", "DE": "", "SG": "SG-D-26"}),
}
# The same papers are for personal data at most, and for other categories.
OUTSIDE = {
    **PAPERS,
    "cn-river": ({"CN": "", "DE": "EEA-D-46"}, {"CN": "", "DE": ""}),
    "de-remote": ({"CN": "", "DE": "EEA-D-46"}, {"CN": "", "DE": ""}),
}
# 99,999 persons: CN-D-05 grants wherever it goes. The contract with river-cloud opens the way out of Singapore to it
# alone; the one with straits-compute is revoked.
IN_GERMANY: Route = ({"CN": "", "DE": "", "SG": "SG-D-26"}, {"CN": "", "DE": "EEA-D-46", "SG": ""})
THRESHOLD = {
    "cn-river": ({"CN": "", "SG": ""}, {"CN": "", "SG": ""}),
    "de-main": IN_GERMANY,
    "de-remote": ({"CN": "", "DE": "EEA-D-46", "SG": "SG-D-26"}, {"CN": "", "DE": "EEA-D-46", "SG": ""}),
    "fr-loire": ({"CN": "", "FR": "", "SG": "SG-D-26"}, {"CN": "", "FR": "EEA-D-46", "SG": ""}),
    "sg-harbour": ({"CN": "", "SG": ""}, {"CN": "", "SG": ""}),
    "sg-straits": ({"CN": "", "SG": "SG-D-26"}, {"CN": "", "SG": ""}),
}
SINKS = {
    "cn-river": ({"CN": "", "SG": ""}, {"CN": "", "SG": ""}),
    "de-main": ({"DE": "", "SG": ""}, {"DE": "", "SG": ""}),
    "de-remote": ({"CN": "", "DE": "", "SG": ""}, {"CN": "", "DE": "", "SG": ""}),
    "fr-loire": ({"FR": "", "SG": ""}, {"FR": "", "SG": ""}),
    "sg-harbour": ({"SG": ""}, {"SG": ""}),
    "sg-straits": ({"CN": "", "SG": ""}, {"CN": "", "SG": ""}),
}

EXAMPLES: list[tuple[str, Path, int, str | None, dict[str, Route]]] = [
    ("general-from-singapore", TWO_SIDES, 200, "cn-guizhou", GENERAL),
    ("german-personal", TWO_SIDES, 200, "eu-frankfurt", GERMAN),
    ("chinese-origin", TWO_SIDES, 451, None, CHINESE),
    ("us-health", TWO_SIDES, 451, None, HEALTH),
    ("resumed-answer", TWO_SIDES, 200, "cn-guizhou", RESUMED),
    ("nothing-declared", LAW, 200, "cn-river", PAPERS),
    ("outside-the-papers", LAW, 200, "fr-loire", OUTSIDE),
    ("at-the-threshold", LAW, 200, "cn-river", THRESHOLD),
    ("general-with-sinks", LAW, 200, "cn-river", SINKS),
]


def request(name: str) -> Path:
    return REQUESTS / f"{name}.yaml"


def duties(one: Json) -> set[str]:
    return {f"{duty['kind']} {duty['argument']}" for duty in one["obligations"]}


def test_every_example_request_has_its_verdicts_here() -> None:
    assert {path.stem for path in REQUESTS.iterdir()} == {"unknown-labels", *(name for name, *_ in EXAMPLES)}


@pytest.mark.parametrize(("name", "bundle", "status", "chosen", "expected"), EXAMPLES, ids=[one[0] for one in EXAMPLES])
def test_the_verdicts_of_an_example(
    name: str, bundle: Path, status: int, chosen: str | None, expected: dict[str, Route]
) -> None:
    found = explain(request(name), bundle)
    assert {one["pool"]: (said(one, "infer"), said(one, "return")) for one in found["pools"]} == expected
    assert (found["status"], found["chosen"]) == (status, chosen)
    open_pools = [name for name, (there, back) in expected.items() if not any((*there.values(), *back.values()))]
    assert found["permitted"] == open_pools
    for one in found["pools"]:
        there, back = expected[one["pool"]]
        refusing = {rule for words in (*there.values(), *back.values()) for rule in words.split()}
        assert one["allowed"] is not bool(refusing)
        assert refusing in (set(), set(one["rules"]))
        assert {reason["rule"] for reason in one["reasons"]} == refusing
        for movement in one["movements"]:
            answers = movement["jurisdictions"]
            assert movement["allowed"] is all(answer["allowed"] for answer in answers)
            assert all(bool(answer["grants"]) or not answer["allowed"] for answer in answers)


def test_a_refusal_says_which_law_by_which_source_and_what_would_be_needed() -> None:
    found = explain(request("german-personal"), TWO_SIDES)
    reasons = {reason["rule"]: reason for reason in pool(found, "cn-guizhou")["reasons"]}
    assert reasons["EU-46"]["jurisdiction"] == "DE"
    assert "Art. 44" in reasons["EU-46"]["source"]["article"]
    assert (reasons["EU-46"]["source"]["dated"], reasons["EU-46"]["confidence"]) == ("2016-04-27", "high")
    assert any("eu_scc" in needs for needs in pool(found, "cn-guizhou")["needs"])


def test_unknown_labels_are_refused_before_any_country_is_asked() -> None:
    found = explain(request("unknown-labels"), TWO_SIDES)
    assert set(verdicts(found).values()) == {"TG-UNKNOWN-LABEL"}
    assert (found["status"], found["permitted"], found["regulated"]) == (451, [], True)
    one = found["pools"][0]
    assert [movement["jurisdictions"] for movement in one["movements"]] == [[], []]
    assert not any(movement["allowed"] for movement in one["movements"])
    assert {(reason["jurisdiction"], "source" in reason) for reason in one["reasons"]} == {(None, False)}
    assert all("x-tidegate-labels" in needs for needs in one["needs"])


def test_duties_come_with_what_is_allowed() -> None:
    found = explain(request("general-from-singapore"), TWO_SIDES)
    assert {one["pool"]: duties(one) for one in found["pools"]} == {
        "cn-guizhou": LOGS,
        "cn-shanghai": LOGS,
        "eu-frankfurt": AI,
    }
    assert duties(pool(explain(request("resumed-answer"), TWO_SIDES), "eu-frankfurt")) == AI | LOGS
    papers = explain(request("nothing-declared"), LAW)
    # The one grant of China is given on the condition of its proof; where another holds without one, none is owed.
    assert duties(pool(papers, "cn-river")) == AI | LOGS | PROOF | {"notify eea-13-cn"}
    assert duties(pool(explain(request("general-with-sinks"), LAW), "cn-river")) == LOGS
    assert duties(pool(papers, "de-main")) == AI
    assert duties(pool(papers, "sg-harbour")) == set()
    assert duties(pool(explain(request("at-the-threshold"), LAW), "cn-river")) == {"retain P6M", "retain P3Y"}


def test_a_pool_that_the_edge_cannot_reach_is_permitted_and_not_chosen() -> None:
    found = explain(request("general-from-singapore"), TWO_SIDES)
    one = pool(found, "eu-frankfurt")
    assert (one["allowed"], one["assurance"], one["drop"], one["terms"]) == (True, "edge-only", "not_reachable", None)
    chosen = pool(found, "cn-guizhou")
    assert (chosen["drop"], chosen["assurance"]) == (None, "two-party")
    assert int(chosen["terms"]["total_pico"]) < int(pool(found, "cn-shanghai")["terms"]["total_pico"])


def test_permitted_and_not_feasible_is_503(tmp_path: Path) -> None:
    bundle = copy_of(LAW, tmp_path / "law")
    change(bundle / "settings.yaml", "drains: []", "drains: [cn-river, de-main, de-remote, fr-loire]")
    found = explain(request("nothing-declared"), bundle)
    assert (found["status"], found["chosen"]) == (503, None)
    assert found["permitted"] == ["cn-river", "de-main", "de-remote", "fr-loire"]
    assert {pool(found, name)["drop"] for name in found["permitted"]} == {"drained"}


def test_sinks_are_places_and_need_grants_of_their_own(tmp_path: Path) -> None:
    kept = {sink["sink"]: sink for sink in explain(request("general-with-sinks"), LAW)["sinks"]}
    assert {name: (one["kind"], one["action"]) for name, one in kept.items()} == {
        "cn-cache": ("cache", "reuse"),
        "de-artefacts": ("artefacts", "store"),
        "de-traces": ("trace", "export"),
        "sg-logs": ("log", "store"),
        "sg-results": ("results", "store"),
    }
    # From Singapore: SG-D-KEEP is for Singapore. Germany grants its own sinks; Singapore grants none abroad.
    assert {name: " ".join(one["rules"]) for name, one in kept.items()} == {
        "cn-cache": "TG-NO-GRANT",
        "de-artefacts": "TG-NO-GRANT",
        "de-traces": "TG-NO-GRANT",
        "sg-logs": "SG-D-KEEP",
        "sg-results": "SG-D-KEEP",
    }
    assert duties(kept["sg-logs"]) == {"retain P1Y"}
    here = "version: 1\nedge: edge-de\ntenant: kontor\nlabels: 'personal=none, categories=()'\n"
    there = {sink["sink"]: sink["allowed"] for sink in explain(write(tmp_path / "r.yaml", here), LAW)["sinks"]}
    # From Frankfurt to Singapore no rule of the EEA grants what is kept.
    assert there == {
        "cn-cache": False,
        "de-artefacts": True,
        "de-traces": True,
        "sg-logs": False,
        "sg-results": False,
    }


KEEP = """\
version: 1
id: desk-keep
title: What is kept may lie anywhere
topic: keep
jurisdictions: [SG, CN]
effective_from: 2026-01-01
mode: enforce
rules:
  - id: KEEP-1
    effect: grant
    when: [{personal: {at_most: personal}}, {action: {in: [store]}}]
    sentence: It may be kept.
    source: {instrument: A law, article: Art. 1, dated: 2026-01-01}
    confidence: low
    vectors:
      - {label: {personal: none}, from: [SG], target: [SG], action: store, expect: holds}
      - {label: {}, from: [SG], target: [SG], action: store, expect: not}
"""


def test_a_revoked_paper_opens_no_pool_and_no_sink(tmp_path: Path) -> None:
    bundle = copy_of(LAW, tmp_path / "law")
    write(bundle / "packs" / "keep.yaml", KEEP)
    soil = "kind: results\n    place: {infers: [SG], stores: [SG], "
    change(
        bundle / "fleet.yaml",
        soil + "accessors: [tidegate-asia], operator: tidegate-asia}",
        soil + "operator: straits-compute}",
    )
    asked = "version: 1\nedge: edge-sg\ntenant: merlion\nlabels: 'personal=personal, categories=(account)'\n"
    file = write(tmp_path / "r.yaml", asked)

    def answer() -> tuple[str, str]:
        found = explain(file, bundle)
        (sink,) = (sink for sink in found["sinks"] if sink["sink"] == "sg-results")
        return " ".join(pool(found, "sg-straits")["rules"]), " ".join(sink["rules"])

    assert answer() == ("SG-D-26", "SG-D-26")
    (bundle / "revocations.yaml").unlink()
    assert answer() == ("CN-D-04 SG-D-26-BASIS SG-D-HOME", "KEEP-1")


def test_what_a_shadow_pack_would_refuse_is_told_and_changes_nothing() -> None:
    found = explain(request("nothing-declared"), LAW)
    assert {one["pool"]: one["shadow"] for one in found["pools"] if one["shadow"]} == {
        "cn-river": ["EEA-N-CN"],
        "de-remote": ["EEA-N-CN"],
        "sg-straits": ["EEA-N-CN"],
    }
    shown = run("explain", "--request", request("nothing-declared"), "--bundle", LAW, "--at", NOW).out
    assert "in shadow: EEA-N-CN would refuse" in shown


@pytest.mark.parametrize(
    ("owners", "reach"),
    [
        ("{entity: a, country: CN, share_percent: 50}", ["CN", "SG"]),
        ("{entity: a, country: CN, share_percent: 49}", ["SG"]),
        ("{entity: a, country: CN, share_percent: 25}, {entity: b, country: CN, share_percent: 25}", ["CN", "SG"]),
        ("{entity: a, country: CN, share_percent: 49}, {entity: b, country: US, share_percent: 51}", ["SG", "US"]),
        # Through an entity of the file: half of the operator is held by one that is half Chinese.
        ("{entity: lion-holding, country: SG, share_percent: 50}", ["CN", "SG"]),
        ("{entity: lion-holding, country: SG, share_percent: 49}", ["SG"]),
        ("{entity: unlisted, country: SG, share_percent: 100}", ["SG"]),
    ],
)
def test_owners_count_from_half_on_together_and_through_others(tmp_path: Path, owners: str, reach: list[str]) -> None:
    bundle = copy_of(LAW, tmp_path / "law")
    text = (bundle / "fleet.yaml").read_text(encoding="utf-8")
    begin = text.index("    owners:\n", text.index("  - id: straits-compute"))
    end = text.index("  # 49 % are not enough", begin)
    held = "{entity: river-holding, country: CN, share_percent: 50}"
    holding = f"  - {{id: lion-holding, country: SG, owners: [{held}]}}\n"
    write(bundle / "fleet.yaml", f"{text[:begin]}    owners: [{owners}]\n{holding}{text[end:]}")
    assert pool(explain(request("nothing-declared"), bundle), "sg-straits")["places"] == reach


def test_every_voice_on_the_label_is_shown_and_where_they_differ() -> None:
    found = explain(request("us-health"), TWO_SIDES)
    labels = found["labels"]
    assert labels["effective"]["personal"] == "sensitive"  # the category says so
    assert labels["effective"]["origin"] == ["SG", "US"]  # contract and soil, and what the header adds
    assert labels["declared"]["located"] == ["US"]
    assert labels["attested"]["located"] == ["SG"]
    assert labels["soil"] == ["SG"]
    differ = {(one["axis"], one["source"]): (one["said"], one["effective"]) for one in labels["mismatches"]}
    assert differ["personal", "declared"] == ("personal", "sensitive")
    assert differ["located", "declared"] == ("US", "SG US")


def test_a_floor_is_a_minimum(tmp_path: Path) -> None:
    asked = "version: 1\nedge: edge-sg\ntenant: merlion\nlabels: 'grade=public'\n"
    labels = explain(write(tmp_path / "r.yaml", asked), LAW)["labels"]
    assert (labels["declared"]["grade"], labels["floor"]["grade"], labels["effective"]["grade"]) == (
        "public",
        "general",
        "general",
    )
    assert {"axis": "grade", "source": "declared", "said": "public", "effective": "general"} in labels["mismatches"]


@pytest.mark.parametrize(
    ("count", "rules"), [("99999", ""), ("100000", "TG-NO-GRANT"), ("999999999", "TG-NO-GRANT"), (None, "TG-NO-GRANT")]
)
def test_the_threshold_of_china(tmp_path: Path, count: str | None, rules: str) -> None:
    text = request("at-the-threshold").read_text(encoding="utf-8")
    old = "counters:\n  cn_persons_year: 99999\n"
    assert old in text
    new = "" if count is None else old.replace("99999", count)
    found = explain(write(tmp_path / "r.yaml", text.replace(old, new)), LAW)
    assert verdicts(found)["cn-river"] == rules


@pytest.mark.parametrize(
    ("counters", "rules"),
    [
        ("{us_health_persons_12m: 10000, us_identifier_persons_12m: 0}", ""),
        ("{us_health_persons_12m: 10001, us_identifier_persons_12m: 0}", "US-DSP-BULK-HEALTH"),
        ("{us_health_persons_12m: 10000, us_identifier_persons_12m: 100000}", ""),
        ("{us_health_persons_12m: 10000, us_identifier_persons_12m: 100001}", "US-DSP-DEFAULT"),
        ("{us_health_persons_12m: 0}", "US-DSP-DEFAULT"),
        ("{}", "US-DSP-BULK-HEALTH US-DSP-DEFAULT"),
    ],
)
def test_the_thresholds_of_the_united_states(tmp_path: Path, counters: str, rules: str) -> None:
    text = request("us-health").read_text(encoding="utf-8")
    begin = text.index("counters:")
    found = explain(write(tmp_path / "r.yaml", f"{text[:begin]}counters: {counters}\n"), TWO_SIDES)
    assert said(pool(found, "cn-guizhou"), "infer")["US"] == rules
    assert said(pool(found, "cn-guizhou"), "return")["US"] == ""  # it comes back to Singapore


def test_a_pathway_ends_to_the_millisecond() -> None:
    last = explain(request("nothing-declared"), LAW, at="2029-06-30T23:59:59.999Z")
    over = explain(request("nothing-declared"), LAW, at="2029-07-01T00:00:00Z")
    assert (verdicts(last)["cn-river"], verdicts(over)["cn-river"]) == ("", "EEA-D-46")
    assert (verdicts(last)["de-remote"], verdicts(over)["de-remote"]) == ("", "")  # those papers hold until 2030
    assert pool(last, "cn-river")["valid_until_ms"] == last["at_ms"] + 1 == over["at_ms"]
    begin = explain(request("nothing-declared"), LAW, at="2025-12-31T23:59:59.999Z")
    assert verdicts(begin)["cn-river"] == "TG-NO-PACK"


def test_a_pack_speaks_from_its_first_day_to_its_last() -> None:
    before = explain(request("german-personal"), TWO_SIDES, at="2025-12-31T23:59:59.999Z")
    assert verdicts(before)["eu-frankfurt"] == "TG-NO-PACK"
    first = explain(request("german-personal"), TWO_SIDES, at="2026-01-01T00:00:00Z")
    assert verdicts(first)["eu-frankfurt"] == ""
    # The duties of the AI Act begin on 2 August 2026.
    eve = explain(request("german-personal"), TWO_SIDES, at="2026-08-01T23:59:59.999Z")
    day = explain(request("german-personal"), TWO_SIDES, at="2026-08-02T00:00:00Z")
    assert (duties(pool(eve, "eu-frankfurt")), duties(pool(day, "eu-frankfurt"))) == (set(), AI)
    assert "eu-ai-act-50" not in {pack["id"] for pack in eve["bundle"]["packs"]}
    assert "eu-ai-act-50" in {pack["id"] for pack in day["bundle"]["packs"]}
    # The trial of the desk runs from 1 June 2026 to 30 December 2029.
    shadows = {
        at: pool(explain(request("nothing-declared"), LAW, at=at), "de-remote")["shadow"]
        for at in ("2026-05-31T23:59:59.999Z", "2026-06-01", "2029-12-30T23:59:59.999Z", "2029-12-31")
    }
    assert list(shadows.values()) == [[], ["EEA-N-CN"], ["EEA-N-CN"], []]


def test_counters_of_a_request_hold_at_the_moment_that_is_asked_about() -> None:
    # The turn of the year in Asia/Shanghai: a count in a request file is of the moment, on either side of it.
    for at in ("2026-12-31T15:59:59.999Z", "2026-12-31T16:00:00Z", "2027-01-01T00:00:00Z"):
        found = explain(request("at-the-threshold"), LAW, at=at)
        assert verdicts(found)["cn-river"] == ""
        (counter,) = found["facts"]["counters"]
        assert counter["as_of_ms"] == found["at_ms"] < counter["valid_until_ms"]
    last = explain(request("at-the-threshold"), LAW, at="2026-12-31T15:59:59.999Z")
    assert last["facts"]["counters"][0]["valid_until_ms"] == last["at_ms"] + 1


@pytest.mark.parametrize("at", [NOW, "2026-11-23", "2026-11-23T08:00:00+08:00", "2026-11-23T00:00:00"])
def test_times_are_iso_8601_and_utc_where_they_name_no_offset(at: str) -> None:
    found = explain(request("nothing-declared"), LAW, at=at)
    assert (found["at_ms"], found["at"]) == (NOW_MS, "2026-11-23T00:00:00.000+00:00")


def test_the_text_for_people_says_the_same(tmp_path: Path) -> None:
    ran = run("explain", "--request", request("german-personal"), "--bundle", TWO_SIDES, "--at", NOW)
    assert ran.status == 0
    assert "pool eu-frankfurt (DE): permitted, chosen" in ran.out
    assert "pool cn-guizhou (CN): refused by EU-13-CN, EU-46, EU-RA" in ran.out
    assert "needed: Standard contractual clauses (eu_scc" in ran.out
    assert "status 200, chosen eu-frankfurt" in ran.out


def test_the_same_question_has_the_same_answer() -> None:
    words = ("explain", "--request", request("us-health"), "--bundle", TWO_SIDES, "--at", NOW, "--json")
    first, second = run(*words).json(), run(*words).json()
    # The keys of a folder are made for the moment, and sign the manifest.
    first["bundle"].pop("digest"), second["bundle"].pop("digest")
    assert first == second

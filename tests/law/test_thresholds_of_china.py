"""What leaves China, at each threshold of CAC Order 16, by the packs that we ship: persons, papers, notices and years.

A person in China asks through Singapore about data of their own country: the answer leaves China. Singapore grants
everything here, so that China's law alone decides.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.bundle import AdmittedPack, Law
from orchestrator.policy.counters import Counter, CounterKind, twelve_months_before, year_in_shanghai
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.labels import Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import Obligation, ObligationKind
from orchestrator.policy.pathways import INFERENCE_ONLY, Pathway, PathwayKind, Role
from orchestrator.policy.permit import permit, permit_route
from orchestrator.policy.table import RouteTable
from orchestrator.policy.verdicts import NO_GRANT, Verdict
from orchestrator.policy.vocabulary import UNKNOWN
from tests.law.worlds import ASSIGNED, CN, FAR, NOW_MS, SG, at, back, entity, open_pack, own, packs_of, paper, place
from tests.values import replace

TENANT = entity("tenant", SG)
EDGE = place("edge", SG)
POOL = place("pool", CN)
ANSWER = back(POOL, EDGE)
NOTICE = (("cn-pipl-39", "2026-01"),)
FOR_EVER = 1 << 50
UNCOUNTED = None
PERSONS = (0, 99_999, 100_000, 999_999, 1_000_000, UNCOUNTED)
SENSITIVE_PERSONS = (0, 1, 9_999, 10_000, UNCOUNTED)
PAPERS = (None, PathwayKind.CN_SCC, PathwayKind.CN_CERTIFICATION, PathwayKind.CN_ASSESSMENT)
OPERATOR, MILLION, TEN_THOUSAND = "CN-CBDF-07A", "CN-CBDF-07B-PERSONS", "CN-CBDF-07B-SENSITIVE"
HUNDRED_THOUSAND, FIRST, PAYLOAD = "CN-CBDF-08", "CN-CBDF-08-SENSITIVE", "CN-CBDF-08-PAYLOAD"
IMPORTANT, NOTIFY, CORE = "CN-CBDF-07B", "CN-CBDF-10", "CN-DSL-CORE"
ASSESSED = {OPERATOR, MILLION, TEN_THOUSAND}
"""Rules that the standard contract and a certification do not meet."""
ART_5 = (
    PathwayKind.CN_CONTRACT_NECESSITY,
    PathwayKind.CN_HR_NECESSITY,
    PathwayKind.CN_EMERGENCY,
    PathwayKind.CN_FTZ_LIST,
)
"""What Order 16 art. 5(1) to (3) and 6 exempt from every mechanism."""


def law() -> Law:
    """The law of China as it is shipped, beside a Singapore that grants everything."""
    return Law([*(AdmittedPack(one, at(CN)) for one in packs_of("domestic")), *own(open_pack(SG))], FAR)


def chinese(personal: Personal = Personal.PERSONAL, grade: Grade = Grade.GENERAL) -> Effective:
    """Data of subjects in China, collected there, for an end user in Singapore."""
    return Effective(
        personal=personal,
        grade=grade,
        domestic=Domestic.YES,
        origin=at(CN),
        clean=Clean.RAW,
        categories=frozenset(),
        located=at(SG),
        collected=at(CN),
        purpose=INFERENCE_ONLY,
        asset=frozenset({"payload"}),
    )


def counted(persons: int | None, sensitive: int | None, until_ms: int = FOR_EVER) -> tuple[Counter, ...]:
    """Counts that were read now; None is not known."""
    kinds = ((CounterKind.CN_PERSONS, persons), (CounterKind.CN_SENSITIVE_PERSONS, sensitive))
    return tuple(Counter(kind, count, NOW_MS, until_ms) for kind, count in kinds if count is not None)


def held(*kinds: PathwayKind | None) -> tuple[Pathway, ...]:
    """Papers with the operator of the edge, who receives what leaves China."""
    return tuple(paper(kind, TENANT.id, EDGE.operator.id, at(SG)) for kind in kinds if kind is not None)


def told(
    persons: int | None = 0,
    sensitive: int | None = 0,
    label: Effective | None = None,
    papers: tuple[Pathway, ...] = (),
    critical: Declared = Declared.NO,
    notices: tuple[tuple[str, str], ...] = NOTICE,
) -> Facts:
    """The facts of an answer that was made in China."""
    return Facts(
        TENANT, label or chinese(), papers, at(CN), Role.CONTROLLER, critical, counted(persons, sensitive), notices
    )


def answered(facts: Facts, now_ms: int = NOW_MS) -> set[str]:
    """The rules that refuse to let the answer out; none when it may go. Both readings of the law agree."""
    verdict = permit(law(), facts, ANSWER, now_ms)
    refusing = {reason.rule for reason in verdict.reasons}
    assert verdict.allowed is not bool(refusing)
    route = permit_route(law(), facts, EDGE, POOL, now_ms)
    # On the way in nothing leaves China.
    assert (route.allowed, set(route.rules) if refusing else set()) == (verdict.allowed, refusing)
    assert RouteTable(law(), EDGE, [POOL], now_ms).verdicts(facts, now_ms) == (route,)
    return refusing


@pytest.mark.parametrize(
    ("persons", "rules"),
    [
        (0, set()),
        (99_999, set()),
        (100_000, {HUNDRED_THOUSAND}),
        (999_999, {HUNDRED_THOUSAND}),
        (1_000_000, {HUNDRED_THOUSAND, MILLION}),
        (10**12, {HUNDRED_THOUSAND, MILLION}),
        (UNCOUNTED, {HUNDRED_THOUSAND, MILLION}),
    ],
)
def test_persons_are_counted_with_the_threshold_included(persons: int | None, rules: set[str]) -> None:
    assert answered(told(persons=persons)) == rules
    for contract in (PathwayKind.CN_SCC, PathwayKind.CN_CERTIFICATION):
        assert answered(told(persons=persons, papers=held(contract))) == rules & ASSESSED
    assert answered(told(persons=persons, papers=held(PathwayKind.CN_ASSESSMENT))) == set()


@pytest.mark.parametrize(
    ("sensitive", "rules"),
    [
        (0, set()),
        (1, {FIRST}),
        (9_999, {FIRST}),
        (10_000, {FIRST, TEN_THOUSAND}),
        (UNCOUNTED, {FIRST, TEN_THOUSAND}),
    ],
)
@pytest.mark.parametrize("personal", [Personal.PERSONAL, Personal.SENSITIVE])
def test_of_sensitive_persons_the_first_one_counts(sensitive: int | None, rules: set[str], personal: Personal) -> None:
    itself = {PAYLOAD} if personal is Personal.SENSITIVE else set()
    assert answered(told(sensitive=sensitive, label=chinese(personal))) == rules | itself
    for contract in (PathwayKind.CN_SCC, PathwayKind.CN_CERTIFICATION):
        facts = told(sensitive=sensitive, label=chinese(personal), papers=held(contract))
        assert answered(facts) == rules & ASSESSED
    facts = told(sensitive=sensitive, label=chinese(personal), papers=held(PathwayKind.CN_ASSESSMENT))
    assert answered(facts) == set()


def test_a_sensitive_payload_needs_a_paper_although_nobody_was_counted() -> None:
    assert answered(told(0, 0, chinese(Personal.SENSITIVE))) == {PAYLOAD}
    for kind in (*PAPERS[1:], *ART_5):
        assert answered(told(0, 0, chinese(Personal.SENSITIVE), held(kind))) == set()
    narrow = replace(held(PathwayKind.CN_SCC)[0], personal_max=Personal.PERSONAL)
    assert answered(told(0, 0, chinese(Personal.SENSITIVE), (narrow,))) == {PAYLOAD}


@pytest.mark.parametrize(
    ("critical", "rules"), [(Declared.NO, set()), (Declared.YES, {OPERATOR}), (Declared.UNKNOWN, {OPERATOR})]
)
def test_an_operator_of_critical_infrastructure_needs_an_assessment_from_the_first_person_on(
    critical: Declared, rules: set[str]
) -> None:
    assert answered(told(critical=critical)) == rules
    assert answered(told(critical=critical, papers=held(PathwayKind.CN_SCC))) == rules
    assert answered(told(critical=critical, papers=held(PathwayKind.CN_CERTIFICATION))) == rules
    assert answered(told(critical=critical, papers=held(PathwayKind.CN_ASSESSMENT))) == set()


CASES = list(product(PERSONS, SENSITIVE_PERSONS, Declared, PAPERS, (Personal.PERSONAL, Personal.SENSITIVE)))


def meant(
    persons: int | None, sensitive: int | None, critical: Declared, kind: PathwayKind | None, personal: Personal
) -> set[str]:
    """The rules that must refuse, from the words of articles 5, 7 and 8."""
    people = float("inf") if persons is None else persons
    sensitive_people = float("inf") if sensitive is None else sensitive
    needs = {
        OPERATOR: critical is not Declared.NO,
        MILLION: people >= 1_000_000,
        TEN_THOUSAND: sensitive_people >= 10_000,
        HUNDRED_THOUSAND: people >= 100_000,
        FIRST: sensitive_people >= 1,
        PAYLOAD: personal is Personal.SENSITIVE,
    }
    if kind is PathwayKind.CN_ASSESSMENT:
        return set()
    return {name for name, needed in needs.items() if needed and (kind is None or name in ASSESSED)}


def test_every_combination_of_counts_operators_and_papers() -> None:
    here, open_count = law(), 0
    for persons, sensitive, critical, kind, personal in CASES:
        facts = told(persons, sensitive, chinese(personal), held(kind), critical)
        verdict = permit(here, facts, ANSWER, NOW_MS)
        expected = meant(persons, sensitive, critical, kind, personal)
        assert {reason.rule for reason in verdict.reasons} == expected, (persons, sensitive, critical, kind, personal)
        assert verdict.allowed is not bool(expected)
        open_count += verdict.allowed
    assert (len(CASES), open_count) == (6 * 5 * 3 * 4 * 2, 230)


@pytest.mark.parametrize("kind", ART_5)
def test_a_necessity_or_a_free_trade_zone_lifts_every_threshold(kind: PathwayKind) -> None:
    for personal in (Personal.PERSONAL, Personal.SENSITIVE):
        facts = told(UNCOUNTED, UNCOUNTED, chinese(personal), held(kind), Declared.YES)
        assert answered(facts) == set()


@pytest.mark.parametrize("kind", [kind for kind in PathwayKind if kind not in (*PAPERS, *ART_5)])
def test_no_other_paper_opens_anything(kind: PathwayKind) -> None:
    assert answered(told(100_000, 1, papers=held(kind))) == {HUNDRED_THOUSAND, FIRST}


@pytest.mark.parametrize(
    "wrong",
    [
        {"importer": POOL.operator.id},
        {"exporter": EDGE.operator.id},
        {"countries": at(CN)},
        {"exporter_role": Role.PROCESSOR},
        {"importer_role": Role.CONTROLLER},
        {"purposes": frozenset({"finetune"})},
        {"personal_max": Personal.NONE},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_paper_opens_only_what_it_names(wrong: dict[str, object]) -> None:
    (contract,) = held(PathwayKind.CN_SCC)
    assert answered(told(100_000, papers=(contract,))) == set()
    assert answered(told(100_000, papers=(replace(contract, **wrong),))) == {HUNDRED_THOUSAND}


@pytest.mark.parametrize("persons", [0, 100_000])
def test_without_the_notice_nothing_personal_leaves(persons: int) -> None:
    papers = held(PathwayKind.CN_ASSESSMENT)
    assert answered(told(persons, papers=papers, notices=())) == {NOTIFY}
    assert answered(told(persons, papers=papers, notices=(("another", "1"),))) == {NOTIFY}
    assert answered(told(persons, papers=papers)) == set()


def granted(verdict: Verdict) -> set[str]:
    return {rule for rule in verdict.rules if rule.startswith("CN-")}


def test_an_open_answer_names_its_grant_and_its_duties() -> None:
    verdict = permit(law(), told(99_999), ANSWER, NOW_MS)
    assert verdict.allowed
    assert granted(verdict) == {"CN-CBDF-05D", "CN-CBDF-07B-BASIS"}
    assert verdict.obligations == (
        Obligation(ObligationKind.NOTIFY, "cn-pipl-39"),
        Obligation(ObligationKind.RETAIN, "P3Y"),
        Obligation(ObligationKind.RETAIN, "P6M"),
    )


@pytest.mark.parametrize("critical", Declared)
def test_what_stays_in_china_is_not_counted(critical: Declared) -> None:
    home = place("home", CN)
    facts = told(UNCOUNTED, UNCOUNTED, chinese(Personal.SENSITIVE, Grade.IMPORTANT), (), critical, ())
    # A filed domestic service would be asked for its filing only where the end user is in China.
    assert permit(law(), facts, back(POOL, home), NOW_MS).allowed
    core = replace(facts, label=replace(facts.label, grade=Grade.CORE))
    assert {reason.rule for reason in permit(law(), core, back(POOL, home), NOW_MS).reasons} == {CORE}


OVERSEAS = replace(chinese(), origin=at(SG), collected=at(SG), domestic=Domestic.NO)


@pytest.mark.parametrize("personal", [Personal.NONE, Personal.PERSONAL, Personal.SENSITIVE])
@pytest.mark.parametrize("critical", Declared)
def test_data_from_overseas_is_exempt_at_every_count_for_a_proof(personal: Personal, critical: Declared) -> None:
    facts = told(UNCOUNTED, UNCOUNTED, replace(OVERSEAS, personal=personal), (), critical, ())
    assert answered(facts) == set()
    verdict = permit(law(), facts, ANSWER, NOW_MS)
    proven = Obligation(ObligationKind.PROVE_NO_DOMESTIC_INPUT, "CN") in verdict.obligations
    assert proven is (personal is not Personal.NONE), "where nothing personal leaves, no exemption is relied on"
    assert Obligation(ObligationKind.RETAIN, "P3Y") not in verdict.obligations


@pytest.mark.parametrize(("persons", "sensitive"), [(0, 0), (99_999, 0), (100_000, 1)])
def test_data_from_overseas_owes_the_proof_also_below_the_thresholds(persons: int, sensitive: int) -> None:
    facts = told(persons, sensitive, replace(OVERSEAS, personal=Personal.PERSONAL), (), Declared.NO, ())
    verdict = permit(law(), facts, ANSWER, NOW_MS)
    assert verdict.allowed
    assert Obligation(ObligationKind.PROVE_NO_DOMESTIC_INPUT, "CN") in verdict.obligations


@pytest.mark.parametrize(
    "domestic",
    [
        {"origin": at(SG, CN)},
        {"collected": at(SG, CN)},
        {"collected": frozenset({SG, UNKNOWN})},
        {"domestic": Domestic.YES},
        {"domestic": Domestic.UNKNOWN},
    ],
)
def test_what_may_be_domestic_in_any_way_loses_the_exemption(domestic: dict[str, object]) -> None:
    mixed = told(UNCOUNTED, UNCOUNTED, replace(OVERSEAS, **domestic), (), Declared.NO, ())
    assert answered(mixed) == {HUNDRED_THOUSAND, MILLION, FIRST, TEN_THOUSAND, NOTIFY}


@pytest.mark.parametrize("kind", [None, *PathwayKind])
def test_important_data_leaves_only_after_an_assessment(kind: PathwayKind | None) -> None:
    for personal, origin in product((Personal.NONE, Personal.PERSONAL), (chinese(), OVERSEAS)):
        facts = told(0, 0, replace(origin, personal=personal, grade=Grade.IMPORTANT), held(kind))
        assert answered(facts) == (set() if kind is PathwayKind.CN_ASSESSMENT else {IMPORTANT})


def test_core_data_never_leaves() -> None:
    for origin in (chinese(Personal.NONE), replace(OVERSEAS, personal=Personal.NONE)):
        facts = told(0, 0, replace(origin, grade=Grade.CORE), held(*PathwayKind))
        assert {CORE} <= answered(facts) <= {CORE, IMPORTANT}


def test_data_about_nobody_leaves_uncounted() -> None:
    assert answered(told(UNCOUNTED, UNCOUNTED, chinese(Personal.NONE), (), Declared.UNKNOWN, ())) == set()


@pytest.mark.parametrize(
    "label", [replace(chinese(), purpose=frozenset({"finetune"})), replace(chinese(), asset=frozenset({"kv_cache"}))]
)
def test_the_grants_are_for_inference_of_payloads(label: Effective) -> None:
    assert answered(told(0, 0, label)) == {NO_GRANT}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2_000_000), st.integers(0, 20_000), st.sampled_from(PAPERS), st.sampled_from(Declared))
def test_between_the_thresholds_nothing_changes(
    persons: int, sensitive: int, kind: PathwayKind | None, critical: Declared
) -> None:
    for personal in (Personal.PERSONAL, Personal.SENSITIVE):
        facts = told(persons, sensitive, chinese(personal), held(kind), critical)
        found = {reason.rule for reason in permit(law(), facts, ANSWER, NOW_MS).reasons}
        assert found == meant(persons, sensitive, critical, kind, personal)


# Time.


def moment(text: str) -> int:
    """Unix milliseconds of an ISO 8601 moment."""
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


LAST = moment("2026-12-31T15:59:59.999+00:00")
FIRST_OF_2027 = moment("2026-12-31T16:00:00.000+00:00")
UNKNOWN_COUNTS = {HUNDRED_THOUSAND, MILLION, FIRST, TEN_THOUSAND}


def read_at(as_of_ms: int, valid_until_ms: int = FOR_EVER) -> Facts:
    kinds = (CounterKind.CN_PERSONS, CounterKind.CN_SENSITIVE_PERSONS)
    return replace(told(), counters=tuple(Counter(kind, 0, as_of_ms, valid_until_ms) for kind in kinds))


@pytest.mark.parametrize(
    ("as_of_ms", "now_ms", "rules"),
    [
        (NOW_MS, LAST, set()),
        (NOW_MS, FIRST_OF_2027, UNKNOWN_COUNTS),
        (LAST, LAST, set()),
        (LAST, FIRST_OF_2027, UNKNOWN_COUNTS),
        (FIRST_OF_2027, FIRST_OF_2027, set()),
        (FIRST_OF_2027, LAST, UNKNOWN_COUNTS),
        (moment("2027-01-01T00:00:00+08:00"), moment("2027-12-31T23:59:59.999+08:00"), set()),
        (moment("2027-01-01T00:00:00+08:00"), moment("2028-01-01T00:00:00+08:00"), UNKNOWN_COUNTS),
        # New year in UTC is an ordinary morning there.
        (moment("2026-12-31T23:59:59.999+00:00"), moment("2027-01-01T00:00:00+00:00"), set()),
    ],
)
def test_the_count_ends_with_the_year_in_shanghai(as_of_ms: int, now_ms: int, rules: set[str]) -> None:
    assert answered(read_at(as_of_ms), now_ms) == rules


def test_a_verdict_ends_with_the_year_that_it_counted() -> None:
    assert permit(law(), read_at(NOW_MS), ANSWER, NOW_MS).valid_until_ms == FIRST_OF_2027
    assert permit(law(), read_at(NOW_MS), ANSWER, LAST).valid_until_ms == FIRST_OF_2027


@pytest.mark.parametrize("step_ms", [-1, 0, 1])
def test_a_count_is_good_to_the_millisecond_of_its_lease(step_ms: int) -> None:
    facts = read_at(NOW_MS, NOW_MS + 10)
    assert answered(facts, NOW_MS + 10 + step_ms) == (set() if step_ms < 0 else UNKNOWN_COUNTS)
    assert permit(law(), facts, ANSWER, NOW_MS).valid_until_ms == NOW_MS + 10


@pytest.mark.parametrize("kind", PAPERS[1:])
def test_a_paper_is_good_from_its_first_to_before_its_last_millisecond(kind: PathwayKind) -> None:
    dated = replace(held(kind)[0], valid_from_ms=NOW_MS, valid_until_ms=NOW_MS + 10)
    facts = told(100_000, papers=(dated,))
    found = [answered(facts, NOW_MS + step) for step in (-1, 0, 9, 10)]
    assert found == [{HUNDRED_THOUSAND}, set(), set(), {HUNDRED_THOUSAND}]
    assert permit(law(), facts, ANSWER, NOW_MS).valid_until_ms == NOW_MS + 10
    assert permit(law(), facts, ANSWER, NOW_MS - 1).valid_until_ms == NOW_MS


def test_of_two_counts_of_one_kind_the_greater_counts() -> None:
    facts = told(0, 0)
    more = Counter(CounterKind.CN_PERSONS, 100_000, NOW_MS, FOR_EVER)
    for counters in ((*facts.counters, more), (more, *facts.counters)):
        assert answered(replace(facts, counters=counters)) == {HUNDRED_THOUSAND}


@pytest.mark.parametrize(
    ("now", "begins", "ends"),
    [
        ("2026-12-31T15:59:59.999+00:00", "2025-12-31T16:00:00+00:00", "2026-12-31T16:00:00+00:00"),
        ("2026-12-31T16:00:00.000+00:00", "2026-12-31T16:00:00+00:00", "2027-12-31T16:00:00+00:00"),
        ("2028-02-29T12:00:00+08:00", "2028-01-01T00:00:00+08:00", "2029-01-01T00:00:00+08:00"),
        ("1969-12-31T15:59:59.999+00:00", "1969-01-01T00:00:00+08:00", "1970-01-01T00:00:00+08:00"),
    ],
)
def test_the_calendar_year_is_that_of_shanghai(now: str, begins: str, ends: str) -> None:
    assert year_in_shanghai(moment(now)) == (moment(begins), moment(ends))


@pytest.mark.parametrize(
    ("now", "before"),
    [
        ("2028-02-29T12:34:56.789+00:00", "2027-02-28T12:34:56.789+00:00"),
        ("2029-02-28T23:59:59.999+00:00", "2028-02-28T23:59:59.999+00:00"),
        ("2029-03-01T00:00:00+00:00", "2028-03-01T00:00:00+00:00"),
        ("2028-03-01T00:00:00+00:00", "2027-03-01T00:00:00+00:00"),
        ("2026-06-15T08:00:00+00:00", "2025-06-15T08:00:00+00:00"),
        ("2100-02-28T00:00:00+00:00", "2099-02-28T00:00:00+00:00"),
    ],
)
def test_twelve_months_before_is_the_same_day_or_the_last_of_february(now: str, before: str) -> None:
    assert twelve_months_before(moment(now)) == moment(before)


@settings(max_examples=100, deadline=None)
@given(st.integers(moment("1971-01-01T00:00:00+00:00"), moment("2200-01-01T00:00:00+00:00")))
def test_a_window_holds_now_and_is_a_year_long(now_ms: int) -> None:
    begins_ms, ends_ms = year_in_shanghai(now_ms)
    assert begins_ms <= now_ms < ends_ms
    assert year_in_shanghai(begins_ms) == year_in_shanghai(ends_ms - 1) == (begins_ms, ends_ms)
    day_ms = 86_400_000
    assert 365 * day_ms <= now_ms - twelve_months_before(now_ms) <= 366 * day_ms


def test_singapore_alone_decides_nothing_here() -> None:
    """The grants of Singapore never satisfy China: without the shipped packs the answer stays."""
    silent = Law(own(open_pack(*(ASSIGNED - at(CN)))), FAR)
    assert not permit(silent, told(), ANSWER, NOW_MS).allowed

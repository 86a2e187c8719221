"""Random law and random facts, over a world that is small enough for them to meet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from hypothesis import strategies as st

from orchestrator.policy.bundle import AdmittedPack
from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.ids import EntityId, PackId, PathwayId, PlaceId, RuleId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import (
    LABEL_SETS,
    RANKED,
    Confidence,
    Effect,
    Mode,
    Obligation,
    ObligationKind,
    Operator,
    Pack,
    Rule,
    Subject,
    Test,
)
from orchestrator.policy.pathways import ALL_CATEGORIES, INFERENCE_ONLY, Pathway, PathwayKind, Role
from orchestrator.policy.places import Action, Leg, Movement, Place
from orchestrator.policy.vocabulary import UNKNOWN
from tests.law.worlds import CN, DE, NOW_MS, SG, SOURCE, US
from tests.values import replace

WORLD = frozenset({SG, DE, CN, US})
KINDS = (PathwayKind.EU_SCC, PathwayKind.EU_TIA, PathwayKind.CN_SCC, PathwayKind.CN_ASSESSMENT)
COUNTERS = (CounterKind.CN_PERSONS, CounterKind.CN_SENSITIVE_PERSONS, CounterKind.US_HEALTH)
NOTICES = ("told", "asked")
ENTITIES = tuple(EntityId(name) for name in ("one", "two", "three"))
WORDS = {
    Subject.CATEGORIES: ("contact", "health", "financial"),
    Subject.PURPOSE: ("inference", "embedding", "finetune"),
    Subject.ASSET: ("payload", "weights"),
}
"""Of the sets that hold no jurisdictions: members that these tests use."""


def often(value: object, strategy: st.SearchStrategy) -> st.SearchStrategy:
    """Mostly that value: a world in which nothing is allowed would test nothing."""
    return st.one_of(st.just(value), st.just(value), strategy)


def subsets(members: Iterable[str], least: int = 0, most: int = 2) -> st.SearchStrategy[frozenset]:
    """Sets of these members, of that many; one draw each, where `frozensets` takes many."""
    ordered = sorted(members)
    sizes = range(least, most + 1)
    return st.sampled_from([frozenset(chosen) for size in sizes for chosen in combinations(ordered, size)])


codes: st.SearchStrategy[Jurisdiction] = st.sampled_from([SG, DE, CN, US])
code_sets = subsets(WORLD, most=3)
some_codes = subsets(WORLD, least=1)
entity_ids = st.sampled_from(ENTITIES)
owners = st.builds(Owner, entity_ids, codes, st.integers(1, 100))
entities = st.builds(Entity, entity_ids, codes, st.lists(owners, max_size=1).map(tuple))
plain_entities = st.builds(Entity, entity_ids, codes)
times = st.one_of(st.integers(NOW_MS - 3, NOW_MS + 3), st.just(NOW_MS - 10**10), st.just(NOW_MS + 10**10))


def words_of(subject: Subject) -> tuple[str, ...]:
    """Members of a set of a label, `unknown` not among them."""
    return WORDS.get(subject, tuple(sorted(WORLD)))


def sets_of(subject: Subject) -> st.SearchStrategy[frozenset[str]]:
    """Sets of a label: empty, known, unknown, or known in part."""
    return subsets((*words_of(subject), UNKNOWN))


# The low values come first and twice.
labels = st.builds(
    Effective,
    personal=st.sampled_from([Personal.NONE, Personal.PERSONAL, *Personal]),
    grade=st.sampled_from([Grade.PUBLIC, Grade.GENERAL, *Grade]),
    domestic=st.sampled_from([Domestic.NO, *Domestic]),
    origin=some_codes,
    clean=st.sampled_from([Clean.ANONYMISED, *Clean]),
    categories=sets_of(Subject.CATEGORIES),
    located=sets_of(Subject.LOCATED),
    collected=sets_of(Subject.COLLECTED),
    purpose=often(INFERENCE_ONLY, sets_of(Subject.PURPOSE)),
    asset=often(frozenset({"payload"}), sets_of(Subject.ASSET)),
)
places = st.builds(
    Place,
    st.sampled_from([PlaceId("here"), PlaceId("there")]),
    some_codes,
    code_sets,
    st.lists(entities, max_size=1).map(tuple),
    entities,
)
simple_places = st.builds(
    Place, st.just(PlaceId("place")), some_codes, st.just(frozenset()), st.just(()), plain_entities
)
movements = st.builds(Movement, st.sampled_from(Action), st.sampled_from(Leg), simple_places, simple_places)
roles = st.sampled_from([Role.CONTROLLER, Role.CONTROLLER, Role.PROCESSOR])
pathways = st.builds(
    Pathway,
    id=st.just(PathwayId("paper")),
    kind=st.sampled_from(KINDS),
    exporter=entity_ids,
    exporter_role=roles,
    importer=entity_ids,
    importer_role=often(Role.PROCESSOR, st.sampled_from(Role)),
    countries=often(WORLD, code_sets),
    personal_max=often(Personal.SENSITIVE, st.sampled_from(Personal)),
    categories=often(ALL_CATEGORIES, subsets(words_of(Subject.CATEGORIES))),
    valid_from_ms=often(0, times),
    valid_until_ms=often(NOW_MS + 10**10, times),
    reference=st.just("drawer"),
    purposes=often(INFERENCE_ONLY, subsets(words_of(Subject.PURPOSE))),
    onward=subsets(ENTITIES),
)
counters = st.builds(
    Counter,
    st.sampled_from(COUNTERS),
    st.integers(0, 6),
    often(NOW_MS - 10**6, times),
    often(NOW_MS + 10**6, times),
)
notices = subsets(NOTICES).map(lambda given: tuple((one, "v1") for one in sorted(given)))
facts = st.builds(
    Facts,
    tenant=plain_entities,
    label=labels,
    pathways=st.lists(pathways, max_size=4).map(tuple),
    processed_in=code_sets,
    role=st.one_of(roles, roles, st.none()),
    critical_infrastructure=st.sampled_from([Declared.NO, *Declared]),
    counters=st.lists(counters, max_size=3).map(tuple),
    notices=notices,
)


# What raises facts. Nothing of these ever makes a payload more harmless.
@dataclass(frozen=True, slots=True)
class Raise:
    """How facts are raised: a label to join, and what grows beside it."""

    label: Effective
    processed_in: frozenset[Jurisdiction]
    critical_infrastructure: Declared
    counted: dict[CounterKind, int | None]
    """By counter: by how much it grows, or None when it is no longer known."""

    def of(self, told: Facts) -> Facts:
        """Return higher facts."""
        grown = []
        for counter in told.counters:
            more = self.counted.get(counter.kind, 0)
            if more is not None:
                grown.append(replace(counter, count=counter.count + more))
        return replace(
            told,
            label=told.label.join(self.label),
            processed_in=told.processed_in | self.processed_in,
            critical_infrastructure=max(told.critical_infrastructure, self.critical_infrastructure),
            counters=tuple(grown),
        )


LOWEST = Effective(
    Personal.NONE,
    Grade.PUBLIC,
    Domestic.NO,
    frozenset(),
    Clean.ANONYMISED,
    categories=frozenset(),
    located=frozenset(),
    collected=frozenset(),
    purpose=frozenset(),
    asset=frozenset(),
)
"""What raises nothing when it is joined."""
NO_RAISE = Raise(LOWEST, frozenset(), Declared.NO, {})
_more = st.sampled_from([1, 2, 5, None])
single_raises = st.one_of(
    *(
        st.sampled_from(axis).map(lambda value, name=name: replace(NO_RAISE, label=replace(LOWEST, **{name: value})))
        for name, axis in (("personal", Personal), ("grade", Grade), ("domestic", Domestic), ("clean", Clean))
    ),
    *(
        st.sampled_from((*words_of(subject), UNKNOWN)).map(
            lambda value, name=subject.value: replace(
                NO_RAISE, label=replace(LOWEST, **{name: frozenset({value})})
            )
        )
        for subject in sorted(LABEL_SETS - {Subject.PROCESSED_IN}, key=lambda one: one.value)
    ),
    codes.map(lambda code: replace(NO_RAISE, processed_in=frozenset({code}))),
    st.sampled_from(Declared).map(lambda value: replace(NO_RAISE, critical_infrastructure=value)),
    st.tuples(st.sampled_from(COUNTERS), _more).map(lambda pair: replace(NO_RAISE, counted={pair[0]: pair[1]})),
)
"""One axis, one member, one jurisdiction or one counter more."""
raises = st.builds(
    Raise, labels, code_sets, st.sampled_from(Declared), st.dictionaries(st.sampled_from(COUNTERS), _more, max_size=3)
)

# Any comparison at all, the unfit ones too.
any_members = st.frozensets(
    st.sampled_from(
        [
            *sorted(WORLD),
            *(action.value for action in Action),
            *(leg.value for leg in Leg),
            *("contact", "health", "inference", "finetune", "payload", UNKNOWN),
        ]
    ),
    max_size=4,
)


def any_tests_of(*subjects: Subject) -> st.SearchStrategy[Test]:
    """Any comparison of these subjects."""
    return st.builds(
        Test,
        st.sampled_from(subjects),
        st.sampled_from(Operator),
        st.integers(-1, 6),
        any_members,
        st.one_of(st.none(), st.sampled_from(COUNTERS)),
    )


any_tests = any_tests_of(*Subject)
PAYLOAD = tuple(
    subject
    for subject in Subject
    if subject in RANKED | LABEL_SETS | {Subject.COUNTER} and subject is not Subject.PROCESSED_IN
)
"""What an exemption may read: labels and counters."""
any_exemptions = any_tests_of(*PAYLOAD)
neutral_tests = st.one_of(
    st.builds(
        Test,
        st.sampled_from([Subject.TARGET, Subject.TARGET_SOIL, Subject.SOURCE, Subject.SOURCE_SOIL]),
        st.sampled_from([Operator.WITHIN, Operator.BEYOND, Operator.TOUCHES, Operator.AVOIDS]),
        st.just(0),
        some_codes,
    ),
    st.builds(
        Test,
        st.just(Subject.ACTION),
        st.just(Operator.IN),
        st.just(0),
        subsets((action.value for action in Action), 2, 5),
    ),
    st.builds(
        Test,
        st.just(Subject.LEG),
        st.just(Operator.IN),
        st.just(0),
        subsets((leg.value for leg in Leg), 2, 6),
    ),
)


def rank_tests(operator: Operator) -> st.SearchStrategy[Test]:
    """Tests on an ordered axis with one operator."""
    subjects = sorted(RANKED, key=lambda one: one.value)
    return st.builds(Test, st.sampled_from(subjects), st.just(operator), st.integers(0, 4))


def set_tests(*operators: Operator, without: frozenset[Subject] = frozenset()) -> st.SearchStrategy[Test]:
    """Tests on a set of a label with one of the operators."""
    return st.one_of(
        *(
            st.builds(
                Test,
                st.just(subject),
                st.sampled_from(operators),
                st.just(0),
                subsets(words_of(subject), 1, 3),
            )
            for subject in sorted(LABEL_SETS - without, key=lambda one: one.value)
        )
    )


def counter_tests(operator: Operator) -> st.SearchStrategy[Test]:
    """Tests on a counter with one operator."""
    return st.builds(
        Test, st.just(Subject.COUNTER), st.just(operator), st.integers(0, 6), st.just(frozenset()),
        st.sampled_from(COUNTERS),
    )  # fmt: skip


# What a loaded pack may hold: grants closed downwards, everything else closed upwards, exemptions closed downwards.
rising_tests = st.one_of(
    rank_tests(Operator.AT_LEAST),
    set_tests(Operator.TOUCHES, Operator.BEYOND),
    counter_tests(Operator.AT_LEAST),
)
grant_tests = st.one_of(
    rank_tests(Operator.AT_MOST),
    set_tests(Operator.WITHIN, Operator.AVOIDS),
    counter_tests(Operator.BELOW),
    neutral_tests,
)
other_tests = st.one_of(rising_tests, neutral_tests)
exemptions = st.one_of(
    rank_tests(Operator.AT_MOST),
    set_tests(Operator.WITHIN, Operator.AVOIDS, without=frozenset({Subject.PROCESSED_IN})),
    counter_tests(Operator.BELOW),
)
rule_ids = st.sampled_from([RuleId(f"R-{number}") for number in range(6)])
kept_duties = st.one_of(
    st.builds(Obligation, st.just(ObligationKind.RETAIN), st.sampled_from(["P6M", "P3Y"])),
    st.just(Obligation(ObligationKind.PROVE_NO_DOMESTIC_INPUT, "CN")),
    st.just(Obligation(ObligationKind.DISCLOSE, "ai")),
    st.just(Obligation(ObligationKind.LABEL, "ai")),
)
duties = st.one_of(kept_duties, st.builds(Obligation, st.just(ObligationKind.NOTIFY), st.sampled_from(NOTICES)))
requirements = st.lists(
    st.sampled_from([frozenset(chosen) for size in range(3) for chosen in combinations(KINDS, size)]), max_size=2
).map(tuple)


def rules_of(
    effects: st.SearchStrategy[Effect],
    tests: st.SearchStrategy[Test],
    exempt: st.SearchStrategy[Test] | None,
    given: st.SearchStrategy[Obligation] = duties,
    least: int = 1,
    most: int = 2,
) -> st.SearchStrategy[Rule]:
    """Rules of these effects over these tests, lifted by those, with some of these duties."""
    return st.builds(
        Rule,
        id=rule_ids,
        effect=effects,
        when=st.lists(tests, min_size=least, max_size=most).map(tuple),
        sentence=st.just("A sentence."),
        needs=st.just(""),
        source=st.just(SOURCE),
        confidence=st.just(Confidence.HIGH),
        pathways=requirements,
        obligations=st.lists(given, max_size=1).map(tuple),
        unless=st.just(()) if exempt is None else st.lists(exempt, max_size=2).map(tuple),
        exemption=st.lists(kept_duties, max_size=1).map(tuple),
    )


grants = rules_of(st.just(Effect.GRANT), grant_tests, None, kept_duties, most=1)
forbids = rules_of(st.just(Effect.FORBID), other_tests, exemptions)
hindrances = rules_of(st.sampled_from([Effect.FORBID, Effect.REQUIRE, Effect.OBLIGE]), other_tests, exemptions)
effects = st.sampled_from([Effect.GRANT, Effect.GRANT, *Effect])
any_rules = rules_of(effects, st.one_of(any_tests, grant_tests, other_tests), any_exemptions, least=0)


def packs_of(rules: st.SearchStrategy[Rule]) -> st.SearchStrategy[Pack]:
    """Packs of these rules, most of them in force."""
    return st.builds(
        Pack,
        st.sampled_from([PackId("a"), PackId("b")]),
        st.just(1),
        st.just("transfer"),
        some_codes,
        often(0, times),
        often(None, times),
        st.sampled_from([Mode.ENFORCE, Mode.ENFORCE, Mode.SHADOW]),
        st.lists(rules, max_size=4).map(tuple),
    )


def generous(grants_of: st.SearchStrategy[Rule]) -> st.SearchStrategy[AdmittedPack]:
    """A pack in force that speaks for the whole world and may grant there."""
    packs = st.builds(
        Pack,
        st.just(PackId("generous")),
        st.just(1),
        st.just("transfer"),
        st.just(WORLD),
        st.just(0),
        st.one_of(st.none(), st.just(NOW_MS + 3)),
        st.just(Mode.ENFORCE),
        st.lists(grants_of, min_size=2, max_size=5).map(tuple),
    )
    return st.builds(AdmittedPack, packs, st.just(WORLD))


def admitted(
    packs: st.SearchStrategy[Pack], grants_of: st.SearchStrategy[Rule]
) -> st.SearchStrategy[list[AdmittedPack]]:
    """Lists of packs, most of which may grant where they speak, and most of which begin with a generous one."""
    rest = st.lists(st.builds(AdmittedPack, packs, often(WORLD, code_sets)), max_size=3)
    return st.one_of(
        rest,
        st.builds(lambda first, others: [first, *others], generous(grants_of), rest.filter(len)),
        st.builds(lambda first, others: [first, *others], generous(grants_of), rest),
    )


loaded_packs = admitted(packs_of(st.one_of(grants, grants, hindrances)), grants)
"""Packs as the loader lets them through."""
any_packs = admitted(packs_of(any_rules), st.one_of(grants, grants, any_rules))
"""Packs as nobody would write them."""

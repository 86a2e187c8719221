"""Random law and random facts, over a world that is small enough for them to meet."""

from __future__ import annotations

from hypothesis import strategies as st

from orchestrator.policy.bundle import AdmittedPack
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.ids import EntityId, PackId, PathwayId, PlaceId, RuleId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import (
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
from orchestrator.policy.pathways import Pathway, PathwayKind
from orchestrator.policy.permit import Facts
from orchestrator.policy.places import Action, Leg, Movement, Place
from tests.law.worlds import CN, DE, NOW_MS, SG, SOURCE, US

RANKED = (Subject.PERSONAL, Subject.GRADE, Subject.DOMESTIC)
SETS = (Subject.ORIGIN, Subject.TARGET, Subject.SOURCE)

codes: st.SearchStrategy[Jurisdiction] = st.sampled_from([SG, DE, CN, US])
code_sets = st.frozensets(codes, max_size=3)
some_codes = st.frozensets(codes, min_size=1, max_size=2)
entity_ids = st.sampled_from([EntityId(name) for name in ("one", "two", "three")])
owners = st.builds(Owner, entity_ids, codes, st.integers(1, 100))
entities = st.builds(Entity, entity_ids, codes, st.lists(owners, max_size=1).map(tuple))
plain_entities = st.builds(Entity, entity_ids, codes)
times = st.one_of(st.integers(NOW_MS - 3, NOW_MS + 3), st.just(NOW_MS - 10**10), st.just(NOW_MS + 10**10))

# The low values come first and twice: a world in which nothing is allowed would test nothing.
labels = st.builds(
    Effective,
    st.sampled_from([Personal.NONE, *Personal]),
    st.sampled_from([Grade.PUBLIC, Grade.GENERAL, *Grade]),
    st.sampled_from([Domestic.NO, *Domestic]),
    some_codes,
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
pathways = st.builds(
    Pathway,
    st.just(PathwayId("paper")),
    st.sampled_from(PathwayKind),
    entity_ids,
    entity_ids,
    code_sets,
    st.sampled_from(Personal),
    times,
    times,
    st.just("drawer"),
)
facts = st.builds(Facts, plain_entities, labels, st.lists(pathways, max_size=4).map(tuple), code_sets)

# Any comparison at all, the unfit ones too.
any_tests = st.builds(
    Test,
    st.sampled_from(Subject),
    st.sampled_from(Operator),
    st.integers(-1, 6),
    st.frozensets(st.one_of(codes, st.sampled_from([action.value for action in Action])), max_size=4),
)
neutral_tests = st.one_of(
    st.builds(
        Test,
        st.sampled_from([Subject.TARGET, Subject.SOURCE]),
        st.sampled_from([Operator.WITHIN, Operator.TOUCHES, Operator.AVOIDS]),
        st.just(0),
        some_codes,
    ),
    st.builds(
        Test,
        st.just(Subject.ACTION),
        st.just(Operator.IN),
        st.just(0),
        st.frozensets(st.sampled_from([action.value for action in Action]), min_size=2, max_size=5),
    ),
)


def rank_tests(operator: Operator) -> st.SearchStrategy[Test]:
    """Tests on an ordered axis with one operator."""
    return st.builds(Test, st.sampled_from(RANKED), st.just(operator), st.integers(0, 4))


def origin_tests(*operators: Operator) -> st.SearchStrategy[Test]:
    """Tests on the origin with one of the operators."""
    return st.builds(Test, st.just(Subject.ORIGIN), st.sampled_from(operators), st.just(0), some_codes)


# What a loaded pack may hold: grants closed downwards, everything else closed upwards.
grant_tests = st.one_of(rank_tests(Operator.AT_MOST), origin_tests(Operator.WITHIN, Operator.AVOIDS), neutral_tests)
other_tests = st.one_of(rank_tests(Operator.AT_LEAST), origin_tests(Operator.TOUCHES), neutral_tests)
rule_ids = st.sampled_from([RuleId(f"R-{number}") for number in range(6)])
duties = st.builds(Obligation, st.just(ObligationKind.RETAIN), st.sampled_from(["P6M", "P3Y"]))


def rules_of(
    effects: st.SearchStrategy[Effect], tests: st.SearchStrategy[Test], most: int = 2
) -> st.SearchStrategy[Rule]:
    """Rules of these effects over these tests."""
    return st.builds(
        Rule,
        rule_ids,
        effects,
        st.lists(tests, max_size=most).map(tuple),
        st.just("A sentence."),
        st.just(""),
        st.just(SOURCE),
        st.just(Confidence.HIGH),
        st.lists(st.sampled_from(PathwayKind), max_size=2).map(tuple),
        st.lists(duties, max_size=1).map(tuple),
    )


grants = rules_of(st.just(Effect.GRANT), grant_tests, 1)
forbids = rules_of(st.just(Effect.FORBID), other_tests)
hindrances = rules_of(st.sampled_from([Effect.FORBID, Effect.REQUIRE, Effect.OBLIGE]), other_tests)
effects = st.sampled_from([Effect.GRANT, Effect.GRANT, *Effect])
any_rules = rules_of(effects, st.one_of(any_tests, grant_tests, other_tests), 2)


def packs_of(rules: st.SearchStrategy[Rule]) -> st.SearchStrategy[Pack]:
    """Packs of these rules, most of them in force."""
    return st.builds(
        Pack,
        st.sampled_from([PackId("a"), PackId("b")]),
        st.just(1),
        st.just("transfer"),
        some_codes,
        st.one_of(st.just(0), times),
        st.one_of(st.none(), times),
        st.sampled_from([Mode.ENFORCE, Mode.ENFORCE, Mode.SHADOW]),
        st.lists(rules, max_size=4).map(tuple),
    )


WORLD = frozenset({SG, DE, CN, US})


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
    rest = st.lists(st.builds(AdmittedPack, packs, st.one_of(st.just(WORLD), code_sets)), max_size=3)
    return st.one_of(
        rest,
        st.builds(lambda first, others: [first, *others], generous(grants_of), rest),
        st.builds(lambda first, others: [first, *others], generous(grants_of), rest),
    )


loaded_packs = admitted(packs_of(st.one_of(grants, grants, hindrances)), grants)
"""Packs as the loader lets them through."""
any_packs = admitted(packs_of(any_rules), st.one_of(grants, grants, any_rules))
"""Packs as nobody would write them."""

"""Situations and laws by chance: every axis at once, for what no enumeration reaches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from random import Random
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from orchestrator.policy.bundle import AdmittedPack, Horizons, Law
from orchestrator.policy.counters import CounterKind
from orchestrator.policy.facts import Declared
from orchestrator.policy.ids import PackId, RuleId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Grade, Personal
from orchestrator.policy.packs import (
    HOME,
    LABEL_SETS,
    Confidence,
    Effect,
    Mode,
    Obligation,
    ObligationKind,
    Operator,
    Pack,
    Rule,
    Source,
    Subject,
    Test,
)
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.places import Action, Leg
from orchestrator.policy.vocabulary import UNKNOWN, Asset, Category, Purpose
from tests.third_opinion.axes import Scope, representatives
from tests.third_opinion.cases import NOW_MS, SPOILS, Case, Site
from tests.third_opinion.translate import read_rules
from tests.values import replace

SG: Final = Jurisdiction("SG")
_CODES: Final = ("CN", "DE", "SG")
_SOURCE: Final = Source("A law", "Art. 1", "2026-01-01")
_DAYS: Final = (NOW_MS - 1, NOW_MS, NOW_MS + 1)
_KINDS: Final = (PathwayKind.CN_SCC, PathwayKind.EU_SCC, PathwayKind.EU_TIA)
_COUNTED: Final = (CounterKind.CN_PERSONS, CounterKind.US_HEALTH)
_NOTICES: Final = ("first", "second")


def _sets(words: Iterable[str], most: int = 3) -> SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from([*words, UNKNOWN]), max_size=most)


def _site(reach: frozenset[str], bits: int) -> Site:
    soil = frozenset(code for index, code in enumerate(sorted(reach)) if bits >> index & 1)
    return Site(reach, soil or reach)


def _papers(kinds: Sequence[PathwayKind]) -> SearchStrategy[tuple[str, ...]]:
    return st.tuples(*(st.sampled_from(("none", "held", *SPOILS)) for _ in kinds))


def _counts(thresholds: Mapping[CounterKind, tuple[int, ...]]) -> SearchStrategy[dict[CounterKind, int]]:
    near = {
        kind: st.sampled_from([max(0, one + step) for one in ranks for step in (-1, 0, 1)]) | st.integers(0, 1 << 53)
        for kind, ranks in thresholds.items()
    }
    return st.fixed_dictionaries({}, optional=near)


def cases(
    home: Jurisdiction,
    codes: Sequence[str],
    kinds: Sequence[PathwayKind],
    thresholds: Mapping[CounterKind, tuple[int, ...]],
    notices: Sequence[str],
    moments: Sequence[int],
) -> SearchStrategy[Case]:
    """Situations that touch a jurisdiction. Papers that open nothing are among those that are held."""
    reach = st.frozensets(st.sampled_from(codes), min_size=1, max_size=3)
    site = st.builds(_site, reach, st.integers(0, 7))

    def _made(papers: tuple[str, ...], counts: dict[CounterKind, int], **fields: Any) -> Case:
        told = tuple(zip(kinds, papers, strict=True))
        return Case(
            held=frozenset(kind for kind, how in told if how == "held"),
            spoilt=tuple((kind, how) for kind, how in told if how in SPOILS),
            counts=tuple(counts.items()),
            **fields,
        ).touching(home)

    return st.builds(
        _made,
        papers=_papers(kinds),
        counts=_counts(thresholds),
        target=site,
        source=site,
        # Mostly what the house lets through: else no pack is asked.
        origin=st.one_of(*[st.frozensets(st.sampled_from(codes), min_size=1, max_size=2)] * 7, _sets(codes)),
        personal=st.sampled_from((Personal.NONE, Personal.PERSONAL, Personal.SENSITIVE) * 7 + (Personal.UNKNOWN,)),
        grade=st.sampled_from((Grade.PUBLIC, Grade.GENERAL, Grade.IMPORTANT, Grade.CORE) * 5 + (Grade.UNKNOWN,)),
        domestic=st.sampled_from(Domestic),
        clean=st.sampled_from(Clean),
        critical_infrastructure=st.sampled_from(Declared),
        categories=_sets([word.value for word in Category]),
        located=_sets(codes),
        collected=_sets(codes),
        purpose=st.just(frozenset({"inference"})) | _sets([word.value for word in Purpose], 2),
        asset=st.just(frozenset({"payload"})) | _sets([word.value for word in Asset], 2),
        processed_in=_sets(codes, 2),
        movement=st.tuples(st.sampled_from(Action), st.sampled_from(Leg)),
        notices=st.frozensets(st.sampled_from([*notices, "another"]), max_size=3),
        now_ms=st.sampled_from((*[NOW_MS] * len(moments), *moments)),
    )


def cases_of(law: Law, home: Jurisdiction) -> SearchStrategy[Case]:
    """Situations near everything that the law of a jurisdiction mentions: its lists, thresholds, papers and dates."""
    rules = read_rules(law, home)
    scope = Scope(rules)
    words = {Subject.CATEGORIES, Subject.PURPOSE, Subject.ASSET, Subject.ACTION, Subject.LEG}
    lists = [test for test in scope.tests if test.subject not in words and test.members]
    codes = representatives(frozenset(chain.from_iterable(test.members for test in lists)) | {"ZA", home}, lists, home)
    thresholds = {
        kind: tuple(sorted({test.rank for test in scope.tests if test.counter is kind}))
        for kind in CounterKind
        if any(test.counter is kind for test in scope.tests)
    }
    kinds = sorted(frozenset(chain.from_iterable(scope.any_of)), key=lambda kind: kind.value)
    notices = sorted(frozenset(chain.from_iterable(scope.owed)))
    dates = {date for read in rules for date in (read.pack.effective_from_ms, read.pack.effective_until_ms)}
    dates |= {law.horizons.regulated_until_ms, law.horizons.not_after_ms}
    moments = sorted(date + step for date in dates if date is not None for step in (-1, 0))
    return cases(home, codes, kinds, thresholds, notices, moments)


_BY_RANK: Final = (Operator.AT_MOST, Operator.AT_LEAST)
_BY_SET: Final = (Operator.WITHIN, Operator.BEYOND, Operator.TOUCHES, Operator.AVOIDS)
_MEMBERS: Final = {
    Subject.CATEGORIES: ("contact", "health"),
    Subject.PURPOSE: ("inference", "debug"),
    Subject.ASSET: ("payload", "weights"),
}
_PLACES: Final = (Subject.TARGET, Subject.TARGET_SOIL, Subject.SOURCE, Subject.SOURCE_SOIL)


_ALWAYS: Final = Test(Subject.ACTION, Operator.IN, members=frozenset(action.value for action in Action))
_RANKS: Final = {
    Subject.PERSONAL: 3,
    Subject.GRADE: 4,
    Subject.DOMESTIC: 2,
    Subject.CLEAN: 5,
    Subject.CRITICAL_INFRASTRUCTURE: 2,
}


def _some(chance: Random, words: Sequence[Any], most: int) -> frozenset[Any]:
    return frozenset(chance.sample(words, chance.randint(0, most)))


def _test(chance: Random) -> Test:
    """Return a test of some subject, with an operator that fits it, and now and then with one that does not."""
    # Where a text goes, and counts, are what most of the shipped law is about.
    subject = chance.choice((*Subject, Subject.TARGET, Subject.TARGET, Subject.COUNTER))
    if chance.random() < 0.05:
        return Test(subject, chance.choice(tuple(Operator)), members=frozenset({"CN"}))
    if subject in _RANKS:
        return Test(subject, chance.choice(_BY_RANK), chance.randint(0, _RANKS[subject]))
    if subject is Subject.COUNTER:
        by_count = chance.choice((Operator.AT_LEAST, Operator.BELOW))
        return Test(subject, by_count, chance.choice((0, 1, 10)), counter=chance.choice(_COUNTED))
    if subject in LABEL_SETS or subject in _PLACES:
        words = _MEMBERS.get(subject, (*_CODES, HOME))
        return Test(subject, chance.choice(_BY_SET), members=_some(chance, words, 2))
    names = [one.value for one in (Action if subject is Subject.ACTION else Leg)]
    return Test(subject, Operator.IN, members=_some(chance, names, 4))


def _rule(chance: Random, name: str) -> Rule:
    effect = chance.choice((Effect.GRANT, Effect.GRANT, *Effect))
    when = [_test(chance) for _ in range(chance.choice((1, 1, 1, 2, 2)))]
    if chance.random() < 0.3:  # what always holds, and what never does: an empty condition
        when = [_ALWAYS] if chance.random() < 0.8 else []
    duties = [Obligation(ObligationKind.NOTIFY, notice) for notice in sorted(_some(chance, _NOTICES, 2))]
    needed = [_some(chance, _KINDS, 3) for _ in range(chance.randint(0, 2))]
    # The loader refuses an exemption of a grant; one that came in all the same must close and not open.
    unless = [_test(chance) for _ in range(chance.choice((0, 0, 1, 1, 2)))]
    return Rule(
        id=RuleId(name),
        effect=effect,
        when=tuple(when),
        sentence="A sentence.",
        needs="",
        source=_SOURCE,
        confidence=Confidence.HIGH,
        pathways=tuple(needed) if effect is Effect.REQUIRE else (),
        obligations=tuple(duties) if effect is Effect.OBLIGE else (),
        unless=tuple(unless),
    )


def law_by_chance(chance: Random) -> Law:
    """Return one or two packs for SG; now and then one is in shadow, not in force, or not its signer's to grant."""
    admitted: list[AdmittedPack] = []
    for number in range(chance.randint(1, 2)):
        rules = tuple(_rule(chance, f"R-{number}-{index}") for index in range(chance.randint(2, 5)))
        mode = chance.choice((Mode.ENFORCE,) * 7 + (Mode.SHADOW,))
        from_ms = chance.choice((0,) * 9 + _DAYS)
        until_ms = chance.choice((None, None, None, from_ms + 1, 1 << 50))
        spoken_for = frozenset({SG, Jurisdiction("DE")})
        pack = Pack(PackId(f"p-{number}"), 1, "topic", spoken_for, from_ms, until_ms, mode, rules)
        admitted.append(AdmittedPack(pack, frozenset({SG}) if chance.random() < 0.9 else frozenset()))
    ends = (1 << 60,) * 27 + _DAYS
    return Law(admitted, Horizons(0, chance.choice(ends), chance.choice(ends)))


def shaken(chance: Random, case: Case) -> Case:
    """Return the case with papers that open nothing among those that are held, now and then at another moment."""
    absent = [kind for kind in _KINDS if kind not in case.held]
    spoilt = tuple((kind, chance.choice(SPOILS)) for kind in absent if chance.random() < 0.3)
    moment = chance.choice(_DAYS) if chance.random() < 0.2 else case.now_ms
    return replace(case, spoilt=spoilt, now_ms=moment)

"""The distinguishable classes of payloads: what a law can tell apart, one example of each.

A law sees a payload only through its tests. Values that no test tells apart are one class, of which one member stands
for all: every value of an axis at which a test changes, every jurisdiction that a test or a pack names and one that
none names, thresholds and their neighbours, `unknown`. Origins come alone and in pairs; where the end user is, where
the data was collected, categories, purpose, asset and counters vary one at a time from a plain base, because their
product would not end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, product

from orchestrator.policy.bundle import FOREVER_MS, Law
from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.facts import Declared
from orchestrator.policy.jurisdictions import ASSIGNED, Jurisdiction
from orchestrator.policy.labels import UNKNOWN_SET, Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import HOME, Subject, Test
from orchestrator.policy.vocabulary import Asset, Category, Purpose


@dataclass(frozen=True, slots=True)
class PayloadClass:
    """One class: a label, what the tenant says of itself, and counts; a count that is missing is unknown."""

    label: Effective
    critical_infrastructure: Declared = Declared.NO
    counts: Mapping[CounterKind, int] = field(default_factory=dict)

    def counters(self, now_ms: int) -> tuple[Counter, ...]:
        """Return the counts as facts that hold at `now_ms`."""
        return tuple(Counter(kind, count, now_ms, FOREVER_MS) for kind, count in self.counts.items())

    def severity(self) -> tuple[int, int, int]:
        """How much is at stake: the greater the worse."""
        return (int(self.label.personal), int(self.label.grade), int(self.label.domestic))

    def words(self) -> str:
        """The class as people read it: what differs from a plain payload."""
        label = self.label
        told = [f"personal={label.personal.word}", f"grade={label.grade.word}", f"origin={_set(label.origin)}"]
        if label.domestic is not Domestic.NO:
            told.append(f"domestic={label.domestic.word}")
        for name, members, plain in (
            ("located", label.located, label.origin),
            ("collected", label.collected, label.origin),
            ("categories", label.categories, frozenset({Category.CONTACT.value})),
            ("purpose", label.purpose, _INFERENCE),
            ("asset", label.asset, _PAYLOAD),
        ):
            if members != plain and members:
                told.append(f"{name}={_set(members)}")
        if label.clean is not Clean.RAW:
            told.append(f"clean={label.clean.word}")
        if self.critical_infrastructure is not Declared.NO:
            told.append(f"critical_infrastructure={self.critical_infrastructure.word}")
        told += [f"{kind.value}={count}" for kind, count in self.counts.items() if count]
        return " ".join(told)


_INFERENCE = frozenset({Purpose.INFERENCE.value})
_PAYLOAD = frozenset({Asset.PAYLOAD.value})


def payload_classes(laws: Iterable[Law], more: Iterable[Jurisdiction] = ()) -> Iterator[PayloadClass]:
    """Yield the classes that any of these laws tells apart. `more` names jurisdictions to be told apart besides."""
    laws = tuple(laws)
    tests = tuple(dict.fromkeys(_tests(laws)))
    atoms = jurisdiction_atoms(laws, tests, more)
    kinds = sorted({test.counter for test in tests if test.counter is not None}, key=lambda kind: kind.value)
    zero = dict.fromkeys(kinds, 0)
    declared = tuple(Declared) if _names(tests, Subject.CRITICAL_INFRASTRUCTURE) else (Declared.NO,)
    alone = [frozenset({atom}) for atom in atoms]
    pairs = [frozenset(pair) for pair in combinations(atoms, 2)]
    for personal, grade, domestic, critical in product(Personal, Grade, Domestic, declared):
        for origin in (*alone, *pairs):
            base = PayloadClass(_plain(personal, grade, domestic, origin), critical, zero)
            yield base
            if len(origin) == 1:
                yield from _variations(base, tests, atoms, kinds)


def jurisdiction_atoms(
    laws: Iterable[Law], tests: Iterable[Test], more: Iterable[Jurisdiction] = ()
) -> tuple[Jurisdiction, ...]:
    """Return one jurisdiction for each class that no test, no pack and no caller tells apart."""
    sets = [test.members for test in tests if test.subject not in _WORD_SETS]
    sets += [admitted.pack.jurisdictions for law in laws for admitted in law.packs]
    # A pack that speaks of HOME tells each of its own countries from all others; two of them stand for all.
    wanted = [frozenset({one}) for one in more]
    seen: dict[tuple[bool, ...], Jurisdiction] = {}
    for code in sorted(ASSIGNED):
        seen.setdefault(tuple(code in one for one in (*sets, *wanted)), code)
    return tuple(sorted(seen.values()))


_WORD_SETS = frozenset({Subject.CATEGORIES, Subject.PURPOSE, Subject.ASSET, Subject.ACTION, Subject.LEG})


def _tests(laws: Iterable[Law]) -> Iterator[Test]:
    for law in laws:
        for admitted in law.packs:
            for rule in admitted.pack.rules:
                for test in (*rule.when, *rule.unless):
                    yield replace(test, members=test.members - {HOME}) if HOME in test.members else test


def _plain(personal: Personal, grade: Grade, domestic: Domestic, origin: frozenset[Jurisdiction]) -> Effective:
    """A payload about which everything is said, and nothing special."""
    categories = frozenset({Category.CONTACT.value}) if personal else frozenset()
    return Effective(
        personal=personal,
        grade=grade,
        domestic=domestic,
        origin=origin,
        clean=Clean.RAW,
        categories=categories,
        located=origin,
        collected=origin,
        purpose=_INFERENCE,
        asset=_PAYLOAD,
    )


def _variations(
    base: PayloadClass, tests: tuple[Test, ...], atoms: tuple[Jurisdiction, ...], kinds: list[CounterKind]
) -> Iterator[PayloadClass]:
    label = base.label
    for place in (*(frozenset({atom}) for atom in atoms), UNKNOWN_SET):
        if place == label.origin:
            continue
        # Where the end user is brings its law, so every jurisdiction counts; of collection only those that tests name.
        yield replace(base, label=replace(label, located=place))
        if place == UNKNOWN_SET or _named(place, tests, Subject.COLLECTED):
            yield replace(base, label=replace(label, collected=place))
    for categories in _word_sets(tests, Subject.CATEGORIES):
        if categories != label.categories:
            yield replace(base, label=replace(label, categories=categories))
    for purpose in _word_sets(tests, Subject.PURPOSE):
        if purpose != label.purpose:
            yield replace(base, label=replace(label, purpose=purpose))
    for asset in _word_sets(tests, Subject.ASSET):
        if asset != label.asset:
            yield replace(base, label=replace(label, asset=asset))
    if _names(tests, Subject.CLEAN):
        for clean in Clean:
            if clean is not label.clean:
                yield replace(base, label=replace(label, clean=clean))
    yield from _counted(base, tests, kinds)


def _counted(base: PayloadClass, tests: tuple[Test, ...], kinds: list[CounterKind]) -> Iterator[PayloadClass]:
    """Each threshold with its neighbours, each counter unknown, and all unknown."""
    for kind in kinds:
        thresholds = {test.rank for test in tests if test.counter is kind}
        for count in sorted({max(0, t + step) for t in thresholds for step in (-1, 0, 1)} - {0}):
            yield replace(base, counts={**base.counts, kind: count})
        yield replace(base, counts={other: count for other, count in base.counts.items() if other is not kind})
    if len(kinds) > 1:
        yield replace(base, counts={})


def _word_sets(tests: tuple[Test, ...], subject: Subject) -> Iterator[frozenset[str]]:
    """Each word that a test names, and `unknown`."""
    for word in sorted({member for test in tests if test.subject is subject for member in test.members}):
        yield frozenset({word})
    yield UNKNOWN_SET


def _names(tests: tuple[Test, ...], subject: Subject) -> bool:
    return any(test.subject is subject for test in tests)


def _named(members: frozenset[str], tests: tuple[Test, ...], subject: Subject) -> bool:
    return any(test.subject is subject and members & test.members for test in tests)


def _set(members: Iterable[str]) -> str:
    return ",".join(sorted(members))

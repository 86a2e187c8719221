"""Which situations of a jurisdiction are asked one by one, and how many there are.

Where the full product of all axes is small it is asked in full. Where it is not, values that no test of the law tells
apart are merged, if the product of the rest is small. Else (China, the United States) no product of everything ends,
and the product is taken rule by rule: whatever a rule reads varies together, and everything else is quiet. The two
readings are compared by the rules that they name, so no rule can hide behind another one.

Wherever something was merged, every single value is asked as well, with every merged value of the other axes that its
rule reads; and every single value of every axis alone, where everything else is quiet and where it is loud.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from random import Random

from orchestrator.policy.bundle import Law
from orchestrator.policy.counters import CounterKind
from orchestrator.policy.facts import Declared
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Grade, Personal
from orchestrator.policy.places import Action, Leg
from orchestrator.policy.vocabulary import UNKNOWN
from tests.third_opinion.axes import Axis, Scope, Value, Values, axes_of, case_of
from tests.third_opinion.cases import Case, Site
from tests.third_opinion.translate import read_rules

FULL_MAX = 12_000
"""Up to so many situations a product is asked without merging."""
MERGED_MAX = 30_000
"""Up to so many it is asked with merging."""
DRAWN = 2_000
"""How many of the full product are drawn where it is not asked in full; the same on each run."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of one jurisdiction."""

    jurisdiction: Jurisdiction
    how: str
    full: int
    """The size of the product without merging."""
    cases: tuple[Case, ...]

    def line(self) -> str:
        """Return the plan as a line for people."""
        return f"{self.jurisdiction}: {len(self.cases):>7,} situations asked, {self.how} (full product {self.full:,})"


def plan_of(law: Law, jurisdiction: Jurisdiction) -> Plan:
    """Return the distinguishable situations of a jurisdiction that are asked."""
    rules = read_rules(law, jurisdiction)
    axes = axes_of(rules, jurisdiction)
    bases = (_quiet(jurisdiction, axes), _loud(jurisdiction, axes))
    full = prod(len(axis.values) for axis in axes)
    found = _Collected(axes, jurisdiction)
    for base in bases:
        for axis in axes:
            found.add(base, (axis,), ((value,) for value in (*axis.values, *axis.extra)))
    if full <= FULL_MAX:
        how = "full product"
        found.add(bases[0], axes, product(*(axis.values for axis in axes)))
        return Plan(jurisdiction, how, full, found.cases())
    scope = Scope(rules)
    merged = [scope.merged(axis) for axis in axes]
    how = "rule by rule"
    if prod(map(len, merged)) <= MERGED_MAX:
        how = "product of merged values, and rule by rule"
        found.add(bases[0], axes, product(*merged))
    for read in rules:
        one = Scope((read,))
        _by_rule(found, one, [axis for axis in axes if one.reads(axis.name)], bases[0])
    chance = Random(1)
    found.add(bases[0], axes, ([chance.choice(axis.values) for axis in axes] for _ in range(DRAWN)))
    return Plan(jurisdiction, f"{how}, and {DRAWN:,} drawn", full, found.cases())


def quiet_case(law: Law, jurisdiction: Jurisdiction) -> Case:
    """Return the quiet base of a jurisdiction as a case: processing at home, with every paper."""
    return case_of(_quiet(jurisdiction, axes_of(read_rules(law, jurisdiction), jurisdiction)), jurisdiction)


def near_cases(law: Law, jurisdiction: Jurisdiction, drawn: int, seed: int) -> tuple[Case, ...]:
    """Return every value of every axis alone, in a quiet situation, and some of the full product by chance."""
    axes = axes_of(read_rules(law, jurisdiction), jurisdiction)
    quiet, loud = _quiet(jurisdiction, axes), _loud(jurisdiction, axes)
    found = _Collected(axes, jurisdiction)
    for axis in axes:
        found.add(quiet, (axis,), ((value,) for value in (*axis.values, *axis.extra)))
    chance = Random(seed)
    for base in (quiet, loud):
        rows = ([chance.choice((*axis.values, *axis.extra)) for axis in axes] for _ in range(drawn // 2))
        found.add(base, axes, rows)
    return found.cases()


def _by_rule(found: _Collected, scope: Scope, axes: Sequence[Axis], base: Values) -> None:
    """Add the product of what one rule reads: each value of each axis, with the merged values of the others."""
    merged = [scope.merged(axis, answered=True) for axis in axes]
    for index, axis in enumerate(axes):
        values: list[tuple[Value, ...]] = list(merged)
        values[index] = (*axis.values, *axis.extra)
        found.add(base, axes, product(*values))


class _Collected:
    """Situations, each once."""

    def __init__(self, axes: Sequence[Axis], home: Jurisdiction) -> None:
        self._names = tuple(axis.name for axis in axes)
        self._home = home
        self._seen: dict[tuple[Value, ...], Values] = {}

    def add(self, base: Values, axes: Sequence[Axis], rows: Iterable[Sequence[Value]]) -> None:
        """Add the situations that differ from a base in these values of these axes."""
        for row in rows:
            values = base | dict(zip((axis.name for axis in axes), row, strict=True))
            # What no axis is for, no rule reads: two bases that differ in that alone are one situation.
            self._seen.setdefault(tuple(values[name] for name in self._names), values)

    def cases(self) -> tuple[Case, ...]:
        """Return them."""
        return tuple(case_of(values, self._home) for values in self._seen.values())


def _quiet(home: Jurisdiction, axes: Sequence[Axis]) -> Values:
    """A payload about which everything is known and harmless, with every paper, to a place at home."""
    here = frozenset({str(home)})
    abroad = frozenset({_abroad(home)})
    base: Values = {
        "personal": Personal.PERSONAL,
        "grade": Grade.GENERAL,
        "domestic": Domestic.NO,
        "clean": Clean.ANONYMISED,
        "critical_infrastructure": Declared.NO,
        "categories": frozenset({"work"}),
        "origin": abroad,
        "located": abroad,
        "collected": abroad,
        "purpose": frozenset({"inference"}),
        "asset": frozenset({"payload"}),
        "processed_in": frozenset(),
        "movement": (Action.INFER, Leg.EDGE_TO_POOL),
        "target": Site(here, here),
        "source": Site(abroad, abroad),
    }
    last = {axis.name: axis.values[-1] for axis in axes}
    base |= {name: last[name] for name in ("held", "notices") if name in last}
    return base | {kind.value: 0 for kind in CounterKind}


def _loud(home: Jurisdiction, axes: Sequence[Axis]) -> Values:
    """A payload that meets every rule there is, without a paper, to a place abroad."""
    here = frozenset({str(home)})
    abroad = frozenset({_abroad(home)})
    unknown = frozenset({UNKNOWN})
    base = _quiet(home, axes) | {
        "personal": Personal.SENSITIVE,
        "grade": Grade.IMPORTANT,
        "domestic": Domestic.UNKNOWN,
        "clean": Clean.UNKNOWN,
        "critical_infrastructure": Declared.UNKNOWN,
        "categories": unknown,
        "origin": here,
        "located": unknown,
        "collected": unknown,
        "processed_in": unknown,
        "movement": (Action.RETURN, Leg.POOL_TO_EDGE),
        "target": Site(here | abroad, abroad),
        "source": Site(here, here),
    }
    first = {axis.name: axis.values[0] for axis in axes}
    base |= {name: first[name] for name in ("held", "notices") if name in first}
    return base | {kind.value: None for kind in CounterKind}


def _abroad(home: Jurisdiction) -> str:
    """A country that is of concern to many laws; for China, one that is not China."""
    return "SG" if home == "CN" else "CN"


def shipped_jurisdictions(law: Law) -> tuple[Jurisdiction, ...]:
    """Return one jurisdiction for each different set of packs that speak for some: the first in order."""
    found: dict[tuple[str, ...], Jurisdiction] = {}
    for jurisdiction in sorted(law.jurisdictions()):
        packs = tuple(one.pack.id for one in law.packs if jurisdiction in one.pack.jurisdictions)
        found.setdefault(packs, jurisdiction)
    return tuple(found.values())

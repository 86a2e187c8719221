"""The law compiled: one payload against every pool of an edge in one pass of integer operations.

A `RouteTable` holds, for one law, one edge and one list of pools, the packs in force at one time. Each rule has a mask
over pools, where its tests of the movement hold, and the bits of its tests of the payload (see `bits`). What is left
is to combine masks, jurisdiction by jurisdiction. Payloads with the same bits share an answer, which is remembered.

`permit` is the specification; tests hold this equal to it. Pure, apart from remembering answers, within bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.policy.bits import TestBits
from orchestrator.policy.bundle import AdmittedPack, Law
from orchestrator.policy.facts import ACTION_SETS, LEG_SETS, Facts
from orchestrator.policy.ids import PlaceId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import UNKNOWN_SET, Grade, Personal
from orchestrator.policy.packs import MOVEMENT_SETS, Effect, Mode, ObligationKind, Rule, Situation, Subject
from orchestrator.policy.pathways import Pathway, PathwayKind
from orchestrator.policy.permit import at_fault, deny, permit_route
from orchestrator.policy.places import Action, Leg, Place
from orchestrator.policy.verdicts import FAULT, Verdict
from orchestrator.policy.vocabulary import UNKNOWN

Key = TypeVar("Key")
Value = TypeVar("Value")

REMEMBERED_MAX = 4096
"""Answers, verdicts and pathways that a table remembers; beyond it, all of a kind are forgotten at once."""

TABLES_MAX = 256
"""Tables of single routes that a program holds: each keeps the law of a bundle alive, however old that is by now."""


@dataclass(frozen=True, slots=True)
class _Clause:
    """One rule on one leg."""

    effect: Effect
    needs: int
    """Bits of the tests of the payload that must be true."""
    unless: int
    """Bits of the tests that lift it when all are true; 0 for none."""
    where: int
    """Bits of the pools for which its tests of the movement hold."""
    pathways: tuple[frozenset[PathwayKind], ...]
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Leg:
    """One of the two movements of a route."""

    touched: dict[Jurisdiction, int]
    """By jurisdiction: the pools for which this leg touches it, whatever the payload."""
    clauses: dict[Jurisdiction, tuple[_Clause, ...]]
    """Only for jurisdictions for which a pack in force speaks."""
    soil: tuple[tuple[int, int], ...]
    """(bit of a test of `processed_in`, pools whose own soil satisfies it): the answer was processed there."""
    receiver: int | None
    """Which place receives: the number of the edge in masks of pathways on the way back, None for each pool."""


Held = tuple[tuple[PathwayKind, int], ...]


class RouteTable:
    """The law of one edge over its pools, as it is between two changes."""

    def __init__(self, law: Law, edge: Place, pools: Sequence[Place], now_ms: int) -> None:
        self.law = law
        self.edge = edge
        self.pools = tuple(pools)
        self.made_ms = now_ms
        self.valid_until_ms = law.next_change_ms(now_ms)
        """First moment at which the table must be made again: a pack comes into force or ends, or the law expires."""
        self.disagreements = 0
        """How often the table and `permit` differed: a bug, and a refusal."""
        self._all = (1 << len(self.pools)) - 1
        self._standing = _mask(bool(pool.soil()) for pool in self.pools) if edge.soil() else 0
        packs = {
            one: [read for read in law.packs_of(one) if read.pack.mode is Mode.ENFORCE and read.pack.in_force(now_ms)]
            for one in law.jurisdictions()
        }
        rules = {id(rule): rule for reads in packs.values() for read in reads for rule in read.pack.rules}
        tests = (
            test for rule in rules.values() for test in (*rule.when, *rule.unless) if test.subject not in MOVEMENT_SETS
        )
        self._bits = TestBits(tests)
        self._legs = (self._leg(Action.INFER, packs), self._leg(Action.RETURN, packs))
        self._covered: dict[Pathway, int] = {}
        self._answers: dict[tuple[object, ...], int] = {}
        self._verdicts: dict[tuple[Facts, int], tuple[int, Verdict]] = {}
        self._whole: dict[Facts, tuple[int, int, tuple[Verdict, ...]]] = {}
        """Of facts: when the law was asked, until when that holds, and what it said of every pool."""

    def allowed(self, facts: Facts, now_ms: int) -> int:
        """Return a bit per pool: whether the payload may go there and its answer may come back.

        0 when `now_ms` lies outside of the time of the table. For the reason of a refusal ask `permit_route`.
        """
        label, horizons = facts.label, self.law.horizons
        if not self.made_ms <= now_ms < self.valid_until_ms or now_ms >= horizons.not_after_ms:
            return 0
        if label.personal is Personal.UNKNOWN or label.grade is Grade.UNKNOWN:
            return 0
        if not label.origin or UNKNOWN in label.origin:
            return 0
        if now_ms >= horizons.regulated_until_ms and label.regulated():
            return 0
        true = self._bits.true(facts, now_ms)
        held = self._held(facts, now_ms) if facts.pathways else ()
        brought = (label.origin | label.located | facts.processed_in) - UNKNOWN_SET
        key = (true, brought, held, facts.notices)
        found = self._answers.get(key)
        if found is None:
            found = self._standing
            for leg in self._legs:
                found &= self._ask(leg, true, brought, held, facts)
            _remember(self._answers, key, found)
        return found

    def verdicts(self, facts: Facts, now_ms: int) -> tuple[Verdict, ...]:
        """Return the verdict about each pool, as `permit_route` gives it, and allowed only where the table agrees.

        A difference between the two is a bug, and is refused; so is whatever goes wrong in here. Verdicts are
        remembered until one can change.
        """
        try:
            if not self.made_ms <= now_ms < self.valid_until_ms:
                return (at_fault(),) * len(self.pools)  # another table's time: whoever asks must make that one
            whole = self._whole.get(facts)
            if whole is not None and whole[0] <= now_ms < whole[1]:
                return whole[2]
            return self._verdicts_of(facts, now_ms)
        except Exception:  # noqa: BLE001  # outermost: of a decision; what cannot be worked out is no
            return (at_fault(),) * len(self.pools)

    def _verdicts_of(self, facts: Facts, now_ms: int) -> tuple[Verdict, ...]:
        mask = self.allowed(facts, now_ms)
        found: list[Verdict] = []
        for index, pool in enumerate(self.pools):
            key = (facts, index)
            asked_ms, verdict = self._verdicts.get(key, (now_ms, None))
            if verdict is None or not asked_ms <= now_ms < verdict.valid_until_ms:
                verdict = permit_route(self.law, facts, self.edge, pool, now_ms)
                _remember(self._verdicts, key, (now_ms, verdict))
            if verdict.allowed is not bool(mask >> index & 1):
                self.disagreements += 1
                verdict = deny(FAULT, "Two readings of the law differ.", "The operator's attention.", now_ms)
            found.append(verdict)
        told = tuple(found)
        _remember(self._whole, facts, (now_ms, min((one.valid_until_ms for one in told), default=now_ms), told))
        return told

    def _leg(self, action: Action, packs: Mapping[Jurisdiction, Sequence[AdmittedPack]]) -> _Leg:
        out = action is Action.INFER
        situations = tuple(self._movement(pool, out) for pool in self.pools)
        touched = dict.fromkeys(self.edge.reach(), self._all)
        for index, pool in enumerate(self.pools):
            for jurisdiction in pool.reach():
                touched[jurisdiction] = touched.get(jurisdiction, 0) | 1 << index
        clauses: dict[Jurisdiction, tuple[_Clause, ...]] = {}
        made: dict[int, _Clause] = {}
        for jurisdiction, reads in packs.items():
            kept: list[_Clause] = []
            for read in reads:
                for rule in read.pack.rules:
                    if rule.effect is Effect.GRANT and jurisdiction not in read.grants_for:
                        continue
                    if id(rule) not in made:
                        made[id(rule)] = self._clause(rule, situations)
                    kept.append(made[id(rule)])
            clauses[jurisdiction] = tuple(clause for clause in kept if clause.where)
        soil = []
        for test, number in self._bits.number.items():
            if test.subject is Subject.PROCESSED_IN and not out:
                here = (Situation({}, {test.subject: pool.soil()}, {}) for pool in self.pools)
                soil.append((1 << number, _mask(test.holds(situation) for situation in here)))
        return _Leg(touched, clauses, tuple(soil), None if out else len(self.pools))

    def _movement(self, pool: Place, out: bool) -> Situation:
        source, target = (self.edge, pool) if out else (pool, self.edge)
        action, leg = (Action.INFER, Leg.EDGE_TO_POOL) if out else (Action.RETURN, Leg.POOL_TO_EDGE)
        sets: dict[Subject, frozenset[str]] = {
            Subject.TARGET: target.reach(),
            Subject.TARGET_SOIL: target.soil(),
            Subject.SOURCE: source.reach(),
            Subject.SOURCE_SOIL: source.soil(),
            Subject.ACTION: ACTION_SETS[action],
            Subject.LEG: LEG_SETS[leg],
        }
        return Situation({}, sets, {})

    def _clause(self, rule: Rule, situations: Sequence[Situation]) -> _Clause:
        moving = [test for test in rule.when if test.subject in MOVEMENT_SETS]
        needs = 0
        for test in rule.when:
            if test.subject not in MOVEMENT_SETS:
                needs |= 1 << self._bits.number[test]
        # Empty means no: a rule without a test never holds.
        where = _mask(bool(rule.when) and all(test.holds(one) for test in moving) for one in situations)
        notices = tuple(duty.argument for duty in rule.obligations if duty.kind is ObligationKind.NOTIFY)
        # An exemption that reads more than the payload is none here: the loader lets no such rule through.
        readable = all(test in self._bits.number for test in rule.unless)
        unless = sum(1 << self._bits.number[test] for test in dict.fromkeys(rule.unless)) if readable else 0
        return _Clause(rule.effect, needs, unless, where, rule.pathways, notices)

    def _held(self, facts: Facts, now_ms: int) -> Held:
        """Return, by kind of pathway, the places that one covers: a bit per pool, and one for the edge."""
        found: dict[PathwayKind, int] = {}
        for pathway in facts.pathways:
            if not pathway.covers_payload(facts.tenant.id, facts.role, facts.label, now_ms):
                continue
            mask = self._covered.get(pathway)
            if mask is None:
                mask = _mask(pathway.covers_place(place) for place in (*self.pools, self.edge))
                _remember(self._covered, pathway, mask)
            found[pathway.kind] = found.get(pathway.kind, 0) | mask
        return tuple(found.items())

    def _ask(self, leg: _Leg, true: int, brought: frozenset[Jurisdiction], held: Held, facts: Facts) -> int:
        """Return the pools for which every jurisdiction that this leg touches is satisfied."""
        papers = dict(held)
        if leg.receiver is not None:
            papers = {kind: self._all if mask >> leg.receiver & 1 else 0 for kind, mask in held}
        own = sum(bit for bit, _ in leg.soil)
        found = self._all
        for jurisdiction in {*leg.touched, *brought}:
            asked = self._all if jurisdiction in brought else leg.touched[jurisdiction]
            granted = refused = 0
            for clause in leg.clauses.get(jurisdiction, ()):
                if clause.needs & ~true & ~own or (clause.unless and not clause.unless & ~true):
                    continue
                where = self._where(leg, clause, true) if clause.needs & own else clause.where
                if clause.effect is Effect.GRANT:
                    granted |= where
                elif clause.effect is Effect.FORBID:
                    refused |= where
                elif clause.effect is Effect.REQUIRE:
                    refused |= where & ~self._satisfied(clause, papers)
                elif any(facts.notice(name) is None for name in clause.notices):
                    refused |= where
            found &= ~asked | (granted & ~refused)
            if not found:
                break
        return found

    def _where(self, leg: _Leg, clause: _Clause, true: int) -> int:
        """Return where a clause holds that reads where the answer was processed: each pool's own soil joins the set."""
        where = clause.where
        for bit, here in leg.soil:
            if clause.needs & bit:
                before = self._all if true & bit else 0
                where &= before | here if self._bits.rising & bit else before & here
        return where

    def _satisfied(self, clause: _Clause, papers: dict[PathwayKind, int]) -> int:
        """Return the pools for which the pathways of a requirement are held; for none when it names nothing."""
        found = self._all if clause.pathways else 0
        for any_of in clause.pathways:
            one = 0
            for kind in any_of:
                one |= papers.get(kind, 0)
            found &= one
        return found


class Tables:
    """Tables of single routes, made when they are first asked. One program keeps one."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[tuple[Law, PlaceId, PlaceId], RouteTable] = {}

    def permit_route(self, law: Law, facts: Facts, edge: Place, pool: Place, now_ms: int) -> Verdict:
        """Return the verdict of `permit.permit_route`, where the table agrees; a difference is refused."""
        key = (law, edge.id, pool.id)
        table = self._held.get(key)
        # The places are compared themselves: their ids may be of others by another fleet under the same law.
        alike = table is not None and table.edge is edge and table.pools[0] is pool
        if table is None or not alike or not table.made_ms <= now_ms < table.valid_until_ms:
            table = RouteTable(law, edge, (pool,), now_ms)
            _remember(self._held, key, table, TABLES_MAX)
        return table.verdicts(facts, now_ms)[0]


def _mask(bits: Iterable[bool]) -> int:
    found = 0
    for index, bit in enumerate(bits):
        if bit:
            found |= 1 << index
    return found


def _remember(memory: dict[Key, Value], key: Key, value: Value, most: int = REMEMBERED_MAX) -> None:
    if len(memory) >= most:
        memory.clear()
    memory[key] = value

"""Cedar's opinion and ours, on the same case, and the guards without which Cedar's means nothing.

In Cedar a `forbid` that cannot be evaluated is skipped, and the request may be allowed. So here nothing is asked
without a schema, every policy is validated before it is asked, and an answer with an error in it is no.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cedarpy
from cedarpy import AuthzResult, Decision

from orchestrator.policy.bundle import Law
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.permit import permit
from orchestrator.policy.verdicts import FAULT, NO_GRANT, NO_PACK
from tests.third_opinion.cases import Case, facts_of, movement_of
from tests.third_opinion.translate import Translation

BATCH = 2_000
_OF_NOBODY = frozenset({NO_GRANT, NO_PACK})
"""Refusals for want of a grant: Cedar denies then and names no policy."""


class UnsoundPoliciesError(ValueError):
    """Policies that do not fit their schema. They are never asked."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one reading says of one case."""

    allowed: bool
    rules: frozenset[str]
    """The grants of a yes; of a no, the rules that refuse, and none where nothing grants."""
    sound: bool = True
    """Whether the reading came to an answer at all."""
    house: bool = False
    """Of ours: refused before the packs were asked, so that no rule of theirs is named."""


class Cedar:
    """The law of one jurisdiction, asked of Cedar."""

    def __init__(self, translation: Translation) -> None:
        """Parse and validate. Raises UnsoundPoliciesError."""
        self.translation = translation
        self._schema = cedarpy.Schema.from_str(translation.schema)
        found = cedarpy.validate_policies(translation.policies, self._schema)
        if not found.validation_passed:
            raise UnsoundPoliciesError("; ".join(str(error) for error in found.errors))
        self._policies = cedarpy.PolicySet.from_str(translation.policies)
        self._entities = cedarpy.Entities.from_json_str("[]")

    def ask(self, cases: Sequence[Case]) -> list[Outcome]:
        """Return Cedar's opinion of each case."""
        return self.ask_requests([self.translation.request(case) for case in cases])

    def ask_requests(self, requests: Sequence[dict[str, str]]) -> list[Outcome]:
        """Return Cedar's opinion of each request."""
        found: list[Outcome] = []
        for start in range(0, len(requests), BATCH):
            batch = list(requests[start : start + BATCH])
            results = cedarpy.is_authorized_batch(batch, self._policies, self._entities, self._schema)
            found += [outcome_of(result) for result in results]
        return found


def outcome_of(result: AuthzResult) -> Outcome:
    """Return what a result of Cedar's means: yes only where it allows and nothing went wrong."""
    decision, diagnostics = result.decision, result.diagnostics
    sound = decision is not Decision.NoDecision and not diagnostics.errors
    rules = frozenset(diagnostics.id_annotations_by_reason.values())
    return Outcome(decision is Decision.Allow and sound, rules, sound)


class Ours:
    """The law of one jurisdiction, asked of `permit`."""

    def __init__(self, law: Law, jurisdiction: Jurisdiction) -> None:
        self.jurisdiction = jurisdiction
        self.law = Law((one for one in law.packs if jurisdiction in one.pack.jurisdictions), law.horizons)
        """Other jurisdictions refuse for want of a pack; what this one answers does not depend on it."""

    def ask(self, case: Case) -> Outcome:
        """Return our opinion of a case that touches the jurisdiction."""
        verdict = permit(self.law, facts_of(case), movement_of(case), case.now_ms)
        if FAULT in verdict.rules:
            return Outcome(False, frozenset(verdict.rules), sound=False)
        if not verdict.answers:
            return Outcome(False, frozenset(verdict.rules), house=True)
        answer = next(one for one in verdict.answers if one.jurisdiction == self.jurisdiction)
        if answer.reasons:
            return Outcome(False, frozenset(reason.rule for reason in answer.reasons) - _OF_NOBODY)
        return Outcome(True, frozenset(answer.grants))


@dataclass(frozen=True, slots=True)
class Difference:
    """A case of which the two readings say different things."""

    case: Case
    cedar: Outcome
    ours: Outcome


@dataclass(slots=True)
class Tally:
    """What a comparison saw."""

    asked: int = 0
    allowed: int = 0
    fired: set[str] = field(default_factory=set)
    """Every rule that decided a case, by Cedar's reading."""
    differences: list[Difference] = field(default_factory=list)


def compare(cedar: Cedar, ours: Ours, cases: Sequence[Case]) -> Tally:
    """Ask both about each case."""
    tally = Tally()
    for start in range(0, len(cases), BATCH):
        some = cases[start : start + BATCH]
        for case, theirs in zip(some, cedar.ask(some), strict=True):
            own = ours.ask(case)
            tally.asked += 1
            tally.allowed += theirs.allowed
            tally.fired |= theirs.rules
            if not agree(theirs, own):
                tally.differences.append(Difference(case, theirs, own))
    return tally


def agree(cedar: Outcome, ours: Outcome) -> bool:
    """Whether both came to the same answer, for the same rules. The house stops before packs name theirs."""
    if not (cedar.sound and ours.sound) or cedar.allowed is not ours.allowed:
        return False
    return ours.rules <= cedar.rules if ours.house else ours.rules == cedar.rules

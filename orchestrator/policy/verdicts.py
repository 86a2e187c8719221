"""Verdicts: what `permit` answers, with the reason for each jurisdiction that stood in the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.policy.ids import RuleId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.packs import Obligation
from orchestrator.policy.places import Action

# Rules of the house: what is refused before any pack is asked, or because none answers.
NO_PACK = RuleId("TG-NO-PACK")
NO_GRANT = RuleId("TG-NO-GRANT")
UNKNOWN_LABEL = RuleId("TG-UNKNOWN-LABEL")
EXPIRED = RuleId("TG-EXPIRED")
REGULATED_EXPIRED = RuleId("TG-REGULATED-EXPIRED")
NO_SOIL = RuleId("TG-NO-SOIL")
REVOKED = RuleId("TG-REVOKED")
NO_DISCHARGER = RuleId("TG-NO-DISCHARGER")
CLOCK_SKEW = RuleId("TG-CLOCK-SKEW")
FAULT = RuleId("TG-FAULT")
HOUSE_RULES = (
    NO_PACK,
    NO_GRANT,
    UNKNOWN_LABEL,
    EXPIRED,
    REGULATED_EXPIRED,
    NO_SOIL,
    REVOKED,
    NO_DISCHARGER,
    CLOCK_SKEW,
    FAULT,
)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one jurisdiction (or the house, when None) refuses."""

    rule: RuleId
    jurisdiction: Jurisdiction | None
    sentence: str
    needs: str
    """What would be needed; may be empty."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the law of one jurisdiction says of one movement."""

    jurisdiction: Jurisdiction | None
    """None for the house, while a verdict is made; no verdict holds such an answer."""
    action: Action
    grants: tuple[RuleId, ...]
    reasons: tuple[Reason, ...]
    """Empty when this jurisdiction is satisfied."""
    obligations: tuple[Obligation, ...]
    shadow: tuple[RuleId, ...]
    """Rules of packs in shadow mode that would have refused."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Allow or deny, with rule ids, obligations and how long it may be relied on."""

    allowed: bool
    rules: tuple[RuleId, ...]
    """When allowed: the grants relied on. When denied: the rules that refuse. Sorted, without repeats."""
    reasons: tuple[Reason, ...]
    """Empty when allowed."""
    obligations: tuple[Obligation, ...]
    valid_until_ms: int
    """First millisecond at which the verdict must be asked for again."""
    shadow: tuple[RuleId, ...] = ()
    """Rules of packs in shadow mode that would have refused."""
    answers: tuple[Answer, ...] = field(default=(), repr=False)
    """What each jurisdiction said, movement by movement; empty where the house refused before any was asked."""

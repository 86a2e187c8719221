"""Verdicts: what `permit` answers, with the reason for each jurisdiction that stood in the way."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.policy.ids import RuleId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.packs import Obligation

# Rules of the house: what is refused before any pack is asked, or because none answers.
NO_PACK = RuleId("TG-NO-PACK")
NO_GRANT = RuleId("TG-NO-GRANT")
UNKNOWN_LABEL = RuleId("TG-UNKNOWN-LABEL")
EXPIRED = RuleId("TG-EXPIRED")
REGULATED_EXPIRED = RuleId("TG-REGULATED-EXPIRED")
NO_SOIL = RuleId("TG-NO-SOIL")
REVOKED = RuleId("TG-REVOKED")
FAULT = RuleId("TG-FAULT")
HOUSE_RULES = (NO_PACK, NO_GRANT, UNKNOWN_LABEL, EXPIRED, REGULATED_EXPIRED, NO_SOIL, REVOKED, FAULT)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one jurisdiction (or the house, when None) refuses."""

    rule: RuleId
    jurisdiction: Jurisdiction | None
    sentence: str
    needs: str
    """What would be needed; may be empty."""


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

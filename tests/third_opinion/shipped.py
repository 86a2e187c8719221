"""The law that is shipped, as an operator's command reads it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from orchestrator.cli.law.lawbook import read_lawbook
from orchestrator.policy.bundle import Law
from orchestrator.policy.jurisdictions import Jurisdiction
from tests.third_opinion.cases import NOW_MS
from tests.third_opinion.opinion import Cedar, Ours
from tests.third_opinion.translate import translate

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "two-sides"
_CODES: Final = ("AE", "AR", "AT", "BR", "CN", "GB", "ID", "IN", "JP", "KR", "SA", "SG", "US", "VN")
JURISDICTIONS: Final = tuple(Jurisdiction(code) for code in _CODES)
"""One for each set of packs: AT stands for the EEA, AR for the countries of the default pack."""


@cache
def shipped_law() -> Law:
    """Return the law of both sides, as if issued at NOW_MS."""
    return read_lawbook(EXAMPLE, NOW_MS).bundle.law


@cache
def cedar_of(jurisdiction: Jurisdiction) -> Cedar:
    """Return Cedar with the shipped law of a jurisdiction."""
    return Cedar(translate(shipped_law(), jurisdiction))


@cache
def ours_of(jurisdiction: Jurisdiction) -> Ours:
    """Return `permit` with the shipped law of a jurisdiction."""
    return Ours(shipped_law(), jurisdiction)

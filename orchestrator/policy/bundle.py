"""The law as `permit` sees it: admitted packs and horizons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.packs import Pack

MINUTE_MS = 60_000
FRESH_MS = 15 * MINUTE_MS
REGULATED_MS = 24 * 60 * MINUTE_MS
NOT_AFTER_MS = 7 * 24 * 60 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class Horizons:
    """Until when a manifest may be relied on (DESIGN section 4). Unix ms; each is the first moment too late."""

    fresh_until_ms: int
    """After it: an alarm."""
    regulated_until_ms: int
    """After it: anything regulated is denied."""
    not_after_ms: int
    """After it: everything is denied."""

    @staticmethod
    def from_issue(issued_ms: int) -> Horizons:
        """Return the default horizons of a manifest that was issued at `issued_ms`."""
        return Horizons(issued_ms + FRESH_MS, issued_ms + REGULATED_MS, issued_ms + NOT_AFTER_MS)

    def within(self, other: Horizons) -> Horizons:
        """Return the earlier of each: an import never extends its owner's horizon, nor ours."""
        return Horizons(
            min(self.fresh_until_ms, other.fresh_until_ms),
            min(self.regulated_until_ms, other.regulated_until_ms),
            min(self.not_after_ms, other.not_after_ms),
        )


@dataclass(frozen=True, slots=True)
class AdmittedPack:
    """A pack whose signature was checked, with the jurisdictions under whose law its signer may grant."""

    pack: Pack
    grants_for: frozenset[Jurisdiction]


class Law:
    """Every admitted pack, found by jurisdiction. Immutable after construction."""

    __slots__ = ("_by_jurisdiction", "horizons", "packs")

    def __init__(self, packs: Iterable[AdmittedPack], horizons: Horizons) -> None:
        self.packs = tuple(packs)
        self.horizons = horizons
        found: dict[Jurisdiction, tuple[AdmittedPack, ...]] = {}
        for admitted in self.packs:
            for jurisdiction in admitted.pack.jurisdictions:
                found[jurisdiction] = (*found.get(jurisdiction, ()), admitted)
        self._by_jurisdiction = found

    def packs_of(self, jurisdiction: Jurisdiction) -> tuple[AdmittedPack, ...]:
        """Return the packs that speak for this jurisdiction; none means that nothing there is granted."""
        return self._by_jurisdiction.get(jurisdiction, ())

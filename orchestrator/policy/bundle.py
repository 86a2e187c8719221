"""The law as `permit` sees it: admitted packs and horizons."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace

from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.packs import Pack

MINUTE_MS = 60_000
FRESH_MS = 15 * MINUTE_MS
REGULATED_MS = 24 * 60 * MINUTE_MS
NOT_AFTER_MS = 7 * 24 * 60 * MINUTE_MS
FOREVER_MS = (1 << 53) - 1
"""The last moment that canonical JSON can name."""


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

    __slots__ = ("_by_jurisdiction", "_changes_ms", "horizons", "packs")

    def __init__(self, packs: Iterable[AdmittedPack], horizons: Horizons) -> None:
        self.packs = tuple(packs)
        self.horizons = horizons
        found: dict[Jurisdiction, tuple[AdmittedPack, ...]] = {}
        for admitted in self.packs:
            for jurisdiction in admitted.pack.jurisdictions:
                read = replace(admitted, pack=admitted.pack.at(jurisdiction))
                found[jurisdiction] = (*found.get(jurisdiction, ()), read)
        self._by_jurisdiction = found
        dates = [date for one in self.packs for date in (one.pack.effective_from_ms, one.pack.effective_until_ms)]
        self._changes_ms = sorted({*(date for date in dates if date is not None), horizons.not_after_ms})

    def packs_of(self, jurisdiction: Jurisdiction) -> tuple[AdmittedPack, ...]:
        """Return the packs that speak for this jurisdiction, as it reads them; none means that nothing is granted."""
        return self._by_jurisdiction.get(jurisdiction, ())

    def jurisdictions(self) -> frozenset[Jurisdiction]:
        """Return every jurisdiction for which some pack speaks, in force or not."""
        return frozenset(self._by_jurisdiction)

    def next_change_ms(self, now_ms: int) -> int:
        """Return the first moment after `now_ms` at which a pack comes into force or ends, or the law expires."""
        index = bisect_right(self._changes_ms, now_ms)
        return self._changes_ms[index] if index < len(self._changes_ms) else FOREVER_MS

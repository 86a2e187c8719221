"""Labels: facts about a payload from a closed vocabulary, on ordered axes and in sets.

`personal` and `grade` are separate axes; no rule reads one as the other. `unknown` is the worst value of each axis, the
worst member of each set, and the default everywhere. Effective, per axis or set = (declared, else attested, else
unknown) join floor join detected. The subject's origin is the union of contract, soil of the edge and declared: a
header only adds (DESIGN section 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, TypeVar, cast

from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.vocabulary import SENSITIVE, UNKNOWN, Asset, Purpose

Value = TypeVar("Value", bound=IntEnum)
Member = TypeVar("Member", bound=str)


class Rank(IntEnum):
    """A value on an ordered axis. The greatest is `unknown`."""

    @property
    def word(self) -> str:
        """The value as people write it."""
        return self.name.lower()


class Personal(Rank):
    """How personal a payload is (GDPR art. 4 and 9; PIPL art. 4 and 28). Ordered."""

    NONE = 0
    PERSONAL = 1
    SENSITIVE = 2
    UNKNOWN = 3


class Grade(Rank):
    """How important a payload is to a state (GB/T 43697-2024). Ordered."""

    PUBLIC = 0
    GENERAL = 1
    IMPORTANT = 2
    CORE = 3
    UNKNOWN = 4


class Domestic(Rank):
    """Whether data from the pool's own country entered the payload (CAC Order 16 art. 4). Ordered."""

    NO = 0
    YES = 1
    UNKNOWN = 2


class Clean(Rank):
    """How much of a person is left in a payload. No value lowers `personal`: only a named transform does. Ordered."""

    ANONYMISED = 0
    DEIDENTIFIED = 1
    PSEUDONYMISED = 2
    TOKENISED = 3
    RAW = 4
    UNKNOWN = 5


PERSONAL_WORDS = {value.word: value for value in Personal}
GRADE_WORDS = {value.word: value for value in Grade}
DOMESTIC_WORDS = {value.word: value for value in Domestic}
CLEAN_WORDS = {value.word: value for value in Clean}

RANK_AXES: Final[dict[str, type[Rank]]] = {
    "personal": Personal,
    "grade": Grade,
    "domestic": Domestic,
    "clean": Clean,
}
"""The ordered axes, by the name of their field."""
SET_AXES: Final = ("categories", "origin", "located", "collected", "purpose", "asset")
"""The sets, by the name of their field."""

UNKNOWN_SET: Final[frozenset[Jurisdiction]] = frozenset({Jurisdiction(UNKNOWN)})


@dataclass(frozen=True, slots=True)
class Labels:
    """What one source says of a payload. None, and an empty origin, mean that it says nothing there."""

    personal: Personal | None = None
    grade: Grade | None = None
    domestic: Domestic | None = None
    origin: frozenset[Jurisdiction] = frozenset()
    """Jurisdictions of the subjects. Only ever added to."""
    clean: Clean | None = None
    categories: frozenset[str] | None = None
    """Values of `Category`, or `unknown`."""
    located: frozenset[Jurisdiction] | None = None
    """Jurisdictions in which the end user is, or `unknown`."""
    collected: frozenset[Jurisdiction] | None = None
    """Jurisdictions in which the data was collected, or `unknown`."""
    purpose: frozenset[str] | None = None
    """Values of `Purpose`, or `unknown`."""
    asset: frozenset[str] | None = None
    """Values of `Asset`, or `unknown`."""

    def implied_personal(self) -> Personal | None:
        """Return what the categories of this source say of `personal`, or None."""
        if not self.categories:
            return None
        sensitive = self.categories & SENSITIVE or UNKNOWN in self.categories
        return Personal.SENSITIVE if sensitive else Personal.PERSONAL


def at_inference(declared: Labels) -> Labels:
    """Return what a request at an inference endpoint declares by being there, where its header says nothing of it."""
    purpose = frozenset({Purpose.INFERENCE.value}) if declared.purpose is None else declared.purpose
    asset = frozenset({Asset.PAYLOAD.value}) if declared.asset is None else declared.asset
    return replace(declared, purpose=purpose, asset=asset)


@dataclass(frozen=True, slots=True)
class Effective:
    """What the law is asked about: every axis has a value."""

    personal: Personal = Personal.UNKNOWN
    grade: Grade = Grade.UNKNOWN
    domestic: Domestic = Domestic.UNKNOWN
    origin: frozenset[Jurisdiction] = frozenset()
    clean: Clean = Clean.UNKNOWN
    categories: frozenset[str] = UNKNOWN_SET
    located: frozenset[Jurisdiction] = UNKNOWN_SET
    collected: frozenset[Jurisdiction] = UNKNOWN_SET
    purpose: frozenset[str] = UNKNOWN_SET
    asset: frozenset[str] = UNKNOWN_SET

    def join(self, other: Effective) -> Effective:
        """Return the least label that is at least both: worst per axis, union per set."""
        return Effective(
            personal=max(self.personal, other.personal),
            grade=max(self.grade, other.grade),
            domestic=max(self.domestic, other.domestic),
            origin=self.origin | other.origin,
            clean=max(self.clean, other.clean),
            categories=self.categories | other.categories,
            located=self.located | other.located,
            collected=self.collected | other.collected,
            purpose=self.purpose | other.purpose,
            asset=self.asset | other.asset,
        )

    def regulated(self) -> bool:
        """Whether evidence must be durable before a byte leaves: personal, or graded above general, or unknown."""
        return self.personal >= Personal.PERSONAL or self.grade > Grade.GENERAL


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One source says less of an axis than the effective label holds. Names no value of the payload."""

    axis: str
    source: str
    """`declared` or `attested`: who said less."""
    said: str
    effective: str


@dataclass(frozen=True, slots=True)
class LabelSources:
    """Every voice on one payload, kept apart so that a mismatch between them can be seen."""

    declared: Labels = Labels()
    """By the request's header, and by the endpoint that it calls."""
    attested: Labels = Labels()
    """By the tenant's signed contract, for what is undeclared."""
    floor: Labels = Labels()
    """A minimum for the tenant or the edge."""
    detected: Labels = Labels()
    """By inspection; may only raise."""
    soil: frozenset[Jurisdiction] = frozenset()
    """Jurisdictions on whose soil the receiving edge stands."""

    def effective(self) -> Effective:
        """Return the label that the law is asked about."""
        raises = (self.floor, self.detected)
        said, attested = self.declared, self.attested
        personal = _first(said.personal, attested.personal, Personal.UNKNOWN)
        grade = _first(said.grade, attested.grade, Grade.UNKNOWN)
        domestic = _first(said.domestic, attested.domestic, Domestic.UNKNOWN)
        clean = _first(said.clean, attested.clean, Clean.UNKNOWN)
        # A category that makes a payload personal or sensitive is heard, whatever the axis says beside it.
        heard = said if said.categories is not None else attested
        implied = [voice.implied_personal() for voice in (heard, *raises)]
        return Effective(
            personal=max([personal, *(r.personal for r in raises if r.personal is not None), *filter(None, implied)]),
            grade=max([grade, *(r.grade for r in raises if r.grade is not None)]),
            domestic=max([domestic, *(r.domestic for r in raises if r.domestic is not None)]),
            origin=said.origin | attested.origin | self.floor.origin | self.detected.origin | self.soil,
            clean=max([clean, *(r.clean for r in raises if r.clean is not None)]),
            categories=_union(said.categories, attested.categories, *(r.categories for r in raises)),
            located=_union(said.located, attested.located, *(r.located for r in raises)),
            collected=_union(said.collected, attested.collected, *(r.collected for r in raises)),
            purpose=_union(said.purpose, attested.purpose, *(r.purpose for r in raises)),
            asset=_union(said.asset, attested.asset, *(r.asset for r in raises)),
        )

    def mismatches(self) -> tuple[Mismatch, ...]:
        """Return where the header, or the contract, says less than what counts: each is an event for operators.

        A header that stays below the contract is one as well, although it is heard: that is how a wrong label begins.
        """
        effective = self.effective()
        found: list[Mismatch] = []
        for source, labels in (("declared", self.declared), ("attested", self.attested)):
            for axis in RANK_AXES:
                said, counts = getattr(labels, axis), getattr(effective, axis)
                other = getattr(self.attested, axis) if source == "declared" else None
                least = counts if other is None else max(counts, other)
                if said is not None and said < least:
                    found.append(Mismatch(axis, source, said.word, least.word))
            for axis in SET_AXES:
                members = getattr(labels, axis)
                if not members:  # an empty set is said by nobody who means a payload; an origin only adds
                    continue
                other = getattr(self.attested, axis) if source == "declared" and axis != "origin" else None
                full = getattr(effective, axis) | (other or frozenset())
                if axis != "origin" and not full <= members:
                    found.append(Mismatch(axis, source, " ".join(sorted(members)), " ".join(sorted(full))))
        return tuple(found)


def _first(declared: Value | None, attested: Value | None, worst: Value) -> Value:
    if declared is not None:
        return declared
    return worst if attested is None else attested


def _union(
    declared: frozenset[Member] | None, attested: frozenset[Member] | None, *raises: frozenset[Member] | None
) -> frozenset[Member]:
    first = declared if declared is not None else attested
    found: frozenset[Member] = cast(frozenset[Member], UNKNOWN_SET) if first is None else first
    for more in raises:
        if more is not None:
            found |= more
    return found

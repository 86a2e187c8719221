"""Labels: facts about a payload from a closed vocabulary, on two ordered axes and in sets.

`personal` and `grade` are separate axes; no rule reads one as the other. `unknown` is the worst value of each and the
default everywhere. Effective, per axis = (declared, else attested, else unknown) join floor join detected. The
subject's origin is the union of contract, soil of the edge and declared: a header only adds (DESIGN section 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from orchestrator.policy.jurisdictions import Jurisdiction

Value = TypeVar("Value", bound=IntEnum)


class Personal(IntEnum):
    """How personal a payload is (GDPR art. 4 and 9; PIPL art. 4 and 28). Ordered."""

    NONE = 0
    PERSONAL = 1
    SENSITIVE = 2
    UNKNOWN = 3

    @property
    def word(self) -> str:
        """The value as people write it."""
        return self.name.lower()


class Grade(IntEnum):
    """How important a payload is to a state (GB/T 43697-2024). Ordered."""

    PUBLIC = 0
    GENERAL = 1
    IMPORTANT = 2
    CORE = 3
    UNKNOWN = 4

    @property
    def word(self) -> str:
        """The value as people write it."""
        return self.name.lower()


class Domestic(IntEnum):
    """Whether data from the pool's own country entered the payload (CAC Order 16 art. 4). Ordered."""

    NO = 0
    YES = 1
    UNKNOWN = 2

    @property
    def word(self) -> str:
        """The value as people write it."""
        return self.name.lower()


PERSONAL_WORDS = {value.word: value for value in Personal}
GRADE_WORDS = {value.word: value for value in Grade}
DOMESTIC_WORDS = {value.word: value for value in Domestic}


@dataclass(frozen=True, slots=True)
class Labels:
    """What one source says of a payload. None means that it says nothing on that axis."""

    personal: Personal | None = None
    grade: Grade | None = None
    domestic: Domestic | None = None
    origin: frozenset[Jurisdiction] = frozenset()
    """Jurisdictions of the subjects. Only ever added to."""


@dataclass(frozen=True, slots=True)
class Effective:
    """What the law is asked about: every axis has a value."""

    personal: Personal = Personal.UNKNOWN
    grade: Grade = Grade.UNKNOWN
    domestic: Domestic = Domestic.UNKNOWN
    origin: frozenset[Jurisdiction] = frozenset()

    def join(self, other: Effective) -> Effective:
        """Return the least label that is at least both: worst per axis, union of origins."""
        return Effective(
            max(self.personal, other.personal),
            max(self.grade, other.grade),
            max(self.domestic, other.domestic),
            self.origin | other.origin,
        )

    def regulated(self) -> bool:
        """Whether evidence must be durable before a byte leaves: personal, or graded above general, or unknown."""
        return self.personal >= Personal.PERSONAL or self.grade > Grade.GENERAL


@dataclass(frozen=True, slots=True)
class LabelSources:
    """Every voice on one payload, kept apart so that a mismatch between them can be seen."""

    declared: Labels = Labels()
    """By the request's header."""
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
        personal = _first(self.declared.personal, self.attested.personal, Personal.UNKNOWN)
        grade = _first(self.declared.grade, self.attested.grade, Grade.UNKNOWN)
        domestic = _first(self.declared.domestic, self.attested.domestic, Domestic.UNKNOWN)
        raises = (self.floor, self.detected)
        return Effective(
            max([personal, *(r.personal for r in raises if r.personal is not None)]),
            max([grade, *(r.grade for r in raises if r.grade is not None)]),
            max([domestic, *(r.domestic for r in raises if r.domestic is not None)]),
            self.declared.origin | self.attested.origin | self.floor.origin | self.detected.origin | self.soil,
        )


def _first(declared: Value | None, attested: Value | None, worst: Value) -> Value:
    if declared is not None:
        return declared
    return worst if attested is None else attested

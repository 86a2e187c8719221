"""The shapes of a pack file, as people write it. What they mean is in `packs`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orchestrator.files.fields import Count, CountOrZero, Day, LabelsDocument, Text, Version, Written
from orchestrator.policy.counters import CounterKind
from orchestrator.policy.packs import Confidence, Effect, Mode
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.places import Action, Leg

Codes = tuple[str, ...]
"""Jurisdictions, the group EEA, HOME for the one that is asked, or names of the pack's own lists; for other sets, words
of the vocabulary."""


class Expect(Enum):
    """What a test vector expects of the condition of its rule."""

    HOLDS = "holds"
    NOT = "not"


class RankComparison(Written, frozen=True):
    """A comparison on an ordered axis; exactly one of the two."""

    at_most: str | UnsetType = UNSET
    at_least: str | UnsetType = UNSET


class SetComparison(Written, frozen=True):
    """A comparison of a set; exactly one of the four."""

    within: Codes | UnsetType = UNSET
    beyond: Codes | UnsetType = UNSET
    touches: Codes | UnsetType = UNSET
    avoids: Codes | UnsetType = UNSET


class ActionComparison(Written, frozen=True):
    """The actions for which a test holds."""

    actions: tuple[Action, ...] = msgspec.field(name="in")


class LegComparison(Written, frozen=True):
    """The legs for which a test holds."""

    legs: tuple[Leg, ...] = msgspec.field(name="in")


class CounterComparison(Written, frozen=True):
    """A comparison of a counter; exactly one of `at_least` and `below`. An unknown count is at least anything."""

    name: CounterKind
    at_least: Count | UnsetType = UNSET
    below: Count | UnsetType = UNSET


class TestDocument(Written, frozen=True):
    """One test: exactly one subject with its comparison."""

    __test__ = False  # not a test of pytest

    personal: RankComparison | UnsetType = UNSET
    grade: RankComparison | UnsetType = UNSET
    domestic: RankComparison | UnsetType = UNSET
    clean: RankComparison | UnsetType = UNSET
    critical_infrastructure: RankComparison | UnsetType = UNSET
    categories: SetComparison | UnsetType = UNSET
    origin: SetComparison | UnsetType = UNSET
    located: SetComparison | UnsetType = UNSET
    collected: SetComparison | UnsetType = UNSET
    purpose: SetComparison | UnsetType = UNSET
    asset: SetComparison | UnsetType = UNSET
    processed_in: SetComparison | UnsetType = UNSET
    target: SetComparison | UnsetType = UNSET
    target_soil: SetComparison | UnsetType = UNSET
    source: SetComparison | UnsetType = UNSET
    source_soil: SetComparison | UnsetType = UNSET
    action: ActionComparison | UnsetType = UNSET
    leg: LegComparison | UnsetType = UNSET
    counter: CounterComparison | UnsetType = UNSET


class SourceDocument(Written, frozen=True):
    """Where a rule comes from; `dated` is the date of the instrument."""

    instrument: Text
    article: Text
    dated: Day


class ObligationDocument(Written, frozen=True):
    """A duty: exactly one of these."""

    retain: str | UnsetType = UNSET
    """Keep the records for an ISO 8601 duration in years, months and days."""
    prove_no_domestic_input: str | UnsetType = UNSET
    """Prove that no data of this country entered the request."""
    disclose: str | UnsetType = UNSET
    """Say this in a response header."""
    label: str | UnsetType = UNSET
    """Mark the answer with this in a response header."""
    notify: str | UnsetType = UNSET
    """The name of a notice that the tenant must have given."""


class AnyOfDocument(Written, frozen=True):
    """One of these pathways is enough."""

    any_of: tuple[PathwayKind, ...]


class VectorDocument(Written, frozen=True):
    """A case that shows what the condition of a rule means: a label, a movement, and whether the condition holds.

    What a label leaves out is unknown, except that it is for inference of a payload. Counters that are left out are
    unknown.
    """

    label: LabelsDocument
    source: Codes = msgspec.field(name="from")
    target: Codes
    action: Action
    expect: Expect
    target_access: Codes = ()
    """Jurisdictions whose staff can read what is at the target, beyond its soil."""
    leg: Leg | UnsetType = UNSET
    processed_in: Codes = ()
    asked: str | UnsetType = UNSET
    """What HOME is; left out: the first jurisdiction of the pack."""
    counters: dict[CounterKind, CountOrZero] = msgspec.field(default_factory=dict)
    critical_infrastructure: bool | UnsetType = UNSET


class RuleDocument(Written, frozen=True):
    """One sentence of law."""

    id: str
    effect: Effect
    when: tuple[TestDocument, ...]
    sentence: Text
    source: SourceDocument
    confidence: Confidence
    vectors: tuple[VectorDocument, ...]
    unless: tuple[TestDocument, ...] = ()
    """Where all of these hold, the rule does not; not in a grant."""
    exemption_obligations: tuple[ObligationDocument, ...] = ()
    """What is owed where `unless` lifts the rule."""
    needs: Text = ""
    requires: tuple[PathwayKind | AnyOfDocument, ...] = ()
    obligations: tuple[ObligationDocument, ...] = ()


class ListDocument(Written, frozen=True):
    """A list of jurisdictions that the rules name, with the day on which it was read."""

    name: str
    dated: Day
    members: Codes


class PackDocument(Written, frozen=True):
    """A pack. `version` is the version of the format, `revision` that of the pack."""

    version: Version
    id: str
    title: Text
    topic: str
    jurisdictions: Codes
    effective_from: Day
    mode: Mode
    rules: Annotated[tuple[RuleDocument, ...], Meta(min_length=0, max_length=500)]
    effective_until: Day | UnsetType = UNSET
    """First day on which it is no longer in force."""
    revision: Count = 1
    lists: tuple[ListDocument, ...] = ()

"""A side's own file: under whose law its root may grant, and on whose soil its places may stand."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.files.fields import Version, Written, read_jurisdictions, read_name
from orchestrator.policy.ids import SideId
from orchestrator.policy.jurisdictions import Jurisdiction


class SideDocument(Written, frozen=True):
    """`side.yaml` in a folder of declared files."""

    version: Version
    side: str
    jurisdictions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeclaredSide:
    """What a folder says of its side."""

    side: SideId
    jurisdictions: frozenset[Jurisdiction]


def side_of(document: SideDocument) -> DeclaredSide:
    """Return the side. Raises DomainError."""
    return DeclaredSide(
        SideId(read_name(document.side, ("side",))),
        read_jurisdictions(document.jurisdictions, ("jurisdictions",)),
    )
